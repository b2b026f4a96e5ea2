"""Accelerator, optimiser and schedule of a run."""

import math
import re
from collections.abc import Sequence

import torch
from accelerate import Accelerator, DataLoaderConfiguration, DistributedDataParallelKwargs, PartialState
from transformers import get_scheduler

from modeling_mmfusion import TOWERS
from training.arguments import beside
from training.precision import check_precision, has_fused_kernel
from training.processes import check_processes, must_run_on_cpus
from training.records import trackers_of

LAYER = re.compile(r"(?:^|\.)(?:layer|layers|stages|blocks)\.(\d+)\.")


def make_accelerator(args) -> Accelerator:
    """What moves model and batches to the devices, and gradients between the processes."""
    accelerator = Accelerator(
        cpu=must_run_on_cpus(),
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=args.mixed_precision,
        log_with=trackers_of(args) or None,
        project_dir=beside(args.output_dir, "tracking") if args.with_tracking else None,
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),
        # A batch may lack a modality: its tower then has no gradient.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    check_precision(accelerator)
    check_processes(accelerator)
    return accelerator


def tower_learning_rate(args, modality: str, towers) -> float:
    """The peak learning rate of a tower; 0 freezes it."""
    given = getattr(args, f"{modality}_learning_rate")
    if given is not None:
        return given
    if modality in (args.lora or ()):
        return 2e-4
    return 5e-5 if modality in towers.pretrained else args.learning_rate


def set_modality_dropout(args, accelerator, model, step: int, steps: int):
    """Bring the probability that a modality is left out to where it is at this step, counted from 0.

    It is above 0 from the first step on, so that every step fuses its rows twice.
    """
    if args.modality_dropout_ramp:
        share = (step + 1) / max(1.0, args.modality_dropout_ramp * steps)
        accelerator.unwrap_model(model).modality_dropout = args.modality_dropout * min(1.0, share)


def make_optimizer(args, model, towers):
    """AdamW; a learning rate for each tower, weight decay on matrices only (norms and biases are vectors).

    Groups of deeper layers, which have a part of their tower's rate, say so by `is_deep`.

    Raises:
        ValueError: `--layer_decay` finds no layer to act on.
    """
    shares = layer_shares(args, model, towers)
    rates = {TOWERS[m]: tower_learning_rate(args, m, towers) for m in towers.encoders}
    groups: dict[tuple, list] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = next((r for tower, r in rates.items() if f"mmfusion.{tower}." in name), args.learning_rate)
            share, decay = shares.get(name, 1.0), args.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((rate * share, decay, share < 1), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": params, "lr": rate, "weight_decay": decay} | ({"is_deep": True} if is_deep else {})
            for (rate, decay, is_deep), params in groups.items()
        ],
        fused=has_fused_kernel(model.parameters(), PartialState().device) or None,  # None: what torch takes as best
    )


def layer_shares(args, model, towers) -> dict[str, float]:
    """By the name of a parameter the part of its tower's learning rate that `--layer_decay` leaves it.

    Only pretrained towers that learn have such layers: what lies deep in them is general, and shall change least.

    Raises:
        ValueError: There is none.
    """
    if args.layer_decay == 1:
        return {}
    parameters, shares = dict(model.named_parameters()), {}
    for tower in (f"mmfusion.{TOWERS[modality]}." for modality in towers.pretrained):
        names = [name for name in parameters if tower in name]
        if any(parameters[name].requires_grad for name in names):
            inside = [name.partition(tower)[2] for name in names]
            shares |= dict(zip(names, decayed(inside, args.layer_decay), strict=True))
    if not any(share < 1 for share in shares.values()):
        raise ValueError(
            f"--layer_decay {args.layer_decay} lowers the learning rates in pretrained towers, and here is none that "
            "learns and has numbered layers: leave it out, or name such a tower by --text_model_name_or_path and its "
            "like"
        )
    return shares


def decayed(names: Sequence[str], decay: float) -> list[float]:
    """decay ** (number of layers above), for each parameter of a tower by its name there, in the tower's order.

    A layer is what the outermost numbered `layer`, `layers`, `stages` or `blocks` on the way to a parameter holds.
    Whatever comes before the first of them, such as embeddings and convolutions, lies one deeper than that; whatever
    comes after, such as a last norm, learns like the last. All is 1 where nothing is numbered so.

    Source: Clark et al. 2020, ELECTRA, appendix A (arXiv:2003.10555).
    """
    found = [LAYER.search(name) for name in names]
    depths = [0 if match is None else 1 + int(match[1]) for match in found]
    top, first = max(depths), next((i for i, depth in enumerate(depths) if depth), 0)
    return [decay ** (top - (depth or (top if i > first else 0))) for i, depth in enumerate(depths)]


def number_of_steps(args, train_loader, accelerator) -> int:
    """Optimiser steps of the whole run."""
    batches = math.ceil(len(train_loader) / accelerator.num_processes)
    steps = args.num_train_epochs * math.ceil(batches / args.gradient_accumulation_steps)
    return steps if args.max_train_steps is None else min(steps, args.max_train_steps)


def make_scheduler(args, optimizer, steps: int, num_processes: int):
    """The learning rate over the run; `accelerate` advances it once for each process at every step."""
    return get_scheduler(
        args.lr_scheduler_type,
        optimizer,
        num_warmup_steps=math.ceil(args.warmup_ratio * steps) * num_processes,
        num_training_steps=steps * num_processes,
    )
