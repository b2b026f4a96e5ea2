"""A connection on which no request comes is closed after a while.

uvicorn gives a client all the time in the world for the head of a request, and for the rest of a body whose refusal it
has been told already. Each such connection holds a file of this process, and a thousand of them would lock others out.
(A body that drips in while somebody waits for it is the gate's business.)
"""

import asyncio

from uvicorn.protocols.http.auto import AutoHTTPProtocol

HEAD_SECONDS = 20.0


class TimedProtocol(AutoHTTPProtocol):
    """uvicorn's protocol, with a limit to the seconds from the first byte of a request's head to its last."""

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unwatch()

    def _watch(self) -> None:
        """Start the clock where bytes belong to no open request, and stop it once there is one."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._unwatch()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _unwatch(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
