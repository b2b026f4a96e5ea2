"""Failures on request: an ASGI layer in front of the Hub that answers, or hangs up, as it was told.

A cut is a real one: the server's side of the TCP connection is closed in the middle of a body, so that the client's
own code for that runs. With `cut_answer` the request is carried out first: the Hub has changed and nobody was told.
"""

import dataclasses
import re
import threading
from urllib.parse import unquote

from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.h11_impl import H11Protocol

from .accounts import HubError

# A revision is one segment of a path; clients quote its slashes, people who type a URL do not.
UNQUOTED_REFERENCE = re.compile(r"/refs/(pr|convert|heads|tags)/([^/]+)")


class CuttableProtocol(H11Protocol):
    """uvicorn's own protocol that lets the application reach its connection."""

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        self.app_state = {**self.app_state, "transport": transport}


@dataclasses.dataclass
class Failure:
    """One thing that shall go wrong, `times` times after `after` requests that go well."""

    method: str
    pattern: re.Pattern
    status: int
    times: int
    headers: dict[str, str]
    error_code: str | None
    message: str | None
    cut_after_bytes: int | None
    cut_answer: bool
    after: int

    @property
    def is_cut(self) -> bool:
        return self.cut_answer or self.cut_after_bytes is not None


class Failures:
    """The failures that are still to come; told from one thread, used up in another."""

    def __init__(self):
        self.waiting: list[Failure] = []
        self.lock = threading.Lock()

    def add(self, failure: Failure) -> None:
        with self.lock:
            self.waiting.append(failure)

    def clear(self) -> None:
        with self.lock:
            self.waiting.clear()

    def take(self, method: str, path: str) -> Failure | None:
        """The failure that this request meets, if any; the first that was told goes first."""
        with self.lock:
            for failure in self.waiting:
                if failure.method != method.upper() or not failure.pattern.search(path) or not failure.times:
                    continue
                if failure.after:
                    failure.after -= 1
                    continue
                failure.times -= 1
                return failure
        return None


@dataclasses.dataclass
class Seen:
    """One request as it arrived; `status` stays None where no answer was given."""

    method: str
    path: str
    status: int | None = None


class Gate:
    """Writes down every request, lets it fail where it shall, and hands all others on."""

    def __init__(self, app, failures: Failures):
        self.app = app
        self.failures = failures
        self.seen: list[Seen] = []

    async def __call__(self, scope, receive, send) -> None:
        raw = scope["raw_path"].decode("ascii")
        seen = Seen(scope["method"], unquote(raw))
        self.seen.append(seen)
        # Routes see the quoted path: only there is "refs%2Fpr%2F1" one segment.
        scope["path"] = UNQUOTED_REFERENCE.sub(r"/refs%2F\1%2F\2", raw)
        failure = self.failures.take(seen.method, seen.path)
        if failure is None:
            await self.app(scope, receive, recording(send, seen))
        elif failure.is_cut:
            await self.cut(scope, receive, send, failure)
        else:
            seen.status = failure.status
            await answer(failure)(scope, receive, send)

    async def cut(self, scope, receive, send, failure: Failure) -> None:
        connection = CutConnection(scope, receive, send, failure)
        if failure.cut_after_bytes is not None and not (connection.is_download or has_body(scope)):
            return connection.hang_up()
        try:
            await self.app(scope, connection.receive, connection.send)
        except (ClientDisconnect, OSError):
            if not connection.is_cut:
                raise
        if failure.cut_answer:
            connection.hang_up()


def has_body(scope) -> bool:
    headers = dict(scope["headers"])
    return b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"


def recording(send, seen: Seen):
    """The same `send`, with the status written down before it goes out."""

    async def record(message) -> None:
        if message["type"] == "http.response.start":
            seen.status = message["status"]
        await send(message)

    return record


def answer(failure: Failure):
    headers = {"Retry-After": "1"} if failure.status == 429 else {}
    error = HubError(failure.status, failure.message, failure.error_code)
    return error.answer({**headers, **failure.headers})


class CutConnection:
    """The two ends of one request, of which one breaks after so many bytes of a body."""

    def __init__(self, scope, receive, send, failure: Failure):
        self.transport = scope["state"]["transport"]
        self.is_download = scope["method"] == "GET"
        self.receive_next, self.send_next = receive, send
        self.failure = failure
        self.left = failure.cut_after_bytes
        self.is_cut = False

    def hang_up(self) -> None:
        """Close our side; what was sent before still arrives."""
        self.is_cut = True
        self.transport.close()

    async def receive(self) -> dict:
        if self.is_cut:
            return {"type": "http.disconnect"}
        message = await self.receive_next()
        if self.failure.cut_answer or self.is_download or message["type"] != "http.request":
            return message
        self.left -= len(message.get("body", b""))
        # A body that is shorter than the limit is cut at its end: the request is never carried out.
        if self.left > 0 and message.get("more_body"):
            return message
        self.hang_up()
        return {"type": "http.disconnect"}

    async def send(self, message) -> None:
        if self.failure.cut_answer:
            return
        if self.is_cut or not self.is_download:
            self.hang_up()
            raise OSError("the connection was cut")
        body = message.get("body", b"")
        if message["type"] == "http.response.body" and len(body) > self.left:
            await self.send_next({**message, "body": body[: self.left], "more_body": True})
            self.hang_up()
            raise OSError("the connection was cut")
        self.left -= len(body)
        await self.send_next(message)
