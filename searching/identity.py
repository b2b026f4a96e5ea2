"""Whose vectors they are: a model is known by what decides its vectors, wherever it lies.

Unusual: nothing here knows how a model is loaded or asked, so that `app.py`, which has one already, can check it too.
"""

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from searching.store import Index


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
    """Give a hash of what decides the vectors: all weights, and how inputs are prepared for them.

    Not the folder's name, and nothing that changes with the version of a library.
    """
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    image_processor = processor.image_processor
    prepared = {
        "fusion": [getattr(model.config, name, None) for name in ("fusion_type", "num_attention_heads")],
        "rate": processor.audio_sampling_rate,
        "max_text_length": processor.max_text_length,
        "max_audio_seconds": processor.max_audio_seconds,
        "vocabulary": None if processor.tokenizer is None else sorted(processor.tokenizer.get_vocab().items()),
        "image": [str(getattr(image_processor, name, None)) for name in ("size", "image_mean", "image_std")],
    }
    if (bits := getattr(processor, "image_bits", 16)) != 16:  # without: as it was before there was a choice
        prepared["image_bits"] = bits
    digest.update(json.dumps(prepared, sort_keys=True).encode())
    return digest.hexdigest()
