"""Who asks, and what they may do: users, organizations, and tokens that may read or also write.

As on the Hub, a private repository does not exist for strangers: 404 for those who are logged in, 401 with the same
error code for those who are not. A token nobody knows is refused wherever it is shown, even for public files.
"""

import dataclasses
from http import HTTPStatus

from fastapi import Request
from fastapi.responses import JSONResponse

from .storage import Repository, Shelf


class HubError(Exception):
    """An answer that is not a success, in the form in which the Hub gives it."""

    def __init__(self, status: int, message: str | None = None, code: str | None = None, **body):
        self.status = status
        self.message = message if message is not None else HTTPStatus(status).phrase
        self.code = code
        self.body = body
        super().__init__(self.message)

    def answer(self, headers: dict[str, str] | None = None) -> JSONResponse:
        """The response: the message stands in the body and in a header, since a HEAD request has no body."""
        known = {"X-Error-Message": self.message.encode("latin-1", "replace").decode("latin-1").replace("\n", " ")}
        if self.code is not None:
            known["X-Error-Code"] = self.code
        return JSONResponse({"error": self.message, **self.body}, self.status, headers={**known, **(headers or {})})


@dataclasses.dataclass(frozen=True)
class Account:
    """A user behind one token. `role` is what that token may do: "read" or "write"."""

    name: str
    role: str
    orgs: tuple[str, ...] = ()

    def is_member(self, namespace: str) -> bool:
        return namespace == self.name or namespace in self.orgs

    def describe(self) -> dict:
        """What `whoami-v2` answers."""
        return {
            "type": "user", "id": f"id-{self.name}", "name": self.name, "fullname": self.name, "isPro": False,
            "email": f"{self.name}@localhost", "emailVerified": True, "avatarUrl": "", "canPay": False,
            "orgs": [
                {"type": "org", "id": f"id-{org}", "name": org, "fullname": org, "roleInOrg": "write", "avatarUrl": ""}
                for org in self.orgs
            ],
            "auth": {"type": "access_token", "accessToken": {"displayName": self.role, "role": self.role}},
        }  # fmt: skip


def shelf_of(request: Request) -> Shelf:
    return request.app.state.shelf


def account_of(request: Request) -> Account | None:
    """Who asks, None for nobody; a token that is not known ends the request with 401."""
    header = request.headers.get("authorization")
    if header is None:
        return None
    account = request.app.state.accounts.get(header.removeprefix("Bearer ").strip())
    if account is None:
        raise HubError(401, "Invalid credentials in Authorization header")
    return account


def not_found(account: Account | None, message: str = "Repository not found") -> HubError:
    """The answer for a repository that is not there, or that is not there for this account."""
    if account is None:
        return HubError(401, "Invalid username or password.", "RepoNotFound")
    return HubError(404, message, "RepoNotFound")


def require_login(request: Request) -> Account:
    account = account_of(request)
    if account is None:
        raise HubError(401, "Invalid username or password.")
    return account


def find(request: Request, kind: str, repo_id: str) -> Repository:
    """A repository as the one who asks may see it."""
    account = account_of(request)
    repository = shelf_of(request).get(kind, repo_id)
    if repository is None or (repository.private and not (account and account.is_member(repository.owner))):
        raise not_found(account)
    return repository


def require_write(request: Request, repository: Repository, *, as_member: bool = True) -> Account:
    """Who may change a repository; without `as_member`, who may propose a change to it."""
    account = account_of(request)
    if account is None:
        raise not_found(account)
    if account.role != "write":
        raise HubError(403, "Forbidden: you must use a write token to upload to a repository.")
    if as_member and not account.is_member(repository.owner):
        raise HubError(403, "Forbidden: you don't have the rights to write to this repository.")
    return account


def readable(request: Request) -> Repository:
    """Dependency: the repository that the path names."""
    path = request.path_params
    return find(request, path.get("kind", "model"), f"{path['owner']}/{path['name']}")


def writable(request: Request) -> Repository:
    """Dependency: the repository that the path names, for somebody who may change it."""
    repository = readable(request)
    require_write(request, repository)
    return repository
