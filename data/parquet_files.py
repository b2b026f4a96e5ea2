"""Parquet, and Arrow files (Feather, IPC, what `datasets` keeps in its cache).

Parquet goes through `datasets`, which maps the columns into memory from its cache on disk: pictures and sounds that
lie in the table are never all in RAM. Types that only some writers use are cast on the way there (`arrow_types`).
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from data.arrow_types import as_dataset, plain_features
from data.csv_files import refuse_duplicates
from data.file_kinds import refuse_other_kinds
from data.source import Shard, Source

if TYPE_CHECKING:
    from datasets import Dataset


def open_parquet(paths: list[str], name: str, called: dict[str, str] | None = None) -> Source:
    """Open shards as one table; `called` says what messages call those that were fetched from elsewhere."""
    shards, schema, first_row, called = [], None, 0, called or {path: path for path in paths}
    for path in paths:
        footer = _parquet_footer(Path(path))
        if schema is not None and set(footer.schema_arrow.names) != set(schema.names):
            raise ValueError(
                f"`{called[path]}` has other columns than `{called[paths[0]]}`. Shards of a table have the same "
                "columns."
            )
        schema = footer.schema_arrow if schema is None else schema
        if footer.metadata.num_rows:  # `datasets` fails on those without rows, and Spark writes such ones
            shards.append(Shard(path, Path(path).parent.resolve(), first_row))
        first_row += footer.metadata.num_rows
    refuse_duplicates(Path(name), schema.names)
    if first_row == 0:
        raise ValueError(f"`{name}` has no rows. Give a table with at least one row.")
    filled = [shard.name for shard in shards]
    return Source(name, tuple(shards), schema.names, lambda columns: _load_parquet(filled, name, schema, columns), {})


def _parquet_footer(path: Path) -> pq.ParquetFile:
    if not path.is_file():
        raise FileNotFoundError(f"`{path}` does not exist. Check the path (relative to {Path.cwd()}).")
    try:
        return pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        refuse_other_kinds(path)
        raise ValueError(f"`{path}` is not a readable Parquet file ({error}). Write or download it again.") from None


def _load_parquet(paths: list[str], name: str, schema: pa.Schema, columns: list[str]) -> "Dataset":
    """Load through the cache of `datasets`, memory-mapped."""
    from datasets import NamedSplit
    from datasets.data_files import DataFilesDict, DataFilesList
    from datasets.exceptions import DatasetGenerationError

    from data.parquet_builder import PlainParquet

    if any("::" in path for path in map(os.path.abspath, paths)):  # which stands for a chain of storages in `datasets`
        return as_dataset(pa.concat_tables([pq.ParquetFile(path).read(columns) for path in paths]))
    stats = [Path(path).stat() for path in paths]
    # Named one by one: as patterns, letters such as [ in the name of a folder would mean something else.
    files = DataFilesList(
        [str(Path(path).absolute()) for path in paths], [(str(stat.st_mtime_ns), str(stat.st_size)) for stat in stats]
    )
    try:
        builder = PlainParquet(
            data_files=DataFilesDict({NamedSplit("train"): files}),
            columns=columns,
            features=plain_features(schema, columns),
            hash="plain",
        )
        builder.download_and_prepare()
        return builder.as_dataset(split="train")
    except (DatasetGenerationError, pa.ArrowException) as error:
        reason = error.__cause__ or error
        raise ValueError(f"`{name}` cannot be read ({reason}). Write or download it again.") from None


def open_arrow(path: Path) -> Source:
    """Open an Arrow file, in either of its two formats."""
    with pa.memory_map(str(path)) as file:
        try:
            table = pa.ipc.open_file(file).read_all()
        except pa.ArrowInvalid:
            file.seek(0)
            try:
                table = pa.ipc.open_stream(file).read_all()
            except pa.ArrowInvalid as error:
                raise ValueError(
                    f"`{path}` is not a readable Arrow file ({error}). Write the table as Parquet."
                ) from None
    refuse_duplicates(path, table.column_names)
    shards = (Shard(str(path), path.parent.resolve()),)
    return Source(str(path), shards, table.column_names, lambda columns: as_dataset(table.select(columns)), {})
