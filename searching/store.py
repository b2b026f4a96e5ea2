"""The folder of an index: vectors, the rows they are of, and a manifest that says whose they are.

Unusual: nothing in it is a pickle, and nothing is believed. The manifest holds size and hash of every file, so that a
torn one is told from a whole one, and the fingerprint of the model, since vectors of two models cannot be compared.
Vectors are mapped from disk: what is read of them is what a query needs.

    index.json                    the manifest
    rows.parquet                  `row`, `file` and, under `cells`, the table's own columns without media
    vectors-fused.npy             (rows, D), of length 1
    positions-fused.npy           (rows,), the place of each vector's row in rows.parquet
    graph-fused.faiss             with `--approximate`
"""

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.files import write_json
from data.table import MODALITIES

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

MANIFEST, ROWS = "index.json", "rows.parquet"
KIND, FORMAT = "mmfusion-index", 2  # 2: the fingerprint covers all that decides the vectors
FUSED = "fused"  # the vectors of everything that a row has


def file_names(view: str) -> dict[str, str]:
    """The files of one kind of vectors."""
    return {"vectors": f"vectors-{view}.npy", "positions": f"positions-{view}.npy", "graph": f"graph-{view}.faiss"}


def read_views(text: str, modalities: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Read what `--by` says: names joined by commas, each `fused` or modalities joined by plus signs.

    Args:
        text: such as "fused,audio,text+image".
        modalities: what the model reads; all of them together are `fused`.

    Returns:
        Name -> the modalities that are fused.

    Raises:
        ValueError: When a name is none of these.
    """
    views = {}
    for name in (part.strip() for part in text.split(",")):
        subset = tuple(modalities) if name == FUSED else tuple(part.strip() for part in name.split("+"))
        if not set(subset) <= set(modalities):
            what = "is not read by this model" if set(subset) <= set(MODALITIES) else "is no modality"
            raise ValueError(
                f"`by`: {name!r} {what}; allowed are `{FUSED}` and what the model reads ({', '.join(modalities)}), "
                "some of these joined by `+`, several of such names by commas."
            )
        subset = tuple(modality for modality in MODALITIES if modality in subset)
        views[FUSED if set(subset) == set(modalities) else "+".join(subset)] = subset
    return views


# -- writing ----------------------------------------------------------------------------------------------------------


def refuse_place(folder: Path, *, overwrite: bool):
    """Refuse to build where something is that is no index, or an index that may not be replaced.

    Raises:
        ValueError: When it is so.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not folder.is_dir() or not _is_index(folder):
        raise ValueError(f"`{folder}` exists and is no index, so it is never replaced: give another `--index_dir`.")
    if not overwrite:
        raise ValueError(f"`{folder}` is an index: give another `--index_dir`, or `--overwrite` to replace it.")


def _is_index(folder: Path) -> bool:
    try:
        return _parsed(folder).get("kind") == KIND
    except (ValueError, OSError):
        return False


def write_manifest(folder: Path, content: dict[str, Any]):
    """Write the manifest, last of all, with size and hash of every file that is there."""
    files = {path.name: _measured(path) for path in sorted(folder.iterdir())}
    write_json(folder / MANIFEST, {"kind": KIND, "format": FORMAT, **content, "files": files})


def _measured(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"num_bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


# -- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class View:
    """One kind of vectors of an index.

    Args:
        name: `fused`, or the modalities whose vectors they are.
        vectors: (rows, D) of length 1, mapped from disk.
        positions: (rows,), the place of each row in rows.parquet.
        graph: The file of the approximate index; None where there is none.
    """

    name: str
    vectors: "np.ndarray"
    positions: "np.ndarray"
    graph: Path | None = None

    def __len__(self) -> int:
        return len(self.vectors)


@dataclass(frozen=True)
class Index:
    """An index that was found whole, as far as its manifest goes; `view` and `rows` check the files they open."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def views(self) -> tuple[str, ...]:
        return tuple(self.manifest["views"])

    @property
    def model(self) -> dict[str, Any]:
        """`name`, `revision`, `fingerprint`, `modalities` and `contrastive_weight` of the model that made it."""
        return self.manifest["model"]

    def view(self, name: str | None = None) -> View:
        """Open one kind of vectors; None: the fused ones, or where there are none the first.

        Raises:
            ValueError: When the index has none of that name, or a file is damaged.
        """
        name = (FUSED if FUSED in self.views else self.views[0]) if name is None else self._known(name)
        names = file_names(name)
        vectors, positions = (self._array(names[part]) for part in ("vectors", "positions"))
        if vectors.ndim != 2 or len(vectors) != len(positions):
            raise self._damaged(names["vectors"], f"is of shape {vectors.shape} for {len(positions):,} rows")
        has_graph = names["graph"] in self.manifest["files"]
        return View(name, vectors, positions, self.whole(names["graph"]) if has_graph else None)

    def _known(self, text: str) -> str:
        names = list(read_views(text, self.model["modalities"]))
        if len(names) > 1 or names[0] not in self.views:
            wanted = ",".join(dict.fromkeys([*self.views, *names]))
            raise ValueError(
                f"`by` is {text!r}; the index `{self.folder}` holds vectors of {', '.join(self.views)}: choose one of "
                f"these, or build it again with `--by {wanted}`."
            )
        return names[0]

    def _array(self, name: str) -> "np.ndarray":
        import numpy as np

        try:
            return np.load(self.whole(name), mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise self._damaged(name, f"cannot be read ({error})") from None

    def rows(self, positions: Sequence[int]) -> list[dict[str, Any]]:
        """Give `row` (from 1, in its file), `file` and `cells` (the table's own columns) of some rows."""
        return [{"cells": {}, **row} for row in self._rows.take(list(positions)).to_pylist()]

    def columns(self, positions: Sequence[int]) -> tuple["pa.ChunkedArray", "pa.Table | None"]:
        """Give the numbers of some rows, and the table's own columns; None where it has none but media."""
        import pyarrow as pa

        found = self._rows.take(list(positions))
        has_cells = "cells" in found.column_names
        cells = pa.Table.from_struct_array(found.column("cells").combine_chunks()) if has_cells else None
        return found.column("row"), cells

    @functools.cached_property
    def _rows(self) -> "pa.Table":
        import pyarrow.parquet as pq

        return pq.read_table(self.whole(ROWS), memory_map=True)

    def whole(self, name: str) -> Path:
        """Give the path of a file that is as it was written.

        Raises:
            ValueError: When it is not there, cut, or changed.
        """
        path, expected = self.folder / name, self.manifest["files"].get(name)
        if expected is None or not path.is_file():
            raise self._damaged(name, "is missing")
        if (size := path.stat().st_size) != expected["num_bytes"]:
            raise self._damaged(name, f"has {size:,} bytes where {expected['num_bytes']:,} were written")
        if _measured(path) != expected:
            raise self._damaged(name, "is not what was written")
        return path

    def _damaged(self, name: str, what: str) -> ValueError:
        return ValueError(f"the index `{self.folder}` is damaged: `{name}` {what}. Build it again.")


def open_index(folder: Path) -> Index:
    """Open an index.

    Raises:
        FileNotFoundError: When there is no such folder.
        ValueError: When it is no index, one of a later format, or its manifest is damaged.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise FileNotFoundError(f"the index `{folder}` {what}: make it with `python search.py build`.")
    if not (folder / MANIFEST).is_file():
        raise ValueError(f"`{folder}` is no index, it has no `{MANIFEST}`: make one with `python search.py build`.")
    manifest = _parsed(folder)
    if manifest.get("kind") != KIND:
        raise ValueError(f"`{folder}` is no index: its `{MANIFEST}` is of something else.")
    if manifest.get("format") != FORMAT:
        raise ValueError(
            f"the index `{folder}` is of format {manifest.get('format')!r}, this program reads {FORMAT}: build it "
            "again."
        )
    if missing := [key for key in ("model", "views", "files", "table") if not manifest.get(key)]:
        raise ValueError(f"the index `{folder}` is damaged: `{MANIFEST}` lacks `{missing[0]}`. Build it again.")
    return Index(folder, manifest)


def _parsed(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no UTF-8
        raise ValueError(
            f"the index `{folder}` is damaged: `{MANIFEST}` is not JSON ({error}). Build it again."
        ) from None
    if not isinstance(content, dict):
        raise ValueError(f"the index `{folder}` is damaged: `{MANIFEST}` is no JSON object. Build it again.")
    return content
