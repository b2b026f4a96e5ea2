"""A table becomes an index: every row is embedded once, and all that a query needs is written.

Whole or not there: what is written goes beside and is moved when it is complete. Vectors go to disk batch by batch, so
that a long table need not be in memory.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.files import assembled
from metrics.subsets import subset_name
from metrics.vectors import embed_batch, in_use, refuse_broken
from searching.matching import calibrations
from searching.nearest import import_faiss, write_graph
from searching.reader import Reader, load_reader
from searching.store import ROWS, View, file_names, read_views, refuse_place, write_manifest

if TYPE_CHECKING:
    import numpy as np

    from data import Table


def build(args: argparse.Namespace) -> dict[str, Any]:
    """Build an index and give its manifest; `args` as `search.py build` reads them."""
    refuse_place(args.index_dir, overwrite=args.overwrite)
    if args.approximate:
        import_faiss()  # or it would be missed at the end
    reader = load_reader(args.model, revision=args.revision, device=args.device)
    views = read_views(args.by, reader.modalities)
    table = open_rows(args, reader)
    with assembled(args.index_dir) as folder:
        write_vectors(folder, args, reader, table, views)
        write_rows(folder, args, table)
        written = {name: stored_view(folder, name) for name in views}
        graphs = {}
        if args.approximate:
            graphs = {name: write_graph(view, folder / file_names(name)["graph"]) for name, view in written.items()}
        content = {
            "model": reader.describe(),
            "table": {"name": table.name, "num_rows": len(table), "columns": table.columns},
            "width": reader.model.config.hidden_size,
            "dtype": args.dtype,
            "views": {
                name: {"num_rows": len(view), "recall_at_10_of_graph": graphs.get(name)}
                for name, view in written.items()
            },
            "calibration": calibrations(written, table.labels() if table.has_labels else None),
        }
        write_manifest(folder, content)
    return content


def open_rows(args: argparse.Namespace, reader: Reader) -> "Table":
    """Read a table with the columns that the flags name, for a model; labels only where there is a flag for them."""
    from cli.tables import open_table
    from data import Columns

    label = getattr(args, "label_column", "none")
    return open_table(
        args.data_file,
        reader.model,
        reader.processor,
        columns=Columns(args.text_column, args.image_column, args.audio_column, label),
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
):
    """Embed every row once and write the vectors of each view, for the rows that have anything of it.

    Raises:
        ValueError: When no row has anything of a view.
    """
    import numpy as np
    from tqdm.auto import tqdm

    width, files = reader.model.config.hidden_size, {}
    for view in views:
        path = folder / file_names(view)["vectors"]
        files[view] = VectorFile(path, len(table), width, args.dtype)
    positions, first = {view: [] for view in views}, 0
    loader = batches_of(args, reader, table)
    with in_use(reader.model):
        for batch in tqdm(loader, desc="embedding", unit="batch"):
            found = embed_batch(reader.model, batch, list(views.values()))
            for view, subset in views.items():
                vectors = found["vectors", subset_name(subset)].cpu().numpy()
                refuse_broken(vectors, view, first)
                has = np.flatnonzero(vectors.any(axis=1))
                files[view].append(vectors[has])
                positions[view].append(first + has)
            first += len(vectors)
    for view, file in files.items():
        if file.num_rows == 0:
            raise ValueError(f"no row of `{args.data_file}` has anything of `{view}`: leave it out of `--by`.")
        file.close()
        np.save(folder / file_names(view)["positions"], np.concatenate(positions[view]))


# -- rows -------------------------------------------------------------------------------------------------------------


def write_rows(folder: Path, args: argparse.Namespace, table: "Table"):
    """Write where each row stands and its own columns, which lie under `cells`, so that no name is taken."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from cli.tables import own_columns

    columns = {
        "row": pa.array([table.row_number(index) for index in range(len(table))]),
        "file": pa.array([table.shard_of(index).name for index in range(len(table))]),
    }
    cells = own_columns(table, args.data_file, split=args.split, config_name=args.dataset_config_name)
    if cells.num_columns:
        columns["cells"] = cells.to_struct_array().combine_chunks()
    pq.write_table(pa.table(columns), folder / ROWS)


def stored_view(folder: Path, name: str) -> View:
    """Open vectors that were just written; their hashes are not known yet."""
    import numpy as np

    names = file_names(name)
    vectors, positions = (np.load(folder / names[part], mmap_mode="r") for part in ("vectors", "positions"))
    return View(name, vectors, positions)
