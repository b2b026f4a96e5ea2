"""Specialists beside a fused model (`--with_baselines`): the same training for subsets of its modalities alone.

What is unusual: a specialist is what `train.py` makes of the same command with the columns of its modalities, in a
process of its own, so that it is exactly what a user would get and its memory is free afterwards. It learns from the
rows that have something of its modalities. Those that are trained stay in OUTPUT_DIR-baselines, and are found there by
whoever repeats the command; a run is known by its name in the checkpoints, so those of an earlier one are not taken.
"""

import contextlib
import io
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from cli.children import end, last_words, start_training
from cli.files import replacing, write_json
from cli.loading import quiet_warnings
from training.arguments import BASELINES, beside, is_finished
from training.checkpoints import CheckpointFolder
from training.flags import STRENGTHS
from training.interruption import Signals, Stopped
from training.optimization import tower_learning_rate
from training.rows import TableRows, open_rows
from training.setup import say

SECONDS_BETWEEN_LOOKS = 0.25
# What is not for a specialist: its place is another, and it is a figure in a comparison, not a model to be shown.
NOT_PASSED_ON = {
    "with_baselines", "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "checkpointing_steps",
    "on_bad_cell", "push_to_hub", "hub_model_id", "hub_private_repo", "hub_token", "with_tracking", "report_to",
    "lora", "augment",
}  # fmt: skip
LORA = {"lora_rank", "lora_alpha", "lora_dropout", "lora_target_modules"}
CACHE = {"cache_features", "cache_dir", "cache_dtype"}
TEACHER = {"teacher", "teacher_revision", "distillation_weight", "distillation_temperature", "feature_weight"}
# What a launcher tells its processes: a specialist is none of them.
OF_A_LAUNCHER = {
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK",
    "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT",
}  # fmt: skip


def refuse_processes(args, accelerator) -> None:
    """Say at once that several processes cannot train specialists.

    Raises:
        ValueError: There are several.
    """
    if args.with_baselines is not None and accelerator.num_processes > 1:
        raise ValueError(
            f"--with_baselines trains one specialist after the other, each in one process, and this run has "
            f"{accelerator.num_processes}: leave it out, and train them by the same launcher with --text_column none "
            "and its like, or start train.py without one"
        )


def compare_with_specialists(args, accelerator, run_id: str, words: Sequence[str]) -> bool:
    """Train the specialists that are not trained yet, and write into `metrics.json` how the model stands beside them.

    Args:
        args: The flags of `train.py`, whose model is in its folder.
        accelerator: Of the run; it is done with its model.
        run_id: The name of the run in its checkpoints.
        words: What was typed for `train.py`.

    Returns:
        Whether `metrics.json` is another one now.

    Raises:
        Stopped: A signal came; those that are trained, and a checkpoint of the last one, are kept.
        ValueError: One cannot be trained; the message says why, and where all it said is.
    """
    from metrics.comparison import comparison_warnings, format_comparison

    metrics_file = args.output_dir / "metrics.json"
    metrics = json.loads(metrics_file.read_text(encoding="utf-8"))
    *rows, labels = opened_rows(args)
    subsets = wanted_subsets(args, *rows)
    if not subsets:
        say(accelerator, "--with_baselines: the rows have one modality, so there is nothing to compare the model with")
        return False
    if subsets.keys() <= metrics.get("baselines", {}).keys():
        say(accelerator, f"the comparison with its specialists is in `{metrics_file}`")
        return False
    accelerator.free_memory()
    folder = claimed(beside(args.output_dir, "baselines"), run_id)
    with Signals(finish_step=True) as signals:
        for number, (name, subset) in enumerate(subsets.items(), start=1):
            say(accelerator, f"specialist {number} of {len(subsets)}, `{name}`: see `{folder / name}.txt`")
            train_specialist(command_of(args, words, subset, folder / name), folder / name, signals)
    metrics["baselines"] = measured(args, accelerator, folder, subsets, rows[1], labels)
    with replacing(metrics_file) as path:
        write_json(path, metrics)
    say(accelerator, format_comparison(metrics["baselines"]))
    for sentence in comparison_warnings(metrics["baselines"]):
        say(accelerator, f"warning: {sentence}")
    for sentence in remedies(args, metrics["baselines"], folder):
        say(accelerator, sentence)
    return True


def remedies(args, baselines: dict[str, dict], folder: Path) -> list[str]:
    """What to do where specialists of one modality are better: fuse their towers, as these have learnt more alone.

    Args:
        args: The flags of the fused model; a tower that it froze is the specialist's own already.
        baselines: Name -> what `measured` gives.
        folder: Of the specialists.
    """
    rates, _ = _learning_rates(args, tuple(name for name in baselines if "+" not in name))
    better = [name for name, rate in rates.items() if rate and (baselines[name]["interval"] or [0, 0])[1] < 0]
    if not better:
        return []
    flags = " ".join(f"--{name}_model_name_or_path {folder / name} --{name}_learning_rate 0" for name in better)
    return [f"What they have learnt can be fused: train another model with {flags}, and --cache_features to be quick."]


def opened_rows(args) -> tuple:
    """Rows to train on, rows held out, and what their labels mean, as the fused model had them."""
    from training.continuing import load_config

    modalities = load_config(str(args.output_dir)).modalities
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # that was said before
        return open_rows(args, reads=lambda modality: modality in modalities)


def wanted_subsets(args, train_rows, validation_rows) -> dict[str, tuple[str, ...]]:
    """Name -> modalities, single ones first; of all that were trained on the specialist is the model itself."""
    from metrics.subsets import modality_subsets, subset_name

    subsets = modality_subsets(validation_rows.modalities)
    subsets = [subset for subset in subsets if subset != tuple(train_rows.modalities)]
    return {subset_name(s): s for s in subsets if args.with_baselines == "subsets" or len(s) == 1}


def claimed(folder: Path, run_id: str) -> Path:
    """The folder of the specialists of a run; those of an earlier run are removed from it."""
    file = folder / BASELINES
    is_ours = file.is_file() and json.loads(file.read_text(encoding="utf-8")).get("run_id") == run_id
    if not is_ours:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with replacing(file) as path:
            write_json(path, {"run_id": run_id})
    return folder


# == One training =====================================================================================================


def command_of(args, words: Sequence[str], subset: tuple[str, ...], output_dir: Path) -> list[str]:
    """What `train.py` is started with for a specialist.

    Args:
        args: The flags of the fused model.
        words: As they were typed, of which those stay that mean something for the subset.
        subset: The specialist's modalities.
        output_dir: Where it goes.
    """
    dropped = not_for(args, subset)
    kept = [word for name, group in typed_flags(words) if name not in dropped for word in group]
    for modality in ("text", "image", "audio"):
        kept += [] if modality in subset else [f"--{modality}_column", "none"]
    for name in ("lora", "augment"):
        chosen = [modality for modality in getattr(args, name) or () if modality in subset]
        kept += [f"--{name}", ",".join(chosen)] if chosen else []
    # Where the fused model refuses bad cells there are none: left out are rows without a modality of the subset.
    kept += ["--on_bad_cell", "drop" if args.on_bad_cell == "error" else args.on_bad_cell]
    kept += ["--checkpointing_steps", str(args.checkpointing_steps), "--resume_from_checkpoint", "auto"]
    return [*kept, "--output_dir", str(output_dir)]


def typed_flags(words: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """(Name of the flag, its words), in the order in which they were typed."""
    group: list[str] = []
    for word in [*words, "--"]:
        if word.startswith("--") and group:
            yield group[0].partition("=")[0].removeprefix("--").removeprefix("no-"), group
            group = []
        group.append(word)


def not_for(args, subset: tuple[str, ...]) -> set[str]:
    """Names of the flags that a specialist of this subset does not take: `train.py` would refuse them."""
    names = set(NOT_PASSED_ON)
    for modality in {"text", "image", "audio"} - {*subset}:
        names |= {f"{modality}_column", f"{modality}_model_name_or_path", f"{modality}_learning_rate"}
        names |= {flag for flag, (of, _) in STRENGTHS.items() if of == modality}
    if not {*(args.lora or ())} & {*subset}:
        names |= LORA
    rates, pretrained = _learning_rates(args, subset)
    if 0 not in rates.values():
        names |= CACHE
    if not any(rates[modality] for modality in pretrained):
        names |= {"layer_decay"}
    if "text" not in subset:  # pictures are of one size, and to some towers so are sounds
        names |= {"fgm_epsilon", "group_by_length"}
    if args.teacher is not None and not _teaches(args, subset):
        names |= TEACHER
    return names


def _learning_rates(args, subset: tuple[str, ...]) -> tuple[dict[str, float], list[str]]:
    """(The rate of each tower of the subset, 0 where it is frozen; which of them are pretrained)."""
    is_whole = args.preset == "base" or args.model_name_or_path is not None
    pretrained = [m for m in subset if is_whole or getattr(args, f"{m}_model_name_or_path") is not None]
    towers = SimpleNamespace(pretrained=pretrained)
    return {modality: tower_learning_rate(args, modality, towers) for modality in subset}, pretrained


def _teaches(args, subset: tuple[str, ...]) -> bool:
    from training.continuing import load_config

    return bool({*load_config(args.teacher, args.teacher_revision, "--teacher").modalities} & {*subset})


def train_specialist(command: Sequence[str], output_dir: Path, signals: Signals) -> None:
    """Train a specialist, or what is left of it.

    Args:
        command: What `train.py` is started with.
        output_dir: Where its model goes; what it says goes to a file beside.
        signals: Those that came to this process, and end the other one, too.

    Raises:
        Stopped: One came.
        ValueError: The training failed.
    """
    output = output_dir.with_name(f"{output_dir.name}.txt")
    if not is_finished(output_dir):
        process = start_training(command, output, environment=environment())
        try:
            while process.poll() is None and not signals.received:
                time.sleep(SECONDS_BETWEEN_LOOKS)
        finally:
            end(process)
        if signals.received:
            raise Stopped(signals.received, ": the same command with --resume_from_checkpoint auto goes on")
        if process.returncode != 0:
            raise ValueError(
                f"--with_baselines: the specialist for `{output_dir.name}` was not trained: "
                f"{last_words(output, process.returncode)}. All that it said is in `{output}`; the fused model is "
                "complete, and the same command with --resume_from_checkpoint auto tries again"
            )
    for folder in CheckpointFolder(beside(output_dir, "checkpoints")).folders():
        shutil.rmtree(folder)


def environment() -> dict[str, str]:
    """The variables of this process without those of a launcher."""
    is_foreign = {name for name in os.environ if name in OF_A_LAUNCHER or name.startswith("TORCHELASTIC_")}
    return {name: value for name, value in os.environ.items() if name not in is_foreign}


# == The comparison ===================================================================================================


def measured(
    args, accelerator, folder: Path, subsets: dict[str, tuple[str, ...]], rows: TableRows, labels
) -> dict[str, dict]:
    """Ask the fused model and each specialist about the same rows.

    Args:
        args: The flags of the fused model.
        accelerator: Where they run.
        folder: Of the specialists.
        subsets: Name -> modalities.
        rows: That were held out.
        labels: What their labels mean.

    Returns:
        Name -> what `metrics.comparison.compare` gives, and `seconds` and `parameters` of the specialist.
    """
    from metrics.comparison import compare
    from metrics.subsets import predict_subsets, problem_type, rows_of, subset_name

    model, processor = loaded(args.output_dir, accelerator.device)
    problem, all_modalities = problem_type(model.config), tuple(model.config.modalities)
    everything = subset_name(all_modalities)
    if args.check_cells and args.on_bad_cell != "error":
        rows.check(args, processor, progress=False)  # leaves out or empties what it did before
    loader = rows.loader(args, accelerator, processor, labels)
    told = predict_subsets(model, loader, subsets=[*subsets.values(), all_modalities])
    results = {}
    for name, subset in subsets.items():
        model, processor = loaded(folder / name, accelerator.device)
        own = rows.table.keep_modalities(subset)
        chosen = np.flatnonzero(own.presence.any(axis=1))
        loader = TableRows(own.select(chosen)).loader(args, accelerator, processor, labels)
        said = predict_subsets(model, loader, subsets=[subset])
        history = json.loads((folder / name / "metrics.json").read_text(encoding="utf-8"))["training"]
        results[name] = {
            **compare(problem, name, said, rows_of(told, chosen), everything),
            "seconds": history["seconds"],
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
        }
    return results


def loaded(folder: Path, device):
    """(Model of a folder, what prepares its inputs)."""
    from training.continuing import load_config, load_processor, load_weights

    name = str(folder)
    with quiet_warnings():
        model = load_weights(name, None, load_config(name), "the model")
        return model.to(device), load_processor(name, flag="the model")
