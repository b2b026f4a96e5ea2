"""One folder, one commit: who may push where, and a push that is whole or has not happened.

A commit on the Hub is atomic: until it is made, the previous revision stands, whatever was uploaded before. What is
left for us is to know before the upload that it is allowed, to try again when the Hub is busy, and to find out what
became of a commit whose answer was lost.
"""

import itertools
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cli.arguments import first_line

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")
ATTEMPTS = 5  # while the Hub is busy
CONNECTIONS = 3  # tries of a connection that breaks
BUSY = (429, 500, 502, 503, 504)
MAX_WAIT_SECONDS = 120
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Account:
    """Who pushes: a client that carries the token, the token itself, and whose it is."""

    api: "HfApi"
    token: str
    name: str


@dataclass(frozen=True)
class Pushed:
    """What a push left on the Hub: the commit, its page, and the pull request where it is one."""

    repo_id: str
    commit: str
    url: str
    pull_request: str | None = None


def check_name(repo_id: str, flag: str) -> None:
    """Refuse what is not `owner/name`.

    Raises:
        ValueError: With the name, and the flag that it was given for.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo_id)
        is_valid = _NAME.fullmatch(repo_id) is not None
    except HFValidationError:
        is_valid = False
    if not is_valid:
        raise ValueError(
            f"`{flag}` is `{repo_id}`: give `owner/name`, the name of a user or an organisation and that of the "
            "repository, of letters, digits, `-`, `_` and `.`, at most 96 characters."
        )


def sign_in(repo_ids: Sequence[str], token: str | None = None) -> Account:
    """Find out, before any work is done, whether this token may push to these repositories.

    Args:
        repo_ids: All that will be pushed to.
        token: None: the one of `hf auth login` or of the environment's `HF_TOKEN`.

    Raises:
        ValueError: There is no token, it is not valid, it may only read, or a name belongs to somebody else.
        OSError: The Hub cannot be reached.
    """
    from huggingface_hub import HfApi, get_token

    token = token or get_token()
    if not token:
        raise ValueError(
            "there is no token to push with: run `hf auth login`, or set `HF_TOKEN`, with a token that may write "
            "(https://huggingface.co/settings/tokens). Nothing was pushed."
        )
    api = HfApi(token=token)
    with one_sentence("the token cannot be checked"):
        me = patiently(api.whoami)
    access = me.get("auth", {}).get("accessToken") or {}
    if access.get("role") == "read":
        raise ValueError(
            f"the token `{access.get('displayName', 'in use')}` of `{me['name']}` may only read: make one with write "
            "rights (https://huggingface.co/settings/tokens). Nothing was pushed."
        )
    namespaces = (me["name"], *(org["name"] for org in me.get("orgs", [])))
    for repo_id in repo_ids:
        _refuse_foreign(repo_id, namespaces)
    return Account(api, token, me["name"])


def _refuse_foreign(repo_id: str, namespaces: Sequence[str]) -> None:
    owner = repo_id.split("/")[0]
    if owner not in namespaces:
        raise ValueError(
            f"`{repo_id}` belongs to `{owner}`, and this token is that of `{namespaces[0]}`: push to "
            f"{' or '.join(f'`{name}/…`' for name in namespaces)}. Nothing was pushed."
        )


def push_folder(
    account: Account,
    folder: Path,
    repo_id: str,
    *,
    repo_type: str = "model",
    replaces: Sequence[str] = (),
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    message: str,
    on_created: Callable[[], Any] = lambda: None,
) -> Pushed:
    """Upload a folder in one commit; run again after a failure, it goes on where it stopped.

    Args:
        account: As `sign_in` gave it.
        folder: Every file in it is uploaded.
        repo_id: Made if it is not there.
        repo_type: "model", "dataset" or "space".
        replaces: Patterns of files that this kind of push writes: those of an earlier push that are not in `folder`
            are removed in the same commit. Others in the repository stay.
        private: Of a new repository; None: as the owner's settings are.
        revision: Branch to push to, made from `main` if it is not there; None: `main`.
        create_pr: Open a pull request instead of changing `main`.
        message: Title of the commit.
        on_created: Called between the making of the repository and the commit, for what has to be there before it.

    Raises:
        ValueError: An existing repository is public although `private` was asked for.
        OSError: The Hub refused or could not be reached, with what it said.
    """
    api = account.api
    with one_sentence(f"`{repo_id}` cannot be pushed to"):
        sdk = "gradio" if repo_type == "space" else None
        patiently(lambda: api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True, space_sdk=sdk))
        if revision is not None and not revision.startswith("refs/"):
            patiently(lambda: api.create_branch(repo_id, branch=revision, repo_type=repo_type, exist_ok=True))
        before = patiently(lambda: api.repo_info(repo_id, repo_type=repo_type, revision=revision))
        if private and not before.private:
            raise ValueError(
                f"`{repo_id}` is there already and public, but a private one was asked for: make it private in its "
                "settings on the Hub, or give another name. Nothing was pushed."
            )
        on_created()
        commit = _Commit(api, folder, repo_id, repo_type, tuple(replaces), revision, create_pr, message, before.sha)
        return patiently(commit.make)


@dataclass
class _Commit:
    """A commit that may be tried again: on the revision it was made for, and never twice."""

    api: "HfApi"
    folder: Path
    repo_id: str
    repo_type: str
    replaces: tuple[str, ...]
    revision: str | None
    create_pr: bool
    message: str
    parent: str

    def make(self) -> Pushed:
        if (landed := self._landed()) is not None:
            kind = "" if self.repo_type == "model" else f"{self.repo_type}s/"
            return Pushed(self.repo_id, landed, f"{self.api.endpoint}/{kind}{self.repo_id}/commit/{landed}")
        info = self.api.create_commit(
            self.repo_id,
            self._operations(),
            commit_message=self.message,
            repo_type=self.repo_type,
            revision=self.revision,
            create_pr=self.create_pr,
            parent_commit=self.parent,
        )
        return Pushed(self.repo_id, info.oid, info.commit_url, info.pr_url)

    def _landed(self) -> str | None:
        """The commit, where an earlier try made it and only the answer was lost."""
        if self.create_pr:
            return None
        newest, *older = self.api.list_repo_commits(self.repo_id, repo_type=self.repo_type, revision=self.revision)
        is_ours = newest.title == self.message and bool(older) and older[0].commit_id == self.parent
        return newest.commit_id if is_ours and newest.commit_id != self.parent else None

    def _operations(self) -> list:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        files = {path.relative_to(self.folder).as_posix(): path for path in sorted(self.folder.rglob("*"))}
        files = {name: path for name, path in files.items() if path.is_file()}
        there = self.api.list_repo_files(self.repo_id, repo_type=self.repo_type, revision=self.parent)
        stale = [name for name in there if name not in files and any(fnmatch(name, p) for p in self.replaces)]
        additions = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()]
        return [*additions, *(CommitOperationDelete(path_in_repo=name) for name in stale)]


def listing(folder: Path, name: str) -> str:
    """What would be pushed, for people: each file with its size, and the sum."""
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    lines = [f"  {size:>14,} bytes  {file}" for file, size in sorted(sizes.items())]
    return "\n".join([f"{name}: {len(sizes)} files, {sum(sizes.values()):,} bytes", *lines])


# -- a Hub that is busy, and one that refuses -------------------------------------------------------------------------


def patiently(call: Callable[[], T]) -> T:
    """Call again while the Hub is busy or the connection breaks, for as long as it asks or twice as long each time."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    for attempt in itertools.count(1):
        try:
            return call()
        except (HfHubHTTPError, httpx2.TransportError) as error:
            wait = _seconds_to_wait(error, attempt)
            if wait is None:
                raise
            print(f"note: {_reason(error)}; trying again in {wait:g} s", file=sys.stderr)
            time.sleep(wait)


def _seconds_to_wait(error: Exception, attempt: int) -> float | None:
    """How long to wait before the next try; None where trying again is no use."""
    response = getattr(error, "response", None)
    seconds = 2.0 ** (attempt - 1)
    if response is None:
        return seconds if attempt < CONNECTIONS else None
    if response.status_code not in BUSY or attempt == ATTEMPTS:
        return None
    asked = response.headers.get("retry-after", "")
    seconds = float(asked) if asked.isdigit() else seconds
    return seconds if seconds <= MAX_WAIT_SECONDS else None


@contextmanager
def one_sentence(what: str) -> Iterator[None]:
    """Turn what the Hub's client raises into one sentence with the Hub's own reason and a remedy.

    Raises:
        OSError: The Hub refused, or could not be reached.
    """
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    known = (HfHubHTTPError, httpx2.TransportError, OfflineModeIsEnabled)
    try:
        yield
    except (*known, RuntimeError) as error:
        inner = error.__cause__ if isinstance(error, RuntimeError) else error  # how a failed upload comes out
        if not isinstance(inner, known):
            raise
        raise OSError(f"{what}: {_reason(inner)}. {_remedy(inner)}") from error


def _reason(error: Exception) -> str:
    response = getattr(error, "response", None)
    if response is None:
        return f"the connection to the Hub failed ({first_line(error)})"
    said = getattr(error, "server_message", None) or response.headers.get("x-error-message") or response.reason_phrase
    return f"the Hub answered {response.status_code} ({said})"


def _remedy(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    remedies = {
        401: "Log in again with `hf auth login`: the token is not valid",
        403: "Use a token with write rights on it",
        404: "Check the name, the revision and your rights",
        409: "It was changed while this push was under way: look at it, and push again",
        412: "It was changed while this push was under way: look at it, and push again",
        429: "Push again later",
    }
    return f"{remedies.get(status, 'Push again later')}; what was there before is as it was."
