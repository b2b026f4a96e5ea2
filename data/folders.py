"""Folders: a metadata file beside its media, what `datasets` saved, or a folder for each class."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from data.arrow_types import as_dataset
from data.hub import undecoded
from data.source import Shard, Source, tell_once

METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
PICTURE_SUFFIXES = frozenset([".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"])
SOUND_SUFFIXES = frozenset([".aif", ".aiff", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".wav"])
MEDIA_SUFFIXES = PICTURE_SUFFIXES | SOUND_SUFFIXES
TABLE_SUFFIXES = frozenset([".csv", ".tsv", ".jsonl", ".json", ".parquet", ".arrow", ".feather"])
SPLIT_NAMES = frozenset(["train", "training", "validation", "valid", "val", "dev", "test", "testing"])
_METADATA_ADVICE = (
    "Add a `metadata.csv` with the columns `file_name` (relative to the folder) and `label`, or name the table file "
    "itself."
)


def open_folder(folder: Path, split: str | None, open_file: Callable[[Path], Source]) -> Source:
    """Open a folder by its metadata file, by what `datasets` saved there, or by the folders of its classes.

    Args:
        folder: where; the conventions are those of `imagefolder` and `audiofolder`.
        split: the name of a folder in it; None: the folder itself.
        open_file: opens the metadata file.
    """
    if split is not None:
        folder = folder / split
        if not folder.is_dir():
            raise FileNotFoundError(f"`{folder}` does not exist: a folder's `split` is the name of a folder in it.")
    found = [folder / name for name in METADATA_NAMES if (folder / name).is_file()]
    if not found and (source := _open_saved(folder) or _open_classes(folder)) is not None:
        return source
    if len(found) != 1:
        has = "none of them" if not found else " and ".join(f"`{path.name}`" for path in found)
        raise ValueError(
            f"The folder `{folder}` needs exactly one of {', '.join(METADATA_NAMES)}; it has {has}. {_advice(folder)}"
        )
    source = open_file(found[0])
    return Source(source.name, source.shards, source.column_names, source.load, _folder_defaults(source))


def _open_saved(folder: Path) -> Source | None:
    """Open what `Dataset.save_to_disk` wrote, or the training part of a `DatasetDict`."""
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(path.parent.name for path in folder.glob("*/state.json"))
        if not splits:
            raise ValueError(f"The folder `{folder}` names splits in `dataset_dict.json` and has none. Save it again.")
        if len(splits) > 1 and "train" not in splits:
            raise ValueError(f"The folder `{folder}` has the splits {', '.join(splits)}. Give the folder of one.")
        chosen = "train" if "train" in splits else splits[0]
        if len(splits) > 1:
            tell_once(f"note: of the splits {', '.join(splits)} in `{folder}`, `{chosen}` is read")
        return _open_saved(folder / chosen)
    if not (folder / "state.json").is_file():
        return None
    from datasets import load_from_disk

    try:
        dataset = load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise ValueError(f"The folder `{folder}` cannot be read as `save_to_disk` writes it ({error}).") from None
    shards = (Shard(str(folder), folder.resolve()),)
    load = lambda columns: undecoded(dataset.select_columns(columns))  # noqa: E731
    return Source(str(folder), shards, dataset.column_names, load, {})


def _open_classes(folder: Path) -> Source | None:
    """Open folders that are called as the classes of the files in them; None where there are none."""
    files = sorted(path for path in folder.glob("[!.]*/[!.]*") if path.suffix.lower() in MEDIA_SUFFIXES)
    labels = [path.parent.name for path in files]
    if len(set(labels)) < 2 or set(labels) <= SPLIT_NAMES:
        return None
    kinds = {"image" if path.suffix.lower() in PICTURE_SUFFIXES else "audio" for path in files}
    if len(kinds) > 1:
        raise ValueError(
            f"The folder `{folder}` holds pictures and sounds in folders of their classes: which belong together is "
            f"not known. {_METADATA_ADVICE}"
        )
    names = [str(path.relative_to(folder)) for path in files]
    table = pa.table({kinds.pop(): names, "label": labels})
    tell_once(f"note: {len(files):,} files in `{folder}`, labelled by their folders: {', '.join(sorted(set(labels)))}")
    shards = (Shard(str(folder), folder.resolve()),)
    return Source(str(folder), shards, table.column_names, lambda columns: as_dataset(table.select(columns)), {})


def _advice(folder: Path) -> str:
    """Return what to do about a folder, by what lies in it."""
    tables = sorted(path for path in folder.iterdir() if path.suffix.lower() in TABLE_SUFFIXES)
    if tables and all(path.suffix.lower() == ".parquet" for path in tables):
        return f"Name its Parquet shards, as Spark and Dask write them, all by a glob: `{folder}/*.parquet`."
    if tables:
        return f"Name the table file itself, such as `{tables[0]}`."
    parts = sorted({path.parents[1].name for path in folder.glob("*/*/*") if path.suffix.lower() in MEDIA_SUFFIXES})
    if parts:
        return (
            "It has class folders one level further down, in "
            f"{', '.join(parts)}: give one of these, such as `{folder / parts[-1]}`."
        )
    return _METADATA_ADVICE


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
