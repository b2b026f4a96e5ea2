"""Files that are given as a table and are something else: told by their first bytes, with what to do."""

import shlex
from pathlib import Path

_AS_CSV = "Open it in the program, and save it as `CSV UTF-8`"
_KINDS = (
    (b"\xd0\xcf\x11\xe0", "an old Excel or Office file", _AS_CSV),
    (b"\x89HDF", "an HDF5 file", "Write its table as Parquet (`pandas.read_hdf(…).to_parquet(…)`)"),
    (b"SQLite format 3", "an SQLite database", "Write the rows that are wanted as Parquet or CSV"),
    (b"ORC", "an ORC file", "Write it as Parquet (`pandas.read_orc(…).to_parquet(…)`)"),
    (b"Obj\x01", "an Avro file", "Write it as Parquet"),
    (b"%PDF", "a PDF", "Give the table that it was made from"),
    (b"FEA1", "a Feather file of version 1", "Write it as Parquet (`pandas.read_feather(…).to_parquet(…)`)"),
    (b"\x80\x02", "a pickle, which is never read", "Write it as Parquet (`frame.to_parquet(…)`)"),
    (b"\x80\x03", "a pickle, which is never read", "Write it as Parquet (`frame.to_parquet(…)`)"),
    (b"\x80\x04", "a pickle, which is never read", "Write it as Parquet (`frame.to_parquet(…)`)"),
    (b"\x80\x05", "a pickle, which is never read", "Write it as Parquet (`frame.to_parquet(…)`)"),
    (b"\x93NUMPY", "a NumPy array", "Write a table with a column for the text, image, audio and label"),
    (b"version https://git-lfs", "a Git LFS pointer, and not yet the file", "Run `git lfs pull` in its folder"),
)
_PACKED = {
    b"\x1f\x8b": ("gzip", "gunzip -k"), b"BZh": ("bzip2", "bunzip2 -k"), b"\xfd7zXZ": ("xz", "unxz -k"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd -k"),
}  # fmt: skip


def refuse_other_kinds(path: Path) -> None:
    """Refuse a file whose bytes say that it is not a table of the kind that its name says.

    Raises:
        ValueError: it is something else; the message says what, and how a table is made of it.
    """
    with path.open("rb") as file:
        start = file.read(4096)
    for mark, kind, advice in _KINDS:
        if start.startswith(mark):
            raise ValueError(f"`{path}` is {kind}. {advice}.")
    if start.startswith(b"PK\x03\x04"):
        raise _archive(path, start)
    for mark, (kind, command) in _PACKED.items():
        if start.startswith(mark):
            raise ValueError(f"`{path}` is packed with {kind}. Unpack it: `{command} {shlex.quote(str(path))}`.")
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        raise ValueError(f"`{path}` is a page (HTML), such as one to log in. Download the file itself.")
    for mark, suffix in ((b"PAR1", ".parquet"), (b"ARROW1\0", ".arrow")):
        if start.startswith(mark) and path.suffix.lower() not in (suffix, ".feather"):
            raise ValueError(f"`{path}` is a {suffix[1:].capitalize()} file. Rename it to end in `{suffix}`.")


def _archive(path: Path, start: bytes) -> ValueError:
    import zipfile

    is_office = path.suffix.lower() in (".xlsx", ".xlsm", ".xlsb", ".ods", ".numbers") or b"xl/" in start
    if not is_office:
        try:
            with zipfile.ZipFile(path) as archive:
                is_office = any(name.startswith("xl/") or name == "content.xml" for name in archive.namelist())
        except zipfile.BadZipFile:
            return ValueError(f"`{path}` is a zip archive that is cut off. Download it again, and unpack it.")
    if is_office:
        return ValueError(f"`{path}` is a workbook of a spreadsheet (Excel). {_AS_CSV}, one sheet a file.")
    return ValueError(
        f"`{path}` is a zip archive. Unpack it (`unzip {shlex.quote(str(path))} -d "
        f"{shlex.quote(str(path.with_suffix('')))}`), and give the table in it."
    )
