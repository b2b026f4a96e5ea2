"""Fine-tune one model that reads text, picture and sound on your own table, any cell of which may be empty.

The towers run once a row and a step, the fusion twice: on the row as it came and on a random subset of its modalities,
so that one model learns all seven subsets. What is left at the end is a complete model folder, with the metrics of
every subset on rows that it was not trained on.
"""

import sys
from pathlib import Path

from cli.arguments import exit_code
from cli.environment import require_writable
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
    "cache_dir", "command", "hub_token", "hub_model_id", "hub_private_repo", "license", "push_to_hub",
    "checkpointing_steps", "checkpoints_total_limit", "dataloader_timeout", "logging_steps", "prefetch_factor",
    "report_to", "resume_from_checkpoint", "with_baselines", "with_tracking",
)  # fmt: skip


def run(args, words: list[str]) -> Path:
    """Train, from the beginning or from a checkpoint; the model folder. `words` are those that `args` came from."""
    from training.optimization import make_accelerator
    from training.publishing import publish, sign_in_early
    from training.records import complete
    from training.resuming import Keeper
    from training.setup import say
    from training.specialists import compare_with_specialists, refuse_processes

    require_writable(args.output_dir, "--output_dir")
    account = sign_in_early(args)
    accelerator, interruption = make_accelerator(args), None
    refuse_processes(args, accelerator)
    with Keeper(args, accelerator) as keeper:
        is_new = not keeper.is_finished
        if is_new:
            interruption = train(args, accelerator, keeper)
        else:
            say(accelerator, f"this run is finished: its model is in `{args.output_dir}`")
            if accelerator.is_main_process:
                complete(args.output_dir, keeper.log_file)
        if args.with_baselines is not None:
            is_new |= compare_with_specialists(args, accelerator, keeper.run_id, words)
    if accelerator.is_main_process and is_new:
        publish(args, account, interruption is not None)
    if interruption is not None:
        raise interruption
    return args.output_dir


def train(args, accelerator, keeper) -> BaseException | None:
    """Make ready, fit, finish; what interrupted it, where a model was saved all the same."""
    from training.batch_size import telling_memory
    from training.loop import fit
    from training.records import Records
    from training.setup import set_up

    setup = set_up(args, accelerator, keeper)
    log_file = keeper.log_file if keeper.is_on else None
    with setup.run.averaging, Records(args, accelerator, log_file) as records:
        with telling_memory(args):
            best, history, interruption = fit(setup.run, keeper, records)
        if accelerator.is_main_process and interruption is None:
            keeper.finish()
        finish(args, setup, best, history)
    if accelerator.is_main_process:
        records.save(args.output_dir)
    return interruption


# == The end ==========================================================================================================


def finish(args, setup, best: dict, history: dict):
    """Go back to the best weights, measure every subset of modalities, and leave a complete model folder."""
    from metrics.calibration import evaluate_calibrated
    from metrics.subsets import evaluate_subsets
    from metrics.tasks import told
    from training.adapters import finish_adapter
    from training.folder import save_model_folder
    from training.setup import say
    from training.sharding import load_weights, undivided
    from training.workers import telling_faults

    accelerator, validation_loader = setup.run.accelerator, setup.run.validation_loader
    bare = accelerator.unwrap_model(setup.run.model)
    load_weights(bare, best["state"])

    def save(folder: Path, metrics: dict):
        config = training_config(args, accelerator, setup.towers, setup.labels, *setup.rows)
        whole = undivided(bare, best["state"])
        save_model_folder(folder, whole, setup.towers.processor, training_config=config, metrics=metrics)

    if args.lora:
        finish_adapter(args, accelerator, bare, save)
    measured = {"accelerator": accelerator, "progress": accelerator.is_local_main_process}
    with telling_faults(validation_loader):
        if args.calibrate:
            metrics = evaluate_calibrated(setup.run.model, validation_loader, seed=args.seed, **measured)
        else:
            metrics = evaluate_subsets(setup.run.model, validation_loader, **measured)
    for line in told(metrics, describe):
        say(accelerator, line)
    if accelerator.is_main_process:
        metrics["training"] = history
        save(args.output_dir, metrics)
        minutes = history["seconds"] / 60
        print(f"{minutes:.1f} minutes of training; the model is in {args.output_dir}")
    accelerator.wait_for_everyone()


def describe(result: dict) -> list[str]:
    """Lines for people: how good the model is, and what was fitted at the end."""
    from metrics.calibration import describe_calibration
    from metrics.subsets import format_table, warnings
    from metrics.thresholds import describe_thresholds

    fitted = filter(None, (describe_calibration(result), describe_thresholds(result)))
    return [format_table(result), *fitted, *(f"warning: {sentence}" for sentence in warnings(result))]


def training_config(args, accelerator, towers, labels, train_rows, validation_rows) -> dict:
    """Choices of the run that its numbers depend on; of a local path only the last name, for it will be published."""
    import importlib.metadata

    packages = ("torch", "transformers", "accelerate", "datasets", "evaluate", "soundfile", "soxr", "pillow")
    packages += ("peft",) if args.lora else ()
    return {
        "command": args.command,
        "arguments": {name: public(value) for name, value in sorted(vars(args).items()) if name not in NOT_RECORDED},
        **({} if args.license is None else {"license": args.license}),
        # The name of a folder is not one that the Hub could know.
        "base_models": {m: Path(name).name if Path(name).exists() else name for m, name in towers.pretrained.items()},
        "problem_type": labels.problem_type,
        **({} if towers.processor.image_bits == 16 else {"image_bits": towers.processor.image_bits}),
        "data": {
            "train": train_rows.record(public),
            "validation": validation_rows.record(public),
        },
        "num_processes": accelerator.num_processes,
        "device": accelerator.device.type,
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    try:
        return exit_code(run, parse_args(words, description=__doc__, epilog=EXAMPLES), words)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_code


if __name__ == "__main__":
    sys.exit(main())
