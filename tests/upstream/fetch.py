"""Fetch transformers' common tests from the source distribution of the installed version.

The wheel holds no tests and the tests are not ours to copy, so they are downloaded once, into `.upstream/`:

    python tests/upstream/fetch.py

pip checks the archive against the hash that the package index states; of the archive only `tests/test_*.py` is taken.
"""

import importlib.metadata
import shutil
import subprocess
import sys
import tarfile
import tempfile
from email.parser import BytesHeaderParser
from pathlib import Path

PROJECT = "transformers"
PACKAGE = "upstream_tests"  # the name to import the tests by; `tests` would collide with our own folder
STORE = Path(__file__).resolve().parents[2] / ".upstream"


def fetch(version: str | None = None, store: Path = STORE) -> Path:
    """The folder to put on `sys.path` to import `upstream_tests`; downloaded if it is not there yet.

    Args:
        version: Of transformers; None: the installed one.
        store: Folder that keeps one sub-folder a version.

    Raises:
        RuntimeError: When the archive cannot be downloaded, is of another version, or holds no tests.
    """
    version = version if version is not None else importlib.metadata.version(PROJECT)
    folder = store / f"{PROJECT}-{version}"
    if not folder.is_dir():
        store.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=store) as scratch:
            archive = _download(version, Path(scratch))
            unpacked = _unpack(archive, version, Path(scratch) / "unpacked")
            unpacked.rename(folder)  # at the end and at once: a folder that exists is complete
    return folder


def _download(version: str, scratch: Path) -> Path:
    """The source distribution, as pip finds, verifies and names it."""
    requirement = f"{PROJECT}=={version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", PROJECT, requirement]
    done = subprocess.run(
        [*command, "--dest", str(scratch), "--disable-pip-version-check"], capture_output=True, text=True
    )
    archives = sorted(scratch.glob("*.tar.gz"))
    if done.returncode or len(archives) != 1:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
        raise RuntimeError(
            f"the source distribution of `{requirement}`, which holds the upstream tests, could not be downloaded "
            f"(pip said: {said}); a package index with source distributions must be reachable"
        )
    return archives[0]


def _unpack(archive: Path, version: str, folder: Path) -> Path:
    """Take `tests/test_*.py` of the archive as the package `upstream_tests`, and nothing else."""
    package = folder / PACKAGE
    package.mkdir(parents=True)
    root = f"{PROJECT}-{version}"
    with tarfile.open(archive) as tar:
        _check_version(tar, root, version)
        for member in tar:
            path = Path(member.name)
            is_test = path.parent.as_posix() == f"{root}/tests" and path.match("test_*.py")
            if is_test and member.isfile():
                # Named by us and written by us: neither a link nor a path of the archive is followed.
                with tar.extractfile(member) as source, open(package / path.name, "wb") as target:
                    shutil.copyfileobj(source, target)
    if not any(package.iterdir()):
        raise RuntimeError(
            f"`{archive.name}` holds no `tests/test_*.py`: transformers no longer ships its tests there"
        )
    (package / "__init__.py").touch()
    return folder


def _check_version(tar: tarfile.TarFile, root: str, version: str):
    try:
        found = BytesHeaderParser().parse(tar.extractfile(f"{root}/PKG-INFO"))
    except KeyError:
        found = {}
    if (found.get("Name"), found.get("Version")) != (PROJECT, version):
        raise RuntimeError(
            f"the archive must be of {PROJECT} {version}, its PKG-INFO says {found.get('Name')} {found.get('Version')}"
        )


def main() -> int:
    try:
        print(fetch())
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
