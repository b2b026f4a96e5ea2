"""`--auto_find_batch_size`: how many rows fit into memory at once, found before the training and not in its middle.

What is unusual: the batch that is tried is not the first one but the one with the longest rows, which in a training
may come only after hours; it is trained on twice, so that the optimizer's moments are there, too; then weights and
random state are put back. So a run ends with the same weights as one that was started with what was found, no
checkpoint ever changes its batch size, and of several processes none is left waiting when another has no room.

The rows of a step stay as many: what a batch loses, --gradient_accumulation_steps gains.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from accelerate.utils import find_executable_batch_size, release_memory, send_to_device
from accelerate.utils.memory import should_reduce_batch_size

from cli.arguments import first_line
from data.lengths import audio_seconds, text_tokens
from training.identity import SIZES, set_batch_size
from training.loop import set_training_mode
from training.objective import make_objective
from training.optimization import make_optimizer
from training.randomness import keeping_random_state
from training.resuming import weights_on_cpu
from training.sharding import is_asked_for

REMEDIES = (
    "--activation_checkpointing, --mixed_precision bf16, a smaller --max_audio_seconds or --max_text_length, or "
    "smaller towers"
)


def find_batch_size(args, accelerator, model, towers, rows, loader, teacher=None) -> str:
    """Find the largest batch that fits, by halving, and take it; what was found, for people.

    Args:
        args: The flags of `train.py`, which get what is found.
        accelerator: Of the run.
        model: That is to be trained, not yet prepared; its weights are afterwards as they were.
        towers: Its towers.
        rows: To train on: `TableRows`.
        loader: A DataLoader of these rows, whose dataset and `collate_fn` are used.
        teacher: As for `make_objective`.

    Raises:
        ValueError: Not even one row fits; or the model is to be divided among the processes.
    """
    if is_asked_for(accelerator):
        raise ValueError(
            "--auto_find_batch_size tries a batch in each process by itself, and the model of this run is divided "
            "among them: give --per_device_train_batch_size"
        )
    sizes, problems = sizes_of(args), []
    order = longest_first(rows.table, towers.processor)
    trial = Trial(args, accelerator, model, towers, loader, teacher)
    descent = iter([*sizes[1:], 0])

    @find_executable_batch_size(starting_batch_size=sizes[0], reduce_batch_size_fn=lambda: next(descent))
    def attempt(size: int) -> int:
        problem = trial.problem(order[:size], is_accumulated=size < sizes[0] or args.gradient_accumulation_steps > 1)
        if bool(accelerator.reduce(torch.tensor(float(problem is not None), device=accelerator.device))):
            problems.append(problem or "in another process")
            raise RuntimeError("a process is out of memory.")  # at which Accelerate lowers the size, in each of them
        return size

    with keeping_random_state(), trial:
        try:
            size = attempt()
        except RuntimeError as error:
            if len(problems) < len(sizes):
                raise
            raise ValueError(
                f"--auto_find_batch_size: not even one row fits into memory ({problems[-1]}). Try {REMEDIES}"
            ) from error
    set_batch_size(args, size)
    accelerator.gradient_accumulation_steps = args.gradient_accumulation_steps
    return _describe(sizes[0], args, problems)


def sizes_of(args) -> list[int]:
    """The batch sizes to try: each at most half of the one before, and a whole part of the rows of a step."""
    sizes = [args.per_device_train_batch_size]
    rows = sizes[0] * args.gradient_accumulation_steps
    while sizes[-1] > 1:
        sizes.append(next(size for size in range(sizes[-1] // 2, 0, -1) if rows % size == 0))
    return sizes


def _describe(asked: int, args, problems: list[str]) -> str:
    size, steps = (getattr(args, name) for name in SIZES)
    if size == asked:
        return f"batches of {size} rows fit into memory"
    return (
        f"batches of {asked} rows do not fit into memory ({problems[0]}): taken are --per_device_train_batch_size "
        f"{size} --gradient_accumulation_steps {steps}, with which a step is on {size * steps} rows as before"
    )


# -- one attempt ------------------------------------------------------------------------------------------------------


def longest_first(table, processor) -> list[int]:
    """The rows by what they take in memory: the longest sound first, the longest text next, then by both together.

    A batch is padded to its longest text and to its longest sound, so that the first rows make a batch the largest.
    """
    read, shares = set(table.modalities) & set(processor.modalities), []
    if "audio" in read:
        seconds = np.minimum(audio_seconds(table), processor.max_audio_seconds)
        shares.append(np.nan_to_num(seconds / processor.max_audio_seconds))
    if "text" in read:
        shares.append(np.nan_to_num(text_tokens(table, processor) / processor.max_text_length))
    order = np.argsort(-(table.presence.sum(axis=1) + sum(shares)), kind="stable").tolist()
    first = [int(np.argmax(share)) for share in shares]
    return list(dict.fromkeys([*first, *order]))


class Trial:
    """Trains on a batch to see whether it fits; a context manager, which puts the weights back.

    Args:
        As for `find_batch_size`.
    """

    def __init__(self, args, accelerator, model, towers, loader, teacher):
        self.args, self.accelerator, self.model, self.towers = args, accelerator, model, towers
        self.loader, self.teacher = loader, teacher

    def __enter__(self) -> "Trial":
        self.weights = weights_on_cpu(self.accelerator, self.model)
        return self

    def __exit__(self, *error) -> None:
        self.model.load_state_dict(self.weights)
        self._free()

    def problem(self, rows: list[int], is_accumulated: bool) -> str | None:
        """Why the batch of these rows does not fit; None where it does.

        Args:
            rows: Indices into the dataset.
            is_accumulated: Whether the gradient of a batch is still there when the next one comes.
        """
        problem = None
        try:
            self._train_twice(rows, is_accumulated)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            problem = first_line(error)
        self._free()  # not before the error is gone, which holds all that the attempt had
        return problem

    def _train_twice(self, rows: list[int], is_accumulated: bool) -> None:
        """Two steps as the training makes them; in the second everything that a training holds is there at once."""
        args, model = self.args, self.model
        set_training_mode(model.to(self.accelerator.device))
        objective = make_objective(args, self.accelerator, model, self.teacher)
        optimizer = make_optimizer(args, model, self.towers)
        objective.join(args, optimizer)
        for _ in range(2):
            batch = self.loader.collate_fn([self.loader.dataset[row] for row in rows])
            batch.pop("rows", None)
            with self.accelerator.autocast():
                objective.learn(model, send_to_device(batch, self.accelerator.device), torch.Tensor.backward)
            optimizer.step()
            if not is_accumulated:
                optimizer.zero_grad()

    def _free(self) -> None:
        self.model.zero_grad()
        release_memory()


# -- in the training --------------------------------------------------------------------------------------------------


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error is that there is no memory left, on a GPU or here."""
    return isinstance(error, MemoryError) or should_reduce_batch_size(error)


@contextmanager
def telling_memory(args) -> Iterator[None]:
    """Say in one sentence that the memory is not enough, and what helps.

    Raises:
        OSError: It is not.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        size, steps = (getattr(args, name) for name in SIZES)
        raise OSError(
            f"out of memory ({first_line(error)}): lower --per_device_train_batch_size ({size}) and raise "
            f"--gradient_accumulation_steps ({steps}) by as much, or have --auto_find_batch_size do so; if it is the "
            f"validation, lower --per_device_eval_batch_size ({args.per_device_eval_batch_size}); or try {REMEDIES}"
        ) from error
