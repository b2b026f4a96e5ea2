"""One trial: a training as a process of its own, watched through the log that it writes.

Unusual: nothing is trained in here. The process is `train.py` as a user would start it, in a session of its own, so
that Ctrl-C reaches it through the search alone, which then waits for its checkpoint.
"""

import json
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from cli.children import end, last_words, start_training
from training.arguments import beside

LOG = "log.jsonl"
SECONDS_BETWEEN_LOOKS = 0.25


class State(Enum):
    """How a training ended."""

    COMPLETE = "complete"
    PRUNED = "pruned"
    FAILED = "failed"
    INTERRUPTED = "interrupted"  # and can go on


@dataclass
class Outcome:
    """What came of a training.

    Attributes:
        state: How it ended.
        reason: Where it failed: what it said last.
        epochs: Number of the epoch -> its record in the log.
        seconds: From the start of the process to its end.
    """

    state: State = State.FAILED
    reason: str = ""
    epochs: dict[int, dict] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def best(self) -> dict:
        """The record of the epoch that the model is from; of equals the first, as in the training."""
        return max(self.epochs.values(), key=lambda record: record["score"])


class Trial:
    """A training while it runs.

    Args:
        arguments: What `train.py` is started with.
        output_dir: Where its model goes.
        heirs: Descriptors that the process keeps open while it lives.
    """

    def __init__(self, arguments: list[str], output_dir: Path, heirs: tuple[int, ...] = ()):
        self.output = output_dir.with_name(f"{output_dir.name}.txt")
        self._logs = (beside(output_dir, "checkpoints") / LOG, output_dir / LOG)
        self._seen = None
        self.outcome, self._started = Outcome(), time.monotonic()
        self.process = start_training(arguments, self.output, heirs=heirs)

    def follow(self, is_hopeless: Callable[[dict], bool], must_stop: Callable[[], bool]) -> Outcome:
        """Wait for the end of the training, and bring it about where it shall end early.

        Args:
            is_hopeless: Told of every epoch when it is over; whether the training shall be given up.
            must_stop: Whether it shall be interrupted, to go on another time.
        """
        state = State.COMPLETE
        try:
            while self.process.poll() is None and state == State.COMPLETE:
                time.sleep(SECONDS_BETWEEN_LOOKS)
                if any([is_hopeless(record) for record in self._new_epochs()]):
                    state = State.PRUNED
                if must_stop():
                    state = State.INTERRUPTED
            if state != State.COMPLETE:
                end(self.process)
        except BaseException:
            end(self.process)
            raise
        for record in self._new_epochs():
            is_hopeless(record)
        self._judge(State.INTERRUPTED if must_stop() else state)
        return self.outcome

    def _judge(self, state: State) -> None:
        """What the exit code makes of it: a training that was to be ended may have ended by itself just before."""
        code, outcome = self.process.returncode, self.outcome
        outcome.seconds = time.monotonic() - self._started
        was_ended = code in (-signal.SIGTERM, 128 + signal.SIGTERM)
        if code == 0 and outcome.epochs:
            outcome.state = State.COMPLETE
        elif state != State.COMPLETE and was_ended:
            outcome.state = state
        else:
            outcome.reason = "no epoch was finished" if code == 0 else last_words(self.output, code)

    def _new_epochs(self) -> Iterator[dict]:
        """The records of the epochs that ended since the last look."""
        log = next((path for path in self._logs if path.is_file()), None)
        if log is None or self._seen == (seen := (log, log.stat().st_size, log.stat().st_ino)):
            return
        self._seen = seen
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
            if '"event": "epoch"' not in line or not line.endswith("\n"):  # a line that is still being written
                continue
            record = json.loads(line)
            if record["epoch"] not in self.outcome.epochs:
                self.outcome.epochs[record["epoch"]] = record
                yield record
