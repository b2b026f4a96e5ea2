"""How a push becomes a commit: which files are large, and what the lines of a commit request do to a tree."""

import base64
import binascii
import fnmatch
import json
from collections.abc import Iterable
from pathlib import PurePosixPath

from .accounts import HubError
from .cards import check_card
from .storage import Commit, Repository, Shelf, StoredFile

MAX_REGULAR_BYTES = 10 * 1024 * 1024
# What the Hub stores as a large file by its name, and what it adds to that in data sets.
LARGE_PATTERNS = """
*.7z *.arrow *.avro *.bin *.bz2 *.ckpt *.ftz *.gz *.h5 *.joblib *.lz4 *.mlmodel *.model *.msgpack *.npy *.npz *.onnx
*.ot *.parquet *.pb *.pickle *.pkl *.pt *.pth *.rar *.safetensors saved_model/**/* *.tar.* *.tar *.tflite *.tgz *.wasm
*.xz *.zip *.zst *tfevents*
"""
LARGE_DATA_PATTERNS = "*.pcm *.sam *.raw *.aac *.flac *.mp3 *.ogg *.wav *.bmp *.gif *.png *.tiff *.jpg *.jpeg *.webp"


def git_attributes(kind: str) -> bytes:
    """The file with which the Hub starts every repository: what is stored as a large file by its name."""
    patterns = (LARGE_PATTERNS + (LARGE_DATA_PATTERNS if kind == "dataset" else "")).split()
    return "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in patterns).encode()


def space_card(name: str, sdk: str) -> bytes:
    """The card with which the Hub starts a Space."""
    lines = [f"title: {name}", "emoji: 🌍", "colorFrom: blue", "colorTo: green", f"sdk: {sdk}", "pinned: false"]
    return ("---\n" + "\n".join(lines) + "\n---\n").encode()


def matches(path: str, pattern: str) -> bool:
    """Git's rule in short: a pattern without a slash is about names, at any depth."""
    pattern = pattern.strip()
    if "/" in pattern.rstrip("/"):
        return fnmatch.fnmatch(path, pattern.strip("/")) or fnmatch.fnmatch(path, pattern.strip("/") + "/*")
    return any(fnmatch.fnmatch(part, pattern.rstrip("/")) for part in PurePosixPath(path).parts)


def text_of(shelf: Shelf, commit: Commit, path: str) -> str:
    return shelf.blobs.read(commit.tree[path]).decode("utf-8", "replace") if path in commit.tree else ""


def is_binary(sample: bytes) -> bool:
    try:
        sample.decode("utf-8")
    except UnicodeDecodeError as error:
        # A sample may end in the middle of a letter.
        return error.start < len(sample) - 3
    return b"\0" in sample


def upload_modes(shelf: Shelf, commit: Commit, files: list[dict], ignored: str | None) -> list[dict]:
    """What `preupload` answers: for every file whether it is large, to be ignored, and which content is there now."""
    lines = text_of(shelf, commit, ".gitattributes").splitlines()
    large = [line.split()[0] for line in lines if "filter=lfs" in line]
    ignored = text_of(shelf, commit, ".gitignore") if ignored is None else ignored
    unwanted = [line for line in ignored.splitlines() if line.strip() and not line.startswith(("#", "!"))]
    answers = []
    for file in files:
        path = file["path"]
        is_large = (
            file["size"] > MAX_REGULAR_BYTES
            or any(matches(path, pattern) for pattern in large)
            or is_binary(base64.b64decode(file.get("sample", "")))
        )
        known = commit.tree.get(path)
        answers.append({
            "path": path, "uploadMode": "lfs" if is_large else "regular",
            "shouldIgnore": any(matches(path, pattern) for pattern in unwanted),
            "oid": known.etag if known else None,
        })  # fmt: skip
    return answers


def check_path(path: str) -> str:
    parts = path.split("/") if isinstance(path, str) else [""]
    if any(part in ("", ".", "..", ".git") for part in parts):
        raise HubError(400, f"Invalid path in commit: {path!r}")
    return path


class CommitBuilder:
    """Applies the lines of one commit request to a copy of a tree; nothing is visible before `Repository.move`."""

    def __init__(self, shelf: Shelf, repository: Repository, base: Commit):
        self.shelf = shelf
        self.repository = repository
        self.base = base
        self.tree: dict[str, StoredFile] = dict(base.tree)
        self.header: dict | None = None

    def apply(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            if line.strip():
                self.apply_line(line)
        if self.header is None or not self.header.get("summary"):
            raise HubError(400, "A commit needs a header with a summary")

    def apply_line(self, line: bytes) -> None:
        try:
            entry = json.loads(line)
            key, value = entry["key"], entry["value"]
        except (ValueError, KeyError, TypeError) as error:
            raise HubError(400, f"Malformed line in commit: {error}") from error
        step = getattr(self, f"on_{key}", None)
        if step is None:
            raise HubError(400, f"Unknown operation in commit: {key!r}")
        step(value)

    def on_header(self, value: dict) -> None:
        self.header = value
        parent = value.get("parentCommit")
        if parent is not None and not (len(parent) >= 7 and self.base.sha.startswith(parent)):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")

    def on_file(self, value: dict) -> None:
        try:
            encoded = value.get("encoding") == "base64"
            content = base64.b64decode(value["content"], validate=True) if encoded else value["content"].encode()
        except binascii.Error as error:
            raise HubError(400, f"Malformed content of {value.get('path')!r}: {error}") from error
        if len(content) > MAX_REGULAR_BYTES:
            raise HubError(400, f"{value['path']!r} is larger than 10 MiB and must be uploaded as a large file")
        self.check_card(check_path(value["path"]), content)
        self.tree[value["path"]] = self.shelf.blobs.put(content)

    def check_card(self, path: str, content: bytes) -> None:
        if path == "README.md":
            errors, _ = check_card(content.decode("utf-8", "replace"), self.repository.kind)
            if errors:
                raise HubError(400, "Invalid metadata in README.md: " + "; ".join(errors))

    def on_lfsFile(self, value: dict) -> None:
        sha256 = value.get("oid")
        if value.get("algo") != "sha256" or sha256 not in self.repository.lfs_objects:
            raise HubError(400, f"LFS pointer of {value.get('path')!r} pointed to a file that does not exist")
        file = self.shelf.blobs.large(sha256)
        if value.get("size", file.size) != file.size:
            raise HubError(400, f"{value['path']!r} has {file.size} bytes, not {value['size']}")
        self.tree[check_path(value["path"])] = file

    def on_deletedFile(self, value: dict) -> None:
        if self.tree.pop(value["path"], None) is None:
            raise HubError(404, f"A file with this name doesn't exist: {value['path']}", "EntryNotFound")

    def on_deletedFolder(self, value: dict) -> None:
        prefix = value["path"].rstrip("/") + "/"
        inside = [path for path in self.tree if path.startswith(prefix)]
        if not inside:
            raise HubError(404, f"A folder with this name doesn't exist: {value['path']}", "EntryNotFound")
        for path in inside:
            del self.tree[path]

    def on_copyFile(self, value: dict) -> None:
        revision = value.get("srcRevision")
        source = self.repository.commit_at(revision) if revision else self.base
        if source is None or value["srcPath"] not in source.tree:
            raise HubError(404, f"A file with this name doesn't exist: {value['srcPath']}", "EntryNotFound")
        self.tree[check_path(value["path"])] = source.tree[value["srcPath"]]
