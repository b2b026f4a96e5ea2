"""The training loop: epochs, steps that are skipped, the best weights so far, and where a run can be cut off.

What is unusual: everything that a run counts is in its `Progress`, so that a checkpoint holds it whole; and a run that
keeps checkpoints is left only between two steps, where what is saved fits together.
"""

import math
import signal
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from metrics.subsets import evaluate_subsets, modality_subsets, subset_name
from metrics.tasks import judged
from modeling_mmfusion import TOWERS
from training.adapters import keep_statistics
from training.augmentation import begin_epoch
from training.features import some_rows
from training.interruption import Signals, Stopped
from training.objective import Objective
from training.optimization import set_modality_dropout
from training.precision import batch_weight, has_room, mean_over_rows
from training.processes import mean_loss, own_share, share_buffers
from training.randomness import from_there, keeping_random_state, random_state, set_random_state
from training.records import Records
from training.resuming import Keeper, weights_on_cpu
from training.sharding import clip_gradients, is_divided
from training.workers import telling_faults

MAX_NAMED_ROWS = 10


@dataclass
class Run:
    """What is trained, with what, on what; all of it prepared by `accelerate`."""

    args: Any
    accelerator: Any
    model: Any
    optimizer: Any
    scheduler: Any
    train_loader: Any
    validation_loader: Any
    steps: int  # optimiser steps of the whole run
    rows: Any  # that are trained on: `TableRows` or `StreamedRows`
    objective: Objective  # what a step makes smaller
    averaging: Any  # of the weights: `Averaging`


def fit(run: Run, keeper: Keeper, records: Records) -> tuple[dict, dict, BaseException | None]:
    """Train epoch by epoch; (best weights on the CPU, what happened, what interrupted it).

    Without checkpoints, a run that is interrupted after its first epoch ends with the best weights so far instead of
    with nothing.

    Raises:
        Stopped: It was interrupted, and a checkpoint is saved; or it was before its first epoch ended, and none is.
    """
    training = Training(run, keeper, records)
    interruption = None
    try:
        training.fit()
    except (KeyboardInterrupt, Stopped) as error:
        if keeper.is_on or training.best["state"] is None:
            raise
        interruption = error
        if run.accelerator.is_main_process:
            training.bar.write("interrupted: the best model so far is saved")
    finally:
        training.bar.close()  # ends its line, so that an error gets one of its own
    if interruption is None:
        training.best = run.averaging.finish(training.best, training.validated)
    return training.best, training.history(is_interrupted=interruption is not None), interruption


class Training:
    """A run while it runs, from the beginning or from a checkpoint."""

    def __init__(self, run: Run, keeper: Keeper, records: Records):
        self.run, self.keeper, self.records = run, keeper, records
        self.progress, self.best, self.state = keeper.start(run)  # the last: random state to go back to, or None
        self.started = time.perf_counter() - self.progress.seconds
        self.step_batches: list[tuple] = []  # of the step that is under way: (rows, whether the loss is finite)
        self.step_rows = 0  # of this step, in all processes
        # A DataLoader whose workers last all epochs draws a number when they start, once in a run; not once more.
        loaders = {
            "train": (run.train_loader, self.progress.step),
            "validation": (run.validation_loader, self.progress.epochs),
        }
        self.has_drawn = {name for name, (loader, used) in loaders.items() if used and loader.persistent_workers}
        self.bar = tqdm(
            total=len(run.train_loader.dataset) * run.args.num_train_epochs,
            initial=self.progress.num_samples,
            unit=" samples",
            unit_scale=True,
            disable=not run.accelerator.is_local_main_process,
        )

    def fit(self) -> None:
        """Train until no further epoch is due."""
        self.records.go_on(self.progress.step, len(self.progress.epochs))
        with Signals(finish_step=self.keeper.is_on) as self.signals:
            while self.progress.num_batches or not self.is_over():
                record = self.train()
                with self.records.meter.paused():
                    self.end_epoch(record)
        if self.signals.received:  # between the last look and now
            raise Stopped(self.signals.received, self.advice())

    def is_over(self) -> bool:
        """Whether no further epoch is due."""
        args, num_epochs = self.run.args, len(self.progress.epochs)
        patience = args.early_stopping_patience
        is_stalled = patience is not None and num_epochs > 0 and num_epochs - self.best["epoch"] >= patience
        return num_epochs >= args.num_train_epochs or self.progress.step >= self.run.steps or is_stalled

    def end_epoch(self, record: dict) -> None:
        """See whether the epoch that was trained is the best."""
        run, progress = self.run, self.progress
        record |= {"epoch": progress.epoch, **self.judged()}
        is_best = record["score"] > self.best["score"]
        with run.averaging.shown():
            if is_best:
                weights = weights_on_cpu(run.accelerator, run.model)
                self.best = {"score": record["score"], "state": weights, "epoch": progress.epoch}
            run.averaging.keep(progress.epoch, record["score"])
        if run.accelerator.is_main_process:
            self.bar.write(describe_epoch(record, run.args.num_train_epochs, is_best))
        self.records.note("epoch", progress.step, **record)
        progress.next_epoch(record)
        if self.keeper.is_on:
            self.leave_or_save(self.agreed()[1], self.keeper.is_due(progress, at_epoch_end=True))

    # -- training -----------------------------------------------------------------------------------------------------

    def train(self) -> dict:
        """One pass over the training rows, or less when no steps are left; the record of the epoch."""
        run, progress = self.run, self.progress
        set_training_mode(run.accelerator.unwrap_model(run.model))
        with telling_faults(run.train_loader):
            for batch in self.records.meter.waiting(self.batches()):
                norm, received = self.batch(batch)
                if norm is not None:
                    self.records.step(progress, norm, learning_rates(run.optimizer))
                    self.leave_or_save(received, self.keeper.is_due(progress))
                if progress.step == run.steps:
                    break
        mean = round(float(progress.loss_sum / progress.num_losses), 4) if progress.num_losses else None
        return {"steps": progress.epoch_steps, "train_loss": mean}

    def batches(self) -> Iterable[dict]:
        """The batches of this epoch that are left, with the random state as it was where the run was cut off."""
        loader, progress = self.run.train_loader, self.progress
        state, self.state = self.state, None
        begin_epoch(loader, progress.epoch - 1)
        if progress.resumed_at_steps:
            loader.set_epoch(progress.epoch - 1)
        if progress.step >= self.run.steps:
            loader = ()
        elif progress.num_batches:
            if self.run.rows.is_streamed and self.run.accelerator.is_main_process:
                self.bar.write(
                    f"the stream is read again up to batch {progress.num_batches}, where the run was cut off"
                )
            loader = self.run.accelerator.skip_first_batches(loader, progress.num_batches)
        elif state is not None:
            set_random_state(state)
            state = None
        if loader is self.run.train_loader and "train" in self.has_drawn:
            state = random_state()
            self.has_drawn.remove("train")
        return from_there(loader, state)

    def batch(self, batch: dict) -> tuple[torch.Tensor | None, int]:
        """One batch, and the step when it is due; (norm of the gradient at a step, signal to stop)."""
        run, progress, accelerator = self.run, self.progress, self.run.accelerator
        batch, weight, num_samples = own_share(accelerator, run.train_loader, batch)
        rows, norm, received, is_overflow = batch.pop("rows", None), None, 0, False
        self.step_rows += num_samples
        set_modality_dropout(run.args, accelerator, run.model, progress.step, run.steps)
        with accelerator.accumulate(run.model):
            share = weight * batch_weight(accelerator, run.args, num_samples)
            loss = run.objective.learn(run.model, batch, lambda part: accelerator.backward(part * share))
            self.step_batches.append((rows, loss.detach().isfinite()))
            loss = mean_loss(accelerator, loss.detach(), weight)
            if accelerator.sync_gradients:
                mean_over_rows(accelerator, run.args, run.model, self.step_rows)
                norm = clip_gradients(accelerator, run.model, run.args.max_grad_norm or math.inf)
                progress.step, progress.epoch_steps = progress.step + 1, progress.epoch_steps + 1
                is_bad, received = self.agreed([norm.isfinite(), *(is_finite for _, is_finite in self.step_batches)])
                is_overflow = is_bad and self.is_overflow()
                if is_overflow:  # the scaler leaves the step out, and so does the schedule
                    progress.num_overflows += 1
                elif is_bad:  # one such step would turn every weight into NaN
                    self.skip(batch)
                else:
                    progress.num_skipped_on_end = 0
                self.step_batches, self.step_rows = [], 0
            run.optimizer.step()
            if norm is not None and not is_bad:
                run.averaging.step()
            if not is_overflow:
                run.scheduler.step()
            run.optimizer.zero_grad()
        self.count(loss, loss.isfinite(), num_samples)
        return norm, self.signals.received if accelerator.num_processes == 1 else received

    def count(self, loss: torch.Tensor, is_finite: torch.Tensor, num_samples: int) -> None:
        """Count a batch; the loss of a skipped step may not be finite, and JSON knows no NaN."""
        progress = self.progress
        progress.loss_sum = progress.loss_sum + loss.where(is_finite, 0.0)
        progress.num_losses = progress.num_losses + is_finite
        progress.num_batches, progress.num_samples = progress.num_batches + 1, progress.num_samples + num_samples
        self.records.meter.add(loss, is_finite, num_samples)
        self.bar.update(num_samples)
        if progress.num_batches % 10 == 0:
            self.bar.set_postfix(loss=f"{float(progress.loss_sum / progress.num_losses):.3f}", refresh=False)

    def agreed(self, is_finite: Sequence[torch.Tensor] = ()) -> tuple[bool, int]:
        """(Whether the step is bad, signal to stop): one process is enough, and all know."""
        accelerator, received = self.run.accelerator, self.signals.received
        is_bad = bool(is_finite) and not bool(torch.stack(list(is_finite)).all())  # one look for all of them
        if accelerator.num_processes == 1:
            return is_bad, received
        flags = [is_bad, received == signal.SIGTERM, received == signal.SIGINT]
        flags = accelerator.reduce(torch.tensor(flags, dtype=torch.float32, device=accelerator.device)).tolist()
        return flags[0] > 0, signal.SIGTERM if flags[1] else signal.SIGINT if flags[2] else 0

    def is_overflow(self) -> bool:
        """Whether a gradient is not finite because the loss, which is, was scaled too high for float16."""
        return has_room(self.run.accelerator.scaler) and not self.agreed([ok for _, ok in self.step_batches])[0]

    # -- bad steps ----------------------------------------------------------------------------------------------------

    def skip(self, batch: dict) -> None:
        """Count a step that is not made, and give the run up after too many on end."""
        run, progress = self.run, self.progress
        progress.num_skipped_on_end += 1
        progress.num_skipped_steps += 1
        run.optimizer.zero_grad()
        is_last = progress.num_skipped_on_end == run.args.max_bad_steps
        can_try = is_last and not is_divided(run.model)  # a divided model runs in all processes or in none
        names = self.named_rows(batch if can_try else None)
        self.records.note("skipped", progress.step, progress.epoch, rows=names)
        if is_last:
            raise ValueError(
                f"the gradient was not finite in {run.args.max_bad_steps} steps on end: lower --learning_rate "
                f"({run.args.learning_rate}), or look for extreme values in the table. The last step was on "
                f"{', '.join(names)}"
            )
        if progress.num_skipped_steps == 1 and run.accelerator.is_main_process:
            self.bar.write(f"warning: step {progress.step} is skipped, its gradient is not finite: {', '.join(names)}")

    def named_rows(self, batch: dict | None) -> list[str]:
        """What messages call the rows of a bad step, of all processes; those to blame where that is known.

        Args:
            batch: The last batch of the step, whose rows are to be tried one by one; None spares the time.
        """
        blamed = [rows for rows, is_finite in self.step_batches if not is_finite]
        if batch is not None and self.step_batches[-1][0] is not None and not self.step_batches[-1][1]:
            blamed[-1] = blamed[-1][self.alone_bad(batch)]
        rows = [row for rows in blamed or [rows for rows, _ in self.step_batches] if rows is not None for row in rows]
        names = [self.run.rows.place(int(row)) for row in rows]
        gathered = gather_object([(bool(blamed), names)])
        found = [name for is_to_blame, names in gathered if is_to_blame for name in names]
        names = found or [name for _, names in gathered for name in names]
        more = [f"… and {len(names) - MAX_NAMED_ROWS} more"] if len(names) > MAX_NAMED_ROWS else []
        return [*names[:MAX_NAMED_ROWS], *more]

    def alone_bad(self, batch: dict) -> list[int]:
        """Which rows of a batch have no finite loss by themselves; all where each of them has one."""
        model = self.run.accelerator.unwrap_model(self.run.model).eval()
        count, found = len(batch["labels"]), []
        with torch.no_grad(), self.run.accelerator.autocast():
            for row in range(count):
                loss = model(**some_rows(batch, row, row + 1)).loss
                found += [] if loss.isfinite() else [row]
        return found or list(range(count))

    # -- between the steps --------------------------------------------------------------------------------------------

    def judged(self) -> dict:
        """Score and metrics of the weights as they are."""
        run = self.run
        can_stop = self.keeper.is_on and run.accelerator.num_processes == 1  # of several, the others would wait
        before = random_state() if can_stop else None
        is_kept = "validation" in self.has_drawn
        try:
            # A signal may end the middle line only, so that the weights are in their places when it is answered.
            with run.averaging.shown(), self.signals.at_once(can_stop), keeping_random_state(is_kept):
                record = self.validated()
        except Stopped as stopped:
            if can_stop:
                self.leave_or_save(stopped.signum, False, before)
            raise
        self.has_drawn.discard("validation")
        return record

    def validated(self) -> dict:
        """What `validate` says of the model as it is."""
        run = self.run
        with telling_faults(run.validation_loader):
            share_buffers(run.accelerator, run.model)
            return validate(run.accelerator, run.model, run.validation_loader, run.args.best_epoch_by)

    def leave_or_save(self, received: int, is_due: bool, state: dict | None = None) -> None:
        """Save a checkpoint when it is due or a signal came, and in the second case leave."""
        if received or is_due:
            self.progress.seconds = time.perf_counter() - self.started
            with self.records.meter.paused():
                self.keeper.save(self.run, self.progress, self.best, state)
        if received:
            raise Stopped(received, self.advice())

    def advice(self) -> str:
        return f" after step {self.progress.step}: go on with --resume_from_checkpoint latest"

    def history(self, is_interrupted: bool) -> dict:
        """What happened, for `metrics.json`."""
        progress = self.progress
        history = {
            "epochs": progress.epochs,
            "interrupted": is_interrupted,
            "num_skipped_steps": progress.num_skipped_steps,
            "seconds": round(time.perf_counter() - self.started, 1),
            "best_epoch": self.best["epoch"],
        }
        history |= {"num_overflows": progress.num_overflows} if progress.num_overflows else {}
        history |= self.run.averaging.history()
        return history | ({"resumed_at_steps": progress.resumed_at_steps} if progress.resumed_at_steps else {})


def validate(accelerator, model, validation_loader, best_epoch_by: str = "everything") -> dict:
    """The score that decides which epoch was best, and the metrics with every modality that a row has.

    Args:
        accelerator: Of the run.
        model: The model as it is wrapped.
        validation_loader: Of the rows held out.
        best_epoch_by: `everything`: the score is that of these metrics; `subsets`: the mean over all subsets of the
            modalities, for which the towers run once, too.
    """
    config = accelerator.unwrap_model(model).config
    everything, is_mean = tuple(config.modalities), best_epoch_by == "subsets"
    subsets = modality_subsets(everything) if is_mean else [everything]
    result = evaluate_subsets(model, validation_loader, subsets=subsets, accelerator=accelerator, progress=False)
    record = judged(config, result, subset_name(everything))
    if is_mean:
        scores = [judged(config, result, subset_name(subset))["score"] for subset in subsets]
        record["score"] = record["validation"]["mean_of_subsets"] = sum(scores) / len(scores)
    return record


def describe_epoch(record: dict, num_epochs: int, is_best: bool) -> str:
    values = "  ".join(f"{name} {value:.4f}" for name, value in record["validation"].items() if value is not None)
    loss = "–" if record["train_loss"] is None else f"{record['train_loss']:.3f}"
    mark = "  (best so far)" if is_best else ""
    return f"epoch {record['epoch']}/{num_epochs}  loss {loss}  {values}{mark}"


def learning_rates(optimizer) -> list[float]:
    """The present learning rate of each group of towers that has one of its own, the highest first."""
    groups = [group for group in optimizer.param_groups if "is_deep" not in group]
    rates = {group.get("initial_lr", group["lr"]): group["lr"] for group in groups}
    return [rates[peak] for peak in sorted(rates, reverse=True)]


def set_training_mode(model):
    """Training mode, but for frozen towers: their dropout, SpecAugment and batch-norm statistics stand still."""
    model.train()
    for name in TOWERS.values():
        tower = getattr(model.mmfusion, name, None)
        if tower is not None and not any(p.requires_grad for p in tower.parameters()):
            tower.eval()
        elif tower is not None:
            keep_statistics(tower)
