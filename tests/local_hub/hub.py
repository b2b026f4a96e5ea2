"""A Hub on this machine, for tests: unmodified clients talk to it over `HF_ENDPOINT`, tests look into it directly.

    with LocalHub(tmp_path) as hub:
        hub.add_user("alice", write_token="hf_alice_write")
        environment = hub.environment(home, token="hf_alice_write")
        subprocess.run(["hf", "upload", "alice/model", folder], env=environment, check=True)
        assert hub.files("alice/model")

As on the Hub, every repository starts with a commit that holds `.gitattributes` (and, in a Space, a first
`README.md`). The bookkeeping lives as long as the object; the contents lie under the root folder.
"""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from .accounts import Account
from .failures import Failure
from .server import Server
from .storage import Commit, Repository, Shelf

# What a test run sets for itself, and a client of the Hub must not inherit.
NOT_INHERITED = (
    "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE",
    "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE", "HF_UPDATE_DOWNLOAD_COUNTS", "HF_HUB_DISABLE_IMPLICIT_TOKEN",
    "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_XET_CACHE", "HF_ASSETS_CACHE", "HF_DATASETS_CACHE",
    "HF_METRICS_CACHE", "HF_EVALUATE_CACHE", "HF_MODULES_CACHE", "TRANSFORMERS_CACHE", "XDG_CACHE_HOME",
    "HF_STORED_TOKENS_PATH", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy",
)  # fmt: skip


class LocalHub:
    """A running Hub.

    Args:
        root: Folder for contents; made if it is not there.
    """

    def __init__(self, root: Path):
        self.root = Path(root)
        self.shelf = Shelf(self.root)
        self.accounts: dict[str, Account] = {}
        self.server = Server(self.shelf, self.accounts)
        self.url = self.server.url

    def __enter__(self) -> "LocalHub":
        self.server.start()
        return self

    def __exit__(self, *_) -> None:
        self.server.stop()

    # -- who may ask, and with what environment -----------------------------------------------------------------------

    def add_user(
        self, name: str, *, write_token: str | None = None, read_token: str | None = None, orgs: tuple[str, ...] = ()
    ) -> None:
        """Let a user exist, with a token for each of the two rights where one is given."""
        for token, role in ((write_token, "write"), (read_token, "read")):
            if token is not None:
                self.accounts[token] = Account(name, role, tuple(orgs))

    def environment(self, home: Path, token: str | None = None, offline: bool = False) -> dict[str, str]:
        """The whole environment of a client's process.

        Args:
            home: Its `HF_HOME`: caches, and the code that came with a model.
            token: Its `HF_TOKEN`; without one, nobody is logged in.
            offline: Whether it may only use what is in `home`.
        """
        kept = {key: value for key, value in os.environ.items() if key not in NOT_INHERITED}
        kept |= {
            "HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_MODULES_CACHE": str(Path(home) / "modules"),
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
        }  # fmt: skip
        kept |= {"HF_TOKEN": token} if token is not None else {}
        return kept | ({"HF_HUB_OFFLINE": "1"} if offline else {})

    # -- what shall go wrong ------------------------------------------------------------------------------------------

    def fail(
        self,
        method: str,
        path_pattern: str,
        *,
        status: int = 500,
        times: int = 1,
        headers: dict[str, str] | None = None,
        error_code: str | None = None,
        message: str | None = None,
        cut_after_bytes: int | None = None,
        cut_answer: bool = False,
        after: int = 0,
    ) -> None:
        """Let requests fail.

        Args:
            method: `"GET"`, `"HEAD"`, `"POST"`, `"PUT"` or `"DELETE"`.
            path_pattern: Searched for in the unquoted path, without the query.
            status, headers, error_code, message: The answer. 429 says `Retry-After: 1` unless told otherwise.
            times: How many requests fail.
            cut_after_bytes: Cut the connection instead, after so many bytes of the answer's body were sent (GET) or
                of the request's body received (others; a shorter one is cut at its end, and never carried out).
            cut_answer: Carry the request out, then cut the connection without an answer.
            after: How many matching requests go well before the first one fails.
        """
        self.server.failures.add(
            Failure(
                method.upper(), re.compile(path_pattern), status, times, dict(headers or {}), error_code, message,
                cut_after_bytes, cut_answer, after,
            )
        )  # fmt: skip

    def clear_failures(self) -> None:
        self.server.failures.clear()

    def reset(self) -> None:
        """Forget repositories, failures and requests; users stay, and contents stay on disk."""
        self.clear_failures()
        self.shelf.repositories.clear()
        self.server.gate.seen.clear()

    # -- what happened, and what is there -----------------------------------------------------------------------------

    @property
    def requests(self) -> list[tuple[str, str, int | None]]:
        """Method, unquoted path and status of every request in order of arrival; None where no answer was given."""
        return [(seen.method, seen.path, seen.status) for seen in self.server.gate.seen]

    def repository(self, repo_id: str, repo_type: str = "model") -> Repository | None:
        return self.shelf.get(repo_type, repo_id)

    def exists(self, repo_id: str, repo_type: str = "model") -> bool:
        return self.repository(repo_id, repo_type) is not None

    def head(self, repo_id: str, repo_type: str = "model", revision: str = "main") -> str | None:
        """The commit that a revision stands for, None where there is no such repository or revision."""
        repository = self.repository(repo_id, repo_type)
        return repository.sha_of(revision) if repository else None

    def commit(self, repo_id: str, repo_type: str = "model", revision: str = "main") -> Commit:
        """One commit with its whole tree.

        Raises:
            KeyError: There is no such repository or revision.
        """
        repository = self.repository(repo_id, repo_type)
        commit = repository.commit_at(revision) if repository else None
        if commit is None:
            raise KeyError(f"the local Hub has no {repo_type} {repo_id} at {revision}")
        return commit

    def commits(self, repo_id: str, repo_type: str = "model", revision: str = "main") -> list[Commit]:
        """Commits of a revision, newest first."""
        return list(self.repository(repo_id, repo_type).history(self.commit(repo_id, repo_type, revision)))

    def files(self, repo_id: str, repo_type: str = "model", revision: str = "main") -> dict[str, int]:
        """Path to size, at a revision."""
        return {path: file.size for path, file in self.commit(repo_id, repo_type, revision).tree.items()}

    def read(self, repo_id: str, path: str, repo_type: str = "model", revision: str = "main") -> bytes:
        return self.shelf.blobs.read(self.commit(repo_id, repo_type, revision).tree[path])


@contextlib.contextmanager
def running_hub(root: Path | None = None) -> Iterator[LocalHub]:
    """A started Hub with the users that most tests need: alice (of the organization acme) and bob.

    Their tokens are `hf_alice_write`, `hf_alice_read`, `hf_bob_write` and `hf_bob_read`.

    Args:
        root: Folder for contents; a temporary one if it is not given.
    """
    with contextlib.ExitStack() as stack:
        if root is None:
            root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="local-hub-")))
        hub = stack.enter_context(LocalHub(root))
        hub.add_user("alice", write_token="hf_alice_write", read_token="hf_alice_read", orgs=("acme",))
        hub.add_user("bob", write_token="hf_bob_write", read_token="hf_bob_read")
        yield hub


@contextlib.contextmanager
def online(hub: LocalHub, token: str | None = None) -> Iterator["HfApi"]:  # noqa: F821
    """A client in this very process, although the test run itself is offline.

    `huggingface_hub` reads its environment once, so its constants are set to what `environment` would have made them.
    Libraries that keep the endpoint for themselves (transformers, datasets, evaluate) still need a process.
    """
    from huggingface_hub import HfApi, constants

    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    settings = {"ENDPOINT": hub.url, "HUGGINGFACE_CO_URL_TEMPLATE": template}
    settings |= {"HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}
    with contextlib.ExitStack() as stack:
        for name, value in settings.items():
            stack.enter_context(mock.patch.object(constants, name, value))
        yield HfApi(endpoint=hub.url, token=token if token is not None else False)
