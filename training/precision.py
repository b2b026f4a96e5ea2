"""Number formats, the scale of the loss, compiled blocks, and the mean over the rows of an accumulated step.

What is unusual:

1. Under `fp16` a gradient that overflows is no fault: the loss was scaled too high, the scaler lowers the scale and
   leaves the step out. It is one only where there is nothing left to lower.
2. A fused optimizer asks the scaler itself whether to make a step, so that `step_was_skipped` of `accelerate` is never
   true for it: the schedule is held back by what the norm of the gradient says.
3. `torch.compile` is applied block by block and in place: between the blocks the towers still see only the rows that
   have their modality, and the names of the weights stay what they are.
4. `accelerate` divides every batch by --gradient_accumulation_steps. In the last step of an epoch there may be fewer
   batches, and fewer rows in the last of them: each row gets the weight here that it has in one large batch.
"""

from collections.abc import Iterable

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

MAX_GRAPHS = 64  # all kinds of blocks count as one function, for they share the wrapper that checkpoints them


def check_precision(accelerator) -> None:
    """Refuse what `accelerate` would take without a word, to train in float32.

    Raises:
        ValueError: float16 is asked for on a CPU.
    """
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu" and accelerator.scaler is None:
        raise ValueError(
            "--mixed_precision fp16 needs a GPU, and this is a CPU, on which the training would be in float32: take "
            "bf16 or no"
        )


def has_fused_kernel(parameters: Iterable[torch.nn.Parameter], device: torch.device) -> bool:
    """Whether AdamW has one kernel for all parameters of these kinds: on a CPU, too, but not on every device."""
    try:
        for dtype in {parameter.dtype for parameter in parameters if parameter.requires_grad}:
            one = torch.zeros(1, dtype=dtype, device=device, requires_grad=True)
            one.grad = torch.zeros_like(one)
            torch.optim.AdamW([one], fused=True).step()
    except RuntimeError:
        return False
    return True


def has_room(scaler) -> bool:
    """Whether a gradient that is not finite may come from the scale of the loss: one of 1 changes nothing."""
    return scaler is not None and scaler.get_scale() > 1


# -- accumulated steps ------------------------------------------------------------------------------------------------


def batch_weight(accelerator, args, num_rows: int) -> float:
    """How much a batch counts among those of an accumulated step, against a full one; see `mean_over_rows`.

    Args:
        accelerator: Of the run.
        args: The flags of `train.py`.
        num_rows: Of the batch, in all processes together.
    """
    if args.gradient_accumulation_steps == 1:
        return 1.0
    return num_rows / (args.per_device_train_batch_size * accelerator.num_processes)


def mean_over_rows(accelerator, args, model, num_rows: int) -> None:
    """Turn an accumulated gradient, whose batches were weighed, into that of the mean over the rows of the step.

    Args:
        accelerator: Of the run.
        args: The flags of `train.py`.
        model: Whose gradient it is.
        num_rows: Of the step, in all processes together.
    """
    full = args.gradient_accumulation_steps * args.per_device_train_batch_size * accelerator.num_processes
    if args.gradient_accumulation_steps == 1 or num_rows == full:
        return
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(full / num_rows)


# -- compiled ---------------------------------------------------------------------------------------------------------


def compile_blocks(args, model, device: torch.device) -> int:
    """Compile the repeated blocks of towers and fusion, each when it is first used; how many there are.

    As a whole the model would be traced with every row in every tower (see `docs/architecture.md`), and anew for every
    length of the batch; of a block, all copies share a graph in which number and length of the rows are variables.

    Raises:
        ValueError: There is no compiler.
    """
    backend = args.torch_compile_backend or "inductor"
    if backend == "inductor":
        _refuse_without_compiler(device)
    blocks = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for block in blocks:
        block.compile(backend=backend, mode=args.torch_compile_mode, recompile_limit=MAX_GRAPHS)
    return len(blocks)


def _refuse_without_compiler(device: torch.device) -> None:
    """Say now what would be raised in the first step, as a page of text."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler
    from torch.utils._triton import has_triton

    missing = None
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        missing = "a C++ compiler (g++, or the one that the variable CXX names)"
    if device.type == "cuda" and not has_triton():
        missing = "the package `triton`"
    if missing is not None:
        raise ValueError(
            f"--torch_compile needs {missing}, which is not here: install it, or leave the flag out, or look for what "
            "breaks with --torch_compile_backend aot_eager, which compiles nothing"
        )
