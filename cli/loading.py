"""A model, loaded the way a stranger loads it and refused when it is not whole.

`transformers` only warns about weights that are missing and says nothing about weights that are NaN; numbers measured
with such a model would look like numbers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cli.arguments import DEVICES, first_line


def load_model(model_name_or_path: str, *, revision: str | None = None, device: str = "auto"):
    """Load classifier and processor through the unmodified Auto classes, with their own remote code.

    Args:
        model_name_or_path: a folder that `train.py` wrote, or a Hub id. Its Python files are run.
        revision: commit, tag or branch on the Hub; None: the newest.
        device: one of `DEVICES`; auto: the accelerator where there is one.

    Returns:
        (model in eval mode on the device, processor).

    Raises:
        FileNotFoundError: When the folder, or its `config.json`, is not there.
        ValueError: When it cannot be loaded, is not an MMFusion classifier, or its weights are not whole and finite.
    """
    from transformers import AutoModelForSequenceClassification, AutoProcessor

    _check_folder(model_name_or_path)
    options = {"trust_remote_code": True, "revision": revision}
    with _one_sentence(model_name_or_path), quiet_warnings():
        model, info = AutoModelForSequenceClassification.from_pretrained(
            model_name_or_path, use_safetensors=True, output_loading_info=True, **options
        )
        processor = AutoProcessor.from_pretrained(model_name_or_path, **options)
    if not hasattr(model, "encode") or not hasattr(model.config, "modalities"):
        raise ValueError(
            f"`{model_name_or_path}` holds a `{model.config.model_type}` model: give an MMFusion model, "
            "as `train.py` writes it."
        )
    if not hasattr(processor, "modalities"):
        raise ValueError(
            f"`{model_name_or_path}` gave a {type(processor).__name__} where its processor was expected: its "
            '`processor_config.json` must name it under "auto_map", as `train.py` writes it.'
        )
    _check_whole(model_name_or_path, info)
    _check_finite(model_name_or_path, model)
    return model.to(pick_device(device)), processor


def load_pipeline(model_name_or_path: str, *, revision: str | None = None, device: str = "auto"):
    """Load the pipeline that travels with the model; arguments and errors as for `load_model`.

    `pipeline(model=name)` alone would load the weights without saying whether they were whole, so it gets the model
    that was checked.
    """
    from transformers import pipeline
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    model, processor = load_model(model_name_or_path, revision=revision, device=device)
    tasks = getattr(model.config, "custom_pipelines", None)
    if not tasks:
        raise ValueError(f"the config of `{model_name_or_path}` names no `custom_pipelines`: make it with `train.py`.")
    task, entry = next(iter(tasks.items()))
    with _one_sentence(model_name_or_path):
        pipeline_class = get_class_from_dynamic_module(entry["impl"], model_name_or_path, revision=revision)
    return pipeline(
        task, model=model, processor=processor, config=model.config, pipeline_class=pipeline_class, device=model.device
    )


def pick_device(device: str) -> str:
    """Turn `auto` into what there is.

    Raises:
        ValueError: When `device` is not in `DEVICES`, or no GPU is there although asked for.
    """
    import torch

    if device not in DEVICES:
        raise ValueError(f"`device` is {device!r}: choose one of {', '.join(DEVICES)}.")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("`device` is 'cuda', but torch sees no GPU: use `cpu` or `auto`.")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def _check_folder(name: str) -> None:
    """Say what is wrong with a path before it is taken for the name of a Hub repository."""
    folder = Path(name).expanduser()
    looks_like_path = name.count("/") > 1 or name.startswith((".", "/", "~")) or name.endswith("/")
    if not folder.exists() and not looks_like_path:
        return
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise FileNotFoundError(
            f"the model folder `{name}` {what}: give a folder that `train.py` wrote, or a Hub id (`owner/name`)."
        )
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"the model folder `{name}` has no `config.json`: give the folder that `train.py` wrote."
        )


@contextmanager
def _one_sentence(name: str) -> Iterator[None]:
    """Turn the many ways in which loading fails into one, keeping the reason's first line."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, ValueError, TypeError, AttributeError, ImportError, SafetensorError) as error:
        if isinstance(error, OSError) and not Path(name).expanduser().exists():
            raise FileNotFoundError(
                f"there is no folder `{name}` here, and no model of this name could be loaded from the Hub: check the "
                f"path or the id ({first_line(error)})"
            ) from error
        reason = first_line(error)
        raise ValueError(f"the model `{name}` cannot be loaded: {type(error).__name__}: {reason}") from error


@contextmanager
def quiet_warnings() -> Iterator[None]:
    """Silence the loading report: what it warns of is an error here, told in one sentence."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _check_whole(name: str, info: dict) -> None:
    problems = {what: sorted(map(str, keys)) for what, keys in info.items() if keys}
    if problems:
        told = "; ".join(f"{what.replace('_', ' ')}: {_some(keys)}" for what, keys in problems.items())
        raise ValueError(f"the weights of `{name}` do not fit its config ({told}): train or download it again.")


def _some(keys: list[str]) -> str:
    return ", ".join(f"`{key}`" for key in keys[:3]) + (f" and {len(keys) - 3:,} more" if len(keys) > 3 else "")


def _check_finite(name: str, model) -> None:
    broken = [
        key for key, tensor in model.state_dict().items() if tensor.is_floating_point() and not tensor.isfinite().all()
    ]
    if broken:
        raise ValueError(
            f"the weights of `{name}` are NaN or infinite in {_some(broken)}: the run that made them diverged, or the "
            "file is damaged; train or download it again."
        )
