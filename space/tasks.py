"""What the served model can be asked. A task takes opened samples and gives one answer each; towers run once a batch.

The service calls a task with as many samples as are waiting, from one thread; a task need not think of errors.
"""

import importlib.util
import itertools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from space.errors import Refusal
from space.inputs import MODALITIES

if TYPE_CHECKING:
    import numpy as np

Sample = dict[str, Any]
# Subset -> which columns of a `modality_mask` it has.
SUBSETS = {
    "+".join(itertools.compress(MODALITIES, keep)): keep
    for keep in itertools.product((False, True), repeat=len(MODALITIES))
    if any(keep)
}


def predict(pipeline, samples: list[Sample]) -> list[list[dict]]:
    """Give all labels with their scores, best first: what the pipeline says of each sample alone."""
    logits = pipeline.forward(model_inputs(pipeline, samples))["logits"]
    return [pipeline.postprocess({"logits": row[None]}) for row in logits]


def predict_with_vectors(pipeline, samples: list[Sample]) -> list[tuple[list[dict], dict[str, "np.ndarray"]]]:
    """Give what `predict` gives, and the vectors of every subset of what the sample has; the towers run once."""
    import torch

    model = pipeline.model
    inputs = {name: value.to(model.device) for name, value in model_inputs(pipeline, samples).items()}
    with torch.inference_mode():
        encoded = model.encode(**inputs)
        logits = model(encoder_outputs=encoded).logits.cpu()
        vectors = subset_vectors(model.base_model, encoded)
    ranked = [pipeline.postprocess({"logits": row[None]}) for row in logits]
    return list(zip(ranked, vectors, strict=True))


def subset_vectors(base, encoded) -> list[dict[str, "np.ndarray"]]:
    """Give of each sample unit vectors (D,) called "text", "text+audio" and so on; a text without a token has none."""
    import torch

    presence = encoded.modality_mask  # (B, M)
    vectors: list[dict[str, np.ndarray]] = [{} for _ in presence]
    for name, columns in SUBSETS.items():
        keep = torch.tensor(columns, device=presence.device)
        (rows,) = presence[:, keep].all(dim=1).nonzero(as_tuple=True)
        if len(rows):
            fused = unit(base.fuse(encoded, keep.expand_as(presence)).pooler_output[rows]).cpu().numpy()
            for row, vector in zip(rows.tolist(), fused, strict=True):
                vectors[row][name] = vector
    return vectors


def embed(pipeline, samples: list[Sample]) -> list[dict[str, list[float]]]:
    """Give unit vectors of one space: "fused", and one of each modality that the sample has."""
    import torch

    base = pipeline.model.base_model
    inputs = {name: value.to(pipeline.model.device) for name, value in model_inputs(pipeline, samples).items()}
    with torch.inference_mode():
        encoded = base.encode(**inputs)
        presence = encoded.modality_mask
        columns = {"fused": [1, 1, 1], "text": [1, 0, 0], "image": [0, 1, 0], "audio": [0, 0, 1]}
        vectors = {
            name: unit(base.fuse(encoded, torch.tensor([keep] * len(samples))).pooler_output)
            for name, keep in columns.items()
        }
    has = {"fused": [True] * len(samples), **dict(zip(("text", "image", "audio"), presence.T.tolist(), strict=True))}
    return [
        {name: vectors[name][row].tolist() for name in columns if has[name][row]} for row in range(len(samples))
    ]  # fmt: skip


def explain(
    pipeline, samples: list[Sample], *, details: bool = True, method: str | None = None, **options: Any
) -> list[dict]:
    """Give what decided, as the pipeline tells it; see its `explain`.

    Args:
        pipeline: the served pipeline.
        samples: opened samples.
        details: whether to look inside the modalities.
        method: of the details; None: integrated gradients, or attention where Captum is not installed.
        **options: of the pipeline's `explain`.

    Raises:
        Refusal: Integrated gradients were asked for, and Captum is not installed; or attention of a fusion without.
    """
    ways = getattr(pipeline, "explain_methods", ("integrated_gradients", "attention"))
    if details and method == "integrated_gradients" and not has_captum():
        raise Refusal(
            "not_supported", "this server has no Captum for integrated gradients: ask for `method=attention`, or for "
            "`details=false`."
        )  # fmt: skip
    method = method or ("integrated_gradients" if has_captum() else "attention")
    if details and method not in ways:
        with_captum = "`method=integrated_gradients`, or for " if has_captum() else ""
        raise Refusal(
            "not_supported", f"the served model's fusion has no attention: ask for {with_captum}`details=false`."
        )
    return pipeline.explain(samples, details=details, method=method, **options)


def has_captum() -> bool:
    return importlib.util.find_spec("captum") is not None


def is_slow(task: str, options: Mapping[str, Any]) -> bool:
    """Say whether a task takes many passes through the towers; then it must not keep quick ones waiting."""
    return task == "explain" and options.get("details", True)


def can_explain(pipeline) -> bool:
    return hasattr(pipeline, "explain")


def model_inputs(pipeline, samples: list[Sample]) -> dict[str, Any]:
    """Run the processor over a batch of opened samples."""
    cells = [pipeline.preprocess(sample) for sample in samples]
    columns = {name: [cell[name] for cell in cells] for name in ("text", "images", "audio")}
    processor = pipeline.processor
    return dict(processor(**columns, sampling_rate=processor.audio_sampling_rate, return_tensors="pt"))


def unit(vectors):
    import torch

    vectors = torch.nn.functional.normalize(vectors.float(), dim=-1)
    if not torch.isfinite(vectors).all():
        raise ValueError("the model gave a vector with NaN or infinite numbers; its weights are damaged or overflow")
    return vectors


def warm_up_sample(processor) -> Sample:
    """Give a sample with everything that the model reads: a word, a black square, a quarter second of silence."""
    import numpy as np
    from PIL import Image

    rate = processor.audio_sampling_rate or 0
    sample = {
        "text": "warm up",
        "image": Image.new("RGB", (32, 32)),
        "audio": {"array": np.zeros(max(1, rate // 4), np.float32), "sampling_rate": rate},
    }
    return {name: sample[name] for name in processor.modalities}


TASKS: dict[str, Callable[..., list]] = {
    "predict": predict, "predict_with_vectors": predict_with_vectors, "embed": embed, "explain": explain
}  # fmt: skip
