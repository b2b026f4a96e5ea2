"""What was typed for `train.py`: parsed, and refused where it does not fit together; its flags are in `flags`."""

import argparse
import json
import os
import shlex
import sys
from pathlib import Path

from training.flags import add_flags

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
    if args.label_delimiter is not None and args.problem_type not in (None, "multi_label_classification"):
        parser.error(f"--label_delimiter makes the labels multi-label, but --problem_type is {args.problem_type}")
    _check_start(parser, args)
    if args.fusion_hidden_size is not None and args.fusion_hidden_size % 4:
        parser.error(
            f"--fusion_hidden_size is {args.fusion_hidden_size}: the fusion has 4 heads, give a multiple of 4"
        )
    return args


def _check_start(parser: argparse.ArgumentParser, args: argparse.Namespace):
    """A given model has towers and a fusion: what would choose others is refused, for it would change nothing."""
    if args.model_name_or_path is None:
        if args.model_revision is not None:
            parser.error("--model_revision belongs to --model_name_or_path")
        return
    choosing = ["fusion_hidden_size", *(f"{kind}_model_name_or_path" for kind in ("text", "image", "audio"))]
    if given := [f"--{name}" for name in choosing if getattr(args, name) is not None]:
        parser.error(f"--model_name_or_path brings towers and fusion: leave {', '.join(given)} out")


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
