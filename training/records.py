"""What a training says while it runs: `log.jsonl`, one JSON object a line, and trackers where they are asked for.

A line has `step` and `epoch`. A line every --logging_steps holds what was measured since the last one; a line with
`event` tells that an epoch is over, a step was skipped, or the run went on from a checkpoint. With checkpoints the
file grows beside them while the run lasts, and a run that goes on cuts off what it will do again; without them it is
written with the model. A tracker that fails is told once and left behind: no training ends for its diary.
"""

import importlib.util
import json
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from cli.arguments import first_line
from cli.files import replacing
from training.randomness import keeping_random_state

LOG, CURVES = "log.jsonl", "curves.png"
TRACKERS = {"trackio": ("trackio",), "tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",)}
PROJECT = "mmfusion"


def trackers_of(args) -> list[str]:
    """Names of the trackers that are asked for, for `Accelerator(log_with=…)`.

    Raises:
        ImportError: The package of one is missing, or with `all` those of every one.
    """
    if not args.with_tracking:
        return []
    asked = list(TRACKERS) if args.report_to in (None, "all") else [args.report_to]
    there = [name for name in asked if any(importlib.util.find_spec(package) for package in TRACKERS[name])]
    if not there:
        raise ImportError(
            f"--report_to {args.report_to or 'all'} needs the package `{asked[0]}`, which is not installed: "
            f"pip install {asked[0]}"
        )
    return there


class Meter:
    """Measures the steps since the last line of the log."""

    def __init__(self):
        self.clear()

    def clear(self) -> None:
        self.started, self.waited, self.num_samples, self.loss_sum, self.num_losses = time.perf_counter(), 0, 0, 0, 0
        self.lengths: dict[str, tuple] = {}

    def waiting(self, batches: Iterable[dict]) -> Iterator[dict]:
        """The batches; how long each lets the training wait is counted, and how much of it is padding."""
        batches = iter(batches)
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - started
            if batch is None:
                return
            for modality, counts in lengths_of(batch).items():
                before = self.lengths.get(modality, (0, 0))
                self.lengths[modality] = tuple(map(sum, zip(before, counts, strict=True)))
            yield batch

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out of the time what is done in here."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.started += time.perf_counter() - started

    def add(self, loss: torch.Tensor, is_finite: torch.Tensor, num_samples: int) -> None:
        self.loss_sum, self.num_losses = self.loss_sum + loss.where(is_finite, 0.0), self.num_losses + is_finite
        self.num_samples += num_samples

    def values(self) -> dict:
        """Loss, speed, the share of the time that was spent on waiting for rows, and that of padding by modality."""
        seconds = max(time.perf_counter() - self.started, 1e-9)
        return {
            "loss": float(self.loss_sum / self.num_losses) if self.num_losses else None,
            "samples_per_second": round(self.num_samples / seconds, 2),
            "data_wait_share": round(min(1.0, self.waited / seconds), 4),
            "padding": {name: round(1 - float(filled / room), 4) for name, (filled, room) in self.lengths.items()},
        }


def lengths_of(batch: dict[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Of each of text and audio (tokens or samples, the same with padding); rows that lack it cost nothing.

    They stay on the device, so that nothing waits for it.
    """
    masks = {"text": (0, batch.get("attention_mask")), "audio": (2, batch.get("audio_attention_mask"))}
    return {
        modality: (mask.sum(), (batch["modality_mask"][:, column].sum() * mask.shape[1]).clamp(min=1))
        for modality, (column, mask) in masks.items()
        if mask is not None
    }


class Records:
    """The log of a run, and its trackers; a context manager, which ends these.

    Args:
        args: The flags of `train.py`.
        accelerator: Of the run; only its main process writes.
        live: The file that grows while the run lasts; None keeps the lines in memory.
    """

    def __init__(self, args, accelerator, live: Path | None):
        self.accelerator, self.live, self.every = accelerator, live, args.logging_steps
        self.meter, self.lines = Meter(), []
        self._trackers = _start_trackers(args, accelerator) if args.with_tracking else []

    def __enter__(self) -> "Records":
        return self

    def __exit__(self, *error) -> None:
        for tracker in list(self._trackers):
            self._try(tracker, tracker.finish)

    def go_on(self, step: int, num_epochs: int) -> None:
        """Take up the lines of the run up to a checkpoint, which may lie behind what was logged."""
        if not self.accelerator.is_main_process:
            return
        if step and self.live is not None and self.live.is_file():
            self.lines = [line for line in _whole_lines(self.live) if _is_behind(line, step, num_epochs)]
        if self.live is not None:
            _write(self.lines, self.live)
        if step:
            self.note("resumed", step, num_epochs + 1)

    def step(self, progress, norm, rates: list[float]) -> None:
        """Write the line of a step, when it is its turn."""
        if progress.step % self.every or not self.accelerator.is_main_process:
            return
        norm = float(norm)
        values = {
            **self.meter.values(),
            "learning_rates": sorted(set(rates), reverse=True),
            "gradient_norm": norm if norm < float("inf") else None,  # NaN is not less either
        }
        self._add({"step": progress.step, "epoch": progress.epoch, **values})
        self.meter.clear()

    def note(self, event: str, step: int, epoch: int, **values) -> None:
        """Write a line about something that is not measured at every step."""
        if self.accelerator.is_main_process:
            self._add({"step": step, "epoch": epoch, "event": event, **values})

    def save(self, folder: Path) -> None:
        """Write the log, and the curves drawn from it, into the model folder, which is complete without them."""
        _save(self.lines, folder)

    def _add(self, line: dict) -> None:
        self.lines.append(line)
        if self.live is not None:
            try:
                with self.live.open("a", encoding="utf-8") as file:
                    file.write(_as_text(line))
            except OSError as error:
                raise OSError(f"the log `{self.live}` cannot be written: {error}") from error
        for tracker in list(self._trackers):
            self._try(tracker, tracker.log, _numbers(line), step=line["step"])

    def _try(self, tracker, function, *values, **options) -> None:
        try:
            with keeping_random_state():
                function(*values, **options)
        except Exception as error:  # whatever a tracker's network and its package come up with
            self._trackers.remove(tracker)
            _warn(tracker.name, error)


def complete(folder: Path, live: Path) -> None:
    """Give a model folder the log and the curves of its run, where that was killed before it could."""
    if not (folder / CURVES).exists() and live.is_file():
        _save(list(_whole_lines(live)), folder)


def _save(lines: list[dict], folder: Path) -> None:
    from training.curves import draw_curves

    try:
        _write(lines, folder / LOG)
        draw_curves(lines, folder / CURVES)
    except OSError as error:
        print(f"warning: the model is saved, but not its log and curves: {error}", file=sys.stderr)


def _write(lines: list[dict], path: Path) -> None:
    with replacing(path) as beside:
        beside.write_text("".join(map(_as_text, lines)), encoding="utf-8")


def _as_text(line: dict) -> str:
    return json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n"


def _whole_lines(path: Path) -> Iterator[dict]:
    """The lines of a log; the last one may be torn."""
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            return
        yield line


def _is_behind(line: dict, step: int, num_epochs: int) -> bool:
    """Whether a line was written before the checkpoint was."""
    return line["step"] <= step and (line.get("event") != "epoch" or line["epoch"] <= num_epochs)


def _numbers(line: dict, prefix: str = "") -> dict[str, float]:
    """A line as trackers take it: numbers by name."""
    numbers: dict[str, float] = {}
    for name, value in line.items():
        if isinstance(value, list):
            value = {str(i): item for i, item in enumerate(value)}
        if isinstance(value, dict):
            numbers |= _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name != "step":
            numbers[prefix + name] = value
    return numbers


def _start_trackers(args, accelerator) -> list:
    """The trackers, each by itself, so that one that cannot be reached does not take the others with it."""
    settings = {
        name: value if isinstance(value, bool | int | float | str) else str(value)
        for name, value in vars(args).items()
        if name != "hub_token" and value is not None
    }
    options = {name: {"name": args.output_dir.name} for name in ("wandb", "trackio")}
    names, started = list(accelerator.log_with), []
    for name in names:
        accelerator.log_with, accelerator.trackers = [name], []
        try:
            with keeping_random_state():
                accelerator.init_trackers(PROJECT, config=settings, init_kwargs=options)
            started += accelerator.trackers
        except Exception as error:  # as above
            _warn(str(name), error)
    accelerator.trackers = started
    return started


def _warn(name: str, error: Exception) -> None:
    line = first_line(error)
    print(f"warning: the tracker `{name}` fails ({line}): the training goes on without it", file=sys.stderr)
