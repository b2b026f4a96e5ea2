"""The command of each training: what is typed after `--`, what is sampled, and where it goes.

Unusual: every command is read by `train.py`'s own parser before a process is started, so that a slip is told at once.
"""

import argparse
import contextlib
import difflib
import io
import json
import shlex
from pathlib import Path

from training.arguments import parse_args
from training.flags import add_flags
from training.identity import FREE
from tuning.space import Dimension, Space

OURS = ("output_dir", "overwrite_output_dir", "resume_from_checkpoint")
OF_THE_HUB = ("push_to_hub", "hub_model_id", "hub_private_repo", "hub_token")
# Scores on other rows, or of other labels, cannot be compared.
WHAT_IS_MEASURED = (
    "validation_file", "validation_fraction", "max_eval_samples", "dataset_name", "dataset_config_name",
    "dataset_revision", "dataset_split", "dataset_validation_split", "label_column", "label_delimiter", "label_names",
    "problem_type", "task_weights", "on_bad_cell",
)  # fmt: skip
# These choose the held-out rows, too, where no others are given.
ALSO_SPLITTING = ("seed", "train_file", "max_train_samples")
BOOLEANS = {"true": "--{}", "yes": "--{}", "false": "--no-{}", "no": "--no-{}"}


class Training:
    """The trainings of a study: the same flags, but for those in the space.

    Args:
        words: What is typed for `train.py`.
        space: What varies.
        folder: Where the trainings' folders stand.

    Raises:
        ValueError: `train.py` has no such flag, would refuse the command, or the search needs the flag itself.
    """

    def __init__(self, words: list[str], space: Space, folder: Path):
        self.words, self.space, self.folder = words, space, folder
        self._flags = _flags_of_train()
        self._checkpoints = [] if self._are_typed("checkpointing_steps") else ["--checkpointing_steps", "epoch"]
        if {"--help", "-h"} & {*words}:
            parse_args(["--help"], description="What train.py takes after --.", epilog="")
        self._refuse_what_is_ours()
        for dimension in space.values():
            self._check_name(dimension)
        given = self._check_ends()
        self._refuse_other_rows(given)
        self.max_epochs = given.num_train_epochs
        named = {name: value for name, value in vars(given).items() if name not in space}
        kept = {name: value for name, value in named.items() if name not in FREE or name.endswith("_file")}
        self.settings = json.loads(json.dumps(kept, default=str))

    def output_dir(self, number: int) -> Path:
        """Where a trial's model goes; its checkpoints stand beside it."""
        return self.folder / f"{number:04d}"

    def arguments(self, params: dict, output_dir: Path) -> list[str]:
        """What `train.py` is started with, with these values of the flags in the space."""
        place = ["--output_dir", str(output_dir), "--resume_from_checkpoint", "auto"]
        return [*self.words, *self._sampled(params), *place, *self._checkpoints]

    def check(self, params: dict, output_dir: Path) -> argparse.Namespace:
        """Read such a command as `train.py` will.

        Raises:
            ValueError: It would refuse it, and say so.
        """
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                return parse_args(self.arguments(params, output_dir), description="", epilog="")
        except SystemExit:
            raise ValueError(said.getvalue().strip().splitlines()[-1].partition("error: ")[2]) from None

    def described(self, params: dict) -> str:
        """A command that does the same training by itself."""
        return shlex.join(["python", "train.py", *self.words, *self._sampled(params)])

    def _sampled(self, params: dict) -> list[str]:
        return [self._word(name, params[name]) for name in self.space]

    def _word(self, name: str, value) -> str:
        if isinstance(self._flags[name], argparse.BooleanOptionalAction):
            return BOOLEANS[value].format(name)
        return f"--{name}={value}"

    def _are_typed(self, *names: str) -> list[str]:
        """Those of the flags that stand after `--`."""
        typed = {word.partition("=")[0].removeprefix("--").removeprefix("no-") for word in self.words}
        return [name for name in names if name in typed]

    def _refuse_what_is_ours(self) -> None:
        if names := [name for name in OURS if name in self.space] + self._are_typed(*OURS):
            raise ValueError(f"--{names[0]} is set for each training by the search: leave it out")
        if names := [name for name in OF_THE_HUB if name in self.space] + self._are_typed(*OF_THE_HUB):
            raise ValueError(
                f"--{names[0]}: a search pushes nothing. Leave it out, and push the best model with push_to_hub.py"
            )
        if self._are_typed("with_baselines"):
            raise ValueError(
                "--with_baselines: a search compares trainings with each other. Leave it out, and train once more "
                "with the best settings and that flag"
            )
        if names := self._are_typed(*self.space):
            raise ValueError(f"--{names[0]} is in the space, and after --, too: leave one out")

    def _check_name(self, dimension: Dimension) -> None:
        name = dimension.name
        if name not in self._flags:
            near = difflib.get_close_matches(name, self._flags, n=1)
            hint = f": is `{near[0]}` meant?" if near else "; see python train.py --help"
            raise ValueError(f"the space has `{name}`, which is no flag of train.py{hint}")
        if name in WHAT_IS_MEASURED:
            raise ValueError(
                f"`{name}` cannot be searched: it decides what the score is measured on, and such scores cannot be "
                "compared. Give it after --"
            )
        is_boolean = isinstance(self._flags[name], argparse.BooleanOptionalAction)
        if is_boolean and not BOOLEANS.keys() >= {*dimension.values}:
            raise ValueError(f"the space of `{name}` is {dimension}, but the flag is yes or no: categorical(yes,no)")

    def _check_ends(self) -> argparse.Namespace:
        """Try both ends or every choice of a flag, the others at their first; what the first command says."""
        usual, nowhere = (
            {name: dimension.extremes()[0] for name, dimension in self.space.items()},
            self.folder / "none",
        )
        try:
            given = self.check(usual, nowhere)
        except ValueError as error:
            raise ValueError(f"train.py would refuse its flags: {error}") from None
        for name, dimension in self.space.items():
            for value in dimension.extremes()[1:]:
                try:
                    self.check({**usual, name: value}, nowhere)
                except ValueError as error:
                    raise ValueError(f"train.py would refuse {name}={value}: {error}") from None
        return given

    def _refuse_other_rows(self, given: argparse.Namespace) -> None:
        is_split_off = given.validation_file is None and given.dataset_validation_split is None
        if is_split_off and (names := [name for name in ALSO_SPLITTING if name in self.space]):
            raise ValueError(
                f"`{names[0]}` also decides which rows are held out, and scores on other rows cannot be compared: "
                "give --validation_file after --"
            )


def _flags_of_train() -> dict[str, argparse.Action]:
    parser = argparse.ArgumentParser(add_help=False)
    add_flags(parser)
    return {action.dest: action for action in parser._actions}
