"""Processes that open rows for a training: which row each of them holds, and what is said when one is lost.

What is unusual: a worker writes the row that it is about to open into memory that it shares with the training, so that
the row is known even when the system kills the worker over it (a picture that takes all memory, for one).
"""

import multiprocessing
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import Dataset, get_worker_info

GRACE = 30  # seconds that a worker outlives the signal that asks the training to finish its step


class WatchedRows(Dataset):
    """A dataset whose workers note which row they are opening.

    Args:
        dataset: The rows.
        place: From an index into them to what messages call that row.
        num_workers: How many processes open them.
    """

    def __init__(self, dataset: Dataset, place: Callable[[int], str], num_workers: int):
        self.dataset, self.place = dataset, place
        self.notes = torch.full((num_workers, 2), -1).share_memory_()  # process id, index of the row; -1 for none

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        worker = get_worker_info()
        if worker is None:
            return self.dataset[index]
        self.notes[worker.id, 0], self.notes[worker.id, 1] = multiprocessing.current_process().pid, index
        row = self.dataset[index]
        self.notes[worker.id, 1] = -1
        return row

    def held(self, pids: list[int] | None = None) -> list[str]:
        """The rows that these workers (or all) are opening, or were when they died, as messages call them."""
        return [self.place(index) for pid, index in self.notes.tolist() if index >= 0 and (not pids or pid in pids)]


def finish_first(worker_id: int) -> None:
    """Have a worker outlive a signal that its whole group gets: the training may wait for its batch."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))


@contextmanager
def telling_faults(loader) -> Iterator[None]:
    """Say in one sentence what happened to a worker, with the row that it held where that is known.

    Args:
        loader: The DataLoader, plain or prepared.

    Raises:
        OSError: A worker died or hangs.
        ValueError, OSError: A worker could not open a row; as it was raised there, without the traceback in its text.
    """
    try:
        yield
    except RuntimeError as error:
        if (sentence := _lost(str(error), loader)) is None:
            raise
        for child in multiprocessing.active_children():  # one that hangs would keep this process from ending
            child.kill()
        raise OSError(sentence) from error
    except (ValueError, OSError) as error:
        if not str(error).startswith("Caught "):
            raise
        raise type(error)(_without_traceback(error)) from None


def _lost(text: str, loader) -> str | None:
    """The sentence for a worker that died or hangs; None for any other error."""
    died = re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)(?: is killed by signal: ([^.]+))?", text)
    hangs = re.search(r"DataLoader timed out after ([\d.]+) seconds", text)
    if died is None and hangs is None:
        return None
    pids = None if died is None else [int(number) for number in died[1].split(",")]
    rows = loader.dataset.held(pids) if isinstance(loader.dataset, WatchedRows) else []
    held = f" while opening {', '.join(rows)}" if rows else ""
    if died is None:
        return (
            f"no batch came from the processes that open rows within {hangs[1]} s (--dataloader_timeout){held}: look "
            "at these cells and at the disk they are on, or give more time (0: without end)"
        )
    how = f" by the signal `{died[2].strip()}`" if died[2] else ""
    return (
        f"a process that opens rows was killed{how}{held}. The system kills so when memory runs out: lower "
        f"--num_workers ({loader.num_workers}), --cache_gib or the batch size, or look at that row's cells"
    )


def _without_traceback(error: Exception) -> str:
    """What the worker raised, of the text that the DataLoader makes of it."""
    text, mark = str(error), f"\n{type(error).__name__}: "
    return text[text.rindex(mark) + len(mark) :].rstrip("\n") if mark in text else text
