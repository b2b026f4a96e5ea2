"""Which strategy of fusion, with which balance, knows most: trainings of all of them, on the same rows and towers.

    python benchmarks/fusion.py --data_dir $DATA --work_dir outputs/fusion                      # days on two cores
    python benchmarks/fusion.py --data_dir $DATA --work_dir outputs/fusion --design one_at_a_time \\
        --data_sets emotion7 --budget quick                                                     # two hours on one
    python benchmarks/fusion.py --data_dir $DATA --work_dir outputs/heads --data_sets digits --budget quick \\
        --towers outputs/digits-baselines                                                       # an hour, full grid

Each cell of the table is a training of `train.py` in a process of its own and the metrics of its held-out rows; the
specialists are the same with the columns of their modalities alone. A training that was done is not done again, one
that was cut off goes on: the command can be stopped at any time and repeated. The last line of stdout is one JSON
object; `--work_dir` gets the table in Markdown, too.
"""

import argparse
import itertools
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for our own files, from whatever folder this is run

from benchmarks.timing import print_report
from cli.arguments import exit_code, number
from cli.files import replacing

ROOT = Path(__file__).resolve().parent.parent
FUSIONS = ("cross_attention", "bottleneck", "pairwise", "gate", "weighted_sum", "concat", "low_rank")
BALANCES = ("none", "unimodal", "ogm_ge", "mmpareto")
SUBSETS = tuple(
    subset for size in (1, 2, 3) for subset in itertools.combinations(("text", "image", "audio"), size)
)  # fmt: skip
# Data set -> flags of `train.py`, the columns apart.
DATA_SETS = {
    "digits": ("--train_file", "{data}/digits/train.parquet", "--validation_file", "{data}/digits/validation.parquet",
               "--image_size", "32"),
    "emotion7": ("--train_file", "{data}/emotion7/train.csv", "--validation_file", "{data}/emotion7/validation.csv",
                 "--label_column", "emotion", "--hidden_dropout_prob", "0.3", "--fusion_hidden_size", "64",
                 "--num_fusion_layers", "1", "--weight_decay", "0.1", "--mask_time_prob", "0.2",
                 "--mask_feature_prob", "0.125", "--image_size", "48", "--sampling_rate", "8000",
                 "--max_audio_seconds", "4"),
}  # fmt: skip
OF_A_TOWER = {  # flags that a model without that tower does not take
    "emotion7": {"audio": ("--audio_learning_rate", "1e-4"),
                 "text": ("--text_model_name_or_path", "{text_tower}", "--text_learning_rate", "0",
                          "--cache_features")},
}  # fmt: skip
COLUMNS = {
    "digits": {"text": "text", "image": "image", "audio": "audio"},
    "emotion7": {"text": "utterance", "image": "face", "audio": "speech"},
}
BUDGETS = {
    "full": {"digits": ("--num_train_epochs", "10"), "emotion7": ("--num_train_epochs", "3")},
    "quick": {"digits": ("--num_train_epochs", "3", "--max_train_samples", "4000"),
              "emotion7": ("--num_train_epochs", "2", "--max_train_samples", "4000")},
}  # fmt: skip


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--data_dir", type=Path, required=True, help="folder that holds `digits` and `emotion7`")
    add("--work_dir", type=Path, required=True, help="where results are kept, and found again")
    add("--data_sets", nargs="+", choices=DATA_SETS, default=[*DATA_SETS], help="default: both")
    add("--fusions", nargs="+", choices=FUSIONS, default=[*FUSIONS], help="default: all")
    add("--balances", nargs="+", choices=BALANCES, default=[*BALANCES], help="default: all")
    add("--design", choices=("full", "one_at_a_time"), default="full", help="full: every strategy with every balance; "
        "one_at_a_time: each strategy with the first balance, and each balance with the first strategy; "
        "default: full")  # fmt: skip
    add("--specialists", action=argparse.BooleanOptionalAction, default=True,
        help="also train a model for each subset of the modalities; default: yes")  # fmt: skip
    add("--seeds", nargs="+", type=number(int, 0), default=[0, 1, 2], help="default: 0 1 2")
    add("--budget", choices=BUDGETS, default="full", help="rows and epochs of every training; default: full")
    add("--text_tower", help="emotion7: folder or Hub id of the frozen text tower; default: a tiny one that learns")
    add("--towers", type=Path, help="folder with a model or tower for each modality, `text`, `image` and `audio`, as "
        "--with_baselines of train.py leaves it: these towers are frozen, and run once for each cell; default: towers "
        "that learn")  # fmt: skip
    add("--train_flags", nargs=argparse.REMAINDER, default=[], help="all that follows goes to every training")
    add("--output_file", type=Path, help="also write the JSON object here; default: do not")
    return parser.parse_args(argv)


# == Trainings ========================================================================================================


def trainings(args: argparse.Namespace) -> list[dict]:
    """All that is to be trained, seed by seed, so that a first answer is there early."""
    found = []
    for seed, data_set in itertools.product(args.seeds, args.data_sets):
        for fusion, balance in ways(args):
            found.append({"data_set": data_set, "fusion": fusion, "balance": balance, "modalities": SUBSETS[-1]})
            found[-1]["seed"] = seed
        for subset in SUBSETS[:-1] if args.specialists else ():
            cell = {"data_set": data_set, "fusion": args.fusions[0], "balance": "none", "modalities": subset}
            found.append({**cell, "seed": seed})
    return found


def ways(args: argparse.Namespace) -> list[tuple[str, str]]:
    """The pairs of strategy and balance that are compared."""
    pairs = itertools.product(args.fusions, args.balances)
    firsts = args.fusions[0], args.balances[0]
    return [pair for pair in pairs if args.design == "full" or pair[0] == firsts[0] or pair[1] == firsts[1]]


def flags_of(training: dict, args: argparse.Namespace) -> list[str]:
    """The command line of `train.py` for one training."""
    data_set, modalities = training["data_set"], training["modalities"]
    flags = [*DATA_SETS[data_set], *BUDGETS[args.budget][data_set], "--fusion_type", training["fusion"]]
    flags += ["--balance", training["balance"], "--seed", str(training["seed"]), "--no-check_cells"]
    for modality, column in COLUMNS[data_set].items():
        flags += [f"--{modality}_column", column if modality in modalities else "none"]
        if modality in modalities and args.towers is not None:
            flags += [f"--{modality}_model_name_or_path", str(args.towers.resolve() / modality)]
            flags += [f"--{modality}_learning_rate", "0"]
        elif modality in modalities and (modality != "text" or args.text_tower is not None):
            flags += OF_A_TOWER.get(data_set, {}).get(modality, ())
    flags += ["--cache_features"] if args.towers is not None else []
    places = {"data": args.data_dir.resolve(), "text_tower": args.text_tower}
    return [flag.format(**places) for flag in flags] + args.train_flags


def name_of(training: dict) -> str:
    return "-".join([training["data_set"], training["fusion"], training["balance"], "_".join(training["modalities"]),
                     f"seed{training['seed']}"])  # fmt: skip


def train(training: dict, args: argparse.Namespace) -> dict:
    """Train, or take what was trained before; accuracies of the subsets, parameters and seconds."""
    flags, folder = flags_of(training, args), args.work_dir / name_of(training)
    kept = folder.with_suffix(".json")
    if kept.exists():
        result = json.loads(kept.read_text(encoding="utf-8"))
        if result["flags"] != flags:
            raise ValueError(f"`{kept}` is of other flags: name another --work_dir, or take that file away")
        return result
    command = [sys.executable, str(ROOT / "train.py"), *flags, "--output_dir", str(folder), "--checkpointing_steps",
               "epoch", "--resume_from_checkpoint", "auto"]  # fmt: skip
    with folder.with_suffix(".log").open("a", encoding="utf-8") as log:
        code = subprocess.run(command, cwd=ROOT, stdout=log, stderr=log).returncode
    if code != 0:
        raise RuntimeError(f"a training ended with exit code {code}: see `{folder.with_suffix('.log')}`")
    result = {**training, "flags": flags, **measured(folder)}
    with replacing(kept) as path:
        path.write_text(json.dumps(result), encoding="utf-8")
    for checkpoint in folder.with_name(f"{folder.name}-checkpoints").glob("step-*"):
        shutil.rmtree(checkpoint)  # those of all trainings would take tens of gigabytes
    return result


def measured(folder: Path) -> dict:
    """What a model folder says of itself; accuracy over all rows."""
    from safetensors import safe_open

    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    with safe_open(folder / "model.safetensors", "pt") as weights:
        counts = [weights.get_slice(name).get_shape() for name in weights.keys() if ".fusion." in name]  # noqa: SIM118
    size = sum(math.prod(shape) for shape in counts)
    accuracies = {name: values["accuracy"] for name, values in metrics["metrics"].items()}
    errors = {name: values["expected_calibration_error"] for name, values in metrics["metrics"].items()}
    return {"accuracy": accuracies, "calibration_error": errors, "fusion_parameters": size,
            "seconds": metrics["training"]["seconds"]}  # fmt: skip


# == The table ========================================================================================================


def summary(results: list[dict]) -> list[dict]:
    """For each data set, strategy and balance the mean of the seeds and half of the 95 % interval, in per cent."""
    cells: dict[tuple, list[dict]] = {}
    for result in results:
        key = (result["data_set"], result["fusion"], result["balance"], tuple(result["modalities"]))
        cells.setdefault(key, []).append(result)
    lines = []
    for (data_set, fusion, balance, modalities), runs in cells.items():
        accuracy = {name: interval([run["accuracy"][name] for run in runs]) for name in runs[0]["accuracy"]}
        seconds = sum(run["seconds"] for run in runs) / len(runs)
        lines.append(
            {"data_set": data_set, "fusion": fusion, "balance": balance, "modalities": "+".join(modalities),
             "num_seeds": len(runs), "accuracy": accuracy, "fusion_parameters": runs[0]["fusion_parameters"],
             "seconds": round(seconds, 1)}
        )  # fmt: skip
    return lines


def interval(values: list[float]) -> list[float | None]:
    """[Mean, half of the 95 % interval by Student's t, None for a single value], in per cent."""
    import numpy as np
    from scipy import stats

    mean = 100 * float(np.mean(values))
    if len(values) < 2:
        return [round(mean, 2), None]
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return [round(mean, 2), round(100 * float(half), 2)]


def as_markdown(lines: list[dict]) -> str:
    """The table, a data set after the other, specialists last."""
    names = ["+".join(subset) for subset in SUBSETS]
    text = ""
    for data_set in dict.fromkeys(line["data_set"] for line in lines):
        text += f"\n{data_set}\n\n| fusion | balance | {' | '.join(names)} | parameters | minutes |\n"
        text += "| --- " * (len(names) + 4) + "|\n"
        for line in lines:
            if line["data_set"] == data_set:
                cells = [shown(line["accuracy"].get(name)) for name in names]
                is_special = line["modalities"] != names[-1]
                title = f"only {line['modalities']}" if is_special else line["fusion"]
                text += f"| {title} | {line['balance']} | {' | '.join(cells)} | {line['fusion_parameters']:,} | "
                text += f"{line['seconds'] / 60:.1f} |\n"
    return text


def shown(value: list | None) -> str:
    if value is None:
        return "–"
    mean, half = value
    return f"{mean:.1f}" if half is None else f"{mean:.1f} ± {half:.1f}"


def run(args: argparse.Namespace) -> dict:
    """Train what is not trained yet; the story in run order."""
    from tqdm.auto import tqdm

    args.work_dir.mkdir(parents=True, exist_ok=True)
    results = []
    for training in tqdm(trainings(args), desc="trainings", unit="training"):
        results.append(train(training, args))
        with replacing(args.work_dir / "table.md") as path:
            path.write_text(as_markdown(summary(results)), encoding="utf-8")
    lines = summary(results)
    print(as_markdown(lines))
    report = {"benchmark": "fusion", "budget": args.budget, "seeds": args.seeds, "results": lines}
    print_report(report, args)
    return report


def main(argv: list[str] | None = None) -> int:
    return exit_code(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
