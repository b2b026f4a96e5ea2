"""The flags of `train.py`, named as in the examples of `transformers` where there is one."""

import argparse
import json
import os
import shlex
import sys
from pathlib import Path

from cli.arguments import add_column_arguments, add_label_arguments, number

FINISHED = "finished.json"  # among the checkpoints of a run that has come to its end; see `is_finished`
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")


def parse_args(argv: list[str] | None, description: str, epilog: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # a slip such as --learning_rat is no flag
    )
    _add_data(parser.add_argument_group("data"))
    _add_model(parser.add_argument_group("model"))
    _add_training(parser.add_argument_group("training"))
    _add_output(parser.add_argument_group("output"))
    _add_interruption(parser.add_argument_group("interruption and faults"))
    _add_records(parser.add_argument_group("records"))
    _add_hub(parser.add_argument_group("the Hub"))
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


def _add_data(group):
    add = group.add_argument
    add(
        "--train_file",
        help="table: .csv, .tsv, .jsonl, .parquet (or a glob of them), a folder with metadata, a Hub data set",
    )
    add("--dataset_name", help="instead of --train_file: a data set on the Hub (`owner/name`), never a local folder; "
        "default: none")  # fmt: skip
    add("--dataset_split", help="split of --dataset_name to train on; default: the only one, or `train`")
    add("--dataset_validation_split", help="split of --dataset_name to validate on; default: `validation`, `valid`, "
        "`val` or `dev` where it has one")  # fmt: skip
    add("--dataset_revision", help="commit, tag or branch of --dataset_name; default: the newest commit")
    add("--streaming", action=argparse.BooleanOptionalAction, default=False,
        help="train on --dataset_name as it comes over the network, without downloading it; default: no")  # fmt: skip
    add("--shuffle_buffer_size", type=number(int, 1), default=1000,
        help="--streaming: rows in memory, from which the next one is drawn; default: 1000")  # fmt: skip
    add("--validation_file", help="the same for validation; default: a stratified part of --train_file is set aside")
    add(
        "--validation_fraction",
        type=number(float, 0.001, 1.0),
        default=0.1,
        help="part of the rows that is set aside when there is no --validation_file; default: 0.1",
    )
    add_column_arguments(group)
    add_label_arguments(group)
    add("--problem_type", choices=PROBLEM_TYPES, help="default: guessed from the labels, and printed")
    add(
        "--check_cells",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="open every cell once before training; default: yes",
    )
    add("--max_train_samples", type=number(int, 1), help="use only this many training rows; default: all")
    add("--max_eval_samples", type=number(int, 1), help="use only this many validation rows; default: all")
    add("--cache_gib", type=number(float, 0), default=1.0,
        help="GiB of memory for opened pictures and sounds, in each worker; default: 1, 0 turns it off")  # fmt: skip


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


def _add_model(group):
    add = group.add_argument
    add("--model_name_or_path", help="go on from this MMFusion model (folder or Hub id), with its towers, its fusion "
        "and, for the same labels, its head; default: a new model")  # fmt: skip
    add("--model_revision", help="commit, tag or branch of --model_name_or_path; default: the newest")
    add(
        "--preset",
        choices=("tiny", "base"),
        default="tiny",
        help="towers: tiny (small, from scratch; the default) or base (BERT, ViT and Wav2Vec2 base, pretrained)",
    )
    for kind in ("text", "image", "audio"):
        add(
            f"--{kind}_model_name_or_path",
            help=f"pretrained {kind} tower: Hub id or folder, or `none` for a model without; default: the preset's",
        )
    add("--fusion_hidden_size", type=number(int, 8), help="width of the fusion; default: 128 for tiny, 512 for base")
    add("--num_fusion_layers", type=number(int, 1), default=2, help="fusion blocks; default: 2")
    add("--num_fusion_queries", type=number(int, 1), default=8, help="learned queries of the fusion; default: 8")
    add("--hidden_dropout_prob", type=number(float, 0, 1), default=0.1, help="dropout of the fusion; default: 0.1")
    add(
        "--modality_dropout",
        type=number(float, 0, 1),
        default=0.5,
        help="probability that a modality is left out when a row is fused again; default: 0.5, 0 turns it off",
    )
    add(
        "--vocab_size",
        type=number(int, 100),
        default=2000,
        help="tiny text tower: entries of the vocabulary that is learnt from the training text; default: 2000",
    )
    add("--image_size", type=number(int, 16), default=64, help="tiny image tower: pixels a side; default: 64")
    add("--sampling_rate", type=number(int, 4000), default=16_000, help="tiny audio tower: in Hz; default: 16000")
    add("--mask_time_prob", type=number(float, 0, 1), default=0.05,
        help="tiny audio tower: share of frames that SpecAugment masks; default: 0.05, 0 turns it off")  # fmt: skip
    add("--mask_feature_prob", type=number(float, 0, 1), default=0.0,
        help="tiny audio tower: share of channels that SpecAugment masks; default: 0, off")  # fmt: skip
    add("--max_text_length", type=number(int, 4), default=128, help="tokens kept of a text; default: 128")
    add("--max_audio_seconds", type=number(float, 0.1), default=10.0, help="seconds kept of a sound; default: 10")


def _add_training(group):
    add = group.add_argument
    add(
        "--learning_rate",
        type=number(float, 0),
        default=1e-3,
        help="peak for the fusion, the head and towers from scratch; default: 0.001",
    )
    for kind in ("text", "image", "audio"):
        add(
            f"--{kind}_learning_rate",
            type=number(float, 0),
            help="for this tower, 0 freezes it; default: --learning_rate from scratch, 5e-5 pretrained",
        )
    add("--weight_decay", type=number(float, 0), default=0.01, help="not on norms and biases; default: 0.01")
    add("--num_train_epochs", type=number(int, 1), default=10, help="passes over the training rows; default: 10")
    add("--max_train_steps", type=number(int, 1), help="stop after this many optimiser steps; default: no limit")
    add("--per_device_train_batch_size", type=number(int, 1), default=32, help="rows a batch a device; default: 32")
    add("--per_device_eval_batch_size", type=number(int, 1), default=64, help="rows a batch a device; default: 64")
    add("--gradient_accumulation_steps", type=number(int, 1), default=1, help="batches a step; default: 1")
    add(
        "--lr_scheduler_type",
        default="cosine",
        choices=("cosine", "linear", "constant_with_warmup"),
        help="after the warm-up; default: cosine",
    )
    add("--warmup_ratio", type=number(float, 0, 1), default=0.06, help="part of the steps to warm up; default: 0.06")
    add("--max_grad_norm", type=number(float, 0), default=1.0, help="gradient clipping; default: 1, 0 turns it off")
    add("--mixed_precision", choices=("no", "bf16"), default="no", help="autocast; default: no (float32)")
    add(
        "--activation_checkpointing",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="compute activations again in the backward pass to save memory; default: no",
    )
    add(
        "--early_stopping_patience",
        type=number(int, 1),
        help="stop after this many epochs without a better validation score; default: never",
    )
    add("--seed", type=number(int, 0), default=0, help="of split, weights, order and dropout; default: 0")


def _add_output(group):
    add = group.add_argument
    add("--output_dir", type=Path, required=True, help="the model folder; it appears when it is complete")
    add(
        "--overwrite_output_dir",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="replace the model that --output_dir holds, once the new one is complete; default: no",
    )


def _add_interruption(group):
    add = group.add_argument
    add("--checkpointing_steps", type=_steps_or_epoch, metavar="N|epoch", help="save a checkpoint every so many "
        "optimiser steps or after every epoch, in OUTPUT_DIR-checkpoints, and on SIGTERM and Ctrl-C, which then end "
        "the run after its step with exit code 143 or 130; default: off")  # fmt: skip
    add("--resume_from_checkpoint", metavar="latest|auto|PATH", help="go on with a run that was cut off: from its "
        "newest whole checkpoint, from that or else from the beginning (auto), or from this one; default: from the "
        "beginning")  # fmt: skip
    add("--checkpoints_total_limit", type=number(int, 1), default=3,
        help="checkpoints kept; the oldest goes when a new one stands; default: 3")  # fmt: skip
    add("--max_bad_steps", type=number(int, 1), default=10,
        help="steps on end whose loss or gradient is not finite, and which are skipped, before the run is given up; "
        "default: 10")  # fmt: skip
    add("--dataloader_timeout", type=number(float, 0), default=600.0,
        help="seconds to wait for a batch from --num_workers before the run is given up; default: 600, 0 waits "
        "without end")  # fmt: skip


def _steps_or_epoch(text: str) -> int | str:
    try:
        return text if text == "epoch" else number(int, 1)(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is neither a number of steps nor `epoch`") from None


def _add_records(group):
    add = group.add_argument
    add("--logging_steps", type=number(int, 1), default=10,
        help="optimiser steps between two lines of log.jsonl; default: 10")  # fmt: skip
    add("--with_tracking", action=argparse.BooleanOptionalAction, default=False,
        help="also report to trackers; default: no")  # fmt: skip
    add("--report_to", choices=("trackio", "tensorboard", "wandb", "all"),
        help="--with_tracking: which tracker; default: all that are installed")  # fmt: skip


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


def _add_hub(group):
    add = group.add_argument
    add("--push_to_hub", action=argparse.BooleanOptionalAction, default=False,
        help="push the finished model, checked before and after; default: no")  # fmt: skip
    add("--hub_model_id", help="where it goes: owner/name; default: your account and the name of --output_dir")
    add("--hub_private_repo", action=argparse.BooleanOptionalAction,
        help="of a new repository; default: as your account says")  # fmt: skip
    add("--hub_token", help="token with write rights; default: that of `hf auth login` or of HF_TOKEN")
    add("--license", help="identifier of the licence of the weights, such as apache-2.0, for the model card; "
        "default: none is stated")  # fmt: skip


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
