"""Files and folders that are either whole or not there."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path beside to write to, and move it into place when all is written.

    Whoever reads `path` finds the old content or the new; after a failure nothing of the new is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: Path, content: dict):
    """Write JSON for people and programs; NaN, which is no JSON, is refused."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


@contextmanager
def assembled(folder: Path) -> Iterator[Path]:
    """Give an empty folder beside to write to, and move it into place when all is written.

    Whoever looks at `folder` finds the old one or the new one. After a failure nothing of the new one is left.
    """
    folder = folder.resolve()  # a link stays, and what it points to is replaced
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial, replaced = (folder.with_name(f".{folder.name}.{what}-{os.getpid()}") for what in ("partial", "replaced"))
    shutil.rmtree(partial, ignore_errors=True)  # of a killed run with our process id: in a container it is often 1
    partial.mkdir()
    try:
        yield partial
        if folder.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            os.replace(folder, replaced)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if replaced.exists() and not folder.exists():  # the second move failed: put the old one back
            os.replace(replaced, folder)
        shutil.rmtree(replaced, ignore_errors=True)
