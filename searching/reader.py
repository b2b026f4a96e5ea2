"""The model of an index: loaded as a stranger loads it, and told from all others by what decides its vectors."""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from cli.loading import load_pipeline
from metrics.subsets import subset_name
from metrics.vectors import embed_batch, in_use, refuse_broken
from searching.identity import check_model, fingerprint

if TYPE_CHECKING:
    import numpy as np

    from searching.store import Index


class Reader(NamedTuple):
    """A model and how it opens a sample."""

    name: str
    pipeline: Any

    @property
    def model(self):
        return self.pipeline.model

    @property
    def processor(self):
        return self.pipeline.processor

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(self.model.config.modalities)

    def describe(self) -> dict[str, Any]:
        """What an index keeps of its model."""
        return {
            "name": self.name,
            "revision": getattr(self.model.config, "_commit_hash", None),
            "fingerprint": fingerprint(self.model, self.processor),
            "modalities": list(self.modalities),
            "contrastive_weight": contrastive_weight(self.model.config),
        }

    def embed(self, sample: Mapping[str, Any], subsets: list[tuple[str, ...]]) -> list["np.ndarray"]:
        """Give a unit vector (1, D) of each subset of a sample.

        Args:
            sample: any of text (string), image and audio (paths), at least what the subsets name.
            subsets: what is fused.

        Raises:
            ValueError: When the sample is empty, or holds what the model does not read or what cannot be opened.
            FileNotFoundError: When there is no such file.
        """
        if unread := [name for name in sample if name not in self.modalities]:
            raise ValueError(
                f'"{unread[0]}" was given, but this model reads only {", ".join(self.modalities)}; leave it out.'
            )
        opened = self.pipeline.preprocess(sample)
        columns = {name: [value] for name, value in opened.items()}
        batch = dict(self.processor(**columns, sampling_rate=self.processor.audio_sampling_rate, return_tensors="pt"))
        with in_use(self.model):
            found = embed_batch(self.model, batch, subsets)
        names = [subset_name(subset) for subset in subsets]
        vectors = [found["vectors", name].cpu().numpy() for name in names]
        for name, vector in zip(names, vectors, strict=True):
            refuse_broken(vector, name)
        return vectors


def load_reader(name: str, *, revision: str | None = None, device: str = "auto") -> Reader:
    """Load a model; arguments and errors as for `cli.loading.load_model`."""
    return Reader(name, load_pipeline(name, revision=revision, device=device))


def reader_of(
    index: "Index", *, model: str | None = None, revision: str | None = None, device: str = "auto"
) -> Reader:
    """Load the model that made an index, from where it was or from where it is now.

    Args:
        index: whose vectors are searched.
        model: folder or Hub id of the same model; None: the one that the index names, at its revision.
        revision: of `model`.
        device: as for `load_model`.

    Raises:
        ValueError: When it is another model, and as `load_model`.
    """
    made_by = index.model
    if model is None:
        model, revision = made_by["name"], revision or made_by["revision"]
    try:
        reader = load_reader(model, revision=revision, device=device)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error} (The index `{index.folder}` was made with `{made_by['name']}`.)") from None
    check_same(index, reader)
    return reader


def check_same(index: "Index", reader: Reader):
    """Refuse a model other than the one that made an index; see `check_model`."""
    check_model(index, reader.name, reader.model, reader.processor)


def contrastive_weight(config) -> float:
    """How much the training drew a row's modalities together; models from before there was such a loss have none."""
    return getattr(config, "contrastive_weight", 0.0)


def warn_of_untrained(weight: float, name: str):
    """Say on stderr that cosines across modalities were not trained."""
    if not weight:
        print(
            f"warning: `{name}` was trained without `--contrastive_weight`: only its classifier has brought the "
            "modalities together, so cosines between them tell classes apart, hardly one row from another.",
            file=sys.stderr,
        )
