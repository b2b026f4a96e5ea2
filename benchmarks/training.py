"""What a way of training costs, beside another: cached features, half of the sounds missing, grouped lengths, bf16 …

    python benchmarks/training.py                      # everything; an hour on two cores
    python benchmarks/training.py --only cached plain_bf16 --num_repeats 5
    OMP_NUM_THREADS=1 python benchmarks/training.py --only rows_x4 rows_x16      # time and memory against size

A pair at a time, each of its two ways in a process of its own (`trainee.py`), which train epochs in turn, so that a
busy minute of the machine falls on both; only one trains at any moment. What counts is the ratio of the medians, B to
A, of the time for a row. Rows are noise: how fast one learns from them does not depend on what they say. Towers of
base size have the shapes of BERT, ViT and Wav2Vec2 base, with fresh weights. The last line of stdout is one JSON
object.
"""

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for our own files, from whatever folder this is run

from benchmarks.timing import print_report
from cli.arguments import exit_code, number

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "zero"]


@dataclass(frozen=True)
class Way:
    """A way of training.

    Args:
        size: Of the towers: `base` or `tiny`.
        kind: `ours`, or `plain_trainer` for the usual late fusion in `transformers.Trainer`.
        flags: Of `train.py`.
        rows: Settings of the table: `num_rows`, `seconds` (shortest and longest sound), `missing` (share of the
            sounds), `gaps` (of each modality one cell in so many is empty), `modalities`.
        environment: Variables of its process.
        num_neighbours: Other processes that each want a core while it trains.
    """

    size: str = "base"
    kind: str = "ours"
    flags: tuple[str, ...] = ()
    rows: dict = field(default_factory=dict)
    environment: dict = field(default_factory=dict)
    num_neighbours: int = 0


FROZEN = ("--text_learning_rate", "0", "--image_learning_rate", "0", "--audio_learning_rate", "0")
FULL = Way(rows={"num_rows": 16}, flags=("--per_device_train_batch_size", "8"))
BATCHES = ("--per_device_train_batch_size", "32", "--sampling_rate", "8000", "--image_size", "32")
TINY = Way(size="tiny", rows={"num_rows": 512, "seconds": (1.0, 1.0)}, flags=BATCHES)
VARIED = {"num_rows": 512, "seconds": (0.3, 3.0)}


def like(way: Way, *flags: str, kind: str = "ours", **rows) -> Way:
    return replace(way, kind=kind, flags=(*way.flags, *flags), rows={**way.rows, **rows})


TEXT_AND_SOUND = like(FULL, num_rows=8, seconds=(10.0, 10.0), modalities=("text", "audio"))
GAPS = like(FULL, "--per_device_train_batch_size", "14", num_rows=14, gaps=7)  # a seventh of each modality is empty
SMALL = like(TINY, "--cache_gib", "0", num_rows=256)  # opened cells are not kept: they would grow with the rows
BUSY = replace(TINY, num_neighbours=2)
SPINNING = {"GOMP_SPINCOUNT": "300000"}  # what libgomp does by itself
# Name -> (A, B, what the ratio says).
PAIRS: dict[str, tuple[Way, Way, str]] = {
    "cached": (FULL, like(FULL, *FROZEN, "--cache_features"), "frozen towers from the cache : all fine-tuned"),
    "frozen": (FULL, like(FULL, *FROZEN), "frozen towers without a cache : all fine-tuned"),
    "half_audio": (TEXT_AND_SOUND, like(TEXT_AND_SOUND, missing=0.5), "half of the sounds missing : all present"),
    "bf16": (FULL, like(FULL, "--mixed_precision", "bf16"), "bf16 : float32"),
    "plain_fp32": (like(FULL, kind="plain_trainer"), FULL, "ours : plain Trainer, both in float32"),
    "plain_bf16": (like(FULL, kind="plain_trainer"), like(FULL, "--mixed_precision", "bf16"),
                   "ours in bf16 : plain Trainer in float32"),
    "gaps_fp32": (like(GAPS, kind="plain_trainer"), GAPS, "ours : plain Trainer, both in float32, rows with gaps"),
    "gaps_bf16": (like(GAPS, kind="plain_trainer"), like(GAPS, "--mixed_precision", "bf16"),
                  "ours in bf16 : plain Trainer in float32, rows with gaps"),
    "both_bf16": (like(FULL, "--mixed_precision", "bf16", kind="plain_trainer"),
                  like(FULL, "--mixed_precision", "bf16"), "ours : plain Trainer, both in bf16"),
    "checkpointed": (FULL, like(FULL, "--activation_checkpointing"), "activations computed again : kept"),
    "grouped": (like(TINY, **VARIED), like(TINY, "--group_by_length", **VARIED), "grouped by length : random order"),
    "workers_1": (like(TINY, "--cache_gib", "0"), like(TINY, "--cache_gib", "0", "--num_workers", "1"),
                  "one worker opens the cells : none"),
    "workers_2": (like(TINY, "--cache_gib", "0"), like(TINY, "--cache_gib", "0", "--num_workers", "2"),
                  "two workers open the cells : none"),
    "waiting": (replace(TINY, environment=SPINNING), TINY, "threads that wait briefly : as OpenMP lets them"),
    "waiting_busy": (replace(BUSY, environment=SPINNING), BUSY, "the same beside two busy processes"),
    "rows_x4": (SMALL, like(SMALL, num_rows=1024), "rows × 4, each row"),
    "rows_x16": (SMALL, like(SMALL, num_rows=4096), "rows × 16, each row"),
    "clips_x2": (SMALL, like(SMALL, seconds=(2.0, 2.0)), "clip length × 2"),
    "clips_x4": (SMALL, like(SMALL, seconds=(4.0, 4.0)), "clip length × 4"),
}  # fmt: skip


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--only", nargs="+", choices=[*PAIRS, "adamw"], default=[*PAIRS, "adamw"], help="which pairs; default: all")
    add("--num_repeats", type=number(int, 1), default=3, help="timed epochs of each way; default: 3")
    add("--data_dir", type=Path, help="where towers and rows are made, and found again; default: a temporary folder")
    add("--output_file", type=Path, help="also write the JSON object here; default: do not")
    return parser.parse_args(argv)


# == What is trained on ===============================================================================================


def make_rows(
    folder: Path, *, num_rows: int, seconds=(4.0, 4.0), missing=0.0, gaps=0, modalities=("text", "image", "audio")
):
    """A table of noise: `train.csv` and its files, of pictures 224 pixels a side and sounds of 16 kHz."""
    import csv

    import numpy as np
    import soundfile
    from PIL import Image

    noise = np.random.default_rng(0)
    folder.mkdir(parents=True)
    with (folder / "train.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*modalities, "label"])
        for row in range(num_rows):
            cells = {"text": " ".join(noise.choice(WORDS, 30)), "image": f"{row}.jpg", "audio": f"{row}.wav"}
            if "image" in modalities:
                Image.fromarray(noise.integers(0, 256, (224, 224, 3), dtype=np.uint8)).save(folder / cells["image"])
            has_audio = (row * missing) % 1 + missing < 1 or missing == 0  # evenly spread
            if "audio" in modalities and has_audio:
                count = round(noise.uniform(*seconds) * 16_000)
                soundfile.write(folder / cells["audio"], noise.normal(0, 0.1, count).clip(-1, 1), 16_000)
            cells["audio"] = cells["audio"] if has_audio else ""
            if gaps and row % gaps < len(modalities):  # never two in a row
                cells[modalities[row % gaps]] = ""
            writer.writerow([*(cells[name] for name in modalities), WORDS[row % 4]])
    lines = (folder / "train.csv").read_text().splitlines(keepends=True)
    (folder / "validation.csv").write_text("".join(lines[:5]))
    return folder


def make_towers(folder: Path):
    """Folders of the three towers of base size, with fresh weights and what prepares their inputs."""
    from transformers import (
        BertConfig,
        BertModel,
        BertTokenizer,
        ViTConfig,
        ViTImageProcessor,
        ViTModel,
        Wav2Vec2Config,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2Model,
    )

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokenizer = BertTokenizer(vocab={piece: number for number, piece in enumerate(pieces)})
    parts = {
        "text": (BertModel(BertConfig(), add_pooling_layer=False), tokenizer),
        "image": (ViTModel(ViTConfig(), add_pooling_layer=False), ViTImageProcessor()),
        "audio": (Wav2Vec2Model(Wav2Vec2Config()), Wav2Vec2FeatureExtractor(return_attention_mask=False)),
    }  # fmt: skip
    for name, saved in parts.items():
        for part in saved:
            part.save_pretrained(folder / name)
    return folder


# == Trainees =========================================================================================================


class Trainee:
    """A way of training in its process; a context manager.

    Args:
        way: The way.
        folder: Where towers and tables are.
        name: Of its output folder, which stays empty.
    """

    def __init__(self, way: Way, folder: Path, name: str):
        self.way = way
        flags = ["--train_file", str(self.table(folder) / "train.csv"), "--output_dir", str(folder / "out" / name),
                 "--validation_file", str(self.table(folder) / "validation.csv"), "--no-check_cells",
                 "--logging_steps", "1000000", "--num_train_epochs", "1000000",
                 "--lr_scheduler_type", "constant_with_warmup", "--cache_dir", str(folder / "features"),
                 *way.flags]  # fmt: skip
        if "--cache_features" not in flags:
            at = flags.index("--cache_dir")
            del flags[at : at + 2]
        longest = way.rows.get("seconds", (4.0, 4.0))[1]
        flags += ["--max_audio_seconds", str(longest)]
        if way.size == "base":
            for modality in way.rows.get("modalities", ("text", "image", "audio")):
                flags += [f"--{modality}_model_name_or_path", str(folder / "towers" / modality)]
        self.settings = {"kind": way.kind, "flags": flags}

    def table(self, folder: Path) -> Path:
        """The folder of its rows, which is made where it is not there yet."""
        settings = self.way.rows
        name = "-".join(str(value) for value in settings.values()).replace("/", "_")
        path = folder / "rows" / name
        return path if path.exists() else make_rows(path, **settings)

    def __enter__(self) -> "Trainee":
        script = Path(__file__).with_name("trainee.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "TQDM_DISABLE": "1", **self.way.environment},
        )  # fmt: skip
        self._ask(json.dumps(self.settings))
        return self

    def __exit__(self, *error):
        self.process.stdin.close()
        self.process.wait()

    def epoch(self) -> dict:
        with contextlib.ExitStack() as neighbours:
            for _ in range(self.way.num_neighbours):
                process = neighbours.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
                neighbours.callback(process.kill)
            return json.loads(self._ask("epoch"))

    def _ask(self, line: str) -> str:
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        if answer := self.process.stdout.readline():
            return answer
        raise RuntimeError(f"the training `{' '.join(self.settings['flags'])}` ended: see its words above")


def compare(name: str, folder: Path, num_repeats: int) -> dict:
    """Train both ways in turn, after an epoch of each that does not count."""
    first, second, meaning = PAIRS[name]
    epochs = {"a": [], "b": []}
    with Trainee(first, folder, f"{name}-a") as a, Trainee(second, folder, f"{name}-b") as b:
        for repeat in range(num_repeats + 1):
            for key, trainee in (("a", a), ("b", b)):
                result = trainee.epoch()
                epochs[key] += [result] if repeat else []
    return {"pair": name, "meaning": meaning, **ratios(epochs)}


def ratios(epochs: dict[str, list[dict]]) -> dict:
    """Ratios of the medians, per row, B to A; and the medians."""

    def middle(key: str, name: str) -> float:
        return median(epoch[name] / epoch["num_rows"] for epoch in epochs[key])

    report = {}
    for name in ("seconds", "cpu_seconds"):
        report[f"{name}_ratio"] = round(middle("b", name) / middle("a", name), 4)
        report |= {f"{name}_per_row_{key}": round(middle(key, name), 6) for key in epochs}
    report |= {f"peak_mib_{key}": round(values[-1]["peak_mib"]) for key, values in epochs.items()}
    wastes = {key: values[-1].get("padding", {}).get("audio") for key, values in epochs.items()}
    if None not in wastes.values():
        report["padded_audio_ratio"] = round((1 - wastes["a"]) / (1 - wastes["b"]), 4)
    return report


def compare_optimizers(num_repeats: int) -> dict:
    """A step of AdamW with 30 million parameters in 200 tensors, fused : not fused."""
    import torch

    from benchmarks.timing import time_cases

    def step(fused: bool):
        parameters = [torch.nn.Parameter(torch.randn(150_000)) for _ in range(200)]
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        return torch.optim.AdamW(parameters, fused=fused, foreach=None if fused else False).step

    seconds = time_cases({"a": step(False), "b": step(True)}, max(10, num_repeats), torch.device("cpu"))
    a, b = (median(seconds[key]) for key in "ab")
    return {"pair": "adamw", "meaning": "AdamW fused : not fused", "seconds_ratio": round(b / a, 4),
            "seconds_a": a, "seconds_b": b}  # fmt: skip


def run(args: argparse.Namespace) -> dict:
    """Measure, pair by pair; the story in run order."""
    import torch

    results = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.data_dir or Path(temporary)
        needs_towers = any(name in PAIRS and PAIRS[name][0].size == "base" for name in args.only)
        if needs_towers and not (folder / "towers").exists():
            make_towers(folder / "towers")
        for name in args.only:
            result = (
                compare_optimizers(args.num_repeats) if name == "adamw" else compare(name, folder, args.num_repeats)
            )
            results.append(result)
            print(describe(result), flush=True)
    report = {
        "benchmark": "training", "results": results, "num_repeats": args.num_repeats, "torch": torch.__version__,
        "threads": torch.get_num_threads(), "machine": platform.processor() or platform.machine(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }  # fmt: skip
    print_report(report, args)
    return report


def describe(result: dict) -> str:
    """A line for people."""
    values = [f"time × {result['seconds_ratio']:.3f}"]
    if "cpu_seconds_ratio" in result:
        values.append(f"CPU × {result['cpu_seconds_ratio']:.3f}")
        values.append(f"memory {result['peak_mib_a']:,} -> {result['peak_mib_b']:,} MiB")
    if "padded_audio_ratio" in result:
        values.append(f"audio with padding × {result['padded_audio_ratio']:.3f}")
    return f"{result['pair']:<13} {result['meaning']:<48} {', '.join(values)}"


def main(argv: list[str] | None = None) -> int:
    return exit_code(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
