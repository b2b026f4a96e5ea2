"""Publish a model folder, the Space that shows it, or a table as a data set: whole and checked, or not at all.

A push is one commit of one clean folder: what a stranger needs and nothing else, with a card and pictures that are
made from the folder's own files. Before it is uploaded, the folder is loaded in a fresh process and has to answer
exactly as its source does; afterwards it is loaded from the Hub, at the new commit, and has to do so again.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from cli.arguments import add_column_arguments, add_label_arguments, exit_code

EXAMPLES = """examples:
  python push_to_hub.py outputs/demo user/name --dry_run                  # what would be published, and the card
  python push_to_hub.py outputs/demo user/name --space user/name-demo     # the model, and a Space that shows it
  python push_to_hub.py user/name --space user/name-demo                  # a Space for a model that is on the Hub
  python push_to_hub.py --dataset my/train.csv --validation_file my/validation.csv user/data
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        usage="%(prog)s [options] [MODEL] NAME",
        description=__doc__.split("\n\n")[0],
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("source_and_name", nargs="+", metavar="[MODEL] NAME",
        help="the model folder that train.py wrote, and where it goes: owner/name on the Hub")  # fmt: skip
    add("--private", action=argparse.BooleanOptionalAction, help="of new repositories; default: as your account says")
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--revision", help="branch to push to, made if it is not there; default: main")
    place.add_argument("--create_pr", action=argparse.BooleanOptionalAction, default=False,
        help="open a pull request and leave main as it is; default: no")  # fmt: skip
    add("--commit_message", help="title of the commit; default: what is pushed")
    add("--license", help="identifier of the licence, such as apache-2.0, for the card; default: none is stated")
    add("--hub_token", help="token with write rights; default: that of `hf auth login` or of HF_TOKEN")
    add("--dry_run", action=argparse.BooleanOptionalAction, default=False,
        help="list the files with their sizes, print the card, and upload nothing; default: no")  # fmt: skip
    _add_space(parser.add_argument_group("a Space"))
    _add_dataset(parser.add_argument_group("a data set"))
    args = parser.parse_intermixed_args(argv)
    _check_usage(parser, args)
    return args


def _add_space(group):
    add = group.add_argument
    add("--space", metavar="NAME", help="also make or update a Space that shows the model: owner/name")
    add("--space_hardware", default="cpu-basic", help="suggested to those who copy the Space; default: cpu-basic")
    add("--space_secret", action="append", default=[], metavar="VARIABLE",
        help="give the Space this variable of your environment as a secret; repeat for more")  # fmt: skip


def _add_dataset(group):
    add = group.add_argument
    add("--dataset", metavar="TABLE", help="publish this table (its split `train`) instead of a model")
    add("--validation_file", help="table of the split `validation`; default: none")
    add("--test_file", help="table of the split `test`; default: none")
    add_column_arguments(group)
    add_label_arguments(group)


def _check_usage(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Give the positional words their names, and refuse, with exit code 2, what does not go together."""
    *source, args.name = args.source_and_name
    args.model = source[0] if source else None
    if len(source) > 1:
        parser.error(f"{len(source) + 1} names are given: at most MODEL and NAME are expected")
    if args.dataset is not None and (source or args.space):
        parser.error("--dataset pushes a table and nothing else: leave MODEL and --space out")
    if args.dataset is None and not source and not args.space:
        parser.error(f"what shall be pushed to {args.name}? Give MODEL before it, or --dataset, or --space")
    if args.dataset is None and (args.validation_file or args.test_file):
        parser.error("--validation_file and --test_file belong to --dataset")
    if args.space_secret and not args.space:
        parser.error("--space_secret belongs to --space")


def run(args: argparse.Namespace) -> None:
    """Check what costs nothing, then the rights, then do the work."""
    from hub.push import check_name, sign_in
    from hub.space import secrets_from_environment

    check_name(args.name, "NAME")
    if args.space is not None:
        check_name(args.space, "--space")
    secrets_from_environment(args.space_secret)
    pushes = [args.name] if args.model or args.dataset else []
    account = None
    if not args.dry_run:
        account = sign_in([*pushes, *([args.space] if args.space else [])], args.hub_token)

    with tempfile.TemporaryDirectory(prefix="mmfusion-push-") as scratch:
        if args.dataset is not None:
            push_dataset(args, account, Path(scratch, "dataset"))
            return
        revision = push_model(args, account, Path(scratch, "model")) if args.model else None
        if args.space is not None:
            push_space(args, account, Path(scratch, "space"), revision)


def push_model(args: argparse.Namespace, account, folder: Path) -> str | None:
    """Push a model folder; give the commit."""
    from hub.model import publish_model

    pushed = publish_model(
        Path(args.model),
        args.name,
        account,
        folder,
        private=args.private,
        revision=args.revision,
        create_pr=args.create_pr,
        message=args.commit_message,
        license=args.license,
        space_id=args.space,
    )
    return None if pushed is None else pushed.commit


def push_space(args: argparse.Namespace, account, folder: Path, revision: str | None) -> None:
    """Make or update the Space that shows the model at a commit (None: the newest)."""
    from hub.push import push_folder
    from hub.space import REPLACES, configure, export_space, model_on_hub, secrets_from_environment

    folder.mkdir()
    export_space(folder, model_id=args.name, title=args.space.split("/")[1], hardware=args.space_hardware)
    if account is None:
        show(folder, args.space)
        return
    secrets = secrets_from_environment(args.space_secret)
    revision, is_private = model_on_hub(account, args.name, revision)
    if is_private and "HF_TOKEN" not in secrets:
        print(f"note: `{args.name}` is private: the Space reads it only with a secret, `--space_secret HF_TOKEN`")
    pushed = push_folder(
        account,
        folder,
        args.space,
        repo_type="space",
        replaces=REPLACES,
        private=args.private,
        message=args.commit_message or f"Show {args.name}",
        on_created=lambda: configure(account, args.space, args.name, revision, secrets),
    )
    print(f"the Space is at {pushed.url}, and shows `{args.name}` at {revision}")


def push_dataset(args: argparse.Namespace, account, folder: Path) -> None:
    """Push tables as the splits of a data set with embedded media."""
    from hub.dataset import REPLACES, export_dataset, open_tables
    from hub.leaks import refuse_leaks
    from hub.push import push_folder

    tables, labels = open_tables(args)
    folder.mkdir()
    print(export_dataset(tables, labels, folder, repo_id=args.name, license=args.license).describe())
    refuse_leaks(folder)
    if account is None:
        show(folder, args.name)
        return
    pushed = push_folder(
        account,
        folder,
        args.name,
        repo_type="dataset",
        replaces=REPLACES,
        private=args.private,
        revision=args.revision,
        create_pr=args.create_pr,
        message=args.commit_message or "Push a table of text, pictures and sounds",
    )
    print(
        f"the data set is at {pushed.url}; train on it with\n"
        f"  python train.py --dataset_name {args.name} --dataset_revision {pushed.commit} --output_dir outputs/model"
    )


def show(folder: Path, name: str) -> None:
    """What a dry run has to say: the files, and the card."""
    from hub.push import listing

    print(f"{listing(folder, name)}\n\n{(folder / 'README.md').read_text(encoding='utf-8')}")


def main(argv: list[str] | None = None) -> int:
    return exit_code(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
