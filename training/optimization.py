"""Accelerator, optimiser and schedule of a run."""

import math

import torch
from accelerate import Accelerator, DataLoaderConfiguration, DistributedDataParallelKwargs
from transformers import get_scheduler

from modeling_mmfusion import TOWERS
from training.arguments import beside
from training.records import trackers_of


def make_accelerator(args) -> Accelerator:
    """What moves model and batches to the devices, and gradients between the processes."""
    return Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=args.mixed_precision,
        log_with=trackers_of(args) or None,
        project_dir=beside(args.output_dir, "tracking") if args.with_tracking else None,
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),
        # A batch may lack a modality: its tower then has no gradient.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


def tower_learning_rate(args, modality: str, towers) -> float:
    """The peak learning rate of a tower; 0 freezes it."""
    given = getattr(args, f"{modality}_learning_rate")
    if given is not None:
        return given
    return 5e-5 if modality in towers.pretrained else args.learning_rate


def make_optimizer(args, model, towers):
    """AdamW; a learning rate for each tower, weight decay on matrices only (norms and biases are vectors)."""
    rates = {TOWERS[m]: tower_learning_rate(args, m, towers) for m in towers.encoders}
    groups: dict[tuple, list] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = next((r for tower, r in rates.items() if f"mmfusion.{tower}." in name), args.learning_rate)
            groups.setdefault((rate, args.weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()],
        fused=True,  # one kernel for all parameters, on the CPU too
    )


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
