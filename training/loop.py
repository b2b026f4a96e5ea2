"""The training loop: epochs, steps that are skipped, the best weights so far."""

import math
import time

import torch
from tqdm.auto import tqdm

from metrics.subsets import evaluate_subsets, score, subset_name
from modeling_mmfusion import TOWERS

MAX_BAD_STEPS = 10  # on end, before a run is given up


def fit(args, accelerator, model, optimizer, scheduler, train_loader, validation_loader, steps: int):
    """Train epoch by epoch; (best weights on the CPU, what happened).

    Interrupted with Ctrl-C after the first epoch, it ends with the best weights so far instead of with nothing.
    """
    best = {"score": -math.inf, "state": None, "epoch": 0}
    history = {"epochs": [], "interrupted": False, "num_skipped_steps": 0, "num_skipped_on_end": 0}
    rows = len(train_loader.dataset) * args.num_train_epochs
    started = time.perf_counter()
    bar = tqdm(total=rows, unit=" samples", unit_scale=True, disable=not accelerator.is_local_main_process)
    try:
        for epoch in range(1, args.num_train_epochs + 1):
            steps_left = steps - sum(e["steps"] for e in history["epochs"])
            record = train_epoch(
                args, accelerator, model, optimizer, scheduler, train_loader, bar, history, steps_left
            )
            record |= {"epoch": epoch, **validate(accelerator, model, validation_loader)}
            history["epochs"].append(record)
            if record["score"] > best["score"]:
                best = {"score": record["score"], "state": weights_on_cpu(accelerator, model), "epoch": epoch}
            if accelerator.is_main_process:
                bar.write(describe_epoch(record, args.num_train_epochs, best["epoch"] == epoch))
            patience = args.early_stopping_patience
            if record["steps"] == steps_left or (patience is not None and epoch - best["epoch"] >= patience):
                break
    except KeyboardInterrupt:
        if best["state"] is None:
            raise
        history["interrupted"] = True
        if accelerator.is_main_process:
            bar.write("interrupted: the best model so far is saved")
    finally:
        bar.close()  # ends its line, so that an error gets one of its own
    del history["num_skipped_on_end"]  # it counts over the ends of epochs, and is of no interest afterwards
    history |= {"seconds": round(time.perf_counter() - started, 1), "best_epoch": best["epoch"]}
    return best, history


def train_epoch(args, accelerator, model, optimizer, scheduler, train_loader, bar, history, steps_left: int) -> dict:
    """One pass over the training rows, or less when no steps are left."""
    set_training_mode(accelerator.unwrap_model(model))
    total, num_losses, steps = 0.0, 0, 0
    for batches, batch in enumerate(train_loader, start=1):
        with accelerator.accumulate(model):
            loss = model(**batch).loss
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                limit = args.max_grad_norm or math.inf
                norm = accelerator.clip_grad_norm_(model.parameters(), limit)
                steps += 1
                if torch.isfinite(norm):
                    history["num_skipped_on_end"] = 0
                else:  # one such step would turn every weight into NaN
                    history["num_skipped_on_end"] += 1
                    history["num_skipped_steps"] += 1
                    optimizer.zero_grad()
                    if history["num_skipped_on_end"] == MAX_BAD_STEPS:
                        raise ValueError(
                            f"the gradient was not finite in {MAX_BAD_STEPS} steps on end: lower --learning_rate "
                            f"({args.learning_rate}), or look for extreme values in the table"
                        )
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        is_finite = loss.detach().isfinite()  # of a skipped step it may not be, and JSON knows no NaN
        total, num_losses = total + loss.detach().where(is_finite, 0.0), num_losses + is_finite
        bar.update(batch["labels"].shape[0] * accelerator.num_processes)
        if batches % 10 == 0:
            bar.set_postfix(loss=f"{(total / num_losses).item():.3f}", refresh=False)
        if steps == steps_left:
            break
    return {"steps": steps, "train_loss": round((total / num_losses).item(), 4) if num_losses else None}


def validate(accelerator, model, validation_loader) -> dict:
    """The score that decides which epoch was best, with every modality that a row has, and the deciding metrics."""
    everything = tuple(accelerator.unwrap_model(model).config.modalities)
    result = evaluate_subsets(model, validation_loader, subsets=[everything], accelerator=accelerator, progress=False)
    metrics = result["metrics"][subset_name(everything)]
    metrics.pop("num_rows_with_input")
    return {"score": score(metrics), "validation": metrics}


def describe_epoch(record: dict, num_epochs: int, is_best: bool) -> str:
    values = "  ".join(f"{name} {value:.4f}" for name, value in record["validation"].items() if value is not None)
    loss = "–" if record["train_loss"] is None else f"{record['train_loss']:.3f}"
    mark = "  (best so far)" if is_best else ""
    return f"epoch {record['epoch']}/{num_epochs}  loss {loss}  {values}{mark}"


def weights_on_cpu(accelerator, model) -> dict:
    state = accelerator.unwrap_model(model).state_dict()
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}


def set_training_mode(model):
    """Training mode, but for frozen towers: their dropout, SpecAugment and batch-norm statistics stand still."""
    model.train()
    for name in TOWERS.values():
        tower = getattr(model.mmfusion, name, None)
        if tower is not None and not any(p.requires_grad for p in tower.parameters()):
            tower.eval()
