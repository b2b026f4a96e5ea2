"""What was typed for `train.py`: parsed, and refused where it does not fit together; its flags are in `flags`."""

import argparse
import json
import os
import shlex
import sys
from pathlib import Path

from training.flags import STRENGTHS, add_flags

BASELINES = "baselines.json"  # in the folder of a model's specialists: of which run they are
FINISHED = "finished.json"  # among the checkpoints of a run that has come to its end; see `is_finished`


def parse_args(argv: list[str] | None, description: str, epilog: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # a slip such as --learning_rat is no flag
    )
    add_flags(parser)
    args = parser.parse_args(argv)
    args.command = typed_command(sys.argv[1:] if argv is None else argv)
    _check_rows(parser, args)
    _check_output_dir(parser, args)
    if not args.push_to_hub and (args.hub_model_id or args.hub_token or args.hub_private_repo is not None):
        parser.error("--hub_model_id, --hub_private_repo and --hub_token belong to --push_to_hub: add it")
    if args.report_to is not None and not args.with_tracking:
        parser.error("--report_to belongs to --with_tracking: add it")
    _check_tasks(parser, args)
    several = (None, "multi_label_classification")
    if args.label_delimiter is not None and args.problem_type not in several and not has_tasks(args):
        parser.error(f"--label_delimiter makes the labels multi-label, but --problem_type is {args.problem_type}")
    if args.modality_dropout_ramp and not args.modality_dropout:
        parser.error("--modality_dropout_ramp rises to --modality_dropout, which is 0: leave one of them out")
    _check_labels(parser, args)
    _check_start(parser, args)
    _check_cache(parser, args)
    _check_compiling(parser, args)
    _check_teacher(parser, args)
    _check_augmentation(parser, args)
    _check_lora(parser, args)
    _check_baselines(parser, args)
    if args.fusion_hidden_size is not None and args.fusion_hidden_size % 4:
        parser.error(
            f"--fusion_hidden_size is {args.fusion_hidden_size}: the fusion has 4 heads, give a multiple of 4"
        )
    return args


def has_tasks(args: argparse.Namespace) -> bool:
    """Whether several label columns are learnt at once."""
    return isinstance(args.label_column, list)


def _check_tasks(parser: argparse.ArgumentParser, args: argparse.Namespace):
    """Refuse what does not fit the number of label columns, or is said of one task and would not know of which."""
    columns = args.label_column if has_tasks(args) else [args.label_column]
    problems, weights = args.problem_type, args.task_weights
    if isinstance(problems, list) and len(problems) != len(columns):
        parser.error(f"--problem_type names {len(problems)} for {len(columns)} --label_column: one for all, or each")
    if weights is not None and (len(weights) != len(columns) or len(columns) == 1 or 0 in weights):
        parser.error(
            f"--task_weights {' '.join(f'{weight:g}' for weight in weights)}: give each of several --label_column a "
            f"number above 0 (here are {len(columns)})"
        )
    if not has_tasks(args):
        return
    if len({*columns}) < len(columns) or "none" in columns:
        parser.error(f"--label_column {' '.join(columns)}: name each column once (`none` is no label)")
    if args.label_names is not None:
        parser.error("--label_names is for one --label_column, not for several at once: leave one of the two out")
    if args.label_delimiter is not None and "multi_label_classification" not in (problems or ()):
        parser.error("--label_delimiter: of several --label_column, say with --problem_type which are multi-label")
    of_one = {
        "--streaming": args.streaming, "--teacher": args.teacher, "--class_weights": args.class_weights,
        "--ordinal": args.ordinal, "--contrastive_by_class": args.contrastive_by_class,
        "--balance ogm_ge": args.balance == "ogm_ge", "--with_baselines": args.with_baselines,
    }  # fmt: skip
    if given := [flag for flag, value in of_one.items() if value]:
        parser.error(f"{given[0]} is for one --label_column, not for several at once: leave one of the two out")


def _check_labels(parser: argparse.ArgumentParser, args: argparse.Namespace):
    """Give the weights of labels one form, and refuse what goes with other labels only."""
    if args.label_order is not None and not args.ordinal:
        parser.error("--label_order belongs to --ordinal: add it, or leave --label_order out")
    if args.ordinal and args.problem_type not in (None, "single_label_classification"):
        parser.error(f"--ordinal is for one of several classes, but --problem_type is {args.problem_type}")
    if args.class_weights is None:
        return
    if args.problem_type == "regression":
        parser.error("--class_weights is for classes, but --problem_type is regression: leave one of them out")
    if args.class_weights == ["balanced"]:
        args.class_weights = "balanced"
        if args.streaming:
            parser.error(
                "--class_weights balanced counts the labels of all rows, and --streaming sees them as they come: give "
                "the weights by name, or leave one of them out"
            )
        return
    names = [weight[0] for weight in args.class_weights if weight != "balanced"]
    if len(names) < len(args.class_weights) or len(set(names)) < len(names):
        parser.error("--class_weights: give `balanced` alone, or a weight for each label that is named once")
    args.class_weights = dict(args.class_weights)


def _check_start(parser: argparse.ArgumentParser, args: argparse.Namespace):
    """A given model has towers and a fusion: what would choose others is refused, for it would change nothing."""
    if args.model_name_or_path is None:
        if args.model_revision is not None:
            parser.error("--model_revision belongs to --model_name_or_path")
        return
    towers = (f"{kind}_model_name_or_path" for kind in ("text", "image", "audio"))
    choosing = ["fusion_type", "fusion_hidden_size", *towers]
    if given := [f"--{name}" for name in choosing if getattr(args, name) is not None]:
        parser.error(f"--model_name_or_path brings towers and fusion: leave {', '.join(given)} out")


def _check_lora(parser: argparse.ArgumentParser, args: argparse.Namespace):
    """Fill in what belongs to `--lora`, and refuse what goes with it only, or not at all."""
    names = ("lora_rank", "lora_alpha", "lora_dropout", "lora_target_modules")
    if not args.lora:
        if given := [name for name in names if getattr(args, name) is not None]:
            parser.error(f"--{given[0]} belongs to --lora: name the towers, as in --lora text, or leave it out")
        return
    for modality in args.lora:
        if getattr(args, f"{modality}_learning_rate") == 0:
            parser.error(
                f"--lora {modality} trains in the {modality} tower, and --{modality}_learning_rate 0 freezes it: "
                "leave one of them out"
            )
    args.lora_rank = 8 if args.lora_rank is None else args.lora_rank
    args.lora_alpha = 2.0 * args.lora_rank if args.lora_alpha is None else args.lora_alpha
    args.lora_dropout = 0.05 if args.lora_dropout is None else args.lora_dropout
    _check_beside(parser, args, "--lora", beside(args.output_dir, "adapter"), "adapter_config.json")
    if args.model_name_or_path is None:
        _check_beside(parser, args, "--lora", beside(args.output_dir, "base"), "config.json")


def _check_baselines(parser: argparse.ArgumentParser, args: argparse.Namespace):
    """Keep checkpoints, so that the command goes on where it was cut off, be it in the middle of the specialists."""
    if args.with_baselines is None:
        return
    args.checkpointing_steps = args.checkpointing_steps or "epoch"
    _check_beside(parser, args, "--with_baselines", beside(args.output_dir, "baselines"), BASELINES)


def _check_beside(parser: argparse.ArgumentParser, args: argparse.Namespace, flag: str, folder: Path, file: str):
    """A folder beside the model folder is replaced only when asked for, and only when it is what it is called."""
    if folder.exists() and not (folder / file).is_file():
        parser.error(f"`{folder}`, which {flag} would replace, has no `{file}`: move it, or name another --output_dir")
    if folder.exists() and not args.overwrite_output_dir and args.resume_from_checkpoint is None:
        parser.error(
            f"`{folder}` is there from an earlier run: name another --output_dir, or add --overwrite_output_dir to "
            "replace it"
        )


def _check_teacher(parser: argparse.ArgumentParser, args: argparse.Namespace):
    """What says how a teacher is learnt from needs one."""
    of_teacher = ("teacher_revision", "distillation_weight", "distillation_temperature", "feature_weight")
    if args.teacher is None:
        if given := [name for name in of_teacher if getattr(args, name) != parser.get_default(name)]:
            parser.error(f"--{given[0]} belongs to --teacher: name the model that is learnt from, or leave it out")
        return
    if args.distillation_weight > 1:
        parser.error(f"--distillation_weight {args.distillation_weight}: it is a part of the loss, give 0 to 1")
    if not args.distillation_weight and not args.feature_weight:
        parser.error("--teacher: --distillation_weight and --feature_weight are 0, so that nothing would be learnt")


def _check_augmentation(parser: argparse.ArgumentParser, args: argparse.Namespace):
    """Fill in how far `--augment` goes, and refuse what goes with a modality that it does not name."""
    for name, (modality, value) in STRENGTHS.items():
        if modality in args.augment:
            setattr(args, name, value if getattr(args, name) is None else getattr(args, name))
        elif getattr(args, name) is not None:
            parser.error(f"--{name} belongs to --augment {modality}: add it, or leave --{name} out")


def _check_cache(parser: argparse.ArgumentParser, args: argparse.Namespace):
    """Fill in what belongs to `--cache_features`, and refuse what goes with it only, or not at all."""
    if not args.cache_features:
        if given := [name for name in ("cache_dir", "cache_dtype") if getattr(args, name) is not None]:
            parser.error(f"--{given[0]} belongs to --cache_features: add it, or leave --{given[0]} out")
        return
    args.cache_dtype = args.cache_dtype or "float32"
    rates = [args.learning_rate, *(getattr(args, f"{kind}_learning_rate") for kind in ("text", "image", "audio"))]
    if 0 not in rates:
        parser.error(
            "--cache_features keeps what frozen towers say, and none is frozen: freeze towers with "
            "--text_learning_rate 0, --image_learning_rate 0 or --audio_learning_rate 0, or leave it out"
        )
    if args.streaming:
        parser.error(
            "--cache_features encodes all cells before the training, and --streaming sees them as they come: leave "
            "one of them out"
        )
    if args.teacher is not None:
        parser.error(
            "--teacher reads every cell by its own towers, and --cache_features leaves the cells unopened: leave one "
            "of them out"
        )


def _check_compiling(parser: argparse.ArgumentParser, args: argparse.Namespace):
    """Refuse what goes with another flag only."""
    names = ("torch_compile_backend", "torch_compile_mode")
    if not args.torch_compile and (given := [name for name in names if getattr(args, name) is not None]):
        parser.error(f"--{given[0]} belongs to --torch_compile: add it, or leave the flag out")
    if args.torch_compile_mode is not None and args.torch_compile_backend not in (None, "inductor"):
        parser.error(
            f"--torch_compile_mode is for the backend inductor, not for {args.torch_compile_backend}: leave one of "
            "them out"
        )
    if args.auto_find_batch_size and args.streaming:
        parser.error(
            "--auto_find_batch_size tries the longest rows first, and --streaming sees them as they come: leave one "
            "of them out"
        )


def _check_rows(parser: argparse.ArgumentParser, args: argparse.Namespace):
    """There is one place to learn from, and what is asked of it applies to it."""
    if (args.train_file is None) == (args.dataset_name is None):
        parser.error(
            "give the rows to train on either with --train_file (a table here) or with --dataset_name (a data set on "
            f"the Hub), not {'both' if args.train_file else 'neither'}"
        )
    of_the_hub = ("dataset_split", "dataset_validation_split", "dataset_revision", "streaming")
    if args.dataset_name is None and (given := [name for name in of_the_hub if getattr(args, name)]):
        parser.error(f"--{given[0]} belongs to --dataset_name: give the data set by that flag, or leave it out")
    if args.streaming and args.group_by_length:
        parser.error(
            "--group_by_length needs to know how long all rows are, and --streaming sees them as they come: leave one "
            "of them out"
        )
    if args.prefetch_factor is not None and not args.num_workers:
        parser.error("--prefetch_factor belongs to --num_workers: say how many processes shall open cells")
    if args.validation_file is not None and args.dataset_validation_split is not None:
        parser.error("--validation_file and --dataset_validation_split exclude each other: validate on one of them")


def beside(output_dir: Path, what: str) -> Path:
    """The folder beside the model folder that holds what a run leaves there: its checkpoints, its tracking."""
    folder = output_dir.resolve()  # as the model is: where a link points to
    return folder.with_name(f"{folder.name}-{what}")


def is_finished(output_dir: Path) -> bool:
    """Whether the run whose checkpoints are beside it has put its model there.

    Shortly before that, it writes down which folder it replaces, if any; so no moment is left at which a killed run
    would take its model for that of another.
    """
    try:
        replaced = json.loads((beside(output_dir, "checkpoints") / FINISHED).read_text(encoding="utf-8"))["replaces"]
        return output_dir.stat().st_ino != replaced
    except (OSError, ValueError, TypeError, KeyError):
        return False


def typed_command(argv: list[str]) -> str:
    """The command as it was typed, fit for publication: without the token, and of absolute paths the last name."""
    words, hidden = [], False
    for word in argv:
        flag, equals, value = word.partition("=")
        is_token = flag == "--hub_token"
        if not hidden and not is_token:
            words.append(f"{flag}={public(value)}" if equals and flag.startswith("--") else public(word))
        hidden = is_token and not equals
    return shlex.join(["python", "train.py", *words])


def public(value):
    """Of an absolute path the last name; everything else as it is."""
    is_path = isinstance(value, Path) or (isinstance(value, str) and Path(value).is_absolute())
    return Path(value).name if is_path else value


def _check_output_dir(parser: argparse.ArgumentParser, args: argparse.Namespace):
    """A folder with something in it is replaced only when asked for, and only when it is a model."""
    folder = args.output_dir
    _check_writable(parser, folder)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not _is_our_model(folder):
        parser.error(
            f"--output_dir {folder} holds something that is no model of train.py: name a new folder or an empty one"
        )
    if args.resume_from_checkpoint is not None and is_finished(folder):
        return  # is answered, not refused
    if not args.overwrite_output_dir:
        parser.error(
            f"--output_dir {folder} already holds a model: name another folder, or add --overwrite_output_dir to "
            "replace it once the new model is complete"
        )


def refuse_idle_towers(args: argparse.Namespace, table_name: str, modalities: tuple[str, ...]):
    """Refuse a tower that is asked for by name and has no column: it would be left out without a word."""
    for kind in ("text", "image", "audio"):
        if kind not in modalities and getattr(args, f"{kind}_model_name_or_path") not in (None, "none"):
            raise ValueError(
                f"--{kind}_model_name_or_path is given, but `{table_name}` has no column for {kind}: name it with "
                f"--{kind}_column, or leave the tower out"
            )


def _check_writable(parser: argparse.ArgumentParser, folder: Path):
    """Say now what would otherwise be found out when the training is over and its model is to be saved."""
    if os.path.ismount(folder):
        parser.error(f"--output_dir {folder} is a mount point, which nothing can replace: name a folder in it")
    parent = next(path for path in folder.resolve().parents if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        parser.error(f"--output_dir {folder} cannot be made: `{parent}` is no folder that can be written to")


def _is_our_model(folder: Path) -> bool:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") == "mmfusion"
