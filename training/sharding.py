"""Weights that are divided among the processes (FSDP2), for models that one device cannot hold with their optimizer.

What is unusual: the model is divided as a whole, no layer by itself. Layers that are gathered one by one need
every process at every layer, and a process whose rows have no sound never comes to the audio tower: the others would
wait for it without end. So all weights are gathered once a step; gradients, optimizer states and the weights between
the steps are divided. What no process has used gets no gradient, as with whole models.

Configured as for `accelerate` (`distributed_type: FSDP`, `fsdp_version: 2`), done with torch's own `fully_shard`:
`accelerate` would give the token embeddings a group of their own. It also passes over FSDP on CPUs, which work here.
Numbers are rounded by autocast (`--mixed_precision`) as they are without sharding.
"""

import os
from collections.abc import Mapping

import torch
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

KNOWN = "`NO`, `MULTI_GPU` or `MULTI_CPU` (DDP), and `FSDP` with `fsdp_version: 2`; see `configs/accelerate/`"


def is_asked_for(accelerator) -> bool:
    """Whether the weights shall be divided.

    Raises:
        ValueError: By an engine, or in a way, that is none of those known here.
    """
    kind = accelerator.distributed_type
    if kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise ValueError(f"`distributed_type: {kind.value}` of accelerate is not supported; allowed are {KNOWN}")
    is_on_cpus = kind == DistributedType.MULTI_CPU and os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    if kind != DistributedType.FSDP and not is_on_cpus:
        return False
    plugin = FullyShardedDataParallelPlugin() if is_on_cpus else accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise ValueError(f"`fsdp_version: {plugin.fsdp_version}` of accelerate is not supported; allowed are {KNOWN}")
    if plugin.activation_checkpointing:
        raise ValueError("`fsdp_activation_checkpointing: true` is not supported: give --activation_checkpointing")
    if getattr(plugin.cpu_offload, "offload_params", type(plugin.cpu_offload).__name__ == "CPUOffloadPolicy"):
        raise ValueError("`fsdp_offload_params: true` is not supported: set it to false, or use more devices")
    return True


def is_divided(model: nn.Module) -> bool:
    """Whether no process has the whole model: what runs it, or reads its weights, needs all of them."""
    return isinstance(model, FSDPModule)


def divide(args, accelerator, model: nn.Module) -> None:
    """Divide the weights in place, where that is asked for; before the optimizer is made of them.

    Raises:
        ValueError: As `is_asked_for`, or LoRA is asked for, whose matrices are merged into whole weights.
    """
    if not is_asked_for(accelerator):
        return
    if args.lora:
        raise ValueError("--lora needs the whole model in each process, and FSDP divides it: train it with DDP")
    model.to(accelerator.device)
    for tensor in (*model.parameters(), *model.buffers()):  # as DDP does: all start with those of the first process
        torch.distributed.broadcast(tensor.detach(), 0)
    fully_shard(model, mesh=init_device_mesh(accelerator.device.type, (accelerator.num_processes,)))
    model.set_reduce_scatter_unused_params(True)  # processes may lack different modalities
    register_fsdp_forward_method(model, "encode")  # the evaluation calls it by itself


def prepare(accelerator, model, optimizer, scheduler, *loaders) -> list:
    """As `accelerator.prepare`, which would divide a model once more, or wrap it for DDP."""
    if not is_divided(model):
        return accelerator.prepare(model, optimizer, scheduler, *loaders)
    model = accelerator.prepare_model(model, evaluation_mode=True)  # autocast, and nothing else
    prepared = [accelerator.prepare_optimizer(optimizer), accelerator.prepare_scheduler(scheduler)]
    return [model, *prepared, *(accelerator.prepare_data_loader(loader) for loader in loaders)]


def clip_gradients(accelerator, model, max_norm: float) -> torch.Tensor:
    """Clip them to a norm over all processes; the norm before that."""
    if not is_divided(model):
        return accelerator.clip_grad_norm_(model.parameters(), max_norm)
    accelerator.unscale_gradients()
    _forget_unused(model)
    return whole(nn.utils.clip_grad_norm_(model.parameters(), max_norm))


def _forget_unused(model: nn.Module) -> None:
    """Take the gradients that are zero in every process for none: momentum and weight decay stay off such weights.

    That is how weights are treated that no row of a step has used when the model is not divided.
    """
    with_gradient = [parameter for parameter in model.parameters() if parameter.grad is not None]
    is_used = torch.stack([parameter.grad.to_local().any() for parameter in with_gradient]).float()
    torch.distributed.all_reduce(is_used, torch.distributed.ReduceOp.MAX)
    for parameter, used in zip(with_gradient, is_used.tolist(), strict=True):
        parameter.grad = parameter.grad if used else None


# -- whole tensors ----------------------------------------------------------------------------------------------------


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, gathered where it is divided; then every process must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def divided_as(tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The whole tensor, which every process has, divided as the other one is, if it is."""
    if not isinstance(other, DTensor) or tensor.shape != other.shape:
        return tensor
    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements, src_data_rank=None)


def load_weights(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Give a model, divided or not, whole weights, which every process has.

    Raises:
        RuntimeError: They do not fit.
    """
    now = model.state_dict() if is_divided(model) else {}
    model.load_state_dict({name: divided_as(tensor, now.get(name, tensor)) for name, tensor in weights.items()})


def undivided(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> nn.Module:
    """The model as it was before it was divided, with these weights, to be saved; the model itself if it was not."""
    if not is_divided(model):
        return model
    plain_class = next(base for base in type(model).__mro__ if not issubclass(base, FSDPModule))
    with torch.device("meta"):
        plain = plain_class(model.config)
    plain.load_state_dict(weights, assign=True)
    return plain
