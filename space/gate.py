"""What every request passes first: size, token, room, time, and an id under which faults are logged.

Plain ASGI, because it must see bytes before they are collected: a body is counted while it streams, whatever its
header promises, and one that is refused is never kept. It has to come in time, too: one that drips in would hold a
place for ever. The gate stands before the page as well, whose own limit is for a file, not for the request. (FastAPI's
`max_body_size` answers in plain text, and cuts off a client that still sends.)
"""

import asyncio
import base64
import binascii
import contextlib
import hmac
import logging
import re
import time
import uuid
from collections.abc import Collection

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from space.errors import Refusal, shown
from space.options import Options
from space.service import Service

log = logging.getLogger("mmfusion")

ROUTES = (
    "/v1/predict", "/v1/predict/batch", "/v1/embed", "/v1/explain", "/v1/search", "/v1/model", "/healthz", "/readyz",
    "/metrics",
)  # fmt: skip
OPEN_PATHS = ("/healthz", "/readyz")  # an orchestrator has no token
PAGE_CALL = re.compile(r"/gradio_api/(?:call|run|api)/(?:v2/)?([^/]+)/?")
# A client that is still sending does not read the answer. This much is thrown away so that it does.
DISCARDED_BYTES = 64 * 1024 * 1024
# A body may take this long, and longer as far as its bytes come at least so fast: a slow line is no reason to refuse.
BODY_SECONDS = 20.0
MIN_BODY_BYTES_PER_SECOND = 32 * 1024
CLIENT_LEFT = 499  # only for the metrics: there is nobody to read it


class Gate:
    """ASGI middleware in front of API and page.

    Args:
        app: what is behind.
        service: says whether there is room, and counts.
        options: limits and tokens.
        page_calls: names under which programs may call what the page does.
    """

    def __init__(self, app, service: Service, options: Options, page_calls: Collection[str]):
        self.app, self.service, self.options, self.page_calls = app, service, options, page_calls

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        # The page keeps one connection open for as long as it is shown.
        counts = 0 if "/heartbeat/" in scope["path"] else 1
        scope.setdefault("state", {})["request_id"] = uuid.uuid4().hex
        self.service.num_requests += counts
        try:
            await Passage(self, scope, receive, send).run()
        finally:
            self.service.num_requests -= counts
            if counts and scope["path"] not in OPEN_PATHS:
                self.service.last_request = time.monotonic()

    def refusal(self, scope) -> Refusal | None:
        """Say why a request is refused by its head alone."""
        headers = dict(scope["headers"])
        if scope["path"] not in OPEN_PATHS and not self._has_token(headers.get(b"authorization", b"")):
            return Refusal("unauthorized", "a valid token is needed: send `Authorization: Bearer TOKEN`.")
        if scope["method"] != "POST":
            return None
        called = PAGE_CALL.fullmatch(scope["path"])
        if called and called[1] not in self.page_calls:  # Gradio fails on these, with a traceback in the log
            return Refusal("not_found", f"the page has no call named {shown(called[1])}.")
        if self.service.is_draining:
            return Refusal("draining", "the server is about to stop: try again in a few seconds.")
        if self.service.num_requests > 2 * self.options.max_waiting:
            return Refusal("overloaded", "too many requests at once: try again in a second.")
        length = headers.get(b"content-length", b"")
        return self.too_large() if length.isdigit() and int(length) > self.options.max_body_bytes else None

    def too_large(self) -> Refusal:
        limit = self.options.max_body_bytes
        return Refusal("body_too_large", f"the request has more than {limit:,} bytes, the limit.")

    def too_slow(self, num_bytes: int) -> Refusal:
        return Refusal(
            "body_too_slow",
            f"only {num_bytes:,} bytes of the request came in {BODY_SECONDS:g} s or more: send all at once, or less.",
        )

    def _has_token(self, header: bytes) -> bool:
        """Compare in constant time with every token; a browser sends it as the password of a Basic login."""
        if not self.options.api_tokens:
            return True
        given = given_token(header)
        return any([hmac.compare_digest(given, token.encode()) for token in self.options.api_tokens])


class Passage:
    """One request on its way through the gate."""

    def __init__(self, gate: Gate, scope, receive, send):
        self.gate, self.scope, self.receive, self.send = gate, scope, receive, send
        self.status = 0  # of the response that has begun
        self.num_bytes = 0
        self.is_whole = False  # whether all of the body is here
        self.start = time.perf_counter()
        self.cut_off: Refusal | None = None  # why the body was not read to its end

    async def run(self) -> None:
        try:
            if refusal := self.gate.refusal(self.scope):
                await self._refuse(refusal)
            else:
                await self.gate.app(self.scope, self._counted_receive, self._guarded_send)
        except CutOff:
            await self._refuse(self.cut_off)
        except ClientDisconnect:
            self.status = self.status or CLIENT_LEFT
        except Exception:  # the last place where a fault can be told to the log and kept from the client
            log.exception("request %s to %s failed", self.scope["state"]["request_id"], self.scope["path"])
            await self._refuse(internal_error())
        finally:
            self._count(time.perf_counter() - self.start)

    async def _counted_receive(self):
        if self.is_whole:  # what comes now is that the client has left
            return await self.receive()
        try:
            message = await self._piece()
        except TimeoutError:
            self.cut_off = self.gate.too_slow(self.num_bytes)
            raise CutOff from None
        if self.num_bytes > self.gate.options.max_body_bytes:
            self.cut_off = self.gate.too_large()
            raise CutOff
        return message

    async def _piece(self):
        """Give the next piece of the body.

        Raises:
            TimeoutError: It did not come in time.
        """
        seconds = BODY_SECONDS + self.num_bytes / MIN_BODY_BYTES_PER_SECOND - (time.perf_counter() - self.start)
        async with asyncio.timeout(seconds):
            message = await self.receive()
        self.num_bytes += len(message.get("body", b""))
        self.is_whole = not message.get("more_body")
        return message

    async def _guarded_send(self, message):
        """Pass an answer on; what an app makes of a body that was cut off is not its answer."""
        if self.cut_off and not self.status:
            raise CutOff
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", []), *self._own_headers()]
        await self.send(message)

    def _own_headers(self) -> list[tuple[bytes, bytes]]:
        """Give what every answer has: its id, and while the server stops a word to go elsewhere with the next one."""
        # Where a client still sends, closing would keep it from reading the answer.
        ends = self.gate.service.is_draining and (self.is_whole or self.scope["method"] == "GET")
        return [(b"x-request-id", self._id().encode()), *([(b"connection", b"close")] if ends else [])]

    async def _refuse(self, refusal: Refusal) -> None:
        if self.status:  # it is too late: the connection ends in the middle of the answer
            return
        if refusal.code in ("body_too_large", "draining"):
            await self._discard()
        self.gate.service.telemetry.refusals.labels(refusal.code).inc()
        self.status = refusal.status
        headers = {**refusal.headers(), "X-Request-ID": self._id()}
        if refusal.code in ("body_too_slow", "draining"):
            headers["Connection"] = "close"
        if refusal.code == "unauthorized":
            is_api = self.scope["path"].startswith("/v1/")  # a browser asks for a password when it sees "Basic"
            headers["WWW-Authenticate"] = "Bearer" if is_api else 'Basic realm="the token is the password"'
        response = JSONResponse(refusal.body(self._id()), refusal.status, headers)
        await response(self.scope, self.receive, self.send)

    async def _discard(self) -> None:
        """Read on without keeping, so that the client, which sends before it reads, gets to see the answer."""
        if b"expect" in dict(self.scope["headers"]):  # this client asks first, and sends nothing after an answer
            return
        end = self.num_bytes + DISCARDED_BYTES
        with contextlib.suppress(TimeoutError):
            while not self.is_whole and self.num_bytes < end:
                await self._piece()

    def _id(self) -> str:
        return self.scope["state"]["request_id"]

    def _count(self, seconds: float) -> None:
        telemetry, route = self.gate.service.telemetry, route_of(self.scope)
        telemetry.requests.labels(route, str(self.status)).inc()
        telemetry.seconds.labels(route).observe(seconds)


class CutOff(Exception):
    """The body is too large or too slow, and not read any further; the passage knows why."""


def given_token(header: bytes) -> bytes:
    """Give the token of an `Authorization` header, or nothing."""
    kind, _, value = header.partition(b" ")
    if kind.lower() == b"bearer":
        return value.strip()
    try:
        return base64.b64decode(value, validate=True).partition(b":")[2] if kind.lower() == b"basic" else b""
    except binascii.Error:
        return b""


def internal_error() -> Refusal:
    return Refusal("internal_error", "something went wrong here; the request id helps to find it in the server's log.")


def route_of(scope) -> str:
    """Name the route for the metrics; a stranger's path is no label, or there would be one for every guess."""
    return scope["path"] if scope["path"] in ROUTES else "other" if scope["path"].startswith("/v1/") else "page"
