"""Fine-tune one model that reads text, picture and sound on your own table, any cell of which may be empty.

The towers run once a row and a step, the fusion twice: on the row as it came and on a random subset of its modalities,
so that one model learns all seven subsets. What is left at the end is a complete model folder, with the metrics of
every subset on rows that it was not trained on.
"""

import sys
from pathlib import Path

from cli.arguments import exit_code
from training.arguments import parse_args, refuse_idle_towers

EXAMPLES = """examples:
  python -m data.demo outputs/demo_data
  python train.py --train_file outputs/demo_data/train.csv --output_dir outputs/demo
  python train.py --train_file my.csv --text_column review --image_column photo --audio_column none \\
      --label_column stars --preset base --text_learning_rate 0 --mixed_precision bf16 --output_dir outputs/mine
  accelerate launch train.py ...        # several GPUs
"""


def run(args) -> Path:
    """Train; the story in run order."""
    from accelerate.utils import set_seed

    from data import LabelMap
    from training.loop import fit
    from training.optimization import make_accelerator, make_optimizer, make_scheduler, number_of_steps

    accelerator = make_accelerator(args)
    set_seed(args.seed)

    # What there is to learn from.
    train_table = open_table(args, args.train_file, args.max_train_samples)
    labels = LabelMap.fit(train_table, args.problem_type, args.label_delimiter)
    train_table, validation_table = validation_part(args, train_table, labels)
    say(accelerator, f"{labels.describe()}\n{len(train_table):,} rows to train on, {len(validation_table):,} held out")

    # The model and what prepares its inputs.
    towers = choose_towers(args, train_table)
    train_table, validation_table = check(args, accelerator, towers.processor, train_table, validation_table)
    model = build_model(args, towers, labels)
    say(accelerator, describe_model(model, towers))

    loaders = make_loaders(args, towers.processor, labels, train_table, validation_table)
    optimizer = make_optimizer(args, model, towers)
    steps = number_of_steps(args, loaders[0], accelerator)
    scheduler = make_scheduler(args, optimizer, steps, accelerator.num_processes)
    model, optimizer, scheduler, *loaders = accelerator.prepare(model, optimizer, scheduler, *loaders)

    best, history = fit(args, accelerator, model, optimizer, scheduler, *loaders, steps)
    finish(args, accelerator, model, towers, labels, loaders[1], best, history, (train_table, validation_table))
    if history["interrupted"]:
        raise KeyboardInterrupt
    return args.output_dir


# == Data =============================================================================================================


def open_table(args, source: str, max_rows: int | None):
    """A table with the modalities that the model shall read and, of its rows, at most `max_rows`."""
    from data import Columns, read_table

    columns = Columns(args.text_column, args.image_column, args.audio_column, args.label_column)
    table = read_table(
        source, columns=columns, config_name=args.dataset_config_name, allow_outside=args.allow_outside_paths
    )
    kept = [m for m in table.modalities if tower_name(args, m) != "none"]
    if not kept:
        raise ValueError(
            f"`{source}` has columns for {', '.join(table.modalities)}, and each of their towers is `none`: keep one"
        )
    table = table.keep_modalities(kept)
    return table if max_rows is None else table.select(range(min(max_rows, len(table))))


def validation_part(args, train_table, labels):
    """(training rows, validation rows): from their own files, or by setting a part of the training rows aside."""
    from data import count_shared_rows, stratified_split

    if args.validation_file is None:
        train_table, validation_table = stratified_split(
            train_table, labels, validation_fraction=args.validation_fraction, seed=args.seed
        )
        if args.max_eval_samples is not None:
            validation_table = validation_table.select(range(min(args.max_eval_samples, len(validation_table))))
    else:
        validation_table = open_table(args, args.validation_file, args.max_eval_samples)
        if missing := [m for m in validation_table.modalities if m not in train_table.modalities]:
            validation_table = validation_table.keep_modalities(train_table.modalities)
            print(
                f"note: {', '.join(missing)} of the validation file is not used: it is not trained on", file=sys.stderr
            )
        labels.encode_table(validation_table)  # an unknown label is said now, not after the first epoch
    if shared := count_shared_rows(train_table, validation_table):
        print(
            f"warning: {shared:,} of {len(validation_table):,} validation rows stand among the training rows, too: "
            "their metrics will flatter the model",
            file=sys.stderr,
        )
    return train_table, validation_table


def check(args, accelerator, processor, *tables):
    """Open every cell once, so that a bad one is said before training and not in the middle of it."""
    from data import check_table

    if not args.check_cells:
        return tables
    checked = []
    for place, table in enumerate(tables):
        table, report = check_table(
            table,
            sampling_rate=processor.audio_sampling_rate,
            max_audio_seconds=processor.max_audio_seconds,
            on_bad_cell=args.on_bad_cell,
            allow_empty_columns=place > 0,  # a modality that is never there cannot be learnt, but can be evaluated
            progress=accelerator.is_local_main_process,
        )
        say(accelerator, report.describe())
        checked.append(table)
    return checked


def make_loaders(args, processor, labels, train_table, validation_table):
    from torch.utils.data import DataLoader

    from data import Collator, FusionDataset

    cache_bytes = int(args.cache_gib * 2**30)
    options = {"collate_fn": Collator(processor), "num_workers": args.num_workers}
    options["persistent_workers"] = args.num_workers > 0
    return [
        DataLoader(
            FusionDataset(train_table, labels, processor, cache_bytes),
            args.per_device_train_batch_size, shuffle=True, **options,
        ),
        DataLoader(
            FusionDataset(validation_table, labels, processor, cache_bytes),
            args.per_device_eval_batch_size, **options,
        ),
    ]  # fmt: skip


# == Model ============================================================================================================


def tower_name(args, modality: str) -> str | None:
    """Where the tower of a modality comes from: a name, `none` (no tower), or None (a tiny one from scratch)."""
    given = getattr(args, f"{modality}_model_name_or_path")
    if given is not None or args.preset == "tiny":
        return given
    from training.towers import BASE

    return BASE[modality]


def choose_towers(args, train_table):
    from training.towers import make_towers

    modalities = train_table.modalities
    refuse_idle_towers(args, train_table.name, modalities)
    cells = (train_table.cell(i, "text") for i in range(len(train_table))) if "text" in modalities else ()
    return make_towers(
        modalities,
        {modality: tower_name(args, modality) for modality in modalities},
        texts=(cell for cell in cells if cell is not None),
        vocab_size=args.vocab_size,
        image_size=args.image_size,
        sampling_rate=args.sampling_rate,
        max_text_length=args.max_text_length,
        max_audio_seconds=args.max_audio_seconds,
        mask_time_prob=args.mask_time_prob,
        mask_feature_prob=args.mask_feature_prob,
    )


def build_model(args, towers, labels):
    """The classifier around the towers; a tower whose learning rate is 0 is frozen."""
    from modeling_mmfusion import TOWERS, MMFusionForSequenceClassification
    from training.optimization import tower_learning_rate

    hidden_size = args.fusion_hidden_size or {"tiny": 128, "base": 512}[args.preset]
    model = MMFusionForSequenceClassification.from_encoders(
        **towers.encoders,
        id2label=labels.id2label,
        label2id=labels.label2id,
        problem_type=labels.problem_type,
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_hidden_layers=args.num_fusion_layers,
        num_fusion_queries=args.num_fusion_queries,
        hidden_dropout_prob=args.hidden_dropout_prob,
        attention_probs_dropout_prob=args.hidden_dropout_prob,
        modality_dropout=args.modality_dropout,
    )
    for modality in towers.encoders:
        if tower_learning_rate(args, modality, towers) == 0:
            getattr(model.mmfusion, TOWERS[modality]).requires_grad_(False)
    if args.activation_checkpointing:
        model.activation_checkpointing_enable()
    return model


def describe_model(model, towers) -> str:
    """Lines for people: each part with its size and where it comes from."""
    from modeling_mmfusion import TOWERS

    parts = [
        (m, getattr(model.mmfusion, TOWERS[m]), towers.pretrained.get(m, "from scratch")) for m in towers.encoders
    ]
    parts.append(("fusion", model.mmfusion.fusion, "from scratch"))
    lines = []
    for name, part, origin in parts:
        size = sum(p.numel() for p in part.parameters()) / 1e6
        frozen = "" if any(p.requires_grad for p in part.parameters()) else ", frozen"
        lines.append(f"  {name:<7}{size:8.2f} M parameters  {type(part).__name__}, {origin}{frozen}")
    return "\n".join(lines)


# == The end ==========================================================================================================


def finish(args, accelerator, model, towers, labels, validation_loader, best, history, tables):
    """Go back to the best weights, measure every subset of modalities, and leave a complete model folder."""
    from metrics.subsets import evaluate_subsets, format_table, warnings
    from training.folder import save_model_folder

    bare = accelerator.unwrap_model(model)
    bare.load_state_dict(best["state"])
    metrics = evaluate_subsets(
        model, validation_loader, accelerator=accelerator, progress=accelerator.is_local_main_process
    )
    say(accelerator, format_table(metrics))
    for sentence in warnings(metrics):
        say(accelerator, f"warning: {sentence}")
    if accelerator.is_main_process:
        metrics["training"] = history
        save_model_folder(
            args.output_dir,
            bare,
            towers.processor,
            training_config=training_config(args, accelerator, towers, labels, tables),
            metrics=metrics,
        )
        minutes = history["seconds"] / 60
        print(f"{minutes:.1f} minutes of training; the model is in {args.output_dir}")
    accelerator.wait_for_everyone()


def training_config(args, accelerator, towers, labels, tables) -> dict:
    """Choices of the run that its numbers depend on; of a local path only the last name, for it will be published."""
    import importlib.metadata

    def public(value):
        is_path = isinstance(value, Path) or (isinstance(value, str) and Path(value).is_absolute())
        return Path(value).name if is_path else value

    packages = ("torch", "transformers", "accelerate", "datasets", "evaluate", "soundfile", "soxr", "pillow")
    return {
        "arguments": {name: public(value) for name, value in sorted(vars(args).items())},
        "base_models": {modality: public(name) for modality, name in towers.pretrained.items()},
        "problem_type": labels.problem_type,
        "data": {
            "train": {"name": public(tables[0].name), "num_rows": len(tables[0])},
            "validation": {"name": public(tables[1].name), "num_rows": len(tables[1])},
        },
        "num_processes": accelerator.num_processes,
        "device": accelerator.device.type,
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def say(accelerator, text: str):
    if accelerator.is_main_process:
        print(text, flush=True)


def main(argv: list[str] | None = None) -> int:
    return exit_code(run, parse_args(argv, description=__doc__, epilog=EXAMPLES))


if __name__ == "__main__":
    sys.exit(main())
