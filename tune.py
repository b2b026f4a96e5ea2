"""Search for good settings of `train.py`: each trial is one training, and the best model stays.

What is searched is given by flags or in a YAML file; everything after `--` goes to train.py as it is. Trainings that
do worse than others are given up early. The study lies in one folder: killed and started again it goes on with the
trial where it was, and several processes may share it.
"""

import argparse
import math
import shlex
import sys
import time
from pathlib import Path

from cli.arguments import exit_code, number
from training.interruption import Signals, Stopped

EXAMPLES = """examples:
  python tune.py --space "learning_rate=loguniform(1e-4,3e-3)" --space "hidden_dropout_prob=uniform(0,0.5)" \\
      --space "fusion_hidden_size=categorical(64,128)" --num_trials 20 --study_dir outputs/study \\
      -- --train_file outputs/demo_data/train.csv --validation_file outputs/demo_data/validation.csv
  python tune.py --space_file space.yaml --study_dir outputs/study -- --train_file my.csv --num_train_epochs 5
  CUDA_VISIBLE_DEVICES=1 python tune.py …     # the same command again, beside the first: they share the trials

kinds of a space:
  uniform(low,high)  uniform(low,high,step)  loguniform(low,high)  int(low,high)  int(low,high,step)
  logint(low,high)   categorical(a,b,…)
"""
MAX_ALIKE_FAILURES = 3


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    argv = sys.argv[1:] if argv is None else argv
    place = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(
        usage="%(prog)s [options] -- [flags of train.py]",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--space", action="append", default=[], metavar="NAME=KIND(…)",
        help="a flag of train.py and what it varies over; repeat for more; default: none")  # fmt: skip
    add("--space_file", type=Path,
        help="YAML: flags, each with such an expression or a list of choices; default: none")  # fmt: skip
    add("--study_dir", type=Path, required=True, help="the study's folder, new or to go on with")
    add("--num_trials", type=number(int, 1), help="of the whole study, those of earlier calls and of other processes "
        "too; default: 20, of a grid all points")  # fmt: skip
    add("--timeout", type=number(float, 1), help="seconds after which the running training is interrupted and the "
        "search ends, to go on another time; default: no limit")  # fmt: skip
    add("--sampler", choices=("tpe", "random", "grid"), default="tpe", help="how values are chosen: by what did well "
        "so far (tpe), by chance, or all of them; default: tpe")  # fmt: skip
    add("--pruner", choices=("median", "hyperband", "none"), default="median", help="which trainings are given up: "
        "those whose best score is below the median of the others at that epoch, those that lose a round of "
        "Hyperband, or none; default: median")  # fmt: skip
    add("--pruner_startup_trials", type=number(int, 1),
        help="median: trials that are finished before one is given up; default: 5")  # fmt: skip
    add("--pruner_warmup_epochs", type=number(int, 0),
        help="median: epochs after which no training is given up yet; default: 0")  # fmt: skip
    add("--keep_trials", type=number(int, 0), default=0, help="so many of the best trials keep their model in "
        "trials/, besides the one in best/; default: 0")  # fmt: skip
    add("--seed", type=number(int, 0), default=0,
        help="of what is tried; that of the trainings is train.py's own; default: 0")  # fmt: skip
    args = parser.parse_args(argv[:place])
    args.train_words = argv[place + 1 :]
    args.command = shlex.join(["python", "tune.py", *argv])
    if args.pruner != "median":
        for name in ("pruner_startup_trials", "pruner_warmup_epochs"):
            if getattr(args, name) is not None:
                parser.error(f"--{name} belongs to --pruner median, not {args.pruner}")
    return args


def run(args: argparse.Namespace) -> None:
    """Search, and say what was found."""
    from tuning.command import Training
    from tuning.space import read_space

    space = read_space(args.space, args.space_file)
    num_trials = count_trials(args, space)
    training = Training(args.train_words, space, args.study_dir / "trials")

    from tuning.pictures import draw_pictures
    from tuning.report import format_best
    from tuning.study import telling_faults

    with telling_faults(args.study_dir):
        study = open_study(args, space, training)
        search(args, study, training, num_trials)
        say(f"\n{format_best(study)}")
        draw_pictures(study, space)
        say(describe_end(study, num_trials))


def count_trials(args: argparse.Namespace, space) -> int:
    """How many trials the study shall have: of a grid not more than it has points."""
    if args.sampler != "grid":
        return args.num_trials or 20
    num_points = math.prod(len(dimension.grid()) for dimension in space.values())
    return min(num_points, args.num_trials or num_points)


def open_study(args: argparse.Namespace, space, training):
    """The study, new or as it was left."""
    from tuning.study import Study, make_pruner, make_sampler

    settings = {f"the space of {name}": str(dimension) for name, dimension in space.items()}
    settings |= {name: getattr(args, name) for name in ("sampler", "pruner")}
    settings |= {"seed of the search": args.seed, **training.settings}
    pruner = make_pruner(
        args.pruner,
        num_startup_trials=args.pruner_startup_trials or 5,
        num_warmup_epochs=args.pruner_warmup_epochs or 0,
        max_epochs=training.max_epochs,
    )
    return Study(
        args.study_dir, settings, space, lambda number: make_sampler(args.sampler, space, args.seed, number), pruner
    )


def search(args: argparse.Namespace, study, training, num_trials: int) -> None:
    """Run trials until the study has so many, or the time is up.

    Raises:
        Stopped: A signal ended it.
        ValueError: The trainings fail, one after another, in the same way.
    """
    from tqdm.auto import tqdm

    from tuning.keeping import keep_the_best
    from tuning.report import describe_trial, write_report
    from tuning.running import run_trial

    deadline = math.inf if args.timeout is None else time.monotonic() + args.timeout
    reasons: list[str] = []
    with Signals(finish_step=True) as signals, tqdm(total=num_trials, unit="trial", disable=None) as bar:

        def must_stop() -> bool:
            return bool(signals.received) or time.monotonic() > deadline

        study.wait_for_orphans(say)
        keep_the_best(study, args.keep_trials)  # a search that was killed may not have come to it
        while not must_stop() and (turn := study.next(num_trials)) is not None:
            bar.update(study.num_finished - bar.n)
            run_trial(study, training, *turn, must_stop, bar.set_description)
            keep_the_best(study, args.keep_trials)
            write_report(study, training, args.command)
            told = study.trials[turn[0].number]
            bar.clear()
            say(describe_trial(told))
            refuse_to_fail_on(reasons, told, study)
        bar.update(study.num_finished - bar.n)
    if signals.received:
        raise Stopped(signals.received, ": the same command goes on with the study")
    write_report(study, training, args.command)


def refuse_to_fail_on(reasons: list[str], told, study) -> None:
    """Count failures on end that say the same, of which some more would only cost time.

    Args:
        reasons: Of the failures on end so far; is brought up to date.
        told: The trial that has just ended.
        study: It belongs to.

    Raises:
        ValueError: There are too many.
    """
    reason = told.user_attrs.get("reason")
    reasons[:] = [*(reasons if reasons[-1:] == [reason] else []), reason] if reason else []
    if len(reasons) == MAX_ALIKE_FAILURES:
        raise ValueError(
            f"{MAX_ALIKE_FAILURES} trainings on end failed in the same way: {reason}. What the last one said is in "
            f"`{study.trials_folder}/{told.number:04d}.txt`. Failed trials count: with other flags of train.py, name "
            "another --study_dir"
        )


def describe_end(study, num_trials: int) -> str:
    """Where the best model is, and what is left to do."""
    from tuning.keeping import BEST, best_folder

    lines = []
    if (left := num_trials - study.num_finished) > 0:
        others = " or are with other processes" if study.num_running else ""
        lines.append(f"{left} of {num_trials} trials are left{others}: the same command goes on with them")
    if ranked := study.ranked():
        is_there = best_folder(study) is not None
        where = f"in {study.folder / BEST}" if is_there else "gone: train it again with the command in study.json"
        lines.append(
            f"the best model, of trial {ranked[0].number}, is {where}; the table and pictures stand beside it"
        )
    return "\n".join(lines)


def say(text: str) -> None:
    print(text, flush=True)


def main(argv: list[str] | None = None) -> int:
    try:
        return exit_code(run, parse_args(argv))
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_code


if __name__ == "__main__":
    sys.exit(main())
