"""What the benchmarks share: cases that take turns, so that a busy minute falls on all of them, and the last line."""

import argparse
import json
import time
from collections.abc import Callable

from cli.files import replacing


def time_cases(cases: dict[tuple, Callable], num_repeats: int, device) -> dict[tuple, list[float]]:
    """Time every case `num_repeats` times, all cases in turn, after one round of warm-up that does not count.

    Returns:
        Case -> seconds of each call; an accelerator is waited for before and after it.
    """
    import torch
    from tqdm.auto import tqdm

    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    seconds = {name: [] for name in cases}
    with tqdm(total=len(cases) * (num_repeats + 1), desc="timing", unit="call") as bar:
        for repeat in range(num_repeats + 1):
            for name, call in cases.items():
                wait()
                start = time.perf_counter()
                call()
                wait()
                if repeat > 0:
                    seconds[name].append(time.perf_counter() - start)
                bar.update()
    return seconds


def print_report(report: dict, args: argparse.Namespace) -> None:
    """Print the report as one JSON object on one line, and write it to `--output_file` where one is given."""
    line = json.dumps(report)
    if args.output_file is not None:
        with replacing(args.output_file) as path:
            path.write_text(line + "\n", encoding="utf-8")
    print(line)
