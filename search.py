"""Find the rows of a table that are like a text, a picture or a sound, or all of these together.

    python search.py build outputs/demo --data_file my/table.csv --index_dir outputs/index        # once
    python search.py query --index_dir outputs/index --text "a dog barks" --top_k 5
    python search.py query --index_dir outputs/index --image photo.png --audio bark.wav --json    # any subset, fused
    python search.py match outputs/demo --image photo.png --text "a dog barks"                    # do they fit?

Every row is embedded once, as the fused vector of whatever it has, and with `--by` also as what one modality alone
gives (`--by fused,text,audio`): then a text finds sounds as sounds (`query --by audio`), whatever else the rows hold.
Scores are cosines, and the search is exact. A model that was trained with `--contrastive_weight` finds across
modalities best. An index names its model, whose code is run: query those that you trust. Exit code 2 for a wrong
call, 1 for a failure.
"""

import argparse
import json
import sys
from pathlib import Path

from cli.arguments import DEVICES, add_column_arguments, add_model_arguments, exit_code, number
from cli.scored import WRITERS

MODALITIES = ("text", "image", "audio")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="build|query|match")
    add_build(verbs.add_parser("build", help="embed a table and index it", allow_abbrev=False))
    query = verbs.add_parser("query", help="find the rows that are like a sample", allow_abbrev=False)
    add_query(query)
    match = verbs.add_parser("match", help="say whether two modalities of a sample fit", allow_abbrev=False)
    add_match(match)
    args = parser.parse_args(argv)
    if args.verb == "query":
        _check_query(query, args)
    elif args.verb == "match" and len(_given(args)) < 2:
        match.error("a match is between two: give at least two of --text, --image, --audio")
    return args


def add_build(parser: argparse.ArgumentParser):
    add_model_arguments(parser)
    add = parser.add_argument
    _add_table(parser, required=True, help="table to index: .csv, .tsv, .jsonl, .parquet, a folder, a Hub data set")
    add("--index_dir", type=Path, required=True, help="folder that the index goes to; it must not be there yet")
    add("--overwrite", action=argparse.BooleanOptionalAction, default=False,
        help="whether to replace an index that is there; default: no")  # fmt: skip
    add("--by", default="fused",
        help="vectors that are kept, joined by commas: `fused` of whatever a row has, or of some modalities alone, "
        "such as `audio` or `text+image`; default: fused")  # fmt: skip
    add("--dtype", choices=("float32", "float16"), default="float32",
        help="how vectors are kept; float16 halves the room, scores move by 0.001; default: float32")  # fmt: skip
    add("--approximate", action=argparse.BooleanOptionalAction, default=False,
        help="whether to build a graph as well, for approximate search in millions of rows; default: no")  # fmt: skip
    add("--label_column", help="column of classes, by which a match tells mismatched pairs; default: `label` if it "
        "exists, `none` to leave it out")  # fmt: skip


def _add_table(parser: argparse.ArgumentParser, **kwargs):
    parser.add_argument("--data_file", **kwargs)
    parser.add_argument(
        "--split", help="split of a Hub data set, or folder in a folder; default: the only one, or `train`"
    )
    add_column_arguments(parser)
    parser.add_argument("--batch_size", type=number(int, 1), default=32, help="rows a batch; default: 32")


def add_query(parser: argparse.ArgumentParser):
    add = parser.add_argument
    add("--index_dir", type=Path, required=True, help="index that `search.py build` wrote; its model's code is run")
    _add_sample(parser.add_argument_group("one sample: any of these, fused"))
    add("--by", help="vectors of the rows that are compared, one of those that the index holds; default: fused")
    add("--top_k", type=number(int, 1), default=10, help="how many rows, best first; default: 10")
    add("--approximate", action=argparse.BooleanOptionalAction, default=False,
        help="whether to search the graph, which may miss rows, if the index has one; default: no, exact")  # fmt: skip
    add("--json", action=argparse.BooleanOptionalAction, default=False, help="whether to print JSON; default: no")
    _add_same_model(parser)
    group = parser.add_argument_group("a table of samples")
    _add_table(group, help="table whose rows are looked for")
    group.add_argument("--output_file", type=Path, help="where their nearest rows go: .csv, .jsonl or .parquet")
    group.add_argument("--overwrite", action=argparse.BooleanOptionalAction, default=False,
        help="whether to replace an output file that is there; default: no")  # fmt: skip


def _add_sample(group):
    group.add_argument("--text", help="the text itself")
    group.add_argument("--image", help="path of a picture")
    group.add_argument("--audio", help="path of a sound")


def _add_same_model(parser: argparse.ArgumentParser):
    add = parser.add_argument
    add("--model", help="where the index's model is now; default: where it was when the index was built")
    add("--revision", help="commit, tag or branch of it on the Hub; default: that of the index")
    add("--device", choices=DEVICES, default="auto", help="where to run; default: auto, a GPU where there is one")


def add_match(parser: argparse.ArgumentParser):
    add_model_arguments(parser)
    _add_sample(parser.add_argument_group("what is compared: two of these, or all"))
    add = parser.add_argument
    add("--index_dir", type=Path, help="index of the same model, with the vectors of both modalities (`build --by "
        "text,image`), which turns the cosine into a probability; default: none")  # fmt: skip
    add("--json", action=argparse.BooleanOptionalAction, default=False, help="whether to print JSON; default: no")


def _given(args: argparse.Namespace) -> list[str]:
    return [f"--{name}" for name in MODALITIES if getattr(args, name) is not None]


def _check_query(parser: argparse.ArgumentParser, args: argparse.Namespace):
    """Refuse, with exit code 2, what asks for nothing or for two things."""
    given = _given(args)
    if args.data_file is None and not given:
        parser.error("nothing to look for: give at least one of --text, --image, --audio, or --data_file")
    if args.data_file is not None and given:
        parser.error(f"{', '.join(given)} and --data_file exclude each other: one sample or a table")
    if (args.data_file is None) != (args.output_file is None):
        parser.error("--data_file and --output_file belong together: a table of samples, and where the answers go")
    if args.output_file is not None and args.output_file.suffix.lower() not in WRITERS:
        parser.error(f"--output_file ends in `{args.output_file.suffix}`; allowed are {', '.join(WRITERS)}")


# -- the three verbs --------------------------------------------------------------------------------------------------


def run_build(args: argparse.Namespace):
    from searching.build import build

    manifest = build(args)
    for name, view in manifest["views"].items():
        recall = view.get("recall_at_10_of_graph")
        graph = "" if recall is None else f"; the graph finds {recall:.1%} of the ten nearest"
        print(f"{view['num_rows']:,} vectors of `{name}`, {manifest['width']} numbers each{graph}")
    print(f"{manifest['table']['num_rows']:,} rows indexed in {args.index_dir}")


def run_query(args: argparse.Namespace):
    from searching import answering

    if args.data_file is not None:
        print(f"{answering.answer_table(args):,} rows looked for; the answers are in {args.output_file}")
        return
    answers = answering.answer_sample(args)
    print(_json(answers) if args.json else answering.describe(answers))


def run_match(args: argparse.Namespace):
    from searching import matching, reader, store

    index = None if args.index_dir is None else store.open_index(args.index_dir)
    model = reader.load_reader(args.model, revision=args.revision, device=args.device)
    if index is not None:
        reader.check_same(index, model)
    sample = {name: getattr(args, name) for name in MODALITIES if getattr(args, name) is not None}
    reader.warn_of_untrained(reader.contrastive_weight(model.model.config), args.model)
    answers = matching.match(model, sample, None if index is None else index.manifest["calibration"])
    print(_json(answers) if args.json else matching.describe(answers))


def _json(answers: list[dict]) -> str:
    return json.dumps(answers, ensure_ascii=False, indent=2, default=str)  # a date in a cell goes as text


def run(args: argparse.Namespace):
    {"build": run_build, "query": run_query, "match": run_match}[args.verb](args)


def main(argv: list[str] | None = None) -> int:
    return exit_code(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
