"""A reader for each format of a table: it opens a source, says which columns it has, and loads some of them."""

import glob
from dataclasses import replace
from pathlib import Path

from data.csv_files import DELIMITERS, csv_format, csv_header, load_csv
from data.file_kinds import refuse_other_kinds
from data.folders import METADATA_NAMES, open_folder
from data.json_files import load_records, read_json
from data.parquet_files import open_arrow, open_parquet
from data.remote import fetch_shards, local_path
from data.source import Shard, Source

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".arrow", ".feather")


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
        return open_folder(path, split, lambda file: _open_files([str(file)], str(file)))
    is_glob = not path.exists() and any(letter in name for letter in "*?[")
    if path.is_file() or is_glob or path.suffix.lower() in SUFFIXES:
        _refuse_hub_options(name, split=split, config_name=config_name, revision=revision)
        return _open_files(_matching(path) if is_glob else [str(path)], name)
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
    source = open_parquet(list(remote.paths), name, addresses)
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
        return open_parquet(paths, name)
    if len(paths) > 1:
        raise ValueError(f"`{name}` matches {len(paths)} files; only .parquet files are read as one table.")
    return _open_text_file(Path(paths[0]))


def _matching(pattern: Path) -> list[str]:
    """Return the files that a pattern matches; folders that exist as they are written are no patterns."""
    folder, parts = Path(pattern.anchor), pattern.parts[bool(pattern.anchor) :]
    while parts and (folder / parts[0]).exists():
        folder, parts = folder / parts[0], parts[1:]
    return sorted(str(folder / name) for name in glob.glob("/".join(parts), root_dir=folder, recursive=True))


def _open_text_file(path: Path) -> Source:
    suffix = path.suffix.lower()
    if path.is_file():
        refuse_other_kinds(path)
    if suffix not in SUFFIXES:
        raise ValueError(f"`{path}` ends in `{suffix}`, which is no table. Give {_what_is_read()}.")
    if not path.is_file():
        raise FileNotFoundError(f"`{path}` does not exist. Check the path (relative to {Path.cwd()}).")
    if path.stat().st_size == 0:
        raise ValueError(f"`{path}` is an empty file: it has no rows. Give a table with at least one row.")
    if suffix in (".arrow", ".feather"):
        return open_arrow(path)
    if suffix in DELIMITERS:
        form = csv_format(path)
        names = csv_header(path, form)
        load = lambda columns: load_csv(path, form, names, columns)  # noqa: E731
    else:
        records = read_json(path)
        if not records:
            raise ValueError(f"`{path}` has no rows. Give a table with at least one row.")
        names = list(dict.fromkeys(key for record in records for key in record))
        load = lambda columns: load_records(path, records, columns)  # noqa: E731
    return Source(str(path), (Shard(str(path), path.parent.resolve()),), names, load, {})
