"""How the threads of a command wait for one another."""

import os
from collections.abc import MutableMapping

SPINS = "1000"


def wait_briefly(environment: MutableMapping[str, str] = os.environ):
    """Let threads that wait for one another soon fall asleep; of use before torch is imported.

    GNU's OpenMP, which torch brings for Linux, lets them look 300,000 times first. Where others want the cores, each
    then keeps one from the thread that it waits for: beside two busy processes two threads on two cores train five
    times slower (`benchmarks/training.py --only waiting waiting_busy`). 1,000 is what the library takes by itself
    where it has more threads than cores; on a quiet machine that makes the tiny towers a fifth slower. Whoever has
    set one of its two variables is obeyed.
    """
    if not environment.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
        environment["GOMP_SPINCOUNT"] = SPINS
