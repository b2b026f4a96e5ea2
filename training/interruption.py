"""Signals that ask a training to end: SIGTERM, as schedulers send it, and SIGINT, which is Ctrl-C.

A run that keeps checkpoints finishes its step, saves one and ends; a second signal ends it at once. A run that keeps
none ends at the signal, and what it has reached so far is what is saved. The exit code is 128 and the signal's number.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Stopped(BaseException):
    """A signal asked the training to end; no `Exception`, so that nothing on the way takes it for a fault.

    Args:
        signum: The signal's number.
        what: A sentence for people; none is needed.
    """

    def __init__(self, signum: int, what: str = ""):
        super().__init__(f"ended by {signal.Signals(signum).name}{what}")
        self.signum, self.exit_code = signum, 128 + signum


class Signals:
    """What SIGTERM and SIGINT do while a training runs; a context manager, which puts back what was there before.

    Args:
        finish_step: Whether a signal is only noted in `received`, for the training to end when its step is done. Else
            SIGTERM raises `Stopped` wherever it arrives, and SIGINT is left alone.
    """

    def __init__(self, finish_step: bool):
        self.finish_step, self.received = finish_step, 0
        self._raises, self._pid, self._before = not finish_step, os.getpid(), {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():  # Python gives signals to no other
            for signum in (signal.SIGTERM, signal.SIGINT) if self.finish_step else (signal.SIGTERM,):
                self._before[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *error):
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    @contextmanager
    def at_once(self, can_be: bool = True) -> Iterator[None]:
        """Raise `Stopped` in here, where there is no step to finish; also when the signal came before."""
        before, self._raises = self._raises, self._raises or can_be
        try:
            if self._raises and self.received:
                raise Stopped(self.received)
            yield
        finally:
            self._raises = before

    def _note(self, signum: int, frame) -> None:
        if os.getpid() != self._pid:  # a worker of a DataLoader, which has this handler from its parent
            return
        if self.received:
            os._exit(128 + signum)
        self.received = signum
        if self.finish_step and (of_workers := signal.getsignal(signal.SIGCHLD)) is not None:
            # The workers may get the signal, too, and the DataLoader would raise amid the step when they are gone.
            self._before[signal.SIGCHLD] = of_workers
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if self._raises:
            raise Stopped(signum)
