"""The study: its trials in SQLite, shared by as many processes as there are, and whose turn it is.

Unusual: what a trial samples comes from the seed, its number and the trials before it, so that a study which is killed
and goes on samples what it would have sampled. A trial whose processes are gone goes on under its own number.
"""

import random
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from filelock import FileLock
from optuna.samplers import BaseSampler, GridSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from cli.arguments import first_line
from training.identity import differences
from tuning.claims import Claim, is_orphaned, take
from tuning.space import Space

DATABASE, NAME = "study.db", "mmfusion"
SECONDS_TO_WAIT = 120  # for another process that is writing to the database


class Grid(GridSampler):
    """Optuna's, which at the last point would stop a loop that is not run here."""

    def after_trial(self, study, trial, state, values) -> None:
        """Do nothing."""


def make_sampler(name: str, space: Space, seed: int, number: int) -> BaseSampler:
    """What chooses the values of a trial.

    Args:
        name: tpe, random or grid.
        space: What it chooses from.
        seed: Of the study.
        number: Of the trial.
    """
    if name == "grid":
        return Grid({name: dimension.grid() for name, dimension in space.items()}, seed=seed)
    own = random.Random(f"{seed}/{number}").getrandbits(32)
    return RandomSampler(seed=own) if name == "random" else TPESampler(seed=own)


def make_pruner(name: str, *, num_startup_trials: int, num_warmup_epochs: int, max_epochs: int):
    """What ends a training that does worse than others did.

    Args:
        name: median, hyperband or none.
        num_startup_trials: median: trials that are finished before one is pruned.
        num_warmup_epochs: median: epochs of each training after which it is not pruned.
        max_epochs: hyperband: of a training that runs to its end.
    """
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=max_epochs)
    if name == "median":
        return optuna.pruners.MedianPruner(num_startup_trials, n_warmup_steps=num_warmup_epochs + 1)
    return optuna.pruners.NopPruner()


class Study:
    """A study in a folder.

    Args:
        folder: Of the study; it is made where it is missing.
        settings: What all processes of the study share, by name; values are JSON.
        space: What is sampled from.
        sampler: For a trial's number its sampler.
        pruner: Of the study.

    Raises:
        OSError: The folder holds something else, or the study cannot be opened.
        ValueError: The study has other settings.
    """

    def __init__(self, folder: Path, settings: dict, space: Space, sampler: Callable[[int], BaseSampler], pruner):
        self.folder, self.trials_folder, self._sampler = folder, folder / "trials", sampler
        self._distributions = {name: dimension.distribution() for name, dimension in space.items()}
        _refuse_other_content(folder)
        self.trials_folder.mkdir(parents=True, exist_ok=True)
        with self.alone():
            self._storage = optuna.storages.RDBStorage(
                f"sqlite:///{folder.resolve() / DATABASE}",
                engine_kwargs={"connect_args": {"timeout": SECONDS_TO_WAIT}},
            )
            self.study = optuna.create_study(
                study_name=NAME, storage=self._storage, direction="maximize", pruner=pruner, load_if_exists=True
            )
            self._take_settings(settings)

    def _take_settings(self, settings: dict) -> None:
        then = self.study.user_attrs.get("settings")
        if then is None:
            self.study.set_user_attr("settings", settings)
        elif found := differences(then, settings):
            raise ValueError(
                f"`{self.folder}` holds a search with other settings: {'; '.join(found)}. Give the same ones, or name "
                "another --study_dir"
            )

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep the other processes of the study out of what is done in here."""
        with FileLock(self.folder / ".lock"):
            yield

    @property
    def trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    @property
    def num_finished(self) -> int:
        return sum(trial.state.is_finished() for trial in self.trials)

    @property
    def num_running(self) -> int:
        return sum(trial.state == TrialState.RUNNING for trial in self.trials)

    def ranked(self) -> list[FrozenTrial]:
        """Those that are complete, the best first; of equals the earlier."""
        complete = [trial for trial in self.trials if trial.state == TrialState.COMPLETE]
        return sorted(complete, key=lambda trial: (-trial.value, trial.number))

    def next(self, num_trials: int) -> tuple[Trial, Claim] | None:
        """The trial to run now: one that was cut off, or a new one; None when the study has so many.

        Args:
            num_trials: Of the whole study, whoever runs them.
        """
        with self.alone():
            self._take_back()
            waiting = [trial for trial in self.trials if trial.state == TrialState.WAITING]
            number = waiting[0].number if waiting else len(self.trials)
            if number >= num_trials and not waiting:
                return None
            self.study.sampler = self._sampler(number)
            trial = self.study.ask(self._distributions)
            return trial, take(self._claim(trial.number), waits=True)

    def put_back(self, number: int, claim: Claim) -> None:
        """Let a trial that was interrupted wait for its turn."""
        with self.alone():
            self._let_wait(number)
            claim.release()

    def wait_for_orphans(self, say: Callable[[str], None]) -> None:
        """Wait until trainings have ended whose search was killed: they are saving their checkpoints."""
        has_said = False
        while self._has_orphan():
            if not has_said:
                say("waiting for a training to save its checkpoint: its search was killed")
            has_said = True
            time.sleep(0.5)

    def _claim(self, number: int) -> Path:
        return self.trials_folder / f".{number:04d}.lock"

    def _has_orphan(self) -> bool:
        with self.alone():
            running = [trial.number for trial in self.trials if trial.state == TrialState.RUNNING]
            return any(is_orphaned(self._claim(number)) for number in running)

    def _take_back(self) -> None:
        """Let those wait for their turn that run no more, though nobody said how they ended."""
        for trial in self.trials:
            if trial.state == TrialState.RUNNING and (claim := take(self._claim(trial.number))):
                claim.release()
                self._let_wait(trial.number)

    def _let_wait(self, number: int) -> None:
        """Optuna's own retry would make another trial of it, with another number."""
        self._storage.set_trial_state_values(self.trials[number]._trial_id, TrialState.WAITING)


def _refuse_other_content(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise OSError(f"--study_dir {folder} is a file: name a folder")
    content = {path.name for path in folder.iterdir()}
    if DATABASE not in content and content - {".lock", "trials"}:  # which another process may just have made
        raise OSError(f"--study_dir {folder} holds something that is no study: name a new folder or an empty one")


@contextmanager
def telling_faults(folder: Path) -> Iterator[None]:
    """Say in a sentence what the database says in a page, and nothing of what Optuna calls experimental."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
        said = first_line(getattr(cause, "orig", None) or error)
        raise OSError(f"the study in `{folder / DATABASE}` cannot be read or written: {said}") from error
