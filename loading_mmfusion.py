"""Pretrained towers as they are published: which files hold the weights, by which names, and whether all arrived.

`transformers` fills what a checkpoint lacks with random numbers and says so in a log line. Here a tower is whole or an
error: weights under a prefix of their own are found, and what is missing is named.

This file travels to the Hub beside the weights.
"""

import contextlib
import os
import pickle
import re
from collections import Counter
from collections.abc import Iterator

import torch
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import logging

try:
    from .towers_mmfusion import tower_class, why_not, without_pooler
except ImportError:
    if __package__:  # inside the Hub cache this is a real failure: show it
        raise
    from towers_mmfusion import tower_class, why_not, without_pooler

logger = logging.get_logger(__name__)

# A model of several encoders has the configuration of each in a field.
PARTS = {"text": "text_config", "image": "vision_config", "audio": "audio_config"}
# Weights that no tower here uses: poolers, masked inputs of a pretraining, counters, and positions that are computed.
UNUSED = re.compile(
    r"(^|\.)(pooler|masked_spec_embed|mask_token|position_ids|num_batches_tracked|relative_position_index)(\.|$)"
)
MAX_NAMED = 3


def load_tower_config(name_or_path: str, modality: str | None = None, **kwargs):
    """Load the configuration of a tower; of a model of several encoders (CLIP, SigLIP) that of the encoder asked for.

    Args:
        name_or_path: Hub id or folder.
        modality: `text`, `image` or `audio`; None: the model is the tower.
        **kwargs: For `AutoConfig.from_pretrained`.
    """
    config = AutoConfig.from_pretrained(name_or_path, **{**kwargs, "trust_remote_code": False})
    if modality is not None and why_not(config, modality):
        part = getattr(config, PARTS[modality], None)
        if part is not None and why_not(part, modality) is None:
            return part
    return config


def load_tower(
    name_or_path: str, modality: str | None = None, *, allow_missing_weights: bool = False, **kwargs
) -> PreTrainedModel:
    """Load a pretrained tower, in float32, never with code of its own and never from a plain pickle.

    Weights are taken from safetensors files, else from `pytorch_model.bin` through torch's restricted loader.

    Args:
        name_or_path: Hub id or folder.
        modality: `text`, `image` or `audio`; chooses the encoder of a model of several.
        allow_missing_weights: Whether weights that the checkpoint lacks, or has in other sizes, start random.
        **kwargs: For `from_pretrained` (`token`, `revision`, `cache_dir` …).

    Raises:
        ValueError: Weights are missing or of other sizes, or the file holds something else than weights.
        OSError: There are none.
    """
    config = load_tower_config(name_or_path, modality, **kwargs)
    tower, missing, info = _load(name_or_path, config, kwargs)
    base = f"{type(tower).base_model_prefix}."  # which transformers 4 has taken off the names, and wants to find there
    prefixes = _prefixes(info, missing)
    for prefix, stays in [*((prefix, "") for prefix in prefixes), *((base + prefix, base) for prefix in prefixes)]:
        other, lacking, _ = _load(name_or_path, config, kwargs, {f"^{re.escape(prefix)}": stays})
        if len(lacking) < len(missing):
            tower, missing = other, lacking
            logger.warning(f"the weights of `{name_or_path}` stand under `{prefix}`")
        if not missing:
            break
    if missing and not allow_missing_weights:
        raise ValueError(_describe_missing(name_or_path, config, missing, len(tower.state_dict())))
    return tower


def _load(
    name_or_path: str, config, kwargs: dict, key_mapping: dict[str, str] | None = None
) -> tuple[PreTrainedModel, list[str], dict]:
    """Return (tower, names of the weights that did not arrive, the library's report)."""
    model_class = tower_class(config)
    options = {"dtype": torch.float32, **kwargs, "config": config, "trust_remote_code": False}
    options |= {"weights_only": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
    if key_mapping:
        options["key_mapping"] = key_mapping
    with _no_conversion(), _quiet(), _describe_broken_file(name_or_path):
        tower, info = model_class.from_pretrained(name_or_path, **options, **without_pooler(model_class))
    mismatched = {entry if isinstance(entry, str) else entry[0] for entry in info["mismatched_keys"]}
    missing = sorted(key for key in {*info["missing_keys"], *mismatched} if not UNUSED.search(key))
    return tower, missing, info


def _prefixes(info: dict, missing: list[str]) -> list[str]:
    """Return prefixes of the checkpoint's names without which they would be the missing ones, the likeliest first."""
    wanted, counts = set(missing), Counter()
    for key in info["unexpected_keys"] if missing else ():
        parts = key.split(".")
        for depth in range(1, len(parts)):
            if ".".join(parts[depth:]) in wanted:
                counts[".".join(parts[:depth]) + "."] += 1
    return [prefix for prefix, count in counts.most_common(2) if count >= len(wanted) / 2]


def _describe_missing(name_or_path: str, config, missing: list[str], total: int) -> str:
    named = ", ".join(f"`{key}`" for key in missing[:MAX_NAMED])
    more = f" and {len(missing) - MAX_NAMED} more" if len(missing) > MAX_NAMED else ""
    return (
        f"{len(missing)} of {total} weights of the {config.model_type} encoder are not in `{name_or_path}`, or have "
        f"other sizes there: {named}{more}. Give the checkpoint that belongs to this configuration, or allow missing "
        "weights (`allow_missing_weights`) to start them random"
    )


@contextlib.contextmanager
def _describe_broken_file(name_or_path: str) -> Iterator[None]:
    """Say in a sentence that a file holds something else than tensors: the restricted loader refuses all of it."""
    try:
        yield
    except FileNotFoundError as error:
        file = os.path.basename(error.filename or "")
        raise ValueError(f"`{name_or_path}` lacks `{file}`, a part of its weights; download it again") from error
    except (pickle.UnpicklingError, EOFError, AttributeError, TypeError, KeyError, OSError, RuntimeError) as error:
        is_told = isinstance(error, OSError) and error.errno is None  # the library's own: no file, no connection
        if is_told or (isinstance(error, RuntimeError) and "PytorchStreamReader" not in str(error)):
            raise
        raise ValueError(
            f"the weights of `{name_or_path}` cannot be read: the file is damaged or holds something else than named "
            "tensors, which is never loaded. Download it again, or save the model as safetensors (`save_pretrained`)"
        ) from error


@contextlib.contextmanager
def _no_conversion() -> Iterator[None]:
    """Keep the library from having a `.bin` on the Hub converted, or from taking a conversion that others offered."""
    name = "DISABLE_SAFETENSORS_CONVERSION"
    before = os.environ.get(name)
    os.environ[name] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the library's report of names: what matters of it is an error here."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


__all__ = ["load_tower", "load_tower_config"]
