"""What several processes that train one model owe to one another: every row counts once, and all see the same loss.

What is unusual: the last batch of an epoch. `accelerate` fills it up with rows from the front, so that no process
waits for another; these would count twice. They are cut off again, and the gradient of each process weighs as much as
it has rows, which makes the average over the processes the mean over the rows: two processes train as one does with a
batch of twice the size. (In two places this cannot be: batch norm takes its statistics over the rows of one process,
and dropout draws other numbers in each.)
"""

import os

import torch
from accelerate.data_loader import BatchSamplerShard
from accelerate.utils import set_seed

from training.features import some_rows
from training.sharding import is_asked_for


def must_run_on_cpus() -> bool:
    """Whether a launcher started several processes where there is nothing else; `accelerate` must be told.

    It would take each of them for a run by itself.
    """
    return _started_together() > 1 and not torch.accelerator.is_available()


def check_processes(accelerator) -> None:
    """Refuse what would train several models at once into one folder, and engines that are not known here.

    Raises:
        ValueError: The processes that a launcher started do not find one another, or `sharding.is_asked_for` refuses.
    """
    if _started_together() > 1 and accelerator.num_processes == 1:
        raise ValueError(
            f"{_started_together()} processes were started (`WORLD_SIZE`), and accelerate runs each by itself on "
            f"`{accelerator.device}`: set ACCELERATE_USE_CPU=true to train on CPUs, or start one process"
        )
    is_asked_for(accelerator)


def _started_together() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def draw_apart(accelerator, seed: int) -> None:
    """Have each process but the first draw numbers of its own from here on: which rows they drop would else be alike.

    Called once weights and order of the rows are drawn, which all processes must have in common.
    """
    if accelerator.process_index > 0:
        set_seed(seed + accelerator.process_index)


def own_share(accelerator, loader, batch: dict) -> tuple[dict, float, int]:
    """(The rows of a batch that count, how much their mean weighs, rows of this batch in all processes together).

    A process whose rows are all repeated ones keeps one of them, with no weight, for it must take part in the step.

    Args:
        accelerator: Of the run.
        loader: The prepared one, from its first batch on.
        batch: Tensors (B, …) by name.
    """
    size, num_processes = len(batch["labels"]), accelerator.num_processes
    total = size * num_processes
    is_filled_up = accelerator.gradient_state.end_of_dataloader and isinstance(loader.batch_sampler, BatchSamplerShard)
    if num_processes == 1 or not is_filled_up or not (rest := len(loader.dataset) % total):
        return batch, 1.0, total
    own = min(max(rest - accelerator.process_index * size, 0), size)
    return some_rows(batch, 0, max(own, 1)), own * num_processes / rest, rest


def mean_loss(accelerator, loss: torch.Tensor, weight: float) -> torch.Tensor:
    """The mean over the rows of all processes; not finite as soon as one of them is not."""
    return loss if accelerator.num_processes == 1 else accelerator.reduce(loss * weight, "mean")


def share_buffers(accelerator, model: torch.nn.Module) -> None:
    """Give all processes the running statistics of the first one, so that they judge the weights that it saves.

    During training DDP does the same before every batch.
    """
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, 0)
