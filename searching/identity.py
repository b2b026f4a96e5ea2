"""Whose vectors they are: a model is known by what decides its vectors, wherever it lies.

Unusual: nothing here knows how a model is loaded or asked, so that `app.py`, which has one already, can check it too.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from searching.store import Index


# Names of fields that decide nothing about vectors: of a processor, and of a configuration.
_ABOUT_FILES = re.compile(
    "_.*|auto_map|processor_class|name_or_path|is_local|local_files_only|.*version|backend|use_fast|chat_template"
)
_NOT_IN_VECTORS = re.compile(
    "_.*|.*version|architectures|auto_map|custom_pipelines|(torch_)?dtype|id2label|label2id|num_labels|problem_type|"
    "tasks|.*temperatures|thresholds|class_weights|output_attentions|output_hidden_states|return_dict|use_cache|"
    # read in training alone
    ".*dropout.*|layerdrop|initializer_.*|apply_spec_augment|mask_(time|feature)_.*|gradient_checkpointing|"
    "balance|ogm_alpha|contrastive_.*|label_smoothing|ordinal|subset_ranking_weight|unimodal_loss_weight"
)


def check_model(index: "Index", name: str, model, processor):
    """Refuse a model other than the one that made an index: their vectors cannot be compared.

    Args:
        index: whose vectors are searched.
        name: what the model is called in the message.
        model, processor: what is asked.

    Raises:
        ValueError: When it is another model.
    """
    if fingerprint(model, processor) != index.model["fingerprint"]:
        at = f" at revision {index.model['revision']}" if index.model["revision"] else ""
        raise ValueError(
            f"the index `{index.folder}` was made with another model than `{name}` is now: with "
            f"`{index.model['name']}`{at} as it was then. Give that one (`--model`), or build the index again."
        )


def fingerprint(model, processor) -> str:
    """Return a hash of all that decides the vectors of a model.

    That is: the weights of towers and fusion, their architecture, and how inputs are prepared for them: the whole
    configuration of the processor with the rules of the tokenizer. It is not: where the model lies, the version of a
    library, the head with its labels and temperatures, and what only a training reads.
    """
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.base_model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    prepared = {
        "architecture": architecture(model.config),
        "processor": _without(processor.to_dict(), _ABOUT_FILES),
        "tokenizer": None if processor.tokenizer is None else tokenizer_rules(processor.tokenizer),
    }
    digest.update(json.dumps(prepared, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def architecture(config) -> dict[str, Any]:
    """Return what a configuration says about vectors, as far as it is not the default: a new version adds defaults."""
    towers = {name: getattr(config, name, None) for name in config.sub_configs}
    parts = {name: tower.to_diff_dict() for name, tower in towers.items() if tower is not None}
    own = {name: value for name, value in config.to_diff_dict().items() if name not in towers}
    return {"own": _without(own, _NOT_IN_VECTORS)} | {
        name: _without(part, _NOT_IN_VECTORS) for name, part in parts.items()
    }


def tokenizer_rules(tokenizer) -> dict[str, Any]:
    """Return what decides the tokens of a text: vocabulary, normalizer, splitting, special tokens, and sides."""
    sides = {name: getattr(tokenizer, name, None) for name in ("padding_side", "truncation_side", "pad_token_id")}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # a slow tokenizer: its rules are what it was made with
        made_with = _without(tokenizer.init_kwargs, re.compile(f"{_ABOUT_FILES.pattern}|.*_file"))
        return sides | {"vocabulary": sorted(tokenizer.get_vocab().items()), "made_with": made_with}
    rules = json.loads(backend.to_str())
    # These two are set anew at every call; and decoding tokens is not asked for.
    return sides | {name: rule for name, rule in rules.items() if name not in ("padding", "truncation", "decoder")}


def _without(given: Any, left_out: re.Pattern) -> Any:
    """Return the same without keys of these names, at any depth, and without those that are None."""
    if isinstance(given, Mapping):
        kept = {str(name): value for name, value in given.items() if value is not None}
        return {name: _without(value, left_out) for name, value in kept.items() if not left_out.fullmatch(name)}
    return [_without(value, left_out) for value in given] if isinstance(given, (list, tuple)) else given
