"""An opened table before its columns are chosen, wherever it comes from."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Shard:
    """A file of the table: what messages call it, the folder its paths are relative to, and where its rows start."""

    name: str
    root: Path | None
    first_row: int = 0


@dataclass(frozen=True)
class Source:
    """An opened table, before its columns are chosen.

    `media_defaults` holds names that stand for a modality in this source alone, such as `image_file_name` in a folder;
    `extra_roots` the folders outside of a shard's own in which its files may lie; `origin` what identifies the rows
    for good (`hub_id`, `revision`, `split`), empty for what lies here.
    """

    name: str
    shards: tuple[Shard, ...]
    column_names: list[str]
    load: Callable[[list[str]], "Dataset"]
    media_defaults: dict[str, str]
    extra_roots: tuple[Path, ...] = ()
    origin: dict[str, str] = field(default_factory=dict)


@cache
def tell_once(note: str) -> None:
    """Print a sentence on stderr, however often a table is opened."""
    print(note, file=sys.stderr)
