"""What the local Hub holds: contents on disk under their SHA-256, and repositories as immutable commits in memory.

A commit is a mapping of paths to contents that is never changed afterwards; a branch is a name that points at one. A
push that breaks off has therefore only left contents behind that no branch points at: the revision before stays whole.
"""

import dataclasses
import datetime
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from huggingface_hub.utils.sha import git_hash


def now() -> str:
    """The time in the form in which the Hub's API gives it."""
    time = datetime.datetime.now(datetime.UTC)
    return time.strftime("%Y-%m-%dT%H:%M:%S.") + f"{time.microsecond // 1000:03d}Z"


@dataclasses.dataclass(frozen=True)
class StoredFile:
    """One file of a commit; its content lies in `Blobs` under `sha256`."""

    size: int
    sha256: str
    blob_id: str
    is_lfs: bool

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.blob_id


def lfs_pointer(sha256: str, size: int) -> bytes:
    """What git itself holds in place of a large file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


class BlobWriter:
    """Writes one content beside its final place; what is not kept is gone when the writer closes."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.size = 0
        self.hash = hashlib.sha256()

    def __enter__(self) -> "BlobWriter":
        descriptor, name = tempfile.mkstemp(dir=self.folder, prefix="incoming-")
        self.file, self.path = os.fdopen(descriptor, "wb"), Path(name)
        return self

    def __exit__(self, *_) -> None:
        self.file.close()
        self.path.unlink(missing_ok=True)

    def write(self, chunk: bytes) -> None:
        self.file.write(chunk)
        self.hash.update(chunk)
        self.size += len(chunk)

    def keep(self) -> str:
        """Move the content to its place and return its SHA-256."""
        self.file.close()
        sha256 = self.hash.hexdigest()
        place = self.folder / sha256[:2] / sha256
        place.parent.mkdir(exist_ok=True)
        self.path.replace(place)
        return sha256


class Blobs:
    """Contents by SHA-256, on disk."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        return self.folder / sha256[:2] / sha256

    def size(self, sha256: str) -> int | None:
        """Bytes of a content, None where there is no such content."""
        path = self.path(sha256)
        return path.stat().st_size if path.is_file() else None

    def writer(self) -> BlobWriter:
        return BlobWriter(self.folder)

    def read(self, file: StoredFile) -> bytes:
        return self.path(file.sha256).read_bytes()

    def put(self, content: bytes) -> StoredFile:
        """Store a small content that git holds itself."""
        with self.writer() as writer:
            writer.write(content)
            sha256 = writer.keep()
        return StoredFile(len(content), sha256, git_hash(content), is_lfs=False)

    def large(self, sha256: str) -> StoredFile:
        """The file entry of a large content that was uploaded before."""
        size = self.path(sha256).stat().st_size
        return StoredFile(size, sha256, git_hash(lfs_pointer(sha256, size)), is_lfs=True)


@dataclasses.dataclass(frozen=True)
class Commit:
    """One revision: the whole tree, and where it came from."""

    sha: str
    title: str
    message: str
    author: str
    date: str
    parent: str | None
    tree: Mapping[str, StoredFile]


@dataclasses.dataclass
class PullRequest:
    """A proposed change; `head` moves with every commit on `refs/pr/<num>`."""

    num: int
    title: str
    author: str
    base: str
    head: str
    status: str = "open"
    created: str = dataclasses.field(default_factory=now)
    merged_as: str | None = None


class Repository:
    """A model, data set or Space, with everything that its API shows of it.

    Attributes:
        branches, tags: name to commit sha.
        variables, secrets: of a Space, name to value; `descriptions` holds what was said about either.
        lfs_objects: SHA-256 of the large contents that were uploaded to this repository.
    """

    def __init__(self, kind: str, repo_id: str, *, private: bool = False, sdk: str | None = None):
        self.kind = kind
        self.id = repo_id
        self.private = private
        self.sdk = sdk
        self.created = now()
        self.commits: dict[str, Commit] = {}
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.pull_requests: dict[int, PullRequest] = {}
        self.lfs_objects: set[str] = set()
        self.variables: dict[str, str] = {}
        self.secrets: dict[str, str] = {}
        self.descriptions: dict[tuple[str, str], tuple[str | None, str]] = {}
        self.hardware: str | None = "cpu-basic" if kind == "space" else None
        self.sleep_time: int | None = None
        self.is_paused = False
        self.num_restarts = 0

    @property
    def owner(self) -> str:
        return self.id.split("/")[0]

    @property
    def url_path(self) -> str:
        """The path of its page: models have no prefix."""
        return self.id if self.kind == "model" else f"{self.kind}s/{self.id}"

    def sha_of(self, revision: str) -> str | None:
        """The commit a branch, tag, `refs/pr/N`, or whole or shortened sha stands for."""
        if revision.startswith("refs/pr/") and revision[8:].isdigit():
            pull_request = self.pull_requests.get(int(revision[8:]))
            return pull_request.head if pull_request else None
        name = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        found = self.branches.get(name) or self.tags.get(name)
        if found is None and len(revision) >= 7:
            found = next((sha for sha in self.commits if sha.startswith(revision)), None)
        return found

    def commit_at(self, revision: str) -> Commit | None:
        sha = self.sha_of(revision)
        return self.commits[sha] if sha else None

    def history(self, commit: Commit) -> Iterator[Commit]:
        """A commit and those before it, newest first."""
        while True:
            yield commit
            if commit.parent is None:
                return
            commit = self.commits[commit.parent]

    def add_commit(
        self, tree: Mapping[str, StoredFile], *, title: str, author: str, message: str = "", parent: str | None = None
    ) -> Commit:
        """Record a commit without letting any branch point at it; its sha follows from all that it says."""
        date = now()
        content = [sorted((path, file.blob_id) for path, file in tree.items()), parent, title, message, author, date]
        sha = hashlib.sha1(json.dumps([*content, len(self.commits)]).encode()).hexdigest()
        commit = Commit(sha, title, message, author, date, parent, dict(tree))
        self.commits[sha] = commit
        return commit

    def move(self, revision: str, sha: str) -> None:
        """Let a branch or a pull request point at a commit: the one moment at which a push becomes visible."""
        if revision.startswith("refs/pr/"):
            self.pull_requests[int(revision[8:])].head = sha
        else:
            self.branches[revision.removeprefix("refs/heads/")] = sha

    def open_pull_request(self, title: str, author: str, head: str, status: str = "open") -> PullRequest:
        num = len(self.pull_requests) + 1
        self.pull_requests[num] = PullRequest(num, title, author, self.branches["main"], head, status)
        return self.pull_requests[num]


class Shelf:
    """All repositories of one Hub, by kind and id, and the contents they share."""

    def __init__(self, root: Path):
        self.blobs = Blobs(root / "blobs")
        self.repositories: dict[tuple[str, str], Repository] = {}

    def get(self, kind: str, repo_id: str) -> Repository | None:
        return self.repositories.get((kind, repo_id))

    def add(self, repository: Repository) -> None:
        self.repositories[repository.kind, repository.id] = repository

    def remove(self, repository: Repository) -> None:
        del self.repositories[repository.kind, repository.id]
