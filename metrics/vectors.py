"""Rows as vectors of the shared space: the towers run once a row, the fusion once for each subset that is asked for.

Unusual: whether a row has anything of a subset says the model, not the table (a text may hold no token), and a row
that has nothing of it gets zeros, which have no direction, instead of the vector of the absent embeddings.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from metrics.subsets import MODALITIES, Subset, subset_name

if TYPE_CHECKING:
    import numpy as np
    import torch
    from accelerate import Accelerator


class Embedded(NamedTuple):
    """The rows of a table as vectors, subset by subset.

    Attributes:
        vectors: subset name -> (rows, D) float32 of length 1; zeros where the row has nothing of the subset.
        logits: subset name -> (rows, labels) float64; empty where they were not asked for.
        labels: (rows,) or (rows, labels) as the batches gave them; None where they gave none.
        presence: (rows, 3) bool, columns text, image, audio; True where the row has the modality.
    """

    vectors: dict[str, "np.ndarray"]
    logits: dict[str, "np.ndarray"]
    labels: "np.ndarray | None"
    presence: "np.ndarray"


def embed_batch(
    model, batch: dict, subsets: Sequence[Subset], *, with_logits: bool = False
) -> dict[str, "torch.Tensor"]:
    """Give `presence` (B, 3), and `vectors` and `logits` of each subset under (kind, subset name), on the device.

    Args:
        model: MMFusion classifier in eval mode.
        batch: model inputs, with or without `labels`.
        subsets: what is fused of each row.
        with_logits: whether to classify each subset, too.
    """
    import torch
    import torch.nn.functional as F
    from accelerate.utils import send_to_device

    inputs = send_to_device(dict(batch), model.device)
    labels = inputs.pop("labels", None)
    encoded = model.encode(**inputs)
    presence = encoded.modality_mask
    results = {"presence": presence} | ({} if labels is None else {"labels": labels})
    for subset in subsets:
        columns = torch.tensor([name in subset for name in MODALITIES], device=presence.device)
        kept = presence & columns  # (B, 3)
        fused = model.mmfusion.fuse(encoded, kept).pooler_output.float()  # (B, D)
        results["vectors", subset_name(subset)] = F.normalize(fused, dim=-1) * kept.any(dim=1, keepdim=True)
        if with_logits:
            results["logits", subset_name(subset)] = model(encoder_outputs=encoded, modality_mask=kept).logits.float()
    return results


def embed_rows(
    model,
    dataloader: Iterable[dict],
    subsets: Sequence[Subset],
    *,
    with_logits: bool = False,
    accelerator: "Accelerator | None" = None,
    progress: bool = True,
) -> Embedded:
    """Embed every row of the batches; the model is put into eval mode and gets its modes back.

    Args:
        model: MMFusion classifier, plain or prepared by `accelerator`.
        dataloader: batches of model inputs, plain or prepared by `accelerator`.
        subsets: what is fused of each row.
        with_logits: whether to classify each subset, too.
        accelerator: gathers the rows of all processes (without the repeated ones) and gives the mixed precision.
        progress: whether to show a progress bar.

    Raises:
        ValueError: When there is no row, or a vector is NaN or infinite.
    """
    from tqdm.auto import tqdm

    bare = model if accelerator is None else accelerator.unwrap_model(model)
    hidden = not progress or (accelerator is not None and not accelerator.is_main_process)
    parts = []
    with in_use(bare):
        for batch in tqdm(dataloader, desc="embedding", unit="batch", disable=hidden):
            with contextlib.nullcontext() if accelerator is None else accelerator.autocast():
                results = embed_batch(bare, batch, subsets, with_logits=with_logits)
            if accelerator is not None:
                results = accelerator.gather_for_metrics(results)
            parts.append({name: value.cpu() for name, value in results.items()})
    return _joined(parts, [subset_name(subset) for subset in subsets])


@contextlib.contextmanager
def in_use(model) -> Iterator[None]:
    """Put a model into eval mode without gradients, and give every module its own mode back afterwards."""
    import torch

    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def _joined(parts: list[dict], names: list[str]) -> Embedded:
    import torch

    if not parts:
        raise ValueError("`dataloader` gave no batch: there is no row to embed.")
    whole = {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
    for name in names:
        refuse_broken(whole["vectors", name], name)
    vectors, logits = (
        {name: whole[kind, name] for name in names if (kind, name) in whole} for kind in ("vectors", "logits")
    )
    return Embedded(vectors, logits, whole.get("labels"), whole["presence"])


def refuse_broken(vectors: "np.ndarray", name: str, first_row: int = 0):
    """Refuse vectors (rows, D) that are no numbers; `first_row` is the place of the first of them, from 0."""
    import numpy as np

    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise ValueError(
            f"the model's vectors of `{name}` are NaN or infinite in {len(bad):,} of {len(vectors):,} rows, first in "
            f"row {first_row + bad[0] + 1}: check that row's input and the training run that made the weights."
        )
