"""Which models stay: the best one in a folder of its own, and of the others as many as are asked for.

Unusual: in an order in which nothing is lost when it is cut off. The best model is copied whole, then noted, and only
then its first folder may go.
"""

import shutil
from pathlib import Path

from cli.files import assembled
from training.arguments import beside
from tuning.study import Study

BEST, NOTED = "best", "trial in the folder of the best"


def keep_the_best(study: Study, keep_trials: int) -> None:
    """Bring the folders up to date with the study.

    Args:
        study: Whose trials they are.
        keep_trials: So many of the best keep their own folder, too.
    """
    with study.alone():
        ranked = study.ranked()
        if ranked:
            _promote(study, ranked[0].number)
        kept = {trial.number for trial in ranked[:keep_trials]}
        for trial in study.trials:
            if trial.state.is_finished():
                _remove(_folder(study, trial.number), keeps_model=trial.number in kept)


def best_folder(study: Study) -> Path | None:
    """The folder of the best model; None while there is none, or where somebody has removed it."""
    folder = study.folder / BEST
    return folder if study.study.user_attrs.get(NOTED) is not None and folder.is_dir() else None


def _promote(study: Study, number: int) -> None:
    source = _folder(study, number)
    if study.study.user_attrs.get(NOTED) != number and source.is_dir():
        with assembled(study.folder / BEST) as partial:
            shutil.copytree(source, partial, dirs_exist_ok=True)
        study.study.set_user_attr(NOTED, number)


def _remove(folder: Path, *, keeps_model: bool) -> None:
    """Remove what a finished trial left: its checkpoints, and its model where it is not kept."""
    for path in (beside(folder, "checkpoints"), *([] if keeps_model else [folder])):
        if path.is_dir():
            shutil.rmtree(path)


def _folder(study: Study, number: int) -> Path:
    return study.trials_folder / f"{number:04d}"
