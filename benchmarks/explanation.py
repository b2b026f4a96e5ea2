"""What an explanation costs, beside a plain answer: exact Shapley values of the modalities, and integrated gradients.

    python benchmarks/explanation.py outputs/demo
    python benchmarks/explanation.py outputs/demo --batch_sizes 1 --num_steps 32     # one sample, as a page asks
    OMP_NUM_THREADS=1 python benchmarks/explanation.py outputs/demo --device cpu     # one core

Measured on noise, through the pipeline that travels with the model: a plain forward pass of ready inputs, the shares
of all modalities for ready inputs (towers once, fusion once a subset), and the inside of all modalities of one sample,
decoding and processor included. The cases take turns, round by round, so that a busy minute of the machine falls on
all of them. The last line of stdout is one JSON object with every number of the table and all that they depend on.
"""

import argparse
import functools
import platform
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for our own files, from whatever folder this is run

from benchmarks.timing import print_report, time_cases
from cli.arguments import add_model_arguments, exit_code, number

WORDS = "one two three four five six seven eight nine zero"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    add_model_arguments(parser)
    add, count = parser.add_argument, number(int, 1)
    add("--batch_sizes", type=count, nargs="+", default=[1, 32], help="rows a call; default: 1 32")
    add("--num_steps", type=count, nargs="+", default=[8, 32, 64],
        help="points on the path of integrated gradients; default: 8 32 64")  # fmt: skip
    add("--num_repeats", type=count, default=10, help="timed calls of each case; default: 10")
    add("--num_words", type=count, default=16, help="words of every text; default: 16")
    add("--audio_seconds", type=number(float, 0.025), default=2.0, help="seconds of every sound; default: 2")
    add("--seed", type=number(int, 0), default=0, help="of the noise; default: 0")
    add("--output_file", type=Path, help="also write the JSON object here; default: do not")
    return parser.parse_args(argv)


def make_sample(classify, args: argparse.Namespace) -> dict:
    """Give one sample with every modality that the model reads."""
    import itertools

    import numpy as np
    from PIL import Image

    noise, rate = np.random.default_rng(args.seed), classify.processor.audio_sampling_rate or 16_000
    sample = {
        "text": " ".join(itertools.islice(itertools.cycle(WORDS.split()), args.num_words)),
        "image": Image.fromarray(noise.integers(0, 256, (64, 64, 3), dtype=np.uint8)),
        "audio": {
            "array": noise.normal(0, 0.1, round(args.audio_seconds * rate)).clip(-1, 1).astype(np.float32),
            "sampling_rate": rate,
        },
    }
    return {name: sample[name] for name in classify.model.config.modalities}


def make_inputs(classify, sample: dict, batch_size: int) -> dict:
    """Give the sample's model inputs, repeated: how fast an answer is does not depend on what it says."""
    cells = classify.preprocess(sample)
    row = classify.processor(**cells, sampling_rate=classify.processor.audio_sampling_rate).to(classify.model.device)
    return {key: value.expand(batch_size, *value.shape[1:]).contiguous() for key, value in row.items()}


def make_cases(classify, sample: dict, args: argparse.Namespace) -> dict[tuple, Callable]:
    """Give (batch size, what) -> call."""
    cases = {}
    for size in args.batch_sizes:
        inputs = make_inputs(classify, sample, size)
        cases[size, "forward"] = functools.partial(classify.model, **inputs)
        cases[size, "shapley"] = functools.partial(classify.explain_batch, inputs)
    for steps in args.num_steps:
        explain = functools.partial(classify.explain, sample, num_steps=steps)
        cases[1, f"integrated_gradients {steps}"] = explain
    cases[1, "attention"] = functools.partial(classify.explain, sample, method="attention")
    if (1, "forward") not in cases:  # what everything about one sample is compared with
        cases[1, "forward"] = functools.partial(classify.model, **make_inputs(classify, sample, 1))
    return cases


def summarise(seconds: dict[tuple, list[float]]) -> list[dict]:
    """Give one record a case; `time_ratio_to_forward` is the median ratio within a round at the same batch size."""
    import numpy as np

    return [
        {
            "batch_size": size,
            "what": what,
            "median_ms": 1000 * float(np.median(values)),
            "p95_ms": 1000 * float(np.percentile(values, 95)),
            "time_ratio_to_forward": float(np.median(np.divide(values, seconds[size, "forward"]))),
        }
        for (size, what), values in sorted(seconds.items(), key=lambda item: item[0][0])
    ]


def describe(classify, sample: dict, args: argparse.Namespace) -> dict:
    """Give what the numbers depend on."""
    import captum
    import torch
    import transformers

    model = classify.model
    is_gpu = model.device.type == "cuda"
    device = torch.cuda.get_device_name() if is_gpu else platform.processor() or platform.machine()
    inputs = make_inputs(classify, sample, 1)
    return {
        "model": args.model,
        "device": f"{model.device.type} ({device})",
        "num_threads": torch.get_num_threads(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "captum": captum.__version__,
        "num_parameters": model.num_parameters(),
        "num_repeats": args.num_repeats,
        "inputs": {key: list(value.shape[1:]) for key, value in inputs.items() if "mask" not in key},
        "completeness": [
            {name: checked[name] for name in ("num_steps", "error", "difference", "is_complete")}
            for checked in (classify.explain(sample, num_steps=n)["completeness"] for n in args.num_steps)
        ],
    }


def print_table(report: dict) -> None:
    """Print the numbers for people."""
    print(f"{report['model']} on {report['device']}, {report['num_threads']} threads, {report['dtype']}")
    print("inputs of a row: " + ", ".join(f"{name} {shape}" for name, shape in report["inputs"].items()))
    print(f"\n{'batch':>5}  {'what':24}  {'median ms':>9}  {'p95 ms':>9}  {'time ÷ forward':>14}")
    for line in report["results"]:
        print(
            f"{line['batch_size']:>5}  {line['what']:24}  {line['median_ms']:>9.2f}  {line['p95_ms']:>9.2f}"
            f"  {line['time_ratio_to_forward']:>14.2f}"
        )
    print()


def run(args: argparse.Namespace) -> None:
    """Load, time, print."""
    import torch

    from cli.loading import load_pipeline

    classify = load_pipeline(args.model, revision=args.revision, device=args.device)
    if not hasattr(classify, "explain"):
        raise ValueError(f"`{args.model}` was saved without explanations: train it again, or give another MODEL.")
    sample = make_sample(classify, args)
    cases = make_cases(classify, sample, args)
    with torch.no_grad():
        seconds = time_cases(cases, args.num_repeats, classify.model.device)
    report = {**describe(classify, sample, args), "results": summarise(seconds)}
    print_table(report)
    print_report(report, args)


def main(argv: list[str] | None = None) -> int:
    return exit_code(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
