"""What commands print: letters that a terminal lacks are escaped, and a reader who goes away ends nothing."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class LastingStream:
    """A text stream that outlives its reader: after `| head`, or when a terminal is closed, what is printed is lost.

    Args:
        stream: What is written to; its file descriptor is pointed at nothing once its reader is gone.
    """

    def __init__(self, stream):
        self._stream = stream

    def write(self, text: str) -> int:
        self._attempt(self._stream.write, text)
        return len(text)

    def flush(self):
        self._attempt(self._stream.flush)

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def _attempt(self, call, *args):
        try:
            call(*args)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self._stream.fileno())
            os.close(nothing)


@contextmanager
def lasting_output() -> Iterator[None]:
    """Let no print end a command: letters that a terminal lacks are escaped, and a reader may go away."""
    before = sys.stdout, sys.stderr
    for stream in before:
        # UTF-8 has no letter for a byte that Python could not decode, as a file's name may have.
        is_utf8 = (getattr(stream, "encoding", None) or "").lower().replace("-", "") == "utf8"
        if hasattr(stream, "reconfigure") and (not is_utf8 or stream.errors == "strict"):
            stream.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = (None if stream is None else LastingStream(stream) for stream in before)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        sys.stdout, sys.stderr = before
