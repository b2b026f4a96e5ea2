"""What the Hub reads from a repository's files: the card's front matter, its checks, and the tags that follow from it.

The checks are those that stop an upload on the Hub and can be told without its lists of licences and languages.
"""

import json
import re

import yaml
from huggingface_hub.repocard_data import model_index_to_eval_results

from .storage import Blobs, Commit

FRONT_MATTER = re.compile(r"\A\ufeff?\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
LISTS_OF_TEXT = ("tags", "datasets", "metrics", "language", "base_model", "models", "license")
TEXTS = ("pipeline_tag", "library_name", "license_name", "license_link", "sdk_version", "app_file", "title")
SPACE_SDKS = ("gradio", "streamlit", "docker", "static")
COLORS = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")
MAX_SHORT_DESCRIPTION = 60


def front_matter(text: str) -> dict | None:
    """The metadata on top of a card, None where there is none.

    Raises:
        ValueError: It is no YAML, or no mapping.
    """
    match = FRONT_MATTER.match(text)
    if match is None:
        return None
    try:
        data = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        raise ValueError(f"Invalid YAML: {error}") from error
    if data is None:
        return None
    if not isinstance(data, dict):
        raise ValueError(f"The metadata must be a mapping, it is a {type(data).__name__}")
    # Dates and the like become text, as the API's JSON has them.
    return json.loads(json.dumps(data, default=str))


def is_text(value) -> bool:
    return isinstance(value, str)


def is_texts(value) -> bool:
    return is_text(value) or (isinstance(value, list) and all(is_text(item) for item in value))


def space_errors(data: dict) -> list[str]:
    errors = [f'"{key}" must be one of [{", ".join(COLORS)}]'
              for key in ("colorFrom", "colorTo") if key in data and data[key] not in COLORS]  # fmt: skip
    if data.get("sdk") not in SPACE_SDKS:
        errors.append(f'"sdk" must be one of [{", ".join(SPACE_SDKS)}]')
    if len(str(data.get("short_description", ""))) > MAX_SHORT_DESCRIPTION:
        errors.append(f'"short_description" must not be longer than {MAX_SHORT_DESCRIPTION} characters')
    if not is_text(data.get("python_version", "")):
        errors.append('"python_version" must be a string')
    return errors


def model_index_errors(data: dict) -> list[str]:
    if data.get("model-index") is None:
        return []
    try:
        model_index_to_eval_results(data["model-index"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return [f'"model-index" is malformed: {type(error).__name__}: {error}']
    return []


def check_card(text: str, kind: str) -> tuple[list[str], list[str]]:
    """Errors and warnings, as `validate-yaml` gives them."""
    try:
        data = front_matter(text)
    except ValueError as error:
        return [str(error)], []
    if data is None:
        return [], ["empty or missing yaml metadata in repo card"]
    errors = [f'"{key}" must be a string' for key in TEXTS if key in data and not is_text(data[key])]
    errors += [f'"{key}" must be an array of strings'
               for key in LISTS_OF_TEXT if data.get(key) is not None and not is_texts(data[key])]  # fmt: skip
    errors += space_errors(data) if kind == "space" else []
    errors += model_index_errors(data) if kind == "model" else []
    return errors, []


def read_json(blobs: Blobs, commit: Commit, path: str) -> dict:
    """A small JSON file of a commit; {} where it is absent or not readable."""
    if path not in commit.tree:
        return {}
    try:
        data = json.loads(blobs.read(commit.tree[path]))
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


def card_data(blobs: Blobs, commit: Commit) -> dict:
    """The card's metadata at a commit; {} where there is none or it can't be read."""
    if "README.md" not in commit.tree:
        return {}
    try:
        return front_matter(blobs.read(commit.tree["README.md"]).decode("utf-8", "replace")) or {}
    except ValueError:
        return {}


def as_list(value) -> list[str]:
    return [str(item) for item in (value if isinstance(value, list) else [value]) if item is not None]


def library_of(card: dict, config: dict) -> str | None:
    """The card's word, else what the files look like."""
    if card.get("library_name"):
        return card["library_name"]
    return "transformers" if "model_type" in config or "architectures" in config else None


def tags_of(kind: str, card: dict, config: dict, paths) -> list[str]:
    """Tags in the Hub's order: what the files show, the card's own, then those with a prefix."""
    tags = []
    if kind == "model":
        tags += as_list(library_of(card, config))
        tags += ["safetensors"] if any(path.endswith(".safetensors") for path in paths) else []
        tags += as_list(config.get("model_type"))
        tags += as_list(card.get("pipeline_tag"))
    tags += as_list(card.get("sdk")) if kind == "space" else []
    tags += as_list(card.get("tags"))
    tags += ["model-index"] if card.get("model-index") else []
    tags += ["custom_code"] if kind == "model" and config.get("auto_map") else []
    tags += as_list(card.get("language"))
    relation = card.get("base_model_relation")
    for base in as_list(card.get("base_model")):
        tags += [f"base_model:{base}", *([f"base_model:{relation}:{base}"] if relation else [])]
    tags += [f"dataset:{name}" for name in as_list(card.get("datasets"))] if kind == "model" else []
    tags += [f"license:{name}" for name in as_list(card.get("license"))]
    return list(dict.fromkeys([*tags, "region:us"]))
