"""How the threads of a command wait for one another."""

import os


def wait_briefly():
    """Let threads that wait for one another soon fall asleep; of use before torch is imported.

    GNU's OpenMP, which torch brings for Linux, lets them look 300,000 times first. Where others want the cores, each
    then keeps one from the thread that it waits for: beside two busy processes two threads on two cores train five
    times slower (`benchmarks/training.py --only waiting waiting_busy`). 1,000 is what the library takes by itself
    where it has more threads than cores; on a quiet machine that makes the tiny towers a fifth slower. Whoever has
    set one of its two variables is obeyed.
    """
    if not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
        os.environ["GOMP_SPINCOUNT"] = "1000"
