"""Where the random numbers of a process are, and how to go back there."""

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch


def random_state() -> dict:
    """Where the random numbers of this process are: Python's, numpy's, torch's, and those of its GPU."""
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    return {**state, "cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else state


def set_random_state(state: dict) -> None:
    """Go back there."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, numbers, *rest = state["numpy"]
    np.random.set_state((kind, np.asarray(numbers, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def split_state(state: dict) -> tuple[dict, dict[str, torch.Tensor]]:
    """A random state as (what is fit for JSON, tensors); both together are one again."""
    kind, numbers, *rest = state["numpy"]
    plain = {"python": state["python"], "numpy": [kind, numbers.tolist(), *rest]}
    return plain, {name: value for name, value in state.items() if name not in plain}


@contextmanager
def keeping_random_state(is_kept: bool = True) -> Iterator[None]:
    """Let what is done in here draw without moving the random numbers of this process."""
    before = random_state() if is_kept else None
    try:
        yield
    finally:
        if before is not None:
            set_random_state(before)


def from_there(batches: Iterable[dict], state: dict | None) -> Iterator[dict]:
    """The batches, with the random state set once the first one has come and nothing is drawn for them any more."""
    for batch in batches:
        if state is not None:
            set_random_state(state)
            state = None
        yield batch
    if state is not None:  # there was none left
        set_random_state(state)
