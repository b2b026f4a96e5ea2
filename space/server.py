"""Page and API in one app, and a server that finishes what it has begun before it stops."""

import asyncio
import contextlib
import gc
import socket
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from space.api import add_error_handlers, close_api, make_router
from space.connections import TimedProtocol
from space.feedback import FeedbackStore
from space.gate import Gate
from space.model_info import model_info
from space.options import Options
from space.page import Page
from space.page_model import read_card
from space.service import Service

# Whoever asks the page is told a number first, and fetches the answer with a second request; and whoever keeps asking
# a stopping server shall be sent away politely rather than cut off.
QUIET_SECONDS = 2.0
DESCRIPTION = "A model that reads text, picture and sound, any of them missing."


def make_app(service: Service, options: Options, name: str) -> FastAPI:
    """Put API and page behind one gate.

    Args:
        service: starts and stops with the app.
        options: the limits.
        name: folder or Hub id of the model.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service:
            yield
        await asyncio.to_thread(page.close)

    info = model_info(service.pipeline, options, name, service.gallery)
    page = Page(service, options, info, read_card(name, options.revision), make_store(options, info))
    page_calls = {call.api_name for call in page.blocks.fns.values() if call.api_visibility != "private"}
    app = FastAPI(title="MMFusion", description=DESCRIPTION, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.page_queue = page.blocks._queue
    add_error_handlers(app)
    router = make_router(service, options, info)
    close_api(router)
    app.include_router(router)
    app.add_middleware(Gate, service=service, options=options, page_calls=page_calls)
    # Outermost, and there even without origins: the page then leaves its own, more generous rules out.
    app.add_middleware(
        CORSMiddleware, allow_origins=options.allow_origins, allow_methods=["GET", "POST"],
        allow_headers=["Authorization", "Content-Type"], expose_headers=["X-Request-ID", "Retry-After"],
    )  # fmt: skip
    return gr.mount_gradio_app(
        app, page.blocks, "/", server_name=options.host, server_port=options.port,
        show_error=False, max_file_size=options.max_body_bytes, run_history=False, ssr_mode=False, mcp_server=False,
        footer_links=["api"], **page.mounting(),
    )  # fmt: skip


def make_store(options: Options, info: dict[str, Any]) -> FeedbackStore | None:
    """Give the folder for feedback; None: visitors are not asked."""
    if options.feedback_folder is None:
        return None
    return FeedbackStore(
        options.feedback_folder, labels=info["labels"], problem_type=info["problem_type"],
        thresholds=info["thresholds"], model=info["id"], revision=info["revision"],
        keep_media=options.feedback_media, mask_text=options.mask_feedback,
        hub_dataset=options.feedback_dataset,
    )  # fmt: skip


class DrainingServer(uvicorn.Server):
    """A server that takes no new work after a signal and ends when the running work has; after a second one, at once.

    Args:
        app: from `make_app`.
        service: whose work is waited for.
        options: where to listen, how long to wait.
    """

    def __init__(self, app: FastAPI, service: Service, options: Options):
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, http=TimedProtocol, ws="none",
            # Longer than a proxy keeps a connection, or it would send a request into one that is just being closed.
            timeout_keep_alive=75,
            # Connections that only wait for news of the page do not end by themselves: they get a second.
            timeout_graceful_shutdown=1,
        )  # fmt: skip
        super().__init__(config)
        self.service, self.options = service, options
        self._drain_until = 0.0

    def handle_exit(self, sig: int, frame) -> None:
        """Called by uvicorn on SIGTERM and SIGINT. (Its own would die of the signal; a drained server ends with 0.)"""
        if self.service.is_draining:
            self.should_exit = self.force_exit = True
        self.service.is_draining = True
        self._drain_until = time.monotonic() + self.options.drain_seconds

    async def on_tick(self, counter: int) -> bool:
        """Say, ten times a second, whether to stop."""
        if self.service.broken is not None:
            return True
        if self.service.is_draining and (self._is_done() or time.monotonic() > self._drain_until):
            return True
        return await super().on_tick(counter)

    def _is_done(self) -> bool:
        """Whether nothing waits or runs, and nobody is likely to come for an answer, or again in vain."""
        queue = self.config.app.state.page_queue
        num_jobs = len(queue) + queue.get_active_worker_count()
        is_idle = self.service.num_requests == 0 and self.service.num_inside == 0 and num_jobs == 0
        return is_idle and time.monotonic() - self.service.last_request > QUIET_SECONDS

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # What the libraries have made until now stays for good. Without this, Python looks through all of it for
        # garbage every few thousand requests, and nobody is answered for a third of a second.
        gc.collect()
        gc.freeze()
        host, port = sockets[0].getsockname()[:2]
        print(f"serving at http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)

    def run_on(self, listener: socket.socket) -> None:
        """Serve until a signal comes.

        Raises:
            OSError: When the accelerator failed, and the process has to be started anew.
        """
        self.run([listener])
        if self.service.broken is not None:
            raise OSError(f"stopped, because no call can succeed any more: {self.service.broken}")
        if self.service.num_inside:
            print(f"stopped with {self.service.num_inside} samples unanswered", file=sys.stderr)


def bound_socket(host: str, port: int) -> socket.socket:
    """Take the port before the slow start, so that a taken one is told at once. (It answers once it listens.)

    Raises:
        OSError: When it cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio turns Nagle's algorithm off; else every small answer waits 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OSError(f"cannot listen at `{host}` port {port} ({error.strerror}): choose another `--port`.") from None
    return listener
