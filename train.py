"""Fine-tune one model that reads text, picture and sound on your own table, any cell of which may be empty.

The towers run once a row and a step, the fusion twice: on the row as it came and on a random subset of its modalities,
so that one model learns all seven subsets. What is left at the end is a complete model folder, with the metrics of
every subset on rows that it was not trained on.
"""

import sys
from pathlib import Path

from cli.arguments import exit_code
from training.arguments import parse_args, public
from training.interruption import Stopped

EXAMPLES = """examples:
  python -m data.demo outputs/demo_data
  python train.py --train_file outputs/demo_data/train.csv --output_dir outputs/demo
  python train.py --train_file my.csv --text_column review --image_column photo --audio_column none \\
      --label_column stars --preset base --text_learning_rate 0 --mixed_precision bf16 --output_dir outputs/mine
  python train.py --train_file new.csv --model_name_or_path owner/model --output_dir outputs/new   # go on from a model
  python train.py --dataset_name owner/data --streaming --output_dir outputs/mine     # from the Hub
  accelerate launch train.py ...        # several GPUs
  python train.py --train_file my.csv --output_dir outputs/mine --checkpointing_steps epoch \\
      --resume_from_checkpoint auto     # killed and started again, it goes on
"""


# Not what the numbers depend on, or said elsewhere.
NOT_RECORDED = (
    "command", "hub_token", "hub_model_id", "hub_private_repo", "license", "push_to_hub", "checkpointing_steps",
    "checkpoints_total_limit", "dataloader_timeout", "logging_steps", "report_to", "resume_from_checkpoint",
    "with_tracking",
)  # fmt: skip


def run(args) -> Path:
    """Train, from the beginning or from a checkpoint; the model folder."""
    from training.optimization import make_accelerator
    from training.publishing import publish, sign_in_early
    from training.records import complete
    from training.resuming import Keeper

    account = sign_in_early(args)
    accelerator = make_accelerator(args)
    with Keeper(args, accelerator) as keeper:
        if keeper.is_finished:
            say(accelerator, f"this run is finished: its model is in `{args.output_dir}`")
            if accelerator.is_main_process:
                complete(args.output_dir, keeper.log_file)
            return args.output_dir
        interruption = train(args, accelerator, keeper)
    if accelerator.is_main_process:
        publish(args, account, interruption is not None)
    if interruption is not None:
        raise interruption
    return args.output_dir


def train(args, accelerator, keeper) -> BaseException | None:
    """The story in run order; what interrupted it, where a model was saved all the same."""
    from accelerate.utils import set_seed

    from training.loop import Run, fit
    from training.optimization import make_optimizer, make_scheduler, number_of_steps
    from training.records import Records
    from training.rows import open_rows
    from training.start import choose_start

    set_seed(args.seed)

    # What there is to learn from.
    start = choose_start(args)
    train_rows, validation_rows, labels = open_rows(args, reads=start.reads)
    count = "?" if train_rows.num_rows is None else f"{train_rows.num_rows:,}"
    say(accelerator, f"{labels.describe()}\n{count} rows to train on, {validation_rows.num_rows:,} held out")

    # The model and what prepares its inputs.
    towers = start.towers(train_rows)
    for rows in (train_rows, validation_rows) if args.check_cells else ():
        say(accelerator, rows.check(args, towers.processor, progress=accelerator.is_local_main_process))
    keeper.take_rows(train_rows, validation_rows)
    model = start.model(towers, labels)
    say(accelerator, describe_model(model, towers, start.origin))

    loaders = [rows.loader(args, accelerator, towers.processor, labels) for rows in (train_rows, validation_rows)]
    optimizer = make_optimizer(args, model, towers)
    steps = number_of_steps(args, loaders[0], accelerator)
    scheduler = make_scheduler(args, optimizer, steps, accelerator.num_processes)
    model, optimizer, scheduler, *loaders = accelerator.prepare(model, optimizer, scheduler, *loaders)

    whole = Run(args, accelerator, model, optimizer, scheduler, *loaders, steps, train_rows)
    with Records(args, accelerator, keeper.log_file if keeper.is_on else None) as records:
        best, history, interruption = fit(whole, keeper, records)
        if accelerator.is_main_process and interruption is None:
            keeper.finish()
        finish(args, accelerator, model, towers, labels, loaders[1], best, history, (train_rows, validation_rows))
    if accelerator.is_main_process:
        records.save(args.output_dir)
    return interruption


def describe_model(model, towers, origin: str) -> str:
    """Lines for people: each part with its size and where it comes from."""
    from modeling_mmfusion import TOWERS

    parts = [
        (m, getattr(model.mmfusion, TOWERS[m]), towers.pretrained.get(m, "from scratch")) for m in towers.encoders
    ]
    parts.append(("fusion", model.mmfusion.fusion, origin))
    lines = []
    for name, part, origin in parts:
        size = sum(p.numel() for p in part.parameters()) / 1e6
        frozen = "" if any(p.requires_grad for p in part.parameters()) else ", frozen"
        lines.append(f"  {name:<7}{size:8.2f} M parameters  {type(part).__name__}, {origin}{frozen}")
    return "\n".join(lines)


# == The end ==========================================================================================================


def finish(args, accelerator, model, towers, labels, validation_loader, best, history, rows):
    """Go back to the best weights, measure every subset of modalities, and leave a complete model folder."""
    from metrics.subsets import evaluate_subsets, format_table, warnings
    from training.folder import save_model_folder
    from training.workers import telling_faults

    bare = accelerator.unwrap_model(model)
    bare.load_state_dict(best["state"])
    with telling_faults(validation_loader):
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
            training_config=training_config(args, accelerator, towers, labels, *rows),
            metrics=metrics,
        )
        minutes = history["seconds"] / 60
        print(f"{minutes:.1f} minutes of training; the model is in {args.output_dir}")
    accelerator.wait_for_everyone()


def training_config(args, accelerator, towers, labels, train_rows, validation_rows) -> dict:
    """Choices of the run that its numbers depend on; of a local path only the last name, for it will be published."""
    import importlib.metadata

    packages = ("torch", "transformers", "accelerate", "datasets", "evaluate", "soundfile", "soxr", "pillow")
    return {
        "command": args.command,
        "arguments": {name: public(value) for name, value in sorted(vars(args).items()) if name not in NOT_RECORDED},
        **({} if args.license is None else {"license": args.license}),
        # The name of a folder is not one that the Hub could know.
        "base_models": {m: Path(name).name if Path(name).exists() else name for m, name in towers.pretrained.items()},
        "problem_type": labels.problem_type,
        "data": {
            "train": train_rows.record(public),
            "validation": validation_rows.record(public),
        },
        "num_processes": accelerator.num_processes,
        "device": accelerator.device.type,
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def say(accelerator, text: str):
    if accelerator.is_main_process:
        print(text, flush=True)


def main(argv: list[str] | None = None) -> int:
    try:
        return exit_code(run, parse_args(argv, description=__doc__, epilog=EXAMPLES))
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_code


if __name__ == "__main__":
    sys.exit(main())
