"""Flags that several commands have, and how a command ends. Imports nothing heavy: `--help` shall be quick."""

import argparse
import sys
from collections.abc import Callable

from cli.environment import provide_caches, refuse_undecoded
from cli.threads import wait_briefly
from data.terminal import lasting_output

DEVICES = ("auto", "cpu", "cuda")


def number(kind: type, least: float, below: float = float("inf")) -> Callable[[str], int | float]:
    """Give an argparse type that reads an int or a float in [least, below)."""

    def read(text: str) -> int | float:
        value = kind(text)
        if not least <= value < below:
            limit = f"at least {least}" if below == float("inf") else f"in [{least}, {below})"
            raise argparse.ArgumentTypeError(f"{text} is not {limit}")
        return value

    read.__name__ = kind.__name__  # argparse names it when the text is no number at all
    return read


def add_model_arguments(parser: argparse.ArgumentParser):
    """MODEL, `--revision` and `--device`: which trained model, and where it runs."""
    add = parser.add_argument
    add("model", metavar="MODEL", help="folder that train.py wrote, or Hub id; the code in it is run")
    add("--revision", help="commit, tag or branch on the Hub; default: the newest")
    add("--device", choices=DEVICES, default="auto", help="where to run; default: auto, a GPU where there is one")


def add_column_arguments(group):
    """The columns of a table, and what to do about cells that cannot be used."""
    add = group.add_argument
    for kind in ("text", "image", "audio"):
        add(f"--{kind}_column", help=f"column of the {kind}, `none` to leave it out; default: `{kind}` if it exists")
    add("--dataset_config_name", help="configuration of a Hub data set; default: its only one")
    add("--on_bad_cell", choices=("error", "drop", "empty"), default="error",
        help="cell that cannot be opened: stop, drop its row, or take it as empty; default: error")  # fmt: skip
    add("--allow_outside_paths", action=argparse.BooleanOptionalAction, default=False,
        help="whether paths in the table may leave its folder; default: no")  # fmt: skip
    add("--num_workers", type=number(int, 0), default=0, help="processes that open cells; default: 0, this one")


class OneOrMore(argparse.Action):
    """One value is kept as it is, several as a list."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, values[0] if len(values) == 1 else values)


def add_label_arguments(group, *, tasks: str | None = None):
    """The column of the label, and how its cells are read.

    Args:
        group: Where the flags are added.
        tasks: What several columns mean, where they are allowed.
    """
    if tasks is None:
        group.add_argument("--label_column", help="column of the label; default: `label`")
    else:
        group.add_argument("--label_column", nargs="+", action=OneOrMore, metavar="COLUMN",
            help=f"column of the label, or {tasks}; default: `label`")  # fmt: skip
    group.add_argument(
        "--label_delimiter", help="what separates several labels in one cell; default: one label a cell"
    )


def first_line(error: Exception) -> str:
    """The first line of what an error says, or its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def exit_code(command: Callable, *args) -> int:
    """Run a command and give its exit code; a user's mistake is one line on stderr, not a traceback.

    Returns:
        0, or 1 for a failure, or 130 when interrupted. (argparse itself ends a wrong call with 2.)
    """
    with lasting_output():
        return _run(command, *args)


def _run(command: Callable, *args) -> int:
    wait_briefly()
    try:
        refuse_undecoded(args)
        provide_caches()
        command(*args)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0
