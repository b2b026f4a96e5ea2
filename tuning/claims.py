"""Whose a running trial is, told by a lock of the operating system that its training inherits.

Unusual: no heartbeat and no clock. The lock is free as soon as the last process of the trial is gone, be it killed
with -9, and not before: a training that still saves its checkpoint holds it, too. (Linux and macOS.)
"""

import os
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Claim:
    """A lock that is held until this process and all that inherited the descriptor have closed it."""

    descriptor: int

    def release(self) -> None:
        os.close(self.descriptor)  # not unlocked: that would free it for the heirs, too


def take(path: Path, *, waits: bool = False) -> Claim | None:
    """Claim what a file stands for, and write into it who has it.

    Args:
        path: Of the file; it is made where it is missing, and stays.
        waits: Whether to wait for another to release it.

    Returns:
        The claim; None where another has it.
    """
    import fcntl

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(descriptor)
        return None
    os.truncate(descriptor, 0)
    os.write(descriptor, f"{socket.gethostname()} {os.getpid()}".encode())
    return Claim(descriptor)


def is_orphaned(path: Path) -> bool:
    """Whether heirs hold a claim whose owner is gone; only asked while nobody else takes claims."""
    if not path.exists() or not _is_owner_gone(path):
        return False
    if claim := take(path):
        claim.release()
    return claim is None


def _is_owner_gone(path: Path) -> bool:
    """Whether the process that wrote itself into the file was one of this machine, and is no more."""
    host, _, pid = path.read_text(encoding="utf-8").partition(" ")
    if host != socket.gethostname() or not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # somebody else's, and alive
        return False
    return False
