"""The application and the thread it runs in: all routes, one answer for what the Hub does not know, one free port."""

import logging
import re
import secrets
import socket
import threading
import time

import uvicorn
from fastapi import FastAPI, Request

from . import routes_commits, routes_files, routes_refs, routes_repositories, routes_spaces
from .accounts import Account, HubError, account_of, find, not_found
from .failures import CuttableProtocol, Failures, Gate
from .storage import Shelf

ROUTERS = (routes_spaces, routes_repositories, routes_commits, routes_files, routes_refs)
OF_A_REPOSITORY = re.compile(r"^/api/(model|dataset|space)s/([^/]+/[^/]+)(/|$)")
START_SECONDS = 20


async def unknown(request: Request):
    """What no route knows: an endpoint that the repository does not have, or a repository without an owner's name."""
    match = OF_A_REPOSITORY.match(request.url.path)
    if match:
        find(request, match[1], match[2])
        raise HubError(404, "Sorry, we can't find the page you are looking for.")
    if "/resolve/" in request.url.path or re.match(r"^/api/(models|datasets|spaces)/", request.url.path):
        raise not_found(account_of(request))
    raise HubError(404, "Sorry, we can't find the page you are looking for.")


async def answer_error(request: Request, error: HubError):
    return error.answer()


def make_app(shelf: Shelf, accounts: dict[str, Account]) -> FastAPI:
    app = FastAPI(openapi_url=None)
    app.state.shelf, app.state.accounts, app.state.ticket = shelf, accounts, secrets.token_hex(8)
    for module in ROUTERS:
        app.include_router(module.router)
    app.add_api_route("/{path:path}", unknown, methods=["GET", "HEAD", "POST", "PUT", "DELETE"], response_model=None)
    app.add_exception_handler(HubError, answer_error)
    return app


class Server:
    """uvicorn in a thread of its own, on a free port of this machine."""

    def __init__(self, shelf: Shelf, accounts: dict[str, Account]):
        self.failures = Failures()
        self.gate = Gate(make_app(shelf, accounts), self.failures)
        # asyncio sends without delay only where the protocol is named; otherwise every answer costs 40 ms.
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self.socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        config = uvicorn.Config(
            self.gate, http=CuttableProtocol, loop="asyncio", lifespan="off", ws="none", access_log=False,
            log_config=None, timeout_graceful_shutdown=2, timeout_keep_alive=600,
        )  # fmt: skip
        # A connection that was cut on purpose is an error to uvicorn, and none to us.
        logging.getLogger("uvicorn.error").addFilter(lambda record: "ASGI callable returned" not in record.msg)
        self.uvicorn = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.uvicorn.run, args=([self.socket],), daemon=True, name="local-hub")

    def start(self) -> None:
        self.thread.start()
        deadline = time.monotonic() + START_SECONDS
        while not self.uvicorn.started:
            if time.monotonic() > deadline or not self.thread.is_alive():
                raise RuntimeError(f"The local Hub did not start on {self.url} within {START_SECONDS} s")
            time.sleep(0.01)

    def stop(self) -> None:
        self.uvicorn.should_exit = True
        self.thread.join(timeout=START_SECONDS)
        self.socket.close()
