"""One way of training in a process of its own, which trains an epoch whenever it is told to; see `training.py`.

A process each, because precision and devices are settled once in a process, and so that memory can be told apart. It
reads flags as one JSON object from its first line of stdin, answers a line with `ready`, and then each further line
with what one more epoch took.
"""

import json
import re
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for our own files, from whatever folder this is run


def ours(flags: list[str]) -> Callable[[], dict]:
    """An epoch of `train.py` without its validation."""
    from training.arguments import parse_args
    from training.interruption import Signals
    from training.loop import Training
    from training.optimization import make_accelerator
    from training.records import Records
    from training.resuming import Keeper
    from training.setup import set_up

    args = parse_args(flags, description="", epilog="")
    accelerator = make_accelerator(args)
    keeper = Keeper(args, accelerator).__enter__()
    run = set_up(args, accelerator, keeper).run
    training = Training(run, keeper, Records(args, accelerator, None))
    training.signals = Signals(finish_step=False)

    def epoch() -> dict:
        loss = training.train()["train_loss"]
        padding = training.records.meter.values()["padding"]
        training.progress.next_epoch({})
        return {"loss": loss, "num_rows": len(run.train_loader.dataset), "padding": padding}

    return epoch


def plain_trainer(flags: list[str]) -> Callable[[], dict]:
    """An epoch of `transformers.Trainer` on the same towers and rows, with the late fusion that is written first.

    Each tower is run on every row; the means of their tokens stand side by side before a perceptron.
    """
    import torch
    from torch import nn
    from transformers import Trainer, TrainingArguments

    from data import Collator, FusionDataset
    from towers_mmfusion import tower_tokens, tower_width
    from training.arguments import parse_args
    from training.rows import open_rows
    from training.start import choose_start

    args = parse_args(flags, description="", epilog="")
    start = choose_start(args)
    rows, _, labels = open_rows(args, reads=start.reads)
    towers = start.towers(rows)
    inputs = {"text": ("input_ids", "attention_mask"), "image": ("pixel_values",), "audio": ("input_values",)}

    class LateFusion(nn.Module):
        def __init__(self):
            super().__init__()
            self.towers = nn.ModuleDict(towers.encoders)
            size = sum(tower_width(tower.config) for tower in self.towers.values())
            self.head = nn.Sequential(nn.Linear(size, 512), nn.GELU(), nn.Linear(512, len(labels.id2label)))

        def forward(self, labels: torch.Tensor, **batch: torch.Tensor) -> dict:
            hidden = [
                tower(**{key: batch[key] for key in inputs[name]}).last_hidden_state
                for name, tower in self.towers.items()
            ]
            logits = self.head(torch.cat([tower_tokens(x).mean(dim=1) for x in hidden], dim=-1))
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    arguments = TrainingArguments(
        output_dir=str(args.output_dir), per_device_train_batch_size=args.per_device_train_batch_size,
        num_train_epochs=1, save_strategy="no", report_to="none", disable_tqdm=True, logging_strategy="no",
        remove_unused_columns=False, learning_rate=5e-5, bf16=args.mixed_precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
    )  # fmt: skip
    dataset, model = FusionDataset(rows.table, labels, towers.processor, 2**30), LateFusion()

    def epoch() -> dict:
        trainer = Trainer(model, arguments, data_collator=Collator(towers.processor), train_dataset=dataset)
        return {"loss": trainer.train().training_loss, "num_rows": len(dataset)}

    return epoch


def peak_memory() -> float:
    """Most memory that this process has held, in MiB; `getrusage` tells that of its starter where it was more."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    settings = json.loads(sys.stdin.readline())
    said, sys.stdout = sys.stdout, sys.stderr
    epoch = {"ours": ours, "plain_trainer": plain_trainer}[settings["kind"]](settings["flags"])
    print("ready", file=said, flush=True)
    for _ in sys.stdin:
        started, used = time.perf_counter(), time.process_time()
        result = epoch()
        result |= {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - used}
        result["peak_mib"] = peak_memory()
        print(json.dumps(result), file=said, flush=True)


if __name__ == "__main__":
    main()
