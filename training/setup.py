"""All that a training needs, made ready in the order in which one thing needs the other."""

from dataclasses import dataclass
from typing import Any

from accelerate.utils import set_seed

from modeling_mmfusion import TOWERS
from training.averaging import Averaging
from training.batch_size import find_batch_size
from training.distillation import choose_teacher
from training.features import cache_features
from training.image_bits import choose_image_bits
from training.label_choices import weigh_labels
from training.loop import Run
from training.objective import make_objective
from training.optimization import make_optimizer, make_scheduler, number_of_steps
from training.precision import compile_blocks
from training.processes import draw_apart
from training.rows import open_rows
from training.sharding import divide, prepare
from training.start import choose_start


@dataclass
class Setup:
    """A training that can begin.

    Args:
        run: What the loop takes.
        towers: The towers with their processor, and where they come from.
        labels: What the labels mean.
        rows: Rows to train on, and rows held out.
    """

    run: Run
    towers: Any
    labels: Any
    rows: tuple


def set_up(args, accelerator, keeper) -> Setup:
    """Make rows, model, loaders, optimiser and schedule ready; the story in run order.

    Raises:
        ValueError, OSError: Rows, towers or settings cannot be used; the message says which and what to do.
    """
    set_seed(args.seed)

    # What there is to learn from.
    start, teacher = choose_start(args), choose_teacher(args)
    train_rows, validation_rows, labels = open_rows(args, reads=start.reads)
    if teacher is not None:
        teacher.fit(labels, train_rows.modalities)
    count = "?" if train_rows.num_rows is None else f"{train_rows.num_rows:,}"
    say(accelerator, f"{labels.describe()}\n{count} rows to train on, {validation_rows.num_rows:,} held out")

    # The model and what prepares its inputs.
    towers = start.towers(train_rows)
    if told := choose_image_bits(args, accelerator, train_rows, towers.processor, teacher):
        say(accelerator, told)
    for rows in (train_rows, validation_rows) if args.check_cells else ():
        say(accelerator, rows.check(args, towers.processor, progress=accelerator.is_local_main_process))
    keeper.take_rows(train_rows, validation_rows)
    model = start.model(towers, labels)
    for sentence in (*towers.notes, describe_model(model, towers, start.origin)):
        say(accelerator, sentence)
    for sentence in (*describe_untrained(model, towers), *describe_checkpointing(args, model, towers)):
        say(accelerator, sentence)
    for sentence in weigh_labels(args, model, train_rows, labels):
        say(accelerator, sentence)
    if teacher is not None:
        say(accelerator, teacher.describe(towers.processor))
    for sentence in cache_features(args, accelerator, model, towers.processor, (train_rows, validation_rows)):
        say(accelerator, sentence)
    if args.torch_compile:
        compile_blocks(args, model, accelerator.device)

    def open_loaders():
        each = (train_rows, validation_rows)
        return [rows.loader(args, accelerator, towers.processor, labels, teacher) for rows in each]

    # What learns, and how fast.
    loaders = open_loaders()
    if args.auto_find_batch_size and keeper.checkpoint is None:
        say(accelerator, find_batch_size(args, accelerator, model, towers, train_rows, loaders[0], teacher))
        keeper.note_settings()
        loaders = open_loaders()
    divide(args, accelerator, model)
    objective, optimizer = make_objective(args, accelerator, model, teacher), make_optimizer(args, model, towers)
    objective.join(args, optimizer)
    steps = number_of_steps(args, loaders[0], accelerator)
    scheduler = make_scheduler(args, optimizer, steps, accelerator.num_processes)
    model, optimizer, scheduler, *loaders = prepare(accelerator, model, optimizer, scheduler, *loaders)
    draw_apart(accelerator, args.seed)
    averaging = Averaging(args, accelerator, model)
    run = Run(args, accelerator, model, optimizer, scheduler, *loaders, steps, train_rows, objective, averaging)
    return Setup(run, towers, labels, (train_rows, validation_rows))


def describe_model(model, towers, origin: str) -> str:
    """Lines for people: each part with its size and where it comes from."""
    parts = [
        (m, getattr(model.mmfusion, TOWERS[m]), towers.pretrained.get(m, "from scratch")) for m in towers.encoders
    ]
    parts.append(("fusion", model.mmfusion.fusion, origin))
    lines = []
    for name, part, origin in parts:
        size = sum(p.numel() for p in part.parameters()) / 1e6
        trained = sum(p.numel() for p in part.parameters() if p.requires_grad) / 1e6
        frozen = "" if trained == size else f", {trained:.2f} M trainable" if trained else ", frozen"
        lines.append(f"  {name:<7}{size:8.2f} M parameters  {type(part).__name__}, {origin}{frozen}")
    return "\n".join(lines)


def describe_untrained(model, towers) -> list[str]:
    """Warn of towers that are frozen before anything has trained them."""
    frozen = [
        modality
        for modality in towers.encoders
        if modality not in towers.pretrained
        and not any(p.requires_grad for p in getattr(model.mmfusion, TOWERS[modality]).parameters())
    ]
    return [
        f"warning: the {modality} tower is frozen and was never trained: give a pretrained one with "
        f"--{modality}_model_name_or_path, or a learning rate above 0"
        for modality in frozen
    ]


def describe_checkpointing(args, model, towers) -> list[str]:
    """Name the towers that `--activation_checkpointing` leaves as they are, since they have no layers for it."""
    if not args.activation_checkpointing:
        return []
    each = {modality: getattr(model.mmfusion, TOWERS[modality]) for modality in towers.encoders}
    return [
        f"--activation_checkpointing: the {modality} tower ({type(tower).__name__}) keeps its activations: "
        "transformers has no checkpointing for it"
        for modality, tower in each.items()
        if not any(getattr(module, "gradient_checkpointing", False) for module in tower.modules())
    ]


def say(accelerator, text: str):
    """Print a line, once and not once a process."""
    if accelerator.is_main_process:
        print(text, flush=True)
