# NOTE: read NOTE_FROM_THE_LEAD.txt in this folder first.
"""Loading of a pretrained tower: which files, which of their names, and that every weight has arrived.

Weights are read from safetensors, else from `.bin` through torch's restricted loader, which runs no code of the file.
A tower that is part of another checkpoint (CLIP's vision, a model under a wrapper) is taken out of it.

This file travels to the Hub beside the weights.
"""

import json
import pickle
import re
from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedModel
from transformers.modeling_utils import load_state_dict
from transformers.utils import cached_file
from transformers.utils import logging as hf_logging

try:
    from .towers_mmfusion import tower_class, without_pooler
except ImportError:
    if __package__:  # inside the Hub cache this is a real failure: show it
        raise
    from towers_mmfusion import tower_class, without_pooler

logger = hf_logging.get_logger(__name__)

FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
OF_THE_HUB = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision", "subfolder")
SUB_CONFIGS = {"text": "text_config", "image": "vision_config", "audio": "audio_config"}
# What the tokens of a tower do not depend on: heads, poolers, masks of pretraining.
NOT_NEEDED = re.compile(
    r"(^|\.)(pooler|head|lm_head|classifier|masked_spec_embed|mask_token|position_ids|num_batches_tracked)(\.|$)"
)
SHOWN = 3


def tower_config(name_or_path: str, modality: str | None = None, **kwargs):
    """Return the configuration of a tower; of a model of several modalities (CLIP, SigLIP) that of its part.

    Args:
        name_or_path: Folder or Hub id.
        modality: `text`, `image` or `audio`; None: the configuration as it is.
        **kwargs: Passed to `AutoConfig.from_pretrained`.
    """
    config = AutoConfig.from_pretrained(name_or_path, **{**kwargs, "trust_remote_code": False})
    parts = getattr(type(config), "sub_configs", None) or {}
    part = getattr(config, SUB_CONFIGS.get(modality, ""), None)
    return config if part is None or not {"text_config", "vision_config"} <= set(parts) else part


def load_tower(
    name_or_path: str, modality: str | None = None, *, allow_missing_weights: bool = False, **kwargs
) -> PreTrainedModel:
    """Load a pretrained tower in float32; never with code of its own.

    Args:
        name_or_path: Folder or Hub id.
        modality: What is taken out of a model of several modalities.
        allow_missing_weights: Whether weights that are missing or of other sizes may start at random.
        **kwargs: Passed to `from_pretrained` (`token`, `revision`, `cache_dir`, `dtype` …).

    Raises:
        OSError: There are no weights that can be read.
        ValueError: They are no state dict, or not those of the tower.
    """
    kwargs.pop("trust_remote_code", None)
    hub = {name: kwargs.pop(name) for name in OF_THE_HUB if name in kwargs}
    config = tower_config(name_or_path, modality, **hub)
    state = read_weights(name_or_path, **hub)
    options = {"dtype": torch.float32, **kwargs}
    tower, lacking = _fill(config, state, options)
    prefix = _prefix_of(tower, state) if lacking else ""
    if prefix:
        stripped = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
        other, still = _fill(config, stripped, options)
        if len(still) < len(lacking):
            logger.info(f"{name_or_path}: the tower's weights are those under `{prefix}`")
            tower, lacking = other, still
    if lacking:
        _report(name_or_path, config, lacking, state, allow_missing_weights)
    return tower


def read_weights(name_or_path: str, **hub) -> dict[str, torch.Tensor]:
    """Return the state dict of a folder or Hub id: of safetensors where there are any, else of `.bin`.

    Raises:
        OSError: There are none.
        ValueError: A file is no state dict, or a shard is missing.
    """
    quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    for name in FILES:
        path = cached_file(name_or_path, name, **hub, **quiet)
        if path is not None:
            break
    else:
        if not Path(name_or_path).is_dir():
            cached_file(name_or_path, FILES[0], **hub)  # says why it cannot be reached
        raise OSError(
            f"{name_or_path}: neither `{FILES[0]}` nor `{FILES[2]}` is there; weights of TensorFlow or Flax must be "
            "converted to safetensors first"
        )
    if not name.endswith(".index.json"):
        return _read_file(path)
    shards = sorted(set(json.loads(Path(path).read_text(encoding="utf-8"))["weight_map"].values()))
    state = {}
    for shard in shards:
        path = cached_file(name_or_path, shard, **hub, **quiet)
        if path is None:
            raise ValueError(f"{name_or_path}: `{shard}`, which `{name}` names, is missing; get the file again")
        state |= _read_file(path)
    return state


def _read_file(path: str) -> dict[str, torch.Tensor]:
    """Return a state dict; also one that a training saved under `state_dict` or `model`."""
    if path.endswith(".safetensors"):
        return load_state_dict(path)
    advice = "give a state dict saved by `torch.save(model.state_dict(), …)`, or safetensors"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"`{Path(path).name}` is no state dict that can be read without running its code; {advice}") \
            from error  # fmt: skip
    for name in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items()
    ):
        raise ValueError(f"`{Path(path).name}` holds other things than names and tensors; {advice}")
    return state


def _fill(config, state: dict[str, torch.Tensor], options: dict) -> tuple[PreTrainedModel, list[str]]:
    """Return a tower with the weights of a state dict, and the names of needed ones that did not arrive."""
    found = tower_class(config)
    tower, info = found.from_pretrained(
        None, config=config, state_dict=dict(state), ignore_mismatched_sizes=True, output_loading_info=True,
        **without_pooler(found), **options,
    )  # fmt: skip
    lacking = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    return tower, sorted(key for key in lacking if not NOT_NEEDED.search(key))


def _prefix_of(tower: PreTrainedModel, state: dict[str, torch.Tensor]) -> str:
    """Return the prefix under which a checkpoint has most of the tower's parts; empty where it is not plain which."""
    children, parts = {name for name, _ in tower.named_children()}, {}
    for key in state:
        names = key.split(".")
        for depth in range(1, len(names)):
            if names[depth] in children:
                parts.setdefault(".".join(names[:depth]) + ".", set()).add(names[depth])
    most = max(map(len, parts.values()), default=0)
    best = [prefix for prefix, found in parts.items() if len(found) == most]
    return best[0] if len(best) == 1 else ""


def _report(name: str, config, lacking: list[str], state: dict[str, torch.Tensor], is_meant: bool):
    names = ", ".join(f"`{key}`" for key in lacking[:SHOWN]) + (" …" if len(lacking) > SHOWN else "")
    found = f"`{next(iter(state))}` …" if state else "none"
    message = (
        f"{name}: {len(lacking)} weights of the `{config.model_type}` tower are missing or of another size: {names}; "
        f"the file has {found}"
    )
    if not is_meant:
        raise ValueError(
            f"{message}. Give the checkpoint that belongs to its config.json, or let them start at random with "
            "`allow_missing_weights=True` (--allow_missing_tower_weights)"
        )
    logger.warning(f"{message}; they start at random")
