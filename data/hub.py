"""A data set on the Hub: found at one commit, then read whole or row by row as it comes over the network.

Two things are unusual. A name is first resolved to a commit, and everything is read from that commit: `datasets` alone
falls back to whatever version lies in its cache when the Hub does not answer. And no cell is followed: a path in a
foreign data set may lead only into the files of that very data set, and a URL nowhere.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.arrow_types import plain_dataset
from data.source import Shard, Source

if TYPE_CHECKING:
    from datasets import Dataset, DatasetBuilder, IterableDataset

HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")
# What a split that is meant for validation is called.
VALIDATION_SPLITS = ("validation", "valid", "val", "dev")


@dataclass(frozen=True)
class HubSet:
    """A data set on the Hub at one commit.

    Args:
        hub_id: Its name, as the Hub writes it (`owner/name`).
        revision: The commit, in full.
        config_name: Which of its configurations; None is its only one.
        builder: What `datasets` knows of it; nothing but its card is downloaded yet.
    """

    hub_id: str
    revision: str
    config_name: str | None
    builder: "DatasetBuilder"

    @property
    def splits(self) -> tuple[str, ...]:
        from datasets import get_dataset_split_names

        declared = self.builder.info.splits
        if not declared:
            with one_sentence(self.hub_id):
                declared = get_dataset_split_names(self._address, self.config_name, revision=self.revision)
        return tuple(declared)

    @property
    def _address(self) -> str:
        # With this prefix a local folder of the same name is not looked at.
        return f"hf://datasets/{self.hub_id}"

    def choose_split(self, asked: str | None = None) -> str:
        """The split that is asked for, or else the only one, or `train`.

        Raises:
            ValueError: it has no such split, or several and none is `train`.
        """
        splits = self.splits
        if asked in splits:
            return asked
        if asked is None and len(splits) == 1:
            return splits[0]
        if asked is None and "train" in splits:
            return "train"
        wrong = "" if asked is None else f" and no `{asked}`"
        has = f"has the splits {', '.join(splits)}{wrong}"
        raise ValueError(f"The data set `{self.hub_id}` {has}. Choose one of them as its `split`.")

    def validation_split(self, training_split: str) -> str | None:
        """The split that is meant for validation by its name, if there is one."""
        return next((name for name in VALIDATION_SPLITS if name in self.splits and name != training_split), None)

    def num_rows(self, split: str) -> int | None:
        """How many rows the card declares; None where it does not."""
        declared = (self.builder.info.splits or {}).get(split)
        return getattr(declared, "num_examples", None) or None

    def origin(self, split: str) -> dict[str, str]:
        """What identifies the rows for good, for the record of a training."""
        return {"hub_id": self.hub_id, "revision": self.revision, "split": split}

    def load(self, split: str) -> "Dataset":
        """Downloads the configuration, and gives one split, memory-mapped."""
        with one_sentence(self.hub_id):
            self.builder.download_and_prepare()
            return self.builder.as_dataset(split=split)

    def stream(self, split: str, columns: list[str] | None = None) -> "IterableDataset":
        """A split as it comes over the network, media undecoded.

        Args:
            split: One of `splits`.
            columns: Which are read; of Parquet the others are not even downloaded. None is all.

        Raises:
            ValueError: its media are files beside its table, which cannot be streamed.
        """
        from datasets import ArrowBasedBuilder, load_dataset

        if not isinstance(self.builder, ArrowBasedBuilder):
            raise ValueError(
                f"The data set `{self.hub_id}` is kept as `{self.builder.name}`, whose media are files of their own: "
                "it cannot be streamed. Train without --streaming, or push it as Parquet "
                "(`push_to_hub.py --dataset` does)."
            )
        options = {"columns": columns} if columns is not None and self.builder.name == "parquet" else {}
        with one_sentence(self.hub_id):
            stream = load_dataset(
                self._address, self.config_name, split=split, revision=self.revision, streaming=True, **options
            )
        return stream if columns is None or options else stream.select_columns(columns)


def find_hub_set(name: str, *, config_name: str | None = None, revision: str | None = None) -> HubSet:
    """Finds a data set on the Hub (never in a local folder of that name), and pins it to a commit.

    Without network (`HF_HUB_OFFLINE=1`) it is what lies in the cache.

    Raises:
        FileNotFoundError: there is none of that name, or none that this token may read.
        OSError: the Hub cannot be reached, or does not answer as it should.
        ValueError: the name is none, or there is no such configuration.
    """
    from datasets import load_dataset_builder
    from huggingface_hub import HfApi, constants

    if not HUB_ID.fullmatch(name):
        raise ValueError(f"`{name}` is no name of a data set on the Hub. Give it as `owner/name`.")
    hub_id, commit = name, revision
    with one_sentence(name):
        if not constants.HF_HUB_OFFLINE:
            info = HfApi().dataset_info(name, revision=revision)
            hub_id, commit = info.id, info.sha
        builder = load_dataset_builder(f"hf://datasets/{hub_id}", config_name, revision=commit)
    if commit is not None and builder.hash != commit:
        raise FileNotFoundError(
            f"The data set `{name}` cannot be had at `{commit}`: only its commit `{builder.hash}` is in the cache. "
            "Check the network, or leave the revision out."
        )
    return HubSet(hub_id, builder.hash, config_name, builder)


def open_split(hub_set: HubSet, split: str | None) -> Source:
    """Downloads a data set, and opens one of its splits as a table."""
    split = hub_set.choose_split(split)
    dataset = hub_set.load(split)
    load = lambda columns: undecoded(dataset.select_columns(columns))  # noqa: E731
    return hub_source(hub_set, split, dataset.column_names, load, own_folders(hub_set.hub_id))


def hub_source(hub_set: HubSet, split: str, names: list[str], load: Any, roots: tuple[Path, ...] = ()) -> Source:
    name = f"{hub_set.hub_id}:{split}"
    return Source(name, (Shard(name, None),), names, load, {}, roots, hub_set.origin(split))


def own_folders(hub_id: str) -> tuple[Path, ...]:
    """Where the files of this data set lie after its download: its own cache, and what was unpacked from archives.

    The rest of the cache is not its own: it holds what this user has downloaded from elsewhere.
    """
    from datasets import config
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    repository = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=hub_id, repo_type="dataset")
    return repository.resolve(), (Path(config.EXTRACTED_DATASETS_PATH)).resolve()


def undecoded(dataset: "Dataset") -> "Dataset":
    """Return the same rows, with pictures and sounds as {bytes, path}, and plain types."""
    from datasets import Audio, Image

    if len(dataset) != len(dataset.data):  # a selection of rows; columns are read from the Arrow table underneath
        dataset = dataset.flatten_indices()
    for column, feature in dataset.features.items():
        if isinstance(feature, Image):
            dataset = dataset.cast_column(column, Image(decode=False))
        elif isinstance(feature, Audio):
            dataset = dataset.cast_column(column, Audio(sampling_rate=feature.sampling_rate, decode=False))
    return plain_dataset(dataset)


@contextmanager
def one_sentence(name: str) -> Iterator[None]:
    """Turns the many ways in which a download fails into one sentence that keeps the library's reason.

    `datasets` and `huggingface_hub` 2.4 raise `httpx2` errors that are no `OSError` when the connection fails, an
    `OSError` of `httpx2` for an answer such as 401 or 500, and their own kinds for what they find out themselves.
    """
    import httpx2
    import pyarrow as pa
    from datasets.exceptions import DatasetNotFoundError, DatasetsError
    from huggingface_hub import constants
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        yield
    except RevisionNotFoundError as error:
        raise FileNotFoundError(
            f"The data set `{name}` has no such revision. Give a commit, a tag or a branch of it, or leave it out."
        ) from error
    except (DatasetNotFoundError, RepositoryNotFoundError) as error:
        raise FileNotFoundError(
            f"`{name}` is no data set on the Hub, or it is private or gated and you are not let in. Check the "
            "spelling, and log in with a token that may read it (`hf auth login`)."
        ) from error
    except (httpx2.HTTPError, OSError, DatasetsError, pa.ArrowException) as error:
        offline = constants.HF_HUB_OFFLINE
        remedy = "Unset HF_HUB_OFFLINE to fetch it." if offline else "Check the network, and try again."
        kind = FileNotFoundError if offline else OSError
        raise kind(f"The data set `{name}` cannot be had from the Hub now ({_reason(error)}). {remedy}") from error
    except ValueError as error:  # among them: no such configuration
        raise ValueError(f"The data set `{name}`: {' '.join(str(error).split())}") from error


def _root(error: BaseException) -> BaseException:
    """What started it: `datasets` says only "an error occurred while generating the dataset"."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _reason(error: BaseException) -> str:
    root = _root(error)
    return f"{type(root).__name__}: {_first_line(root)}"


def _first_line(error: BaseException) -> str:
    return next((line.strip(" .") for line in str(error).splitlines() if line.strip()), type(error).__name__)
