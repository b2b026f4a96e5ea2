"""Averages of weights: over the steps of a run (EMA), and over its best epochs (greedy soup).

What is unusual: only what training changes is averaged and kept: the parameters that learn, and the buffers. A frozen
tower is neither copied nor written again, and with LoRA an ingredient of a soup takes a few megabytes. Statistics of
batch norms are averaged like weights, for they belong to them; buffers of whole numbers count, and cannot be averaged:
they are those of the model itself, in a soup those of its best ingredient.

The moving average takes the model's place only while something looks at it; the two change their contents, tensor by
tensor, so that nothing is held three times. The ingredients of a soup lie in files beside the model folder, so that
their number costs no memory; a checkpoint holds links to these files.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import torch
from accelerate.utils import broadcast
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from training.checkpoints import linked
from training.resuming import together, weights_on_cpu
from training.sharding import is_divided

LOCK = ".lock"


def trained_tensors(model) -> dict[str, torch.Tensor]:
    """What a training changes, by name and not copied: parameters that learn, then buffers that are saved."""
    saved = model.state_dict().keys()
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    return parameters | {name: value for name, value in model.named_buffers() if name in saved}


# -- over the steps ---------------------------------------------------------------------------------------------------


class MovingAverage:
    """The exponential moving average of a model's weights, on the model's device.

    The decay warms up, for at first there is little to remember: at the n-th update it is at most (1 + n) / (10 + n).

    Args:
        model: Plain; its tensors stay where they are.
        decay: Share of the average that stays at an update.

    Source: `torch.optim.swa_utils`; the warm-up is that of TensorFlow's `ExponentialMovingAverage`.
    """

    def __init__(self, model, decay: float):
        own = {name: value for name, value in trained_tensors(model).items() if value.is_floating_point()}
        self.decay, self.names, self._own = decay, list(own), _as_module(own.values())
        self._average = AveragedModel(self._own, multi_avg_fn=self._move, use_buffers=True).requires_grad_(False)

    @property
    def num_updates(self) -> int:
        return int(self._average.n_averaged)

    def update(self) -> None:
        """Move the average towards the weights of the model; the first update takes these as they are."""
        self._average.update_parameters(self._own)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Have the model be the average in here; afterwards it is itself again, to the last bit."""
        self._change_places()
        try:
            yield
        finally:
            self._change_places()

    def tensors(self) -> dict[str, torch.Tensor]:
        """The average on the CPU, by name."""
        averages = zip(self.names, _tensors(self._average.module), strict=True)
        return {name: value.to("cpu", copy=True).contiguous() for name, value in averages}

    def give_back(self, tensors: dict[str, torch.Tensor], num_updates: int) -> None:
        """Take up what `tensors` gave."""
        with torch.no_grad():
            for name, value in zip(self.names, _tensors(self._average.module), strict=True):
                value.copy_(tensors[name])
            self._average.n_averaged.fill_(num_updates)

    def _move(self, averaged: list[torch.Tensor], current: list[torch.Tensor], _) -> None:
        count = self.num_updates
        get_ema_multi_avg_fn(min(self.decay, (1 + count) / (10 + count)))(averaged, current, count)

    @torch.no_grad()
    def _change_places(self) -> None:
        for own, average in zip(_tensors(self._own), _tensors(self._average.module), strict=True):
            kept = own.clone()
            own.copy_(average)
            average.copy_(kept)


def _as_module(tensors) -> torch.nn.Module:
    """A module that shares these tensors, by number: a name with dots in it no module takes."""
    module = torch.nn.Module()
    for number, tensor in enumerate(tensors):
        register = module.register_parameter if isinstance(tensor, torch.nn.Parameter) else module.register_buffer
        register(str(number), tensor)
    return module


def _tensors(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    return chain(module.parameters(), module.buffers())


# -- over the best epochs ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ingredient:
    """The weights of an epoch."""

    epoch: int
    score: float

    @property
    def name(self) -> str:
        return f"soup-{self.epoch:05}"

    @property
    def file(self) -> str:
        return f"{self.name}.safetensors"

    @property
    def rank(self) -> tuple[float, int]:
        """The best first; of equals the earlier."""
        return -self.score, self.epoch


class Soup:
    """The weights of the best epochs, and at the end the greedy average of them.

    Args:
        size: So many epochs are kept at most.
        output_dir: The model folder, beside which the weights lie meanwhile.
        accelerator: Of the run; only its main process touches the disk.
        model: Plain.

    Source: Wortsman et al. 2022, "Model soups", algorithm 1 (arXiv:2203.05482); its ingredients are runs with other
    settings, these are epochs of one run.
    """

    def __init__(self, size: int, output_dir: Path, accelerator, model):
        self.size, self.accelerator, self.model = size, accelerator, model
        self.kept: list[Ingredient] = []
        self.facts: dict = {}  # of the finished soup
        self._place, self._folder, self._lock = output_dir.resolve(), None, None

    def keep(self, epoch: int, score: float) -> None:
        """Keep the weights that the model has now, when they are among the best.

        Raises:
            OSError: They cannot be written.
        """
        new = Ingredient(epoch, score)
        ranked = sorted([*self.kept, new], key=lambda one: one.rank)
        self.kept, dropped = ranked[: self.size], ranked[self.size :]
        if new in self.kept:
            together(self.accelerator, lambda: self._write(new, dropped))

    def files(self) -> dict[str, Path]:
        """The weights for a checkpoint, by name of their file there; in the main process."""
        return {one.name: self._folder / one.file for one in self.kept}

    def state(self) -> list[dict]:
        """What is kept, for JSON."""
        return [asdict(one) for one in self.kept]

    def give_back(self, folder: Path, state: list[dict]) -> None:
        """Take up what was kept when the checkpoint in this folder was written."""
        self.kept = [Ingredient(**one) for one in state]

        def take() -> None:
            for one in self.kept:
                linked(folder / one.file, self._open() / one.file)

        together(self.accelerator, take)

    def cook(self, judge: Callable[[], dict]) -> None:
        """Leave the greedy soup in the model: from the best epoch on, each joins when the score does not fall.

        Args:
            judge: Validates the model as it is; its record has `score` and `validation`.
        """
        first, *others = self.kept
        self.accelerator.print(f"soup: epoch {first.epoch} is the best, and {len(others)} more are tried")
        total: dict[str, torch.Tensor] = {}  # the sum of those that joined; in the main process
        together(self.accelerator, lambda: total.update(self._read(first)))
        joined, score, tried = [first.epoch], first.score, [_tried(first, first.score, True)]
        self._serve(total, 1)
        for one in others:
            self._serve(total, len(joined) + 1, one)
            record = judge()
            is_in = record["score"] >= score
            tried.append(_tried(one, record["score"], is_in))
            self.accelerator.print(_describe([*joined, one.epoch], record, is_in))
            if is_in:
                self._add(total, one)
                joined, score = [*joined, one.epoch], record["score"]
        self._serve(total, len(joined))
        self.facts = {"epochs": joined, "score": score, "tried": tried}

    def close(self) -> None:
        """Remove the files."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._lock.release()
            self._folder = None

    # The main process alone:

    def _write(self, new: Ingredient, dropped: list[Ingredient]) -> None:
        try:
            path = self._open() / new.file
            weights = {name: value.detach().cpu().contiguous() for name, value in trained_tensors(self.model).items()}
            save_file(weights, path)
        except (OSError, SafetensorError) as error:
            raise OSError(
                f"--soup: the weights of epoch {new.epoch} cannot be written to `{self._place.parent}` ({error}): "
                f"make room, lower --soup ({self.size}), or leave it out"
            ) from error
        for one in dropped:
            (self._folder / one.file).unlink()

    def _open(self) -> Path:
        """The folder of the files, locked; those of killed runs go."""
        if self._folder is None:
            prefix = f".{self._place.name}.soup-"
            self._place.parent.mkdir(parents=True, exist_ok=True)
            for path in self._place.parent.iterdir():
                if path.name.startswith(prefix):
                    _remove_left(path)
            self._folder = Path(tempfile.mkdtemp(prefix=prefix, dir=self._place.parent))
            self._lock = FileLock(self._folder / LOCK)
            self._lock.acquire()
        return self._folder

    def _read(self, one: Ingredient) -> dict[str, torch.Tensor]:
        """The weights, with room for a sum of them."""
        with safe_open(self._folder / one.file, "pt") as file:
            return {name: _summable(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118

    def _add(self, total: dict[str, torch.Tensor], one: Ingredient) -> None:
        for name, value in self._joined(total, one):
            total[name] = value  # no name is new, so that it can be gone through meanwhile

    def _joined(self, total: dict[str, torch.Tensor], one: Ingredient | None) -> Iterator[tuple[str, torch.Tensor]]:
        """The sums with one more in them, tensor by tensor; whole numbers stay those of the first."""
        if one is None or not total:
            yield from total.items()
            return
        with safe_open(self._folder / one.file, "pt") as file:
            for name, value in total.items():
                yield name, value + file.get_tensor(name) if value.is_floating_point() else value

    # Every process:

    @torch.no_grad()
    def _serve(self, total: dict[str, torch.Tensor], count: int, one: Ingredient | None = None) -> None:
        """Put the mean of `count` ingredients into the model: those in `total`, and one more."""
        trained = trained_tensors(self.model)
        for name, value in self._joined(total, one):
            trained[name].copy_(value / count if value.is_floating_point() else value)
        broadcast([value.detach() for value in trained.values()])


def _summable(tensor: torch.Tensor) -> torch.Tensor:
    is_narrow = tensor.is_floating_point() and tensor.dtype.itemsize < 4
    return tensor.float() if is_narrow else tensor


def _remove_left(folder: Path) -> None:
    """Remove what a killed run left, unless it is of one that lives."""
    try:
        with FileLock(folder / LOCK, blocking=False):
            shutil.rmtree(folder)
    except (Timeout, OSError):
        return


def _tried(one: Ingredient, soup_score: float, is_in: bool) -> dict:
    return {"epoch": one.epoch, "score": one.score, "soup_score": soup_score, "is_in": is_in}


def _describe(epochs: list[int], record: dict, is_in: bool) -> str:
    values = "  ".join(f"{name} {value:.4f}" for name, value in record["validation"].items() if value is not None)
    return f"soup of epochs {'+'.join(map(str, epochs))}  {values}  ({'kept' if is_in else 'not kept'})"


# -- both, for the loop -----------------------------------------------------------------------------------------------


class Averaging:
    """What a run averages: nothing, over its steps, over its epochs, or both; a context manager, which tidies up.

    Args:
        args: The flags of `train.py`.
        accelerator: Of the run.
        model: Prepared.

    Raises:
        ValueError: The weights are divided among the processes.
    """

    def __init__(self, args, accelerator, model):
        self.accelerator, self.model, self.ema, self.soup = accelerator, model, None, None
        asked = [flag for flag, is_on in (("--ema_decay", args.ema_decay > 0), ("--soup", args.soup > 1)) if is_on]
        if asked and is_divided(model):
            raise ValueError(
                f"{asked[0]}: the weights of this run are divided among the processes, and are not averaged then; "
                "leave it out, or train with one whole model a process (DDP)"
            )
        bare = accelerator.unwrap_model(model) if asked else None
        if "--ema_decay" in asked:
            self.ema = MovingAverage(bare, args.ema_decay)
        if "--soup" in asked:
            self.soup = Soup(args.soup, args.output_dir, accelerator, bare)

    def __enter__(self) -> "Averaging":
        return self

    def __exit__(self, *error) -> None:
        if self.soup is not None:
            self.soup.close()

    def step(self) -> None:
        """Take the weights after an optimiser step that was made."""
        if self.ema is not None:
            self.ema.update()

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Have the model be what is judged and kept: the moving average where there is one."""
        if self.ema is None:
            yield
        else:
            with self.ema.shown():
                yield

    def keep(self, epoch: int, score: float) -> None:
        """Keep the weights of an epoch for the soup; called while they are `shown`."""
        if self.soup is not None:
            self.soup.keep(epoch, score)

    def finish(self, best: dict, judge: Callable[[], dict]) -> dict:
        """Cook the soup; the best weights are then those of the soup."""
        if self.soup is None:
            return best
        self.soup.cook(judge)
        return best | {"state": weights_on_cpu(self.accelerator, self.model)}

    def history(self) -> dict:
        """What went into the soup, for `metrics.json`."""
        return {"soup": self.soup.facts} if self.soup is not None and self.soup.facts else {}

    # -- for checkpoints ----------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, dict[str, torch.Tensor] | Path]:
        """Name of a file -> its tensors, or a file that holds them."""
        ema = {} if self.ema is None else {"ema": self.ema.tensors()}
        return ema | ({} if self.soup is None else self.soup.files())

    def state(self) -> dict:
        """What is no tensor; empty where nothing is averaged."""
        ema = {} if self.ema is None else {"num_ema_updates": self.ema.num_updates}
        return ema | ({} if self.soup is None else {"soup": self.soup.state()})

    def give_back(self, checkpoint) -> None:
        """Bring the averages to where a checkpoint was taken."""
        state = checkpoint.state()["averaging"]
        if self.ema is not None:
            self.ema.give_back(checkpoint.tensors("ema"), state["num_ema_updates"])
        if self.soup is not None:
            self.soup.give_back(checkpoint.folder, state["soup"])
