"""What an answer costs: speed by batch size and by modality subset, parameters and memory of a model folder.

    python benchmarks/inference.py outputs/demo
    python benchmarks/inference.py outputs/demo --batch_sizes 1 --num_repeats 50      # latency only
    OMP_NUM_THREADS=1 python benchmarks/inference.py outputs/demo --device cpu        # one core

Measured is the model alone, on noise of fixed length, without reading files and without the processor. The cases take
turns, round by round, so that a busy minute of the machine falls on all of them. The last line of stdout is one JSON
object with every number of the tables and all that they depend on.
"""

import argparse
import platform
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for our own files, from whatever folder this is run

from benchmarks.timing import print_report, time_cases
from cli.arguments import add_model_arguments, exit_code, number

MIB = 2**20


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    add_model_arguments(parser)
    add, count = parser.add_argument, number(int, 1)
    add("--batch_sizes", type=count, nargs="+", default=[1, 8, 32], help="rows a call; default: 1 8 32")
    add("--num_repeats", type=count, default=20, help="timed calls of each case; default: 20")
    add("--num_tokens", type=count, default=32, help="tokens of every text; default: 32")
    add("--audio_seconds", type=number(float, 0.025), default=2.0, help="seconds of every sound; default: 2")
    add("--seed", type=number(int, 0), default=0, help="of the noise; default: 0")
    add("--output_file", type=Path, help="also write the JSON object here; default: do not")
    return parser.parse_args(argv)


def make_inputs(model, processor, args: argparse.Namespace) -> dict[str, dict]:
    """Give one row of noise for each modality, as model inputs of batch size 1.

    Pictures and sounds pass through the processor once, so that they get the size and the padding of real ones: for a
    group-norm audio tower that is always `max_audio_seconds`.
    """
    import numpy as np
    import torch
    from PIL import Image

    noise = np.random.default_rng(args.seed)
    rows = {}
    if "text" in model.config.modalities:
        text_config = model.config.text_config
        num_tokens = min(args.num_tokens, processor.max_text_length, text_config.max_position_embeddings)
        input_ids = torch.from_numpy(noise.integers(0, text_config.vocab_size, (1, num_tokens)))
        rows["text"] = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    if "image" in model.config.modalities:
        picture = Image.fromarray(noise.integers(0, 256, (64, 64, 3), dtype=np.uint8))
        rows["image"] = dict(processor(images=[picture]))
    if "audio" in model.config.modalities:
        rate = processor.audio_sampling_rate
        sound = noise.normal(0, 0.1, round(args.audio_seconds * rate)).astype(np.float32)
        rows["audio"] = dict(processor(audio=[{"array": sound, "sampling_rate": rate}]))
    for row in rows.values():
        row.pop("modality_mask", None)  # what is passed is present
    return {name: {key: value.to(model.device) for key, value in row.items()} for name, row in rows.items()}


def batch_of(rows: dict[str, dict], subset: tuple[str, ...], batch_size: int) -> dict:
    """Repeat the row of noise: how fast an answer is does not depend on what it says."""
    return {
        key: value.expand(batch_size, *value.shape[1:]).contiguous()
        for name in subset
        for key, value in rows[name].items()
    }


def make_cases(model, rows: dict[str, dict], batch_sizes: list[int]) -> dict[tuple, Callable]:
    """Give (batch size, what) -> call, for every subset and for all subsets from one run of the towers."""
    import functools

    from metrics.subsets import modality_subsets, predict_subsets, subset_name

    subsets = modality_subsets(model.config.modalities)
    cases = {}
    for size in batch_sizes:
        for subset in subsets:
            cases[size, subset_name(subset)] = functools.partial(model, **batch_of(rows, subset, size))
        full = batch_of(rows, subsets[-1], size)
        cases[size, "all subsets"] = functools.partial(predict_subsets, model, [full], progress=False)
    return cases


def summarise(seconds: dict[tuple, list[float]], full: str) -> list[dict]:
    """Give one record a case; `time_ratio_to_full` compares medians with all modalities at the same batch size."""
    import numpy as np

    medians = {case: float(np.median(values)) for case, values in seconds.items()}
    return [
        {
            "batch_size": size,
            "modalities": name,
            "median_ms": 1000 * medians[size, name],
            "p95_ms": 1000 * float(np.percentile(values, 95)),
            "samples_per_second": size / medians[size, name],
            "time_ratio_to_full": medians[size, name] / medians[size, full],
        }
        for (size, name), values in seconds.items()
    ]


def count_parameters(model) -> dict[str, int]:
    """Give the parameters of each tower, of the fusion (projectors and head included) and of the whole."""
    towers = {
        "text": "text_encoder", "image": "vision_encoder", "audio": "audio_encoder"
    }  # fmt: skip
    counts = {name: model.base_model.get_submodule(towers[name]).num_parameters() for name in model.config.modalities}
    return {**counts, "fusion": model.num_parameters() - sum(counts.values()), "total": model.num_parameters()}


def measure_memory(model, rss_before_load: int) -> dict[str, float]:
    """Give MiB of the weights and of the process; on a GPU also the most that its allocator held."""
    import resource

    import psutil
    import torch

    rss = psutil.Process().memory_info().rss
    # ru_maxrss is in KiB on Linux and in bytes on macOS; the kernel counts it late, so it can lag behind `rss`.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    memory = {
        "weights_mib": model.get_memory_footprint() / MIB,
        "rss_before_load_mib": rss_before_load / MIB,
        "rss_mib": rss / MIB,
        "peak_rss_mib": max(peak, rss) / MIB,
    }
    if model.device.type == "cuda":
        memory["peak_gpu_mib"] = torch.cuda.max_memory_allocated() / MIB
    return memory


def describe(model, rows: dict[str, dict], args: argparse.Namespace) -> dict:
    """Give what the numbers depend on."""
    import torch
    import transformers

    device = (
        torch.cuda.get_device_name() if model.device.type == "cuda" else platform.processor() or platform.machine()
    )
    return {
        "model": args.model,
        "device": f"{model.device.type} ({device})",
        "num_threads": torch.get_num_threads(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "num_repeats": args.num_repeats,
        "inputs": {
            key: list(value.shape[1:])
            for row in rows.values()
            for key, value in row.items()
            if "mask" not in key
        },
    }  # fmt: skip


def print_tables(report: dict) -> None:
    """Print the numbers for people."""
    print(f"{report['model']} on {report['device']}, {report['num_threads']} threads, {report['dtype']}")
    print("inputs of a row: " + ", ".join(f"{name} {shape}" for name, shape in report["inputs"].items()))
    print("parameters: " + ", ".join(f"{name} {count:,}" for name, count in report["parameters"].items()))
    print("memory in MiB: " + ", ".join(f"{key[:-4]} {value:,.0f}" for key, value in report["memory"].items()))
    print(f"\n{'batch':>5}  {'modalities':16}  {'median ms':>9}  {'p95 ms':>9}  {'samples/s':>9}  {'time ÷ full':>11}")
    for line in report["results"]:
        print(
            f"{line['batch_size']:>5}  {line['modalities']:16}  {line['median_ms']:>9.2f}  {line['p95_ms']:>9.2f}"
            f"  {line['samples_per_second']:>9.1f}  {line['time_ratio_to_full']:>11.2f}"
        )
    print("(all subsets: towers once, fusion once a subset)\n")


def run(args: argparse.Namespace) -> None:
    """Load, time, print."""
    import psutil
    import torch
    from transformers import AutoModelForSequenceClassification  # noqa: F401  (imports are not the model's memory)

    from cli.loading import load_model
    from metrics.subsets import subset_name

    rss_before_load = psutil.Process().memory_info().rss
    model, processor = load_model(args.model, revision=args.revision, device=args.device)
    rows = make_inputs(model, processor, args)
    cases = make_cases(model, rows, args.batch_sizes)
    with torch.inference_mode():
        seconds = time_cases(cases, args.num_repeats, model.device)
    report = {
        **describe(model, rows, args),
        "parameters": count_parameters(model),
        "memory": measure_memory(model, rss_before_load),
        "results": summarise(seconds, subset_name(model.config.modalities)),
    }
    print_tables(report)
    print_report(report, args)


def main(argv: list[str] | None = None) -> int:
    return exit_code(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
