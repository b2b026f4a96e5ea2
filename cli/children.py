"""Trainings as processes of their own: started as a user would start them, ended gently, and what they said last.

Unusual: each is in a session of its own, so that Ctrl-C reaches it through its parent alone, which then waits for its
checkpoint; and it is tied to the parent (see `leash`), so that none is left behind.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

TRAIN, LEASH = Path(__file__).parents[1] / "train.py", Path(__file__).parent / "leash.py"
TAIL = 65_536  # bytes of the output in which its last line is looked for


def start_training(
    arguments: Sequence[str],
    output: Path,
    *,
    heirs: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen:
    """Start `train.py`.

    Args:
        arguments: What it is started with.
        output: The file that what it says is added to.
        heirs: Descriptors that the process keeps open while it lives.
        environment: Its variables; None: those of this process.
    """
    leash = [sys.executable, str(LEASH), str(os.getpid())]
    # Its lines in the order in which they were said, and not a progress bar ten times a second.
    known = {"TQDM_MININTERVAL": "10", **(os.environ if environment is None else environment)}
    with output.open("ab") as file:
        return subprocess.Popen(
            [*leash, sys.executable, str(TRAIN), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=heirs,
            env={**known, "PYTHONUNBUFFERED": "1"},
        )


def end(process: subprocess.Popen) -> None:
    """Ask a process to end, which takes as long as its step and a checkpoint do."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        process.wait()


def last_words(output: Path, code: int) -> str:
    """What a process that failed said last, or what ended it.

    Args:
        output: What it wrote.
        code: Its exit code; negative: the signal that killed it.
    """
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    with output.open("rb") as file:
        file.seek(max(0, output.stat().st_size - TAIL))
        text = file.read().decode("utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    said = (errors or lines or [f"exit code {code}"])[-1]
    return said.removeprefix("error: ")
