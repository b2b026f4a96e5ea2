"""A model folder as it will be published: the files that a stranger needs and no other, with a card and pictures.

What is not on the list of files stays here: an optimizer, a log or a `.env` beside the weights is nobody's business.
"""

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path

from cli.files import write_json

# Files of a model folder that are published, beside the Python files that its `auto_map` names.
WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "vocab.json", "merges.txt", "*.model", "chat_template.jinja",
)  # fmt: skip
SETTINGS = ("config.json", "processor_config.json", "training_config.json", "metrics.json")
# What an earlier push may have left in the repository and this one replaces or removes.
OURS = (*WEIGHTS, *TOKENIZER, *SETTINGS, "*_mmfusion.py", "README.md", "*.png")
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".h5", ".msgpack")
AUTO_CLASSES = ("AutoConfig", "AutoModel", "AutoModelForSequenceClassification")


def export_model(
    source: Path, folder: Path, *, repo_id: str, license: str | None = None, space_id: str | None = None
) -> list[str]:
    """Fill an empty folder with what will be published of a model folder.

    Args:
        source: The folder that `train.py` wrote.
        folder: An empty folder.
        repo_id: Where the model will be found, for the card.
        license: Identifier of the licence of the weights, for the card; None: what the training stated, if anything.
        space_id: The Space that shows the model, for the card.

    Returns:
        The names of files and folders of `source` that are not published.

    Raises:
        FileNotFoundError: `source` is no folder, or files of a model are not in it.
        ValueError: `source` holds a pickle, another model, or files that are not what they should be.
    """
    from hub.card import render_model_card
    from hub.facts import read_facts
    from hub.pictures import draw_pictures

    names = files_to_publish(source)
    for name in names:
        shutil.copyfile(source / name, folder / name)
    if license is not None:
        write_json(folder / "training_config.json", {**read_json(source, "training_config.json"), "license": license})
    tasks = read_facts(source).each_task()
    pictures = [name for one in tasks for name in draw_pictures(one.metrics, one.labels, folder, one.prefix)]
    card = render_model_card(folder, repo_id=repo_id, space_id=space_id, pictures=pictures)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return sorted(path.name for path in source.iterdir() if path.name not in {*names, "README.md", *pictures})


def files_to_publish(source: Path) -> list[str]:
    """Names of the files of a model folder that a stranger needs; refuses a folder in which one of them is missing."""
    if not source.is_dir():
        what = "is a file" if source.exists() else "does not exist"
        raise FileNotFoundError(f"the model folder `{source}` {what}: give a folder that `train.py` wrote.")
    _refuse_pickles(source)
    config = _checked_config(source)
    has_processor = (source / "processor_config.json").is_file()
    code = code_files(source, config, read_json(source, "processor_config.json") if has_processor else {})
    present = {path.name for path in source.iterdir() if path.is_file()}
    allowed = (*WEIGHTS, *TOKENIZER, *SETTINGS, *code)
    missing = [*SETTINGS, *code, *_weights_of(source)]
    if config.get("text_config"):
        missing += ["tokenizer_config.json", "tokenizer.json"]
    if missing := sorted({name for name in missing if name not in present}):
        raise FileNotFoundError(
            f"the model folder `{source}` is not whole: {', '.join(f'`{name}`' for name in missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing. Train again, or copy the whole folder. Nothing was "
            "pushed."
        )
    _check_weights(source)
    return sorted(name for name in present if any(fnmatch(name, pattern) for pattern in allowed))


def read_json(source: Path, name: str) -> dict:
    """The content of a JSON file of the model folder.

    Raises:
        ValueError: It is no JSON object; the message names the file.
    """
    try:
        content = json.loads((source / name).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"`{source / name}` is not valid JSON ({error}): train again, or copy it again.") from None
    if not isinstance(content, dict):
        raise ValueError(f"`{source / name}` holds a {type(content).__name__}, not an object: train again.")
    return content


def _refuse_pickles(source: Path) -> None:
    pickles = sorted(path.name for path in source.iterdir() if path.suffix.lower() in PICKLES)
    if pickles:
        listed = ", ".join(f"`{name}`" for name in pickles)
        raise ValueError(
            f"the model folder `{source}` holds {listed}: files of this kind can run code when they are opened. Only "
            "safetensors are published; remove them (or move them elsewhere) and push again. Nothing was pushed."
        )


def _checked_config(source: Path) -> dict:
    if not (source / "config.json").is_file():
        raise FileNotFoundError(
            f"the model folder `{source}` has no `config.json`: give the folder that `train.py` wrote."
        )
    config = read_json(source, "config.json")
    if config.get("model_type") != "mmfusion":
        raise ValueError(
            f"`{source}` holds a `{config.get('model_type')}` model: give an MMFusion model, as `train.py` writes it."
        )
    auto_map = config.get("auto_map") or {}
    missing = [name for name in AUTO_CLASSES if name not in auto_map]
    missing += [] if config.get("custom_pipelines") else ["custom_pipelines"]
    if missing:
        raise ValueError(
            f"`{source / 'config.json'}` does not say where {', '.join(f'`{name}`' for name in missing)} is found, so "
            "that nobody could load the model from the Hub: save it with `train.py`. Nothing was pushed."
        )
    return config


def code_files(source: Path, config: dict, processor: dict) -> set[str]:
    """Names of the Python files that are run by whoever loads the model, and of those that these import.

    Args:
        source: The model folder.
        config, processor: What `config.json` and `processor_config.json` hold.
    """
    named = [*(config.get("auto_map") or {}).values(), *(processor.get("auto_map") or {}).values()]
    named += [task["impl"] for task in (config.get("custom_pipelines") or {}).values()]
    return _with_imports(source, [str(name).split("--")[-1].split(".")[0] for name in named])


def _with_imports(source: Path, modules: list[str]) -> set[str]:
    """The files of modules and those beside them that they import, however far; those that are missing, too."""
    from transformers.dynamic_module_utils import get_relative_imports

    found, unread = set(), set(modules)
    while unread:
        file = source / f"{unread.pop()}.py"
        found.add(file.name)
        inner = get_relative_imports(file) if file.is_file() else []
        unread |= {module for module in inner if f"{module}.py" not in found}
    return found


def _weights_of(source: Path) -> list[str]:
    """Names of the weight files that must be there: the one file, or the index and every shard that it names."""
    index = source / "model.safetensors.index.json"
    if (source / "model.safetensors").is_file() or not index.is_file():
        return ["model.safetensors"]
    return sorted(set(read_json(source, index.name).get("weight_map", {}).values()))


def _check_weights(source: Path) -> None:
    """Open every weight file: one that was cut off is found by its header."""
    from safetensors import SafetensorError, safe_open

    for name in _weights_of(source):
        try:
            with safe_open(source / name, framework="np"):
                pass
        except SafetensorError as error:
            raise ValueError(
                f"`{source / name}` is not whole or no safetensors file ({error}): train or copy it again. Nothing "
                "was pushed."
            ) from None
