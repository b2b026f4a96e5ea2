"""A visitor's table, alone or in a zip with its pictures and sounds, unpacked into a folder where it can do no harm.

Unusual: nothing that a zip says of itself is believed. Bytes are counted while they are unpacked, names are checked
and not mended, and only what unpacks with little memory (stored and deflated) is unpacked at all.
"""

import errno
import mmap
import re
import shutil
import stat
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from space.errors import BadInput

MIB = 1024 * 1024
TABLE_SUFFIXES = (".csv", ".tsv")
# Tables of other programs, for which a visitor gets a remedy instead of "there is no table".
OTHER_TABLE_SUFFIXES = (".xlsx", ".xls", ".ods", ".parquet", ".jsonl", ".json", ".numbers")
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, struct.error)
CHUNK_BYTES = 64 * 1024
# Bytes with which each entry of a zip's directory begins.
ENTRY_SIGNATURE = re.compile(rb"PK\x01\x02")
FORBIDDEN_LETTERS = re.compile(r"[\x00-\x1f\x7f]")
MAX_NAME_BYTES, MAX_DEPTH = 255, 8


@dataclass(frozen=True)
class ArchiveLimits:
    """What an upload may hold.

    Args:
        max_table_bytes: of the table; reading a row takes some twenty times its bytes in memory for a moment.
        max_entries: files and folders in a zip.
        max_entry_bytes: of one unpacked file.
        max_total_bytes: of all unpacked files.
        max_ratio: unpacked to packed size of a file of more than `ratio_from_bytes`; pictures and sounds hardly
            shrink, and what shrinks a hundredfold is made to hurt.
        ratio_from_bytes: smaller files may shrink as they like: silence does.
    """

    max_table_bytes: int = 8 * MIB
    max_entries: int = 4_000
    max_entry_bytes: int = 32 * MIB
    max_total_bytes: int = 256 * MIB
    max_ratio: float = 100.0
    ratio_from_bytes: int = 10 * MIB


def open_upload(upload: Path, folder: Path, limits: ArchiveLimits | None = None) -> Path:
    """Give the table of an upload.

    Args:
        upload: a .csv, a .tsv, or a .zip that holds one of these and the files that it names.
        folder: an empty folder, into which all goes; paths in the table are meant to stay below the table's folder.
        limits: what it may hold.

    Raises:
        BadInput: it is something else, it is damaged, or it goes beyond a limit or out of the folder.
    """
    limits = limits or ArchiveLimits()
    with upload.open("rb") as file:
        begins_like_zip = file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")
    suffix = upload.suffix.lower()
    if suffix == ".zip":
        if not begins_like_zip:
            raise BadInput("bad_archive", f"`{upload.name}` is no zip, whatever its name says: pack it again.")
        unpack(upload, folder, limits)
        return the_table(upload.name, folder, limits)
    if suffix not in TABLE_SUFFIXES:
        raise BadInput("bad_table", f"`{upload.name}` is no table: give {what_is_read()}.")
    if begins_like_zip:
        raise BadInput(
            "bad_table", f"`{upload.name}` is a zip or a workbook, no text: name it .zip, or save it as CSV."
        )
    return checked_size(Path(shutil.copyfile(upload, folder / upload.name)), limits)


def what_is_read() -> str:
    return "a .csv or .tsv file, or a .zip with one and its pictures and sounds"


def checked_size(table: Path, limits: ArchiveLimits) -> Path:
    if (size := table.stat().st_size) > limits.max_table_bytes:
        raise BadInput(
            "body_too_large", f"`{table.name}` has {size:,} bytes, the limit of a table is {limits.max_table_bytes:,}."
        )
    return table


def the_table(upload_name: str, folder: Path, limits: ArchiveLimits) -> Path:
    """Find the one table at the top, or else in one of the folders there.

    Raises:
        BadInput: there is none, or more than one.
    """
    for pattern in ("*", "*/*"):
        found = sorted(
            path for path in folder.glob(pattern) if path.suffix.lower() in TABLE_SUFFIXES and path.is_file()
        )
        if len(found) > 1:
            names = ", ".join(f"`{path.relative_to(folder)}`" for path in found[:5])
            raise BadInput("bad_archive", f"`{upload_name}` holds {len(found)} tables ({names}): leave one.")
        if found:
            return checked_size(found[0], limits)
    others = [path.name for path in sorted(folder.rglob("*")) if path.suffix.lower() in OTHER_TABLE_SUFFIXES]
    hint = f" (`{others[0]}` is not read: save it as CSV)" if others else ""
    raise BadInput(
        "bad_archive",
        f"`{upload_name}` holds no table{hint}: put one {' or '.join(TABLE_SUFFIXES)} at its top, beside its files.",
    )


# -- zips -------------------------------------------------------------------------------------------------------------


def unpack(upload: Path, folder: Path, limits: ArchiveLimits) -> None:
    """Unpack the files of a zip; what macOS adds is left out, a zip inside stays a file.

    Raises:
        BadInput: see `open_upload`. What was unpacked until then is left for the caller to remove.
    """
    refuse_many_entries(upload, limits)
    try:
        with open_zip(upload) as archive:
            unpack_entries(upload.name, archive, folder, limits)
    except (*DAMAGED, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # that: a place outside of the file
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadInput("bad_archive", f"`{upload.name}` is damaged ({reason:.100}): pack it again.") from None


def refuse_many_entries(upload: Path, limits: ArchiveLimits) -> None:
    """Count before opening: `zipfile` makes an object of each entry, at ten times its bytes.

    A zip inside a zip is counted, too, hence the room.
    """
    with upload.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        num_entries = sum(1 for _ in ENTRY_SIGNATURE.finditer(content))
    if num_entries > 2 * limits.max_entries:
        raise too_many_entries(upload.name, num_entries, limits)


def too_many_entries(name: str, num_entries: int, limits: ArchiveLimits) -> BadInput:
    return BadInput("body_too_large", f"`{name}` has {num_entries:,} entries, the limit is {limits.max_entries:,}.")


def open_zip(upload: Path) -> zipfile.ZipFile:
    """Open it; names without a mark of their encoding are UTF-8 on a Mac, and what DOS used elsewhere."""
    try:
        return zipfile.ZipFile(upload, metadata_encoding="utf-8")
    except UnicodeDecodeError:
        return zipfile.ZipFile(upload)


def unpack_entries(name: str, archive: zipfile.ZipFile, folder: Path, limits: ArchiveLimits) -> None:
    entries = archive.infolist()
    if len(entries) > limits.max_entries:
        raise too_many_entries(name, len(entries), limits)
    files = {checked_name(name, entry): entry for entry in entries if is_wanted(entry)}
    refuse_clashes(name, [entry for entry in entries if is_wanted(entry)])
    total = 0
    for path, entry in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as file:
            for chunk in counted_chunks(name, archive, entry, limits):
                total += len(chunk)
                if total > limits.max_total_bytes:
                    raise too_large(name, f"more than {limits.max_total_bytes:,} bytes when unpacked, the limit")
                file.write(chunk)


def is_wanted(entry: zipfile.ZipInfo) -> bool:
    """Leave out folders, and what macOS and file managers add."""
    parts = entry.filename.replace("\\", "/").split("/")
    hidden = parts[0] == "__MACOSX" or (parts[-1].startswith(".") and parts[-1] not in (".", ".."))
    return not entry.is_dir() and not hidden


def checked_name(name: str, entry: zipfile.ZipInfo) -> PurePosixPath:
    """Give the path of an entry below the folder.

    Raises:
        BadInput: it leads elsewhere, is no plain file, or cannot be a file's name; or it is encrypted, or packed in a
            way that is not unpacked here.
    """
    shown = f"`{name}` holds {entry.filename[:100]!r}"
    path = entry.orig_filename.replace("\\", "/")
    if path.startswith("/") or re.match(r"[A-Za-z]:", path) or ".." in path.split("/"):
        raise BadInput("bad_archive", f"{shown}, which leads out of the zip: nothing of it was used.")
    if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):
        raise BadInput("bad_archive", f"{shown}, which is a link or a device: pack plain files.")
    if entry.flag_bits & 0x41:
        raise BadInput("bad_archive", f"{shown}, which is encrypted: pack without a password.")
    if entry.compress_type not in METHODS:
        raise BadInput("bad_archive", f"{shown}, which is packed in a rare way: pack with plain zip (deflate).")
    parts = PurePosixPath(path).parts
    too_long = len(parts) > MAX_DEPTH or any(len(part.encode("utf-8", "replace")) > MAX_NAME_BYTES for part in parts)
    if not parts or too_long or FORBIDDEN_LETTERS.search(path):
        raise BadInput("bad_archive", f"{shown}, which cannot be the name of a file here: rename it.")
    return PurePosixPath(*parts)


def refuse_clashes(name: str, entries: list[zipfile.ZipInfo]) -> None:
    """Refuse a zip in which two entries have one name, or a file has the name of a folder."""
    paths = [PurePosixPath(entry.filename.replace("\\", "/")) for entry in entries]
    counts = Counter(paths)
    folders = {parent for path in paths for parent in path.parents}
    if clashing := [path for path in paths if counts[path] > 1 or path in folders]:
        raise BadInput("bad_archive", f"`{name}` holds {str(clashing[0])[:100]!r} twice: pack it again.")


def counted_chunks(
    name: str, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, limits: ArchiveLimits
) -> Iterator[bytes]:
    """Unpack one file piece by piece, and stop where it grows too large."""
    size = 0
    with archive.open(entry) as source:
        while chunk := source.read(CHUNK_BYTES):
            size += len(chunk)
            if size > limits.max_entry_bytes:
                raise too_large(name, f"{entry.filename[:100]!r}, with more than {limits.max_entry_bytes:,} bytes")
            if size > limits.ratio_from_bytes and size > limits.max_ratio * max(1, entry.compress_size):
                raise too_large(name, f"{entry.filename[:100]!r}, which unpacks to far more than its packed size")
            yield chunk


def too_large(name: str, what: str) -> BadInput:
    return BadInput("body_too_large", f"`{name}` holds {what}: nothing of it was used.")
