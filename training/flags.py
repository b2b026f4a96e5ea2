"""The flags of `train.py`, named as in the examples of `transformers` where there is one."""

import argparse
from pathlib import Path

from cli.arguments import add_column_arguments, add_label_arguments, number

PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")


def add_flags(parser: argparse.ArgumentParser):
    """Add all of them, group by group."""
    _add_data(parser.add_argument_group("data"))
    _add_model(parser.add_argument_group("model"))
    _add_training(parser.add_argument_group("training"))
    _add_output(parser.add_argument_group("output"))
    _add_interruption(parser.add_argument_group("interruption and faults"))
    _add_records(parser.add_argument_group("records"))
    _add_hub(parser.add_argument_group("the Hub"))


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
