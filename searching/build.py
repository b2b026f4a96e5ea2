"""A table becomes an index: every row is embedded once, and all that a query needs is written.

Whole or not there: what is written goes beside and is moved when it is complete. Vectors go to disk batch by batch, so
that a long table need not be in memory.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.files import assembled
from cli.scored import holds_media
from metrics.vectors import embed_batch, in_use, refuse_broken
from searching import matching, store
from searching.nearest import import_faiss, write_graph
from searching.reader import Reader, load_reader, warn_of_untrained

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from data import Table


def build(args: argparse.Namespace) -> dict[str, Any]:
    """Build an index and give its manifest; `args` as `search.py build` reads them."""
    store.refuse_place(args.index_dir, overwrite=args.overwrite)
    if args.approximate:
        import_faiss()  # or it would be missed at the end
    reader = load_reader(args.model, revision=args.revision, device=args.device)
    views = store.read_views(args.by, reader.modalities)
    table = open_rows(args, reader)
    if any(set(subset) != set(reader.modalities) for subset in views.values()):
        warn_of_untrained(reader.describe()["contrastive_weight"], reader.name)
    with assembled(args.index_dir) as folder:
        lengths = write_vectors(folder, args, reader, table, views)
        write_rows(folder, args, table)
        index = store.Index(folder, {"views": lengths, "model": reader.describe(), "files": {}})
        store.write_manifest(folder, manifest_of(folder, args, index, table))
    return store.open_index(args.index_dir).manifest


def open_rows(args: argparse.Namespace, reader: Reader, *, label: str | None = "none") -> "Table":
    """Read a table with the columns that the flags name, for a model."""
    from cli.tables import open_table
    from data import Columns

    return open_table(
        args.data_file,
        reader.model,
        reader.processor,
        columns=Columns(args.text_column, args.image_column, args.audio_column, getattr(args, "label_column", label)),
        split=args.split,
        config_name=args.dataset_config_name,
        allow_outside=args.allow_outside_paths,
        on_bad_cell=args.on_bad_cell,
    )


def batches_of(args: argparse.Namespace, reader: Reader, table: "Table"):
    """Give a loader of model inputs, in the order of the rows."""
    from torch.utils.data import DataLoader

    from data import Collator, FusionDataset

    rows = FusionDataset(table, None, reader.processor, cache_bytes=0)
    return DataLoader(rows, args.batch_size, collate_fn=Collator(reader.processor), num_workers=args.num_workers)


# -- vectors ----------------------------------------------------------------------------------------------------------


class VectorFile:
    """Vectors that are written as they come; how many there are is known at the end.

    Args:
        path: where the `.npy` file goes.
        max_rows: how many there can be.
        width: numbers a vector.
        dtype: float32 or float16.
    """

    def __init__(self, path: Path, max_rows: int, width: int, dtype: str):
        import numpy as np

        self.path, self.dtype, self.num_rows = path, dtype, 0
        self.beside = path.with_suffix(".part")
        self.mapped = np.lib.format.open_memmap(self.beside, mode="w+", dtype=dtype, shape=(max_rows, width))

    def append(self, vectors: "np.ndarray"):
        self.mapped[self.num_rows : self.num_rows + len(vectors)] = vectors
        self.num_rows += len(vectors)

    def close(self):
        """Bring the file to the length that was used."""
        import numpy as np

        self.mapped.flush()
        if self.num_rows == len(self.mapped):
            self.beside.rename(self.path)
            return
        shape = (self.num_rows, self.mapped.shape[1])
        shorter = np.lib.format.open_memmap(self.path, mode="w+", dtype=self.dtype, shape=shape)
        for start in range(0, self.num_rows, 10_000):
            stop = min(start + 10_000, self.num_rows)
            shorter[start:stop] = self.mapped[start:stop]
        shorter.flush()
        self.beside.unlink()


def write_vectors(
    folder: Path, args: argparse.Namespace, reader: Reader, table: "Table", views: dict[str, tuple[str, ...]]
) -> dict[str, int]:
    """Embed every row once and write the vectors of each view, for the rows that have anything of it.

    Returns:
        View -> how many vectors it has.

    Raises:
        ValueError: When no row has anything of a view.
    """
    import numpy as np
    from tqdm.auto import tqdm

    width, files = reader.model.config.hidden_size, {}
    for view in views:
        path = folder / store.file_names(view)["vectors"]
        files[view] = VectorFile(path, len(table), width, args.dtype)
    positions, first = {view: [] for view in views}, 0
    loader = batches_of(args, reader, table)
    with in_use(reader.model):
        for batch in tqdm(loader, desc="embedding", unit="batch"):
            found = embed_batch(reader.model, batch, list(views.values()))
            for view, subset in views.items():
                vectors = found["vectors", store.subset_name(subset)].cpu().numpy()
                refuse_broken(vectors, view, first)
                has = np.flatnonzero(vectors.any(axis=1))
                files[view].append(vectors[has])
                positions[view].append(first + has)
            first += len(vectors)
    for view, file in files.items():
        if file.num_rows == 0:
            raise ValueError(f"no row of `{args.data_file}` has anything of `{view}`: leave it out of `--by`.")
        file.close()
        np.save(folder / store.file_names(view)["positions"], np.concatenate(positions[view]))
    return {view: file.num_rows for view, file in files.items()}


# -- rows -------------------------------------------------------------------------------------------------------------


def write_rows(folder: Path, args: argparse.Namespace, table: "Table"):
    """Write where each row stands and its own columns, which lie under `cells`, so that no name is taken."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "row": pa.array([table.row_number(index) for index in range(len(table))]),
        "file": pa.array([table.shard_of(index).name for index in range(len(table))]),
    }
    cells = own_columns(args, table)
    if cells.num_columns:
        columns["cells"] = cells.to_struct_array().combine_chunks()
    pq.write_table(pa.table(columns), folder / store.ROWS)


def own_columns(args: argparse.Namespace, table: "Table") -> "pa.Table":
    """Give all columns of the source for the rows of the table, without media that lie in it as bytes or arrays."""
    import pyarrow as pa

    from data.reading import open_source
    from data.table import is_label, named_labels

    source = open_source(args.data_file, split=args.split, config_name=args.dataset_config_name)
    rows = source.load(source.column_names).select(table.rows)
    rows = rows.remove_columns([field.name for field in rows.data.schema if holds_media(field.type)])
    kept = rows.with_format("arrow")[:].replace_schema_metadata(None)
    for name, feature in rows.features.items():
        if is_label(feature):  # a person reads names, not numbers
            values = pa.array(named_labels(kept[name].to_pylist(), feature))
            kept = kept.set_column(kept.column_names.index(name), name, values)
    return kept


# -- the manifest -----------------------------------------------------------------------------------------------------


def manifest_of(folder: Path, args: argparse.Namespace, index: store.Index, table: "Table") -> dict[str, Any]:
    """Give what is said of the index, and write the graphs, whose recall is part of it."""
    views = {name: {"num_rows": num_rows} for name, num_rows in index.manifest["views"].items()}
    for name, content in views.items():
        if args.approximate:
            graph = folder / store.file_names(name)["graph"]
            content["recall_at_10_of_graph"] = write_graph(stored_view(folder, name), graph)
    return {
        "model": index.model,
        "table": {"name": table.name, "num_rows": len(table)},
        "width": args_width(folder, next(iter(views))),
        "dtype": args.dtype,
        "views": views,
        "calibration": matching.calibrations(
            {name: stored_view(folder, name) for name in views if name in ("text", "image", "audio")},
            table.labels() if table.has_labels else None,
        ),
    }


def args_width(folder: Path, view: str) -> int:
    return int(stored_view(folder, view).vectors.shape[1])


def stored_view(folder: Path, name: str) -> store.View:
    """Open vectors that were just written; their hashes are not known yet."""
    import numpy as np

    names = store.file_names(name)
    vectors, positions = (np.load(folder / names[part], mmap_mode="r") for part in ("vectors", "positions"))
    return store.View(name, vectors, positions)
