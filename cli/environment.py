"""Where a command runs: caches and outputs that cannot be written to, found before any work is done.

A container often runs as a user whose home does not exist. `transformers` copies the code of a model into a cache
below it, so that without one nothing could be loaded or saved. What only speeds things up goes to a temporary folder.
"""

import argparse
import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

# Variable -> its folder below HF_HOME. What was downloaded (HF_HUB_CACHE) may be read where it cannot be written.
WRITTEN = {
    "HF_MODULES_CACHE": "modules", "HF_DATASETS_CACHE": "datasets", "HF_EVALUATE_CACHE": "evaluate",
    "HF_METRICS_CACHE": "metrics", "HF_ASSETS_CACHE": "assets", "HF_XET_CACHE": "xet",
}  # fmt: skip


def provide_caches():
    """Point the caches that cannot be written to at a temporary folder, and say so on stderr.

    It has to run before `huggingface_hub`, which reads these variables once. Processes started later inherit them.

    Raises:
        OSError: When there is no temporary folder either.
    """
    home = _hugging_face_home()
    needed = {name: home / folder for name, folder in WRITTEN.items()}
    if not (home / "hub").is_dir():
        needed["HF_HUB_CACHE"] = home / "hub"
    needed["MPLCONFIGDIR"] = _expanded(os.environ.get("XDG_CONFIG_HOME") or "~/.config") / "matplotlib"
    needed = {name: _expanded(os.environ.get(name) or str(default)) for name, default in needed.items()}
    broken = [name for name, folder in needed.items() if not is_writable(folder)]
    if not broken:
        return
    scratch = _temporary_folder(home)
    os.environ |= {name: str(scratch / name.lower()) for name in broken}
    for name in broken:
        (scratch / name.lower()).mkdir()
    if "HF_MODULES_CACHE" in broken:
        print(
            f"note: `{needed['HF_MODULES_CACHE']}` cannot be written to, so a temporary folder is used; set HF_HOME "
            "to a folder that can be, to keep downloads",
            file=sys.stderr,
        )


def is_writable(folder: Path) -> bool:
    """Whether files can be made in a folder, or the folder itself where it is not there yet; makes nothing."""
    try:
        while not folder.exists():
            if folder == folder.parent:
                return False
            folder = folder.parent
        # `os.access` says yes to root for what no file can be made in, such as /proc: it is tried.
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def require_writable(path: Path, flag: str):
    """Check that a file or folder can be made at a path, before hours are spent on what goes there.

    Raises:
        OSError: When it cannot.
    """
    folder = path if path.is_dir() else path.parent
    if not is_writable(folder.absolute()):
        raise OSError(f"`{flag}` is `{path}`, where nothing can be written: choose a folder that can be written to")


def refuse_undecoded(args: tuple):
    """Check that the arguments of a command are text; bytes that are not can be no name of a file that is written.

    Raises:
        ValueError: When Python could not decode one, as in a locale without its letters.
    """
    for namespace in (one for one in args if isinstance(one, argparse.Namespace)):
        for name, given in vars(namespace).items():
            for value in given if isinstance(given, list | tuple) else [given]:
                if isinstance(value, str | Path) and any("\ud800" <= letter <= "\udfff" for letter in str(value)):
                    raise ValueError(
                        f"`{name}` is `{value}`, which could not be read as text ({sys.getfilesystemencoding()}): set "
                        "the variable PYTHONUTF8 to 1, and give names in UTF-8"
                    )


def _hugging_face_home() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return _expanded(os.environ.get("HF_HOME") or f"{cache}/huggingface")


def _expanded(path: str) -> Path:
    """A path without `~`; where a user has no home at all, one that cannot be written to."""
    try:
        return Path(os.path.expandvars(path)).expanduser()
    except RuntimeError:  # a user without an entry in the password file
        return Path(os.devnull) / "home"


def _temporary_folder(home: Path) -> Path:
    """A folder for this process and those that it starts, which goes with it."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="mmfusion-cache-"))
    except OSError:
        raise OSError(
            f"neither `{home}` nor a temporary folder can be written to: set HF_HOME and TMPDIR to folders that can be"
        ) from None
    owner = os.getpid()  # a forked worker ends, too
    atexit.register(lambda: os.getpid() == owner and shutil.rmtree(folder, ignore_errors=True))
    return folder
