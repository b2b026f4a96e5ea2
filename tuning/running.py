"""A trial of the study run to its end: started, reported epoch by epoch, and told how it ended."""

from collections.abc import Callable
from functools import partial

import optuna
from optuna.trial import TrialState

from tuning.claims import Claim
from tuning.command import Training
from tuning.study import Study
from tuning.trial import Outcome, State, Trial

STATES = {State.PRUNED: TrialState.PRUNED, State.FAILED: TrialState.FAIL}


def run_trial(
    study: Study,
    training: Training,
    trial: optuna.Trial,
    claim: Claim,
    must_stop: Callable[[], bool],
    notice: Callable[[str], None],
) -> None:
    """Run one trial, or what is left of it.

    Args:
        study: Whose trial it is.
        training: How it is trained.
        trial: What `Study.next` gave.
        claim: On it; it is released when the trial is over.
        must_stop: Whether the training shall be interrupted, to go on another time.
        notice: Takes a short line about how far it is.
    """
    notice(f"trial {trial.number}")
    output_dir = training.output_dir(trial.number)
    try:
        given = training.check(trial.params, output_dir)
    except ValueError as error:  # two values that do not go together
        outcome = Outcome(reason=str(error))
    else:
        process = Trial(training.arguments(trial.params, output_dir), output_dir, heirs=(claim.descriptor,))
        watch = partial(_report, trial, {*_reported(study, trial)}, given.num_train_epochs, notice)
        outcome = process.follow(watch, must_stop)
    _tell(study, trial, outcome, claim)


def _reported(study: Study, trial: optuna.Trial) -> dict[int, float]:
    return study.trials[trial.number].intermediate_values


def _report(trial: optuna.Trial, known: set[int], num_epochs: int, notice: Callable, record: dict) -> bool:
    """Take an epoch into the study; whether the training is to be given up, which after the last epoch it is not."""
    epoch = record["epoch"]
    if epoch in known:  # from before the trial was interrupted
        return False
    trial.report(record["score"], epoch)
    notice(f"trial {trial.number}, epoch {epoch}/{num_epochs}")
    return epoch < num_epochs and trial.should_prune()


def _tell(study: Study, trial: optuna.Trial, outcome: Outcome, claim: Claim) -> None:
    trial.set_user_attr("seconds", trial.user_attrs.get("seconds", 0.0) + outcome.seconds)
    if outcome.epochs:
        trial.set_user_attr("validation", outcome.best["validation"])
    if outcome.reason:
        trial.set_user_attr("reason", outcome.reason)
    if outcome.state == State.INTERRUPTED:
        study.put_back(trial.number, claim)
        return
    if outcome.state == State.COMPLETE:
        study.study.tell(trial, outcome.best["score"])
    else:
        study.study.tell(trial, state=STATES[outcome.state])
    claim.release()
