"""What frozen towers said, on disk: a folder of safetensors shards that runs and processes fill and read together.

What is unusual: nobody waits for anybody. Each process writes shards under names of its own, beside and then moved, so
that a shard is whole or not there; whoever looks takes in what has come, from whomever. A cell that two of them wrote
is there twice, and the same to the last bit. A shard is believed when its content has the checksum that it states:
others are told and left out, and their cells are encoded again.

Cells are read from memory maps: no matter how many there are, they take no memory that the system could not take back.
"""

import hashlib
import os
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from cli.arguments import first_line
from cli.files import replacing, write_json

KEY = np.dtype("V16")  # what identifies the content of a cell
PARTS = ("keys", "shapes", "ends", "values")
PATTERN = "*.safetensors"
LEFT_BEHIND_SECONDS = 3600.0  # after which a file that was never moved into place is that of a killed process


class TornShard(ValueError):
    """A file that is not what was written."""


class ForeignShard(ValueError):
    """A file that belongs elsewhere."""


@dataclass
class Shard:
    """One file; its cells stand one behind the other in `values`.

    Args:
        path: Where it is.
        keys: (N,) what identifies the cells.
        shapes: (N, axes) of the cells.
        ends: (N,) where each ends in `values`.
        values: All numbers, memory-mapped; None in a process that has not opened the file yet.
    """

    path: Path
    keys: np.ndarray
    shapes: np.ndarray
    ends: np.ndarray
    values: torch.Tensor | None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "values": None}  # pickled, it would be all numbers instead of their place

    def __getitem__(self, number: int) -> torch.Tensor:
        if self.values is None:
            self.values = _tensors(self.path)[1]["values"]
        shape, end = self.shapes[number].tolist(), int(self.ends[number])
        return self.values[end - int(np.prod(shape)) : end].view(shape)


def read_shard(path: Path, name: str, *, is_known: bool = False) -> Shard:
    """Open a shard.

    Args:
        path: The file.
        name: Of the store that it must belong to.
        is_known: Whether its content was compared with its checksum before.

    Raises:
        TornShard: It is not what was written.
        ForeignShard: It was not written for this store.
    """
    try:
        stated, tensors = _tensors(path)
    except SafetensorError as error:
        raise TornShard(f"it cannot be read ({first_line(error)})") from error
    except OSError as error:
        raise ForeignShard(f"it cannot be opened ({first_line(error)})") from error
    if stated.get("store") != name:
        raise ForeignShard("it belongs to other features")
    if not is_known and stated.get("checksum") != _checksum(tensors):
        raise TornShard("its content is not what was written")
    keys = tensors["keys"].numpy().view(KEY).reshape(-1)
    return Shard(path, keys, tensors["shapes"].numpy(), tensors["ends"].numpy(), tensors["values"])


def _tensors(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
        tensors = {name: file.get_tensor(name) for name in PARTS if name in names}
        stated = file.metadata() or {}
    return stated if len(tensors) == len(PARTS) else {}, tensors


def _checksum(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in PARTS:
        digest.update(tensors[name].contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


class FeatureStore:
    """The shards of one tower.

    Args:
        folder: Where they are; it is made, and its name is what shards must belong to.
        dtype: How numbers are kept.

    Raises:
        OSError: The folder cannot be made.
    """

    def __init__(self, folder: Path, dtype: torch.dtype):
        self.folder, self.dtype = folder, dtype
        self.shards: list[Shard] = []
        self._seen: set[str] = set()
        self._index: tuple[np.ndarray, np.ndarray] | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(f"--cache_dir: `{folder}` cannot be made: {error}") from error

    def refresh(self, is_known: bool = False) -> list[str]:
        """Take in the shards that have come; what is wrong with any, for people.

        Args:
            is_known: Whether another process has compared them with their checksums already.
        """
        self._sweep()
        paths = sorted(path for path in self.folder.glob(PATTERN) if path.name not in self._seen)
        self._seen |= {path.name for path in paths}
        with ThreadPoolExecutor() as threads:  # checksums let other threads run
            taken = list(threads.map(partial(self._taken, is_known=is_known), paths))
        self._add(*(shard for shard in taken if isinstance(shard, Shard)))
        return [word for word in taken if isinstance(word, str)]

    def _taken(self, path: Path, is_known: bool) -> Shard | str:
        try:
            return read_shard(path, self.folder.name, is_known=is_known)
        except ForeignShard as error:
            return f"`{path}` is left out: {error}"
        except TornShard as error:
            with suppress(OSError):  # in a folder of somebody else
                path.unlink(missing_ok=True)
            return f"`{path}` is torn, and its cells are encoded again: {error}"

    def _sweep(self) -> None:
        """Remove what killed processes left half written."""
        for path in self.folder.glob(f".{PATTERN}.*"):
            try:
                if time.time() - path.stat().st_mtime > LEFT_BEHIND_SECONDS:
                    path.unlink()
            except FileNotFoundError:
                continue  # moved into place, or removed by another

    def _add(self, *shards: Shard) -> None:
        self.shards += shards
        self._index = None if shards else self._index

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Where cells are, as (N, 2): the shard and the place in it; -1 for those that are not there.

        Inputs:
            keys: (N,) of `KEY`.
        """
        if self._index is None:
            self._index = self._indexed()
        known, places = self._index
        if len(known) == 0:
            return np.full((len(keys), 2), -1, dtype=np.int32)
        nearest = np.searchsorted(known, keys).clip(max=len(known) - 1)
        return np.where((known[nearest] == keys)[:, None], places[nearest], np.int32(-1))

    def _indexed(self) -> tuple[np.ndarray, np.ndarray]:
        """(Keys in order, for each its shard and the place in it)."""
        keys = np.concatenate([np.empty(0, KEY), *(shard.keys for shard in self.shards)])
        places = [
            np.stack([np.full(len(shard.keys), number), np.arange(len(shard.keys))], axis=1)
            for number, shard in enumerate(self.shards)
        ]
        order = np.argsort(keys, kind="stable")
        return keys[order], np.concatenate([np.empty((0, 2)), *places]).astype(np.int32)[order]

    def __getitem__(self, place: np.ndarray) -> torch.Tensor:
        """The cell at a place that `find` gave; not to be written to."""
        return self.shards[place[0]][place[1]]

    def write(self, keys: np.ndarray, cells: list[torch.Tensor]) -> None:
        """Keep cells, as one shard.

        Inputs:
            keys: (N,) of `KEY`, one for each cell.

        Raises:
            OSError: They cannot be written; what was there before is as it was.
        """
        values = torch.cat([cell.flatten() for cell in cells])
        tensors = {
            "keys": torch.from_numpy(keys.view(np.uint8).reshape(len(keys), KEY.itemsize)),
            "shapes": torch.tensor([cell.shape for cell in cells]),
            "ends": torch.tensor([cell.numel() for cell in cells]).cumsum(0),
            "values": values,
        }
        path = self.folder / f"{uuid.uuid4().hex}.safetensors"
        with self._writing(path) as beside:
            save_file(tensors, beside, {"store": self.folder.name, "checksum": _checksum(tensors)})
            beside.chmod(self.folder.stat().st_mode & 0o666)  # safetensors makes it unreadable for other users
            _to_disk(beside)
        self._seen.add(path.name)
        self._add(read_shard(path, self.folder.name, is_known=True))

    def describe(self, **about: str | None) -> None:
        """Say in the folder what it is, to whoever finds it on a full disk."""
        what = "outputs of a frozen tower, kept by train.py --cache_features; may be deleted at any time"
        path = self.folder / "about.json"
        if not path.exists():
            with self._writing(path) as beside:
                write_json(beside, {"what": what, **about})

    @contextmanager
    def _writing(self, path: Path) -> Iterator[Path]:
        try:
            with replacing(path) as beside:
                yield beside
        except (SafetensorError, OSError) as error:  # the first: how a full disk shows itself to safetensors
            raise OSError(
                f"--cache_dir: features cannot be written to `{self.folder}` ({first_line(error)}). What stands there "
                "is whole and is used next time: make room, name another disk with --cache_dir, or halve what is "
                "written with --cache_dtype bfloat16"
            ) from error


def _to_disk(path: Path) -> None:
    """Have the system write a file out now: moved into place before, it could be found torn after a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
