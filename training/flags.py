"""The flags of `train.py`, named as in the examples of `transformers` where there is one."""

import argparse
from pathlib import Path

from cli.arguments import OneOrMore, add_column_arguments, add_label_arguments, number

FUSION_TYPES = ("cross_attention", "bottleneck", "pairwise", "gate", "weighted_sum", "concat", "low_rank")
BALANCES = ("none", "unimodal", "ogm_ge", "mmpareto")
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")


def add_flags(parser: argparse.ArgumentParser):
    """Add all of them, group by group."""
    _add_data(parser.add_argument_group("data"))
    _add_model(parser.add_argument_group("model"))
    _add_training(parser.add_argument_group("training"))
    _add_adapters(parser.add_argument_group("adapters"))
    _add_averaging(parser.add_argument_group("averaging"))
    _add_teacher(parser.add_argument_group("teacher"))
    _add_augmentation(parser.add_argument_group("augmentation"))
    _add_output(parser.add_argument_group("output"))
    _add_interruption(parser.add_argument_group("interruption and faults"))
    _add_records(parser.add_argument_group("records"))
    _add_hub(parser.add_argument_group("the Hub"))


def _add_data(group):
    add = group.add_argument
    add(
        "--train_file",
        help="table: .csv, .tsv, .jsonl, .parquet (or a glob of them, here or at hf://, s3:// …), a folder with "
        "metadata, a Hub data set",
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
    add_label_arguments(group, tasks="those of several tasks, which are learnt at once")
    add("--problem_type", choices=PROBLEM_TYPES, nargs="+", action=OneOrMore, help="of several tasks one for all or "
        "one for each; default: guessed from the labels, and printed")  # fmt: skip
    add("--label_names", type=_names, metavar="NAME,…", help="the labels that vectors such as [0, 1, 0] stand for, in "
        "their order; default: the column's name with a number")  # fmt: skip
    add("--task_weights", type=number(float, 0), nargs="+", metavar="WEIGHT", help="of several tasks, how much the "
        "loss and the score of each count; default: 1 for each")  # fmt: skip
    add(
        "--check_cells",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="open every cell once before training; default: yes",
    )
    add("--max_train_samples", type=number(int, 1), help="use only this many training rows; default: all")
    add("--max_eval_samples", type=number(int, 1), help="use only this many validation rows; default: all")
    add("--prefetch_factor", type=number(int, 1),
        help="--num_workers: batches that each of them prepares ahead; default: 2")  # fmt: skip
    add("--cache_gib", type=number(float, 0), default=1.0,
        help="GiB of memory for opened pictures and sounds, in each worker; default: 1, 0 turns it off")  # fmt: skip
    add("--cache_features", action=argparse.BooleanOptionalAction, default=False,
        help="run frozen towers (learning rate 0) once for each cell, keep what they say on disk for this and later "
        "runs, and train only the rest; default: no")  # fmt: skip
    add("--cache_dir", type=Path, help="--cache_features: where that is kept, shared by all runs; default: "
        "mmfusion/features beside the cache of Hugging Face, in ~/.cache")  # fmt: skip
    add("--cache_dtype", choices=("float32", "float16", "bfloat16"),
        help="--cache_features: how numbers are kept, the last two in half of the room; default: float32")  # fmt: skip


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
            help=f"pretrained {kind} tower: Hub id or folder, of an MMFusion model its own one, or `none` for a model "
            "without; default: the preset's",
        )
    add("--allow_missing_tower_weights", action=argparse.BooleanOptionalAction, default=False, help="let weights that "
        "the checkpoint of a pretrained tower lacks, or has in other sizes, start random; default: no, an error names "
        "them")  # fmt: skip
    add("--fusion_type", choices=FUSION_TYPES, help="how the modalities become one vector; default: cross_attention")
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
    add("--modality_dropout_ramp", type=number(float, 0, 1), default=0.0, help="part of the steps in which this "
        "probability rises from 0; default: 0, it is the same from the first step on")  # fmt: skip
    add("--subset_ranking_weight", type=number(float, 0), default=0.0, help="weight of a penalty for being worse with "
        "all modalities of a row than with fewer; default: 0")  # fmt: skip
    add("--balance", choices=BALANCES, default="none", help="what keeps a modality that is quick to learn from "
        "starving the others: a head and a loss for each, slowing the one that is ahead, or a compromise between the "
        "gradients; default: none")  # fmt: skip
    add("--unimodal_loss_weight", type=number(float, 0), default=1.0,
        help="--balance: weight of the loss of each modality by itself; default: 1")  # fmt: skip
    add("--contrastive_weight", type=number(float, 0), default=0.0, help="weight of a loss that brings the vectors of "
        "a row's modalities together, for retrieval; default: 0")  # fmt: skip
    add("--contrastive_by_class", action=argparse.BooleanOptionalAction, default=False, help="--contrastive_weight: "
        "bring all rows of a class together, not each row with itself; default: no")  # fmt: skip
    add("--label_smoothing", type=number(float, 0, 1), default=0.0,
        help="share of the probability that is spread over all labels in training; default: 0")  # fmt: skip
    add("--class_weights", type=_class_weight, nargs="+", metavar="balanced|NAME=W", help="how much labels count in "
        "the loss: `balanced`, the rarer the more (of several labels a presence at most 10 times), or by name, the "
        "others 1; default: all the same")  # fmt: skip
    add("--ordinal", action=argparse.BooleanOptionalAction, default=False, help="the classes have an order: numbers "
        "theirs, others that of --label_order; the loss counts how far off an answer is; default: no")  # fmt: skip
    add("--label_order", type=_label_order, metavar="LOW,…,HIGH", help="--ordinal: the classes, lowest first; "
        "default: as numbers, or as the data set declares them")  # fmt: skip
    add(
        "--vocab_size",
        type=number(int, 100),
        default=2000,
        help="tiny text tower: entries of the vocabulary that is learnt from the training text; default: 2000",
    )
    add("--image_size", type=number(int, 16), default=64, help="tiny image tower: pixels a side; default: 64")
    add("--image_bits", type=number(int, 1, 17), help="bits that pictures of 16 bits use, as in X-rays (10 or "
        "12): the largest number that they hold becomes white; default: as many as the training rows need, "
        "and printed")  # fmt: skip
    add("--sampling_rate", type=number(int, 1), default=16_000,
        help="tiny audio tower: in Hz, for the signal of a sensor its own, from 1; default: 16000")  # fmt: skip
    add("--mask_time_prob", type=number(float, 0, 1), default=0.05,
        help="tiny audio tower: share of frames that SpecAugment masks; default: 0.05, 0 turns it off")  # fmt: skip
    add("--mask_feature_prob", type=number(float, 0, 1), default=0.0,
        help="tiny audio tower: share of channels that SpecAugment masks; default: 0, off")  # fmt: skip
    add("--max_text_length", type=number(int, 4), default=128, help="tokens kept of a text; default: 128")
    add("--max_audio_seconds", type=number(float, 0.1), default=10.0, help="seconds kept of a sound; default: 10")


def _class_weight(text: str) -> str | tuple[str, float]:
    name, _, weight = text.rpartition("=")
    try:
        value = float(weight) if name else None
    except ValueError:
        value = None
    if text != "balanced" and (value is None or not 0 < value < float("inf")):
        raise argparse.ArgumentTypeError(
            f"{text} is neither `balanced` nor a label with a weight above 0, as in `rare=3`"
        )
    return text if value is None else (name, value)


def _names(text: str) -> tuple[str, ...]:
    """Return names that commas separate."""
    names = tuple(name.strip() for name in text.split(","))
    if "" in names or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"{text!r} does not name each label once, separated by commas")
    return names


def _label_order(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if "" in names or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"{text} does not name each class once, with commas between")
    return names


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
            help="for this tower, 0 freezes it; default: --learning_rate from scratch, 5e-5 pretrained, 2e-4 by LoRA",
        )
    add("--layer_decay", type=_layer_decay, default=1.0, help="pretrained towers: each layer learns at this part of "
        "the rate of the layer above it; default: 1, all at the rate of their tower")  # fmt: skip
    add("--weight_decay", type=number(float, 0), default=0.01, help="not on norms and biases; default: 0.01")
    add("--num_train_epochs", type=number(int, 1), default=10, help="passes over the training rows; default: 10")
    add("--max_train_steps", type=number(int, 1), help="stop after this many optimiser steps; default: no limit")
    add("--per_device_train_batch_size", type=number(int, 1), default=32, help="rows a batch a device; default: 32")
    add("--per_device_eval_batch_size", type=number(int, 1), default=64, help="rows a batch a device; default: 64")
    add("--gradient_accumulation_steps", type=number(int, 1), default=1, help="batches a step; default: 1")
    add("--group_by_length", action=argparse.BooleanOptionalAction, default=False,
        help="put rows with sounds of about the same length, and among these with texts of about the same length, "
        "into a batch, which leaves less padding; default: no")  # fmt: skip
    add(
        "--lr_scheduler_type",
        default="cosine",
        choices=("cosine", "linear", "constant_with_warmup"),
        help="after the warm-up; default: cosine",
    )
    add("--warmup_ratio", type=number(float, 0, 1), default=0.06, help="part of the steps to warm up; default: 0.06")
    add("--max_grad_norm", type=number(float, 0), default=1.0, help="gradient clipping; default: 1, 0 turns it off")
    add("--auto_find_batch_size", action=argparse.BooleanOptionalAction, default=False,
        help="try the longest rows before the training, and halve --per_device_train_batch_size while they do not fit "
        "into memory; --gradient_accumulation_steps grows by as much; default: no")  # fmt: skip
    add("--mixed_precision", choices=("no", "bf16", "fp16"), default="no",
        help="autocast; fp16 needs a GPU, and scales the loss; default: no (float32)")  # fmt: skip
    add("--torch_compile", action=argparse.BooleanOptionalAction, default=False,
        help="compile the blocks of towers and fusion, which takes minutes at first, and gains nothing on a CPU; "
        "default: no")  # fmt: skip
    add("--torch_compile_backend", choices=("inductor", "aot_eager"),
        help="--torch_compile: by what; default: inductor")  # fmt: skip
    add("--torch_compile_mode", choices=("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
        help="--torch_compile: how inductor weighs compile time against speed; default: default")  # fmt: skip
    add(
        "--activation_checkpointing",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="compute activations again in the backward pass to save memory; default: no",
    )
    add("--best_epoch_by", choices=("everything", "subsets"), default="everything", help="which epoch is kept: the "
        "best with all that the rows have, or the best on the mean of all subsets of the modalities, for a model that "
        "will often lack some; default: everything")  # fmt: skip
    add(
        "--early_stopping_patience",
        type=number(int, 1),
        help="stop after this many epochs without a better validation score; default: never",
    )
    add("--calibrate", action=argparse.BooleanOptionalAction, default=True,
        help="fit temperatures on the validation rows at the end, one for each subset of modalities, so that a "
        "confidence is as often right as it says; not for numbers; default: yes")  # fmt: skip
    add("--seed", type=number(int, 0), default=0, help="of split, weights, order and dropout; default: 0")


def _add_adapters(group):
    add = group.add_argument
    add("--lora", type=_modalities, metavar="text,image,audio", help="tune these pretrained towers by LoRA: their own "
        "weights stand still, small matrices beside them learn; the adapter is saved in OUTPUT_DIR-adapter, and "
        "merged into the model; default: none")  # fmt: skip
    add("--lora_rank", type=number(int, 1), help="rank of the small matrices; default: 8")
    add("--lora_alpha", type=number(float, 0.01), help="what they learn counts alpha/rank; default: twice the rank")
    add("--lora_dropout", type=number(float, 0, 1), help="dropout of what they read; default: 0.05, 0 turns it off")
    add("--lora_target_modules", metavar="NAMES", help="layers that get them: ends of their names with commas "
        "between (query,value), `all-linear`, or a regular expression over whole names that starts with `mmfusion`; "
        "default: what peft takes for an architecture that it knows, else all linear layers, else all "
        "convolutions")  # fmt: skip


def _modalities(text: str) -> tuple[str, ...]:
    names = [name.strip() for name in text.split(",")]
    known = ("text", "image", "audio")
    if unknown := [name for name in names if name not in known]:
        raise argparse.ArgumentTypeError(
            f"`{unknown[0]}` is not one of {', '.join(known)}; give one or more of them, with commas between"
        )
    return tuple(name for name in known if name in names)


# How far --augment goes: flag -> (modality, value when nothing else is said).
STRENGTHS = {
    "text_token_dropout": ("text", 0.1),
    "text_word_noise": ("text", 0.1),
    "image_crop": ("image", 0.2),
    "image_flip": ("image", False),
    "randaugment_num_ops": ("image", 1),
    "randaugment_magnitude": ("image", 9.0),
    "audio_speed": ("audio", 0.1),
    "audio_filter_db": ("audio", 6.0),
    "audio_shift_seconds": ("audio", 0.05),
    "audio_gain_db": ("audio", 6.0),
    "audio_noise_snr_db": ("audio", 10.0),
}


def _add_teacher(group):
    add = group.add_argument
    add("--teacher", help="MMFusion model (folder or Hub id) with the same labels that is learnt from, too; "
        "default: none")  # fmt: skip
    add("--teacher_revision", help="commit, tag or branch of --teacher; default: the newest")
    add("--distillation_weight", type=number(float, 0), default=0.5,
        help="--teacher: its part of the loss, at most 1, the rest is that of the labels; default: 0.5")  # fmt: skip
    add("--distillation_temperature", type=number(float, 0.01), default=2.0,
        help="--teacher: its answers and the model's are divided by this before they are compared, so that small "
        "probabilities count more; not in a regression; default: 2")  # fmt: skip
    add("--feature_weight", type=number(float, 0), default=0.0,
        help="--teacher: weight of the distance between its fused vectors and the model's, added to the loss; "
        "default: 0, off")  # fmt: skip


def _add_augmentation(group):
    add = group.add_argument
    add("--augment", type=_modalities, default=(), metavar="text,image,audio",
        help="modalities whose cells are changed at random in training, never in evaluation; "
        "default: none")  # fmt: skip
    add("--text_token_dropout", type=number(float, 0, 1),
        help="--augment text: share of the tokens that are masked; default: 0.1, 0 turns it off")  # fmt: skip
    add("--text_word_noise", type=number(float, 0, 1),
        help="--augment text: share of the words that get a slip of the keys; default: 0.1, 0 turns it "
        "off")  # fmt: skip
    add("--image_crop", type=number(float, 0, 0.99),
        help="--augment image: largest share of the picture that is cut away; default: 0.2, 0 turns it "
        "off")  # fmt: skip
    add("--image_flip", action=argparse.BooleanOptionalAction,
        help="--augment image: mirror every second picture, where left and right mean the same; "
        "default: no")  # fmt: skip
    add("--randaugment_num_ops", type=number(int, 0),
        help="--augment image: changes of RandAugment (colours, contrast, turns, shifts …) one after the other; "
        "default: 1, 0 turns it off")  # fmt: skip
    add("--randaugment_magnitude", type=number(float, 0, 31),
        help="--augment image: strength of each of them, 0 to 30; default: 9")  # fmt: skip
    add("--audio_speed", type=number(float, 0, 1),
        help="--augment audio: share by which a sound is played faster or slower at most; default: 0.1, 0 turns it "
        "off")  # fmt: skip
    add("--audio_filter_db", type=number(float, 0, 60),
        help="--augment audio: dB by which parts of the spectrum are raised or lowered at most; default: 6, 0 turns "
        "it off")  # fmt: skip
    add("--audio_shift_seconds", type=number(float, 0),
        help="--augment audio: seconds by which a sound begins earlier or later at most; default: 0.05, 0 turns it "
        "off")  # fmt: skip
    add("--audio_gain_db", type=number(float, 0, 60),
        help="--augment audio: dB by which a sound grows louder or softer at most; default: 6, 0 turns it "
        "off")  # fmt: skip
    add("--audio_noise_snr_db", type=number(float, -20),
        help="--augment audio: lowest ratio of signal to added noise, in dB; default: 10, 40 turns it "
        "off")  # fmt: skip
    add("--fgm_epsilon", type=number(float, 0), default=0.0,
        help="learn every batch once more with its token embeddings moved so far to where the loss is higher (fast "
        "gradient method); default: 0, off")  # fmt: skip


def _layer_decay(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not in (0, 1]")
    return value


_layer_decay.__name__ = "float"  # argparse names it when the text is no number at all


def _add_averaging(group):
    add = group.add_argument
    add(
        "--ema_decay",
        type=number(float, 0, 1),
        default=0.0,
        help="validate and save a moving average of the weights, of which this part stays at each step, and less at "
        "first: 0.99 is reached after 900 steps, 0.999 after 9,000; default: 0, off",
    )
    add(
        "--soup",
        type=number(int, 0),
        default=0,
        metavar="K",
        help="keep the weights of the K best epochs, and save the average of those that together validate no worse "
        "than the best alone; default: 0, the best alone",
    )


def _add_output(group):
    add = group.add_argument
    add("--output_dir", type=Path, required=True, help="the model folder; it appears when it is complete")
    add(
        "--overwrite_output_dir",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="replace the model that --output_dir holds, once the new one is complete; default: no",
    )
    add("--with_baselines", nargs="?", const="subsets", choices=("modalities", "subsets"), help="also train, with the "
        "same flags, a specialist for each modality, or for each subset of them, and compare the model with these in "
        "metrics.json; they are kept in OUTPUT_DIR-baselines; default: no, without a value `subsets`")  # fmt: skip


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
