"""Going on with a training that was cut off, as if it had not been: what a checkpoint holds, taken from the run and
given back to it.

What is unusual: to the last bit. Besides weights, optimizer and schedule these are the places that decide it:

1. the order of the rows comes from seed and epoch, and batches that were seen are skipped without being opened;
2. a DataLoader draws a number when it starts, so the random state is put back after that, before the first batch;
3. workers that last all epochs draw it once in a run; after a restart theirs is drawn again, and taken back.

What changes rows at random (`augmentation`) draws from seed, epoch and row, and has no state. A stream is read again
up to where it was. Nothing is pickled, and `accelerator.load_state` is not used: it reads pickles, passes over random
states that it cannot read, and its folders are not whole at every moment.
"""

import math
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list, gather_object

from cli.files import replacing, write_json
from training.arguments import FINISHED, beside, is_finished
from training.checkpoints import Checkpoint, CheckpointFolder, read_checkpoint
from training.identity import differences, other_versions, rows_of, settings_of, take_batch_size, versions
from training.randomness import random_state, split_state
from training.records import LOG
from training.sharding import divided_as, is_divided, load_weights, whole


@dataclass
class Progress:
    """How far a training is; everything that it counts."""

    epoch: int = 1  # that is being trained
    num_batches: int = 0  # of this epoch, in each process
    epoch_steps: int = 0
    loss_sum: float | torch.Tensor = 0.0  # of this epoch's finite losses
    num_losses: int | torch.Tensor = 0
    step: int = 0  # optimiser steps, skipped ones too
    num_samples: int = 0
    num_skipped_steps: int = 0
    num_skipped_on_end: int = 0
    num_overflows: int = 0  # steps that the scaler of float16 left out
    seconds: float = 0.0
    epochs: list[dict] = field(default_factory=list)  # that are over
    resumed_at_steps: list[int] = field(default_factory=list)

    def next_epoch(self, record: dict) -> None:
        """Take the record of an epoch, and stand before the next one."""
        self.epochs.append(record)
        self.epoch, self.num_batches, self.epoch_steps, self.loss_sum, self.num_losses = self.epoch + 1, 0, 0, 0.0, 0

    def as_json(self) -> dict:
        return {**asdict(self), "loss_sum": float(self.loss_sum), "num_losses": int(self.num_losses)}


def nothing_best() -> dict:
    """What stands for the best epoch before there is one."""
    return {"score": -math.inf, "state": None, "epoch": 0}


# -- a run's state ----------------------------------------------------------------------------------------------------


def weights_on_cpu(accelerator, model) -> dict[str, torch.Tensor]:
    """A copy of the weights, which later steps do not change; of a divided model every process must ask for it."""
    state = accelerator.unwrap_model(model).state_dict()
    return {name: whole(tensor.detach()).to("cpu", copy=True).contiguous() for name, tensor in state.items()}


def collect(run, progress: Progress, best: dict, states: list[dict]) -> tuple[dict, dict]:
    """(Tensors by file, all the rest): what a checkpoint of this run holds.

    Args:
        run: A `training.loop.Run`.
        progress: How far it is.
        best: Of its best epoch score, weights and number.
        states: The random state of each process, by `split_state`.
    """
    optimizer, scaler = run.optimizer.state_dict(), run.accelerator.scaler
    tensors = {
        "model": weights_on_cpu(run.accelerator, run.model),
        "optimizer": {
            f"{index}.{name}": whole(torch.as_tensor(value).detach()).cpu().contiguous()
            for index, values in optimizer["state"].items()
            for name, value in values.items()
        },
        "random": {f"{index}.{name}": value for index, state in enumerate(states) for name, value in state[1].items()},
    }
    if extra := run.objective.extra.state_dict():
        tensors["beside"] = {name: tensor.detach().cpu().contiguous() for name, tensor in extra.items()}
    if best["state"] is not None:
        tensors["best"] = best["state"]
    tensors |= run.averaging.tensors()
    rest = {
        "progress": progress.as_json(),
        "best": {"score": None if best["state"] is None else best["score"], "epoch": best["epoch"]},
        "optimizer": optimizer["param_groups"],
        "scheduler": run.scheduler.state_dict(),
        "scaler": None if scaler is None else scaler.state_dict(),
        "random": [plain for plain, _ in states],
        "averaging": run.averaging.state(),
    }
    return tensors, rest


def give_back(run, checkpoint: Checkpoint) -> tuple[Progress, dict, dict]:
    """Bring a run to where a checkpoint was taken: (progress, best epoch, random state of this process).

    Raises:
        ValueError: The weights do not fit the model.
    """
    state = checkpoint.state()
    try:
        load_weights(run.accelerator.unwrap_model(run.model), checkpoint.tensors("model"))
        run.objective.extra.load_state_dict(checkpoint.tensors("beside"))
        run.optimizer.load_state_dict(_optimizer_state(run.optimizer, state["optimizer"], checkpoint))
    except (RuntimeError, ValueError, IndexError) as error:
        line = next(iter(str(error).strip().splitlines()), "")
        raise ValueError(f"`{checkpoint.folder}` does not fit the model of this run: {line}") from error
    run.scheduler.load_state_dict(state["scheduler"])
    if run.accelerator.scaler is not None and state["scaler"] is not None:
        run.accelerator.scaler.load_state_dict(state["scaler"])
    run.averaging.give_back(checkpoint)
    best = {**nothing_best(), "epoch": state["best"]["epoch"]}
    if weights := checkpoint.tensors("best"):
        best |= {"score": state["best"]["score"], "state": weights}
    index, numbers = run.accelerator.process_index, checkpoint.tensors("random")
    own = {name: numbers[f"{index}.{name}"] for name in ("torch", "cuda") if f"{index}.{name}" in numbers}
    progress = Progress(**state["progress"])
    progress.resumed_at_steps.append(progress.step)
    return progress, best, {**state["random"][index], **own}


def _optimizer_state(optimizer, groups: list[dict], checkpoint: Checkpoint) -> dict:
    """As `state_dict()` gave it; JSON knows no tuple, so what is one in the optimizer becomes one again."""
    state: dict[int, dict] = {}
    for key, tensor in checkpoint.tensors("optimizer").items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = tensor
    for group, now in zip(groups, optimizer.param_groups, strict=True):
        group |= {name: tuple(value) for name, value in group.items() if isinstance(now.get(name), tuple)}
        for index, parameter in zip(group["params"], now["params"], strict=True):
            values = state.get(index, {})
            state[index] = {name: divided_as(value, parameter) for name, value in values.items()}
    return {"state": state, "param_groups": groups}


# -- when and where ---------------------------------------------------------------------------------------------------


def together(accelerator, function: Callable):
    """Do something in the main process alone; its result or its error is that of every process.

    Were it raised in one process only, the others would wait for that one until they are killed.
    """
    outcome = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = function()
        except (OSError, ValueError) as error:
            outcome[1] = error
    result, error = broadcast_object_list(outcome)
    if error is not None:
        raise error
    return result


class Keeper:
    """Saves and finds the checkpoints of a run; a context manager, which holds their folder against other runs.

    Args:
        args: The flags of `train.py`.
        accelerator: Of the run.

    Raises:
        OSError: The folder is another run's, cannot be written to, or holds checkpoints that nothing was said about.
        FileNotFoundError: There is no checkpoint to go on from.
        ValueError: It is torn, or of a run with other settings.
    """

    def __init__(self, args, accelerator):
        self.args, self.accelerator = args, accelerator
        self.every, self.is_on = args.checkpointing_steps, args.checkpointing_steps is not None
        self.store = CheckpointFolder(beside(args.output_dir, "checkpoints"), args.checkpoints_total_limit)
        self.log_file = self.store.folder / LOG
        self.settings, self.run_id, self.checkpoint = settings_of(args, accelerator.num_processes), None, None

    def __enter__(self) -> "Keeper":
        try:
            self.run_id, folder, notes = together(self.accelerator, self._opened)
            for note in notes:
                self.accelerator.print(note)
            if folder is not None:
                self._take(folder)
        except BaseException:
            self.store.release()
            raise
        return self

    def __exit__(self, *error) -> None:
        self.store.release()

    @property
    def is_finished(self) -> bool:
        """Whether the run that shall go on has come to its end before."""
        is_asked = self.checkpoint is not None and not self.args.overwrite_output_dir
        return is_asked and is_finished(self.args.output_dir)

    def take_rows(self, *rows) -> None:
        """Compare the rows, training and validation, with those that the checkpoint was trained on.

        Raises:
            ValueError: They are others.
        """
        if self.is_on or self.checkpoint is not None:
            self.settings |= together(self.accelerator, lambda: rows_of(*rows))
        if self.checkpoint is not None:
            self._refuse_others(self.checkpoint.state()["settings"], self.settings)

    def start(self, run) -> tuple[Progress, dict, dict | None]:
        """(Progress, best epoch, random state to go back to) from the checkpoint, or those of a new run."""
        if self.checkpoint is None:
            return Progress(), nothing_best(), None
        return give_back(run, self.checkpoint)

    def note_settings(self) -> None:
        """Take the flags as they are now, of which some are found in the run."""
        self.settings |= settings_of(self.args, self.accelerator.num_processes)

    def is_due(self, progress: Progress, *, at_epoch_end: bool = False) -> bool:
        if not self.is_on or at_epoch_end or self.every == "epoch":
            return self.is_on and at_epoch_end and self.every == "epoch"
        return progress.step % self.every == 0

    def save(self, run, progress: Progress, best: dict, state: dict | None = None) -> None:
        """Write a checkpoint; called by every process.

        Args:
            run: The run.
            progress: How far it is.
            best: Its best epoch.
            state: The random state to go back to; None: the present one.

        Raises:
            OSError: It cannot be written; those before it are as they were.
        """
        states = gather_object([split_state(random_state() if state is None else state)])
        parts = collect(run, progress, best, states) if is_divided(run.model) else None  # needs every process

        def write() -> None:
            tensors, rest = parts or collect(run, progress, best, states)
            known = {"settings": self.settings, "command": self.args.command, "versions": versions()}
            self.store.save(progress.step, self.run_id, tensors, {**rest, **known})

        together(self.accelerator, write)

    def finish(self) -> None:
        """Note that the model is put into its place next; called by the main process."""
        folder, output_dir = self.store.folder, self.args.output_dir
        if self.is_on or (self.checkpoint is not None and self.checkpoint.folder.parent == folder):
            replaced = output_dir.stat().st_ino if output_dir.exists() else None
            with replacing(folder / FINISHED) as beside:
                write_json(beside, {"run_id": self.run_id, "replaces": replaced})

    def _opened(self) -> tuple[str, Path | None, list[str]]:
        """(Name of the run, folder of the checkpoint to go on from, notes for people)."""
        asked = self.args.resume_from_checkpoint
        if self.is_on:
            self.store.acquire()
        checkpoint, notes = (None, []) if asked is None else self._found(asked)
        if checkpoint is not None:
            return checkpoint.manifest["run_id"], checkpoint.folder, notes
        if self.is_on:
            self._refuse_silence(asked)
            (self.store.folder / FINISHED).unlink(missing_ok=True)  # the run that did is not this one
        return uuid.uuid4().hex, None, notes

    def _found(self, asked: str) -> tuple[Checkpoint | None, list[str]]:
        path = self.store.folder if asked in ("latest", "auto") else Path(asked)
        if asked not in ("latest", "auto") and (not path.is_dir() or (path / "state.json").exists()):
            return self._one(path), []
        checkpoint, problems = CheckpointFolder(path).newest()
        notes = [f"warning: {problem}; the one before it is taken" for problem in problems]
        if checkpoint is not None:
            return checkpoint, [*notes, f"going on from `{checkpoint.folder}`"]
        if asked == "auto" and not problems:
            return None, [f"no checkpoint in `{path}` yet: the training starts at the beginning"]
        torn = f" ({'; '.join(problems)})" if problems else ""
        raise FileNotFoundError(
            f"--resume_from_checkpoint {asked}: `{path}` holds no checkpoint that is whole{torn}. Leave the flag out "
            "to start at the beginning"
        )

    def _one(self, path: Path) -> Checkpoint:
        try:
            return read_checkpoint(path)
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(
                f"--resume_from_checkpoint {path}: {error}. `latest` takes the newest in `{self.store.folder}`"
            ) from None

    def _refuse_silence(self, asked: str | None) -> None:
        """Checkpoints that are there may be hours of work, and a new run would replace them."""
        if asked is None and self.store.folders() and not self.args.overwrite_output_dir:
            raise OSError(
                f"`{self.store.folder}` holds checkpoints of an earlier run: go on from them with "
                "--resume_from_checkpoint latest, name another --output_dir, or start at the beginning and replace "
                "them with --overwrite_output_dir"
            )

    def _take(self, folder: Path) -> None:
        if not (folder / "manifest.json").is_file():
            raise FileNotFoundError(f"`{folder}` is not seen from here: all processes must see the same checkpoints")
        self.checkpoint = read_checkpoint(folder, is_known=True)  # the main process has compared every file
        state = self.checkpoint.state()
        if self.args.auto_find_batch_size:
            take_batch_size(self.args, state["settings"])
            self.accelerator.gradient_accumulation_steps = self.args.gradient_accumulation_steps
            self.note_settings()
        self._refuse_others({name: state["settings"].get(name) for name in self.settings}, self.settings)
        self.args.command = state["command"]  # the one that started the run
        if other := other_versions(state["versions"]):
            self.accelerator.print(f"note: the checkpoint was written with {other}; the last bits may differ")

    def _refuse_others(self, then: dict, now: dict) -> None:
        if found := differences(then, now):
            raise ValueError(
                f"`{self.checkpoint.folder}` is of a run with other settings: {'; '.join(found)}. Go on with the old "
                "ones, or leave --resume_from_checkpoint out and name another --output_dir to train anew"
            )
