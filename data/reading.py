"""One reader per table format; each opens a source, says which columns it has, and loads the ones asked for.

CSV and JSON lines go through the standard library's parsers instead of those of pandas and Arrow, for what these do in
silence: pandas fills short rows and turns "NA" into nothing and "007" into 7, Arrow swallows the rest of a file after
an unclosed quote, and both read a text such as "2024-01-01" in JSON as a date. Here every CSV cell is text, every JSON
value keeps its type, and what is not a table is an error with its line. Parquet goes through `datasets`, which maps
the columns into memory from its cache on disk: pictures and sounds that lie in the table are never all in RAM.
"""

import csv
import glob
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.remote import fetch_shards, local_path
from data.source import Shard, Source

if TYPE_CHECKING:
    from datasets import Dataset

DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
PICTURE_SUFFIXES = frozenset([".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"])
SOUND_SUFFIXES = frozenset([".aif", ".aiff", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".wav"])
_CHUNK_ROWS = 20_000


def open_source(
    source: str | Path, *, split: str | None = None, config_name: str | None = None, revision: str | None = None
) -> Source:
    """Finds out what `source` is (file, folder, glob of Parquet files, Hub data set) and opens it.

    Raises:
        FileNotFoundError: nothing is there, neither on disk nor on the Hub.
        ValueError: what is there is not a table, or `split` / `config_name` / `revision` do not apply to it.
    """
    name = str(source)
    if "://" in name:
        _refuse_hub_options(name, split=split, config_name=config_name, revision=revision)
        if (here := local_path(name)) is None:
            return _open_remote(name)
        source = here
    path, name = Path(source).expanduser(), str(source)
    if path.is_dir():
        _refuse_hub_options(name, config_name=config_name, revision=revision)
        return _open_folder(path, split)
    is_glob = not path.exists() and any(letter in name for letter in "*?[")
    if path.is_file() or is_glob or path.suffix.lower() in SUFFIXES:
        _refuse_hub_options(name, split=split, config_name=config_name, revision=revision)
        return _open_files(sorted(glob.glob(str(path), recursive=True)) if is_glob else [str(path)], name)
    return _open_hub(name, split, config_name, revision)


def _open_hub(name: str, split: str | None, config_name: str | None, revision: str | None) -> Source:
    from data.hub import HUB_ID, find_hub_set, open_split

    if not HUB_ID.fullmatch(name):
        raise FileNotFoundError(f"`{name}` does not exist. Give {_what_is_read()}.")
    try:
        return open_split(find_hub_set(name, config_name=config_name, revision=revision), split)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"`{name}` is neither a file or folder here nor a data set that can be had now: {error} Or give "
            f"{_what_is_read()}."
        ) from error


def _open_remote(name: str) -> Source:
    remote = fetch_shards(name)
    addresses = dict(zip(remote.paths, remote.addresses, strict=True))
    source = _open_parquet(list(remote.paths), name, addresses)
    shards = tuple(Shard(addresses[shard.name], None, shard.first_row) for shard in source.shards)
    return replace(source, shards=shards, origin=remote.origin)


def _what_is_read() -> str:
    return (
        f"a file ({', '.join(SUFFIXES)}), a folder with {' / '.join(METADATA_NAMES)}, a glob of .parquet files (here "
        "or at hf://, s3:// …), or the name of a data set on the Hub (`owner/name`)"
    )


def _refuse_hub_options(name: str, **options: str | None) -> None:
    for option, value in options.items():
        if value is not None:
            raise ValueError(
                f"`{option}`={value!r} has no meaning for `{name}`: it chooses within a data set on the Hub"
                f"{' or a folder' if option == 'split' else ''}. Leave it out, or name the file of that {option}."
            )


def _open_files(paths: list[str], name: str) -> Source:
    if not paths:
        raise FileNotFoundError(f"No file matches `{name}`. Give {_what_is_read()}.")
    suffixes = {Path(path).suffix.lower() for path in paths}
    if suffixes == {".parquet"}:
        return _open_parquet(paths, name)
    if len(paths) > 1:
        raise ValueError(f"`{name}` matches {len(paths)} files; only .parquet files are read as one table.")
    return _open_text_file(Path(paths[0]))


def _open_text_file(path: Path) -> Source:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"`{path}` ends in `{suffix}`, which is no table. Give {_what_is_read()}.")
    if not path.is_file():
        raise FileNotFoundError(f"`{path}` does not exist. Check the path (relative to {Path.cwd()}).")
    if path.stat().st_size == 0:
        raise ValueError(f"`{path}` is an empty file: it has no rows. Give a table with at least one row.")
    try:
        if suffix in DELIMITERS:
            names = _csv_header(path, DELIMITERS[suffix])
            load = lambda columns: _load_csv(path, DELIMITERS[suffix], names, columns)  # noqa: E731
        else:
            records = _read_json(path)
            if not records:
                raise ValueError(f"`{path}` has no rows. Give a table with at least one row.")
            names = list(dict.fromkeys(key for record in records for key in record))
            load = lambda columns: _load_records(path, records, columns)  # noqa: E731
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from None
    return Source(str(path), (Shard(str(path), path.parent.resolve()),), names, load, {})


def _not_utf8(path: Path, error: UnicodeDecodeError) -> ValueError:
    byte = error.object[error.start]
    return ValueError(
        f"`{path}` is not UTF-8 text (it holds the byte 0x{byte:02x}, as files in latin-1 or UTF-16 do). Save it as "
        f"UTF-8, for example with `iconv -f latin1 -t utf-8 {path.name} > utf8_{path.name}`."
    )


# --- CSV and TSV -----------------------------------------------------------------------------------------------------


def _csv_rows(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yields (line, cells); the line is the physical one on which the row ends."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            for cells in reader:
                yield reader.line_num, cells
        except csv.Error as error:
            raise ValueError(
                f"`{path}`, line {reader.line_num}: {error}. A quoted cell is not closed, or a quote inside of a "
                f'quoted cell is not doubled (`""`), or a cell has more than {csv.field_size_limit():,} characters.'
            ) from None


def _csv_header(path: Path, delimiter: str) -> list[str]:
    header = next((cells for _, cells in _csv_rows(path, delimiter) if cells), None)
    if header is None:
        raise ValueError(f"`{path}` holds only blank lines: it has no rows. Give a table with at least one row.")
    names = [name.strip() for name in header]
    _refuse_duplicates(path, names)
    return names


def _refuse_duplicates(path: Path, names: list[str]) -> None:
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise ValueError(
            f"`{path}` has more than one column named {', '.join(f'`{name}`' for name in twice)}. Rename one of them."
        )


def _load_csv(path: Path, delimiter: str, names: list[str], columns: list[str]) -> "Dataset":
    wanted = [names.index(column) for column in columns]
    schema = pa.schema([(column, pa.large_string()) for column in columns])
    try:
        chunks = [
            pa.table([[row[index] for row in chunk] for index in wanted], schema=schema)
            for chunk in _in_chunks(_checked_csv_rows(path, delimiter, len(names)))
        ]
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from None
    return _as_dataset(pa.concat_tables(chunks) if chunks else schema.empty_table())


def _checked_csv_rows(path: Path, delimiter: str, num_columns: int) -> Iterator[list[str]]:
    """Yields the rows below the header, each as long as the header.

    Blank lines are no rows, except in a table of one column, where they are its empty cells.
    """
    rows = ((line, cells or [""] * (num_columns == 1)) for line, cells in _csv_rows(path, delimiter))
    is_header = True
    for line, cells in rows:
        if not cells:
            continue
        if is_header:
            is_header = not any(cells)
            continue
        if len(cells) != num_columns:
            raise ValueError(
                f"`{path}`, line {line}: {len(cells)} cells where the header has {num_columns} columns. Quote cells "
                f"that hold the delimiter {delimiter!r}, and write an empty cell for each missing value."
            )
        yield cells


def _in_chunks(rows: Iterable[list[str]]) -> Iterator[list[list[str]]]:
    chunk: list[list[str]] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == _CHUNK_ROWS:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _as_dataset(table: pa.Table) -> "Dataset":
    from datasets import Dataset

    return Dataset(table)


# --- JSON lines ------------------------------------------------------------------------------------------------------


def _read_json(path: Path) -> list[dict[str, Any]]:
    """Reads one JSON object per line, or, in a `.json` file, also one list of objects."""
    with path.open(encoding="utf-8-sig") as file:
        text_start = file.read(1024).lstrip()
        file.seek(0)
        if path.suffix.lower() == ".json" and text_start.startswith("["):
            records = _parse_json(path, None, file.read())
            return [_checked_record(path, f"item {number}", record) for number, record in enumerate(records, 1)]
        return [
            _checked_record(path, f"line {number}", _parse_json(path, number, line))
            for number, line in enumerate(file, 1)
            if line.strip()
        ]


def _parse_json(path: Path, line: int | None, text: str) -> Any:
    def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            _refuse_duplicates(path, [key for key, _ in pairs])
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=refuse_duplicates)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"`{path}`, line {line or error.lineno}: not valid JSON ({error.msg}, column {error.colno}). "
            "Write one JSON object per line."
        ) from None
    except RecursionError:
        raise ValueError(
            f"`{path}`, line {line or 1}: lists or objects are nested too deeply. Write one flat object per line."
        ) from None


def _checked_record(path: Path, place: str, record: Any) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise ValueError(f"`{path}`, {place}: {record!r:.80} is not an object. Write one JSON object per line.")
    return record


def _load_records(path: Path, records: list[dict[str, Any]], columns: list[str]) -> "Dataset":
    arrays = []
    for column in columns:
        values = [record.get(column) for record in records]
        _refuse_mixed_types(path, column, values)
        try:
            arrays.append(pa.array(values))
        except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
            reason = f"`{path}`: the column `{column}` cannot be read as one type ({error})"
            raise ValueError(f"{reason}. Write all of its values in one type, text as valid Unicode.") from None
    return _as_dataset(pa.table(arrays, names=columns))


def _refuse_mixed_types(path: Path, column: str, values: list[Any]) -> None:
    first_row: dict[str, int] = {}
    for row, value in enumerate(values, 1):
        if value is not None:
            kind = "number" if type(value) in (int, float) else type(value).__name__
            first_row.setdefault(kind, row)
    if len(first_row) > 1:
        (kind_a, row_a), (kind_b, row_b) = list(first_row.items())[:2]
        raise ValueError(
            f"`{path}`, column `{column}`: row {row_a} holds a {kind_a} and row {row_b} a {kind_b}. "
            "Write all values of a column in one type."
        )


# --- Parquet ---------------------------------------------------------------------------------------------------------


def _open_parquet(paths: list[str], name: str, called: dict[str, str] | None = None) -> Source:
    """Opens shards as one table; `called` says what messages call those that were fetched from elsewhere."""
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
    _refuse_duplicates(Path(name), schema.names)
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
        raise ValueError(f"`{path}` is not a readable Parquet file ({error}). Write or download it again.") from None


def _load_parquet(paths: list[str], name: str, schema: pa.Schema, columns: list[str]) -> "Dataset":
    """Loads through the cache of `datasets`, memory-mapped.

    The features that the file declares are kept only where they carry names (labels): an `Audio()` feature would ask
    for torchcodec at the first row.
    """
    from datasets import Dataset
    from datasets.exceptions import DatasetGenerationError

    features = plain_features(schema, columns)
    try:
        return Dataset.from_parquet(paths, columns=columns, features=features)
    except (DatasetGenerationError, pa.ArrowException) as error:
        reason = error.__cause__ or error
        raise ValueError(f"`{name}` cannot be read ({reason}). Write or download it again.") from None


def plain_features(schema: pa.Schema, columns: list[str]):
    """The features of `columns`, as declared for label names, as stored for everything else."""
    from datasets import ClassLabel, Features

    schema = pa.schema([_decoded_field(schema.field(column)) for column in columns], metadata=schema.metadata)
    stored = Features.from_arrow_schema(schema.remove_metadata())
    declared = Features.from_arrow_schema(schema) if b"huggingface" in (schema.metadata or {}) else {}
    for column, feature in declared.items():
        if column in stored and isinstance(getattr(feature, "feature", feature), ClassLabel):
            stored[column] = feature
    return stored


def _decoded_field(field: pa.Field) -> pa.Field:
    """A dictionary-encoded column (a categorical of pandas) is read as its values."""
    return field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field


# --- Folders ---------------------------------------------------------------------------------------------------------


def _open_folder(folder: Path, split: str | None) -> Source:
    """Opens a folder by its metadata file, following the conventions of `imagefolder` and `audiofolder`."""
    if split is not None:
        folder = folder / split
        if not folder.is_dir():
            raise FileNotFoundError(f"`{folder}` does not exist: a folder's `split` is the name of a folder in it.")
    found = [folder / name for name in METADATA_NAMES if (folder / name).is_file()]
    if len(found) != 1:
        has = "none of them" if not found else " and ".join(f"`{path.name}`" for path in found)
        raise ValueError(
            f"The folder `{folder}` needs exactly one of {', '.join(METADATA_NAMES)}; it has {has}. "
            "Add one, or name the table file itself; of Parquet shards, as Spark and Dask write them, all by a glob: "
            f"`{folder}/*.parquet`."
        )
    source = _open_files([str(found[0])], str(found[0]))
    return Source(source.name, source.shards, source.column_names, source.load, _folder_defaults(source))


def _folder_defaults(source: Source) -> dict[str, str]:
    defaults = {"image": "image_file_name", "audio": "audio_file_name"}
    defaults = {modality: name for modality, name in defaults.items() if name in source.column_names}
    if "file_name" in source.column_names:
        defaults.setdefault(_modality_of_files(source), "file_name")
    return defaults


def _modality_of_files(source: Source) -> str:
    """`file_name` says nothing about the medium, its values' endings do."""
    values = [value for value in source.load(["file_name"])["file_name"][:] if value]
    suffixes = {Path(str(value)).suffix.lower() for value in values}
    if suffixes <= PICTURE_SUFFIXES:
        return "image"
    if suffixes <= SOUND_SUFFIXES:
        return "audio"
    raise ValueError(
        f"`{source.name}`: the column `file_name` holds files ending in {', '.join(sorted(suffixes))}, which are not "
        "all pictures or all sounds. Use the columns `image_file_name` and `audio_file_name`."
    )
