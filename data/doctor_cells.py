"""One pass over all rows: each distinct file is opened once, and only numbers are kept of it.

What is in memory grows by some bytes a row and by under a kilobyte for each distinct picture or sound; the cells
themselves are read, looked at and forgotten.
"""

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from tqdm import tqdm

from data.batches import cell_key
from data.checking import Problem
from data.doctor_media import Content, bytes_digest, examine
from data.table import MODALITIES, Table

# Shorter texts ("Yes." or "the number is three") repeat by nature, and say nothing about a leak. In bytes of UTF-8, so
# that scripts with a letter for a syllable or a word get by with fewer letters.
TELLING_BYTES = 40
_CELLS_AT_ONCE = 64
_PIECES = re.compile(r"\w+|[^\w\s]")
_GARBLED = re.compile("\ufffd|Ã[\x80-\xbf©¨¤¶¼±]|â€[™œ\x9d“”\u0153]|Â[\xa0-\xbf]")
_PLACEHOLDERS = frozenset(
    ["-", "--", "?", "n/a", "na", "nan", "nil", "none", "null", "undefined", "unknown", "[deleted]", "[removed]"]
)


@dataclass
class Split:
    """A table under the name of its part (`train`, `validation`, `test`), and what was seen of its rows.

    Args:
        ids: For each modality and row which distinct content it holds; -1 where it is absent or cannot be opened.
        text: For each row `characters`, `pieces` (words and marks) and `bytes` of its text; 0 where absent.
        odd_texts: The rows whose text is a "placeholder", or "garbled".
        problems: The cells that cannot be opened, and the rows that hold nothing.
    """

    name: str
    table: Table
    ids: dict[str, np.ndarray] = field(default_factory=dict)
    text: dict[str, np.ndarray] = field(default_factory=dict)
    odd_texts: dict[str, list[int]] = field(default_factory=lambda: {"placeholder": [], "garbled": []})
    problems: list[Problem] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.table)

    def present(self, modality: str) -> np.ndarray:
        return self.table.presence[:, MODALITIES.index(modality)]


@dataclass
class Records:
    """All splits, and the distinct pictures and sounds that their `ids` point to."""

    splits: list[Split]
    contents: dict[str, list[Content]]

    @property
    def modalities(self) -> tuple[str, ...]:
        """Those for which at least one split has a column."""
        return tuple(m for m in MODALITIES if any(m in split.table.modalities for split in self.splits))

    def concatenated(self, modality: str) -> np.ndarray:
        """The ids of all rows, split after split."""
        return np.concatenate([split.ids[modality] for split in self.splits])

    def place(self, number: int) -> tuple[Split, int]:
        """The split and the index of a row in this concatenation."""
        for split in self.splits:
            if number < len(split):
                return split, int(number)
            number -= len(split)
        raise IndexError(number)


def read_cells(
    tables: dict[str, Table],
    *,
    max_audio_seconds: float | None = None,
    num_workers: int | None = None,
    progress: bool = True,
) -> Records:
    """Looks at every cell of all tables.

    Args:
        tables: For each split its rows; files that several splits share are opened once.
        max_audio_seconds: How much of a sound is looked at; None is all of it.
        num_workers: Threads; None is one for each core.
        progress: Whether a bar is shown on stderr.
    """
    splits = [Split(name, table) for name, table in tables.items()]
    total = sum(int(split.table.presence.sum()) for split in splits)
    readers = {modality: _MediaReader(modality, max_audio_seconds) for modality in ("image", "audio")}
    seen_texts: dict[bytes, int] = {}
    with (
        ThreadPoolExecutor(num_workers or os.cpu_count()) as pool,
        tqdm(total=total, desc="Looking", unit=" cells", disable=not progress) as bar,
    ):
        for split in splits:
            _read_texts(split, seen_texts, bar)
            for reader in readers.values():
                reader.read(split, pool, bar)
            split.problems += _empty_rows(split.table)
            split.problems.sort(key=lambda problem: problem.index)
    return Records(splits, {m: reader.contents for m, reader in readers.items()})


def _empty_rows(table: Table) -> Iterator[Problem]:
    for index in np.flatnonzero(~table.presence.any(axis=1)):
        yield Problem(int(index), None, table.place(index), "the row has no modality")


# --- Texts


def normalised(text: str) -> str:
    """A text without what does not change what it says: case, white space, and how a letter is put together."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _read_texts(split: Split, seen: dict[bytes, int], bar: tqdm) -> None:
    split.ids["text"] = np.full(len(split), -1, dtype=np.int64)
    split.text = {name: np.zeros(len(split), dtype=np.int32) for name in ("characters", "pieces", "bytes")}
    for index in np.flatnonzero(split.present("text")):
        text = split.table.cell(index, "text")
        same = normalised(text).encode(errors="surrogatepass")
        key = hashlib.blake2b(same, digest_size=12).digest()
        split.ids["text"][index] = seen.setdefault(key, len(seen))
        for name, size in (("characters", len(text)), ("pieces", len(_PIECES.findall(text))), ("bytes", len(same))):
            split.text[name][index] = size
        if text.strip().casefold() in _PLACEHOLDERS:
            split.odd_texts["placeholder"].append(int(index))
        if _GARBLED.search(text):
            split.odd_texts["garbled"].append(int(index))
        bar.update()


# --- Pictures and sounds


class _MediaReader:
    """Opens the pictures, or the sounds, of one split after the other, and numbers the distinct ones.

    Args:
        modality: "image" or "audio".
        max_audio_seconds: How much of a sound is looked at.
    """

    def __init__(self, modality: str, max_audio_seconds: float | None):
        self.modality = modality
        self.max_audio_seconds = max_audio_seconds
        self.contents: list[Content] = []
        self._by_path: dict[tuple, int | str] = {}  # its number, or why it cannot be opened
        self._by_bytes: dict[bytes, int | str] = {}
        self._by_content: dict[bytes, int] = {}

    def read(self, split: Split, pool: ThreadPoolExecutor, bar: tqdm) -> None:
        split.ids[self.modality] = np.full(len(split), -1, dtype=np.int64)
        indices = iter(np.flatnonzero(split.present(self.modality)))
        while chunk := list(islice(indices, _CELLS_AT_ONCE)):
            self._read_chunk(split, chunk, pool)
            bar.update(len(chunk))

    def _read_chunk(self, split: Split, chunk: Sequence[int], pool: ThreadPoolExecutor) -> None:
        keys: dict[int, tuple] = {}
        sources: dict[tuple, Any] = {}
        for index in chunk:
            try:
                source = split.table.media(index, self.modality)
            except ValueError as error:
                self._problem(split, index, str(error))
                continue
            key = keys[index] = (*cell_key(split.table, index, self.modality, source), self._owner(split, source))
            if key not in self._by_path:
                sources.setdefault(key, (source, index))
        answers = pool.map(lambda item: self._open(split.table, *item), sources.values())
        found = {key: self._numbered(*answer) for key, answer in zip(sources, answers, strict=True)}
        # Bytes in a table are not met again by their place, a file may be.
        self._by_path |= {key: answer for key, answer in found.items() if key[-1] is None}
        for index, key in keys.items():
            answer = found[key] if key in found else self._by_path[key]
            if isinstance(answer, str):
                self._problem(split, index, answer)
            else:
                split.ids[self.modality][index] = answer

    @staticmethod
    def _owner(split: Split, source: Any) -> str | None:
        """A cell with bytes is known by its row, which only together with its split is one."""
        return split.name if isinstance(source, (bytes, dict)) else None

    def _open(self, table: Table, source: Any, index: int) -> tuple[bytes | None, Content | str | None]:
        """Runs in a thread: the digest of the bytes; and what they hold, unless these bytes were met before."""
        try:
            digest = bytes_digest(source)
        except OSError:
            digest = None  # opening it says why, in a better sentence
        if digest in self._by_bytes:
            return digest, None
        try:
            content = examine(source, self.modality, self.max_audio_seconds)
        except (ValueError, OSError) as error:
            return digest, str(error)
        is_path = not isinstance(source, (bytes, dict))
        content.name = table.cell(index, self.modality) if is_path else table.file_name(index, self.modality)
        return digest, content

    def _numbered(self, digest: bytes | None, content: Content | str | None) -> int | str:
        if content is None:
            return self._by_bytes[digest]
        number: int | str = content if isinstance(content, str) else self._number_of(content)
        if digest is not None:
            self._by_bytes[digest] = number
        return number

    def _number_of(self, content: Content) -> int:
        number = self._by_content.setdefault(content.digest, len(self.contents))
        if number == len(self.contents):
            self.contents.append(content)
        return number

    def _problem(self, split: Split, index: int, reason: str) -> None:
        place = split.table.place(index, self.modality)
        split.problems.append(Problem(int(index), self.modality, place, reason))
