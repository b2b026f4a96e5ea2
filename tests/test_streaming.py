"""Training from a data set on the Hub, downloaded or streamed: which rows, in which order, and what goes wrong.

Everything talks to the local Hub over HTTP. Two tests are whole processes of `train.py`; the rest looks at the rows.
"""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from accelerate import Accelerator
from datasets import ClassLabel, Features, Image, List, Value
from hub_here import datasets_online, picture, push, push_arrow, push_tables, write_rows
from local_hub import running_hub

import data
import train
from data import Columns, LabelMap, StreamedDataset, open_stream
from hub import dataset as hub_dataset
from training.arguments import parse_args
from training.optimization import number_of_steps
from training.rows import StreamedRows, open_rows
from training.start import NewModel

ROOT = Path(train.__file__).parent
NUM_ROWS = 40
READS_ALL = {"modalities": ("text", "image", "audio"), "audio_sampling_rate": 8000, "max_audio_seconds": 1.0}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A Hub with `alice/both` (train and validation), `alice/train` (train alone) and their CSVs in `hub.tables`."""
    folder = tmp_path_factory.mktemp("hub")
    with running_hub(folder / "hub") as hub, datasets_online(hub, folder / "home") as api:
        train = write_rows(folder / "t", NUM_ROWS)
        held = write_rows(folder / "t", 10, first=NUM_ROWS, name="validation")
        hub.tables = {"train": train, "validation": held}
        hub.both = push_tables(api, "alice/both", folder / "both", train=train, validation=held)
        push_tables(api, "alice/train", folder / "train", train=train)
        with mock.patch.multiple(hub_dataset, MAX_SHARD_BYTES=12_000, MAX_GROUP_BYTES=4_000):
            push_tables(api, "alice/files", folder / "files", train=train)
        assert len(hub.files("alice/files", "dataset")) > 6
        yield hub


@pytest.fixture
def api(hub, tmp_path):
    with datasets_online(hub, tmp_path / "home") as api:
        yield api
        hub.clear_failures()


@pytest.fixture
def all_labels(hub):
    return LabelMap.fit(data.read_table(hub.tables["train"]))


def streamed(stream, labels, **options):
    settings = {"buffer_size": 10, "seed": 0, "on_bad_cell": "error", "num_rows": NUM_ROWS, **options}
    return StreamedDataset(stream, labels, SimpleNamespace(**READS_ALL), **settings)


def words(rows):
    """What identifies the rows of `write_rows`: text where there is one, or else the picture."""
    return [row["text"] or bytes(row["image"].tobytes()) for row in rows]


def args_of(*flags):
    argv = [*map(str, flags), "--output_dir", "never-written"]
    return parse_args(argv, description="", epilog="")


def all_towers(modality):
    return True


# --- Rows


def test_a_stream_gives_every_row_opened_as_a_table_would(hub, api, all_labels):
    stream = open_stream("alice/both")
    assert stream.labels() == all_labels
    assert (stream.modalities, stream.num_rows) == (("text", "image", "audio"), NUM_ROWS)
    assert stream.origin == {"hub_id": "alice/both", "revision": hub.both, "split": "train"}
    table = data.read_table(hub.tables["train"])
    whole = data.FusionDataset(table, all_labels, SimpleNamespace(**READS_ALL))
    rows = {key: row for row in streamed(stream, all_labels) for key in words([row])}
    assert len(rows) == NUM_ROWS
    for here in whole:
        there = rows[words([here])[0]]
        assert (there["text"], there["label"]) == (here["text"], here["label"])
        assert (there["image"] is None) == (here["image"] is None)
        assert here["image"] is None or there["image"].tobytes() == here["image"].tobytes()
        assert (there["audio"] is None) == (here["audio"] is None)
        assert here["audio"] is None or (there["audio"] == here["audio"]).all()


def test_each_epoch_has_an_order_of_its_own_and_the_same_seed_repeats_it(api, all_labels):
    first = streamed(open_stream("alice/both"), all_labels)
    epochs = []
    for epoch in (0, 1):
        first.set_epoch(epoch)
        epochs.append(words(first))
    again = streamed(open_stream("alice/both"), all_labels)
    assert epochs[0] != epochs[1] and Counter(epochs[0]) == Counter(epochs[1])
    assert words(again) == epochs[0]
    assert words(streamed(open_stream("alice/both"), all_labels, seed=1)) != epochs[0]


@pytest.mark.parametrize("num_processes", [2, 3])
@pytest.mark.parametrize("name", ["alice/both", "alice/files"])
def test_processes_share_the_rows_and_none_has_more_batches(api, all_labels, name, num_processes):
    stream = open_stream(name)
    parts = [
        words(streamed(stream, all_labels, process_index=index, num_processes=num_processes))
        for index in range(num_processes)
    ]
    assert {len(part) for part in parts} == {-(-NUM_ROWS // num_processes)}
    counts = Counter(word for part in parts for word in part)
    assert len(counts) == NUM_ROWS, "no row is left out"
    assert sum(counts.values()) - NUM_ROWS < num_processes, "only to make them equally many is a row repeated"


@pytest.mark.parametrize("name", ["alice/both", "alice/files"])
def test_workers_of_a_loader_do_not_repeat_rows(api, all_labels, name):
    dataset = streamed(open_stream(name), all_labels)
    counts = Counter(
        word for batch in torch.utils.data.DataLoader(dataset, 8, num_workers=2, collate_fn=words) for word in batch
    )
    assert len(counts) == NUM_ROWS and set(counts.values()) == {1}


def test_only_the_columns_that_are_needed_are_downloaded(hub, api):
    before = len(hub.requests)
    texts = list(open_stream("alice/both").texts(NUM_ROWS))
    assert len(texts) == sum(text is not None for text in cells_of(hub.tables["train"], "text"))
    parquet = [(method, status) for method, path, status in hub.requests[before:] if path.endswith(".parquet")]
    assert ("GET", 200) not in parquet, "nothing is fetched as a whole"
    stream = open_stream("alice/both").keep_modalities(["text"])
    assert set(next(iter(stream.rows()))) == {"text", "label"}


def cells_of(path, kind):
    table = data.read_table(path)
    return [table.cell(index, kind) for index in range(len(table))]


@pytest.mark.parametrize("name", ["alice/train", "alice/files"])
def test_the_head_of_a_stream_becomes_a_table_and_the_rest_goes_on(hub, api, all_labels, name):
    stream = open_stream(name)
    head, rest = stream.take(6).table(), stream.skip(6)
    assert [head.cell(index, "text") for index in range(6)] == cells_of(hub.tables["train"], "text")[:6]
    assert head.media(0, "image") == picture(0)
    assert rest.num_rows == NUM_ROWS - 6
    held = {head.cell(index, "text") for index in range(6)}
    for epoch in (0, 1):
        dataset = streamed(rest, all_labels, num_rows=rest.num_rows)
        dataset.set_epoch(epoch)
        left = words(dataset)
        assert len(left) == NUM_ROWS - 6 and not held & set(left)


# --- Bad cells


@pytest.fixture(scope="module")
def strange(hub, tmp_path_factory):
    """Rows as a stranger may push them: a good one, a URL, a foreign path, no picture, an empty row."""
    folder = tmp_path_factory.mktemp("strange")
    secret = folder / "secret.png"
    secret.write_bytes(picture(9))
    cells = [
        {"bytes": picture(1), "path": "good.png"},
        {"bytes": None, "path": f"{hub.url}/fetched.png"},
        {"bytes": None, "path": str(secret)},
        {"bytes": b"no picture", "path": "broken.png"},
        None,
    ]
    features = Features({"text": Value("string"), "image": Image(), "label": ClassLabel(names=["a", "b"])})
    columns = {"text": ["one", "two", None, "four", None], "image": cells, "label": [0, 1, 0, 1, 0]}
    with datasets_online(hub, folder / "home") as api:
        push_arrow(api, "alice/strange", folder / "p", columns, features)
    return hub


def test_a_stream_follows_no_url_and_no_path(strange, api, capsys):
    stream = open_stream("alice/strange")
    rows = list(streamed(stream, stream.labels(), on_bad_cell="empty", num_rows=5))
    assert {row["text"] for row in rows} == {"one", "two", "four"}
    assert [row["image"] is not None for row in rows if row["text"] == "one"] == [True]
    assert all(row["image"] is None for row in rows if row["text"] != "one")
    told = capsys.readouterr().err
    assert "holds only the path" in told and "which a stream does not follow" in told
    assert "column `image` (`broken.png`)" in told and "the row has no modality" in told
    assert not [path for _, path, _ in strange.requests if "fetched" in path]


def test_a_table_from_the_hub_follows_no_url_and_no_path(strange, api):
    table = data.read_table("alice/strange")
    with pytest.raises(ValueError, match="is a URL; URLs are never fetched"):
        table.media(1, "image")
    with pytest.raises(ValueError, match=r"secret\.png.* outside of .*datasets--alice--strange"):
        table.media(2, "image")
    checked, report = data.check_table(table, on_bad_cell="drop", progress=False)
    assert ([checked.cell(index, "text") for index in range(len(checked))], report.num_dropped) == (["one"], 4)
    assert not [path for _, path, _ in strange.requests if "fetched" in path]


def test_bad_rows_are_dropped_or_stop_with_their_place(strange, api):
    stream = open_stream("alice/strange")
    assert words(streamed(stream, stream.labels(), on_bad_cell="drop", num_rows=5)) == ["one"]
    with pytest.raises(ValueError, match=r"alice/strange:train:row \d as it came.*\n.*--on_bad_cell"):
        list(streamed(stream, stream.labels(), num_rows=5))


def test_processes_of_a_stream_with_dropped_rows_still_have_equally_many(strange, api):
    stream = open_stream("alice/strange")
    options = {"on_bad_cell": "empty", "num_rows": 5, "num_processes": 2}
    counts = [len(list(streamed(stream, stream.labels(), process_index=index, **options))) for index in (0, 1)]
    assert counts == [3, 3]


def test_a_stream_without_a_usable_row_ends_with_a_sentence(api, tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["a", "b"])})
    push_arrow(api, "alice/blank", tmp_path / "p", {"text": ["", " "], "label": [0, 1]}, features)
    stream = open_stream("alice/blank")
    with pytest.raises(ValueError, match=r"`alice/blank:train` has no row that can be used"):
        list(streamed(stream, stream.labels(), on_bad_cell="drop", num_rows=2))


def test_a_missing_label_is_said_with_its_row(api, tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["a", "b"])})
    push_arrow(api, "alice/unlabelled", tmp_path / "p", {"text": ["x", "y"], "label": [None, -1]}, features)
    stream = open_stream("alice/unlabelled")
    with pytest.raises(ValueError, match=r"alice/unlabelled:train:row 1 as it came, column `label`: the label is mis"):
        list(streamed(stream, stream.labels(), num_rows=2))


# --- What is declared


@pytest.mark.parametrize(
    ("feature", "problem_type", "expected"),
    [
        (ClassLabel(names=["b", "a"]), None, ("single_label_classification", ("b", "a"))),
        (List(ClassLabel(names=["b", "a"])), None, ("multi_label_classification", ("b", "a"))),
        (Value("float32"), None, ("regression", ("y",))),
        (Value("int64"), "regression", ("regression", ("y",))),
        (List(Value("float64"), length=2), None, ("regression", ("y_0", "y_1"))),
    ],
)
def test_labels_come_from_what_is_declared(feature, problem_type, expected):
    labels = LabelMap.declared(feature, "y", "set", problem_type)
    assert (labels.problem_type, labels.names) == expected


@pytest.mark.parametrize(
    ("feature", "problem_type", "message"),
    [
        (
            Value("string"),
            None,
            r"does not say what the labels are.*Push it with ClassLabel.*or train without",
        ),
        (Value("int64"), None, "does not say what the labels are"),
        (List(Value("string")), None, "does not say what the labels are"),
        (List(Value("float64")), None, "declares lists of any length"),
        (ClassLabel(names=["a"]), "regression", r"`problem_type` is regression, but `set` declares .*single_label"),
    ],
)
def test_what_is_not_declared_gets_a_sentence(feature, problem_type, message):
    with pytest.raises(ValueError, match=message):
        LabelMap.declared(feature, "y", "set", problem_type)


def test_columns_that_cannot_be_streamed_get_a_sentence(api, tmp_path):
    features = Features({"words": Value("int64"), "text": Value("string"), "label": Value("string")})
    push_arrow(api, "alice/plain", tmp_path / "p", {"words": [1], "text": ["x"], "label": ["a"]}, features)
    with pytest.raises(ValueError, match=r"column `words` holds .*int64.*cannot be read as text from a stream"):
        open_stream("alice/plain", columns=Columns(text="words"))
    with pytest.raises(ValueError, match=r"`alice/plain:train` has no label column\. It has `words`, `text`, `label`"):
        open_stream("alice/plain", columns=Columns(label="none")).labels()
    with pytest.raises(ValueError, match="--label_delimiter divides text"):
        open_stream("alice/plain").labels(delimiter=",")
    assert open_stream("alice/plain").num_rows is None


def test_media_in_files_of_their_own_cannot_be_streamed(api, tmp_path):
    folder = tmp_path / "p"
    folder.mkdir()
    (folder / "a.png").write_bytes(picture(1))
    (folder / "metadata.csv").write_text("file_name,text\na.png,x\n")
    push(api, "alice/folder", folder)
    with pytest.raises(ValueError, match=r"kept as `imagefolder`.*cannot be streamed. Train without --streaming"):
        open_stream("alice/folder")
    table = data.read_table("alice/folder", columns=Columns(image="image", text="none"))
    assert Path(table.media(0, "image")).read_bytes() == picture(1)


def test_a_stream_of_unknown_length_needs_the_number_of_steps(api, tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["a", "b"])})
    push_arrow(api, "alice/endless", tmp_path / "p", {"text": ["x", "y"] * 9, "label": [0, 1] * 9}, features)
    flags = ["--dataset_name", "alice/endless", "--streaming", "--max_eval_samples", 4]
    with pytest.raises(ValueError, match=r"`alice/endless:train` does not declare how many rows.*--max_train_steps"):
        open_rows(args_of(*flags), all_towers)
    rows, held, _ = open_rows(args_of(*flags, "--max_train_steps", 3), all_towers)
    assert (rows.num_rows, held.num_rows) == (None, 4)
    assert "num_rows" not in rows.record(str)


# --- From the flags of train.py to rows


@pytest.mark.parametrize("workers", [0, 1])
def test_the_loader_of_a_stream_is_left_as_it_is_and_reorders_each_epoch(api, workers):
    only_text = ["--image_column", "none", "--audio_column", "none", "--on_bad_cell", "drop"]
    flags = ["--dataset_name", "alice/both", "--streaming", "--num_workers", workers, *only_text]
    args, accelerator = args_of(*flags, "--per_device_train_batch_size", 16), Accelerator(cpu=True)
    rows, _, labels = open_rows(args, all_towers)
    loader = rows.loader(args, accelerator, NewModel(args).towers(rows).processor, labels)
    assert (len(loader), len(loader.dataset)) == (-(-NUM_ROWS // 16), NUM_ROWS)
    assert number_of_steps(args, loader, accelerator) == 3 * args.num_train_epochs
    assert accelerator.prepare(loader) is loader
    epochs = [torch.cat([batch["labels"] for batch in loader]).tolist() for _ in range(2)]
    assert epochs[0] != epochs[1] and sorted(epochs[0]) == sorted(epochs[1])


def test_the_validation_split_is_taken_and_said(hub, api, capsys):
    rows, held, labels = open_rows(args_of("--dataset_name", "alice/both", "--streaming"), all_towers)
    assert isinstance(rows, StreamedRows)
    assert (rows.num_rows, held.num_rows, labels.names) == (NUM_ROWS, 10, ("bad", "good"))
    assert "`alice/both` has a split `validation`: it is used for validation" in capsys.readouterr().out
    assert held.record(str) == {
        "name": "alice/both:validation", "num_rows": 10,
        "hub_id": "alice/both", "revision": hub.both, "split": "validation",
    }  # fmt: skip
    assert "not checked beforehand" in rows.check(args_of("--dataset_name", "x"), None, progress=False)


def test_without_a_validation_split_the_first_rows_are_held_out(api, capsys):
    flags = ["--dataset_name", "alice/train", "--streaming", "--max_eval_samples", 7]
    rows, held, _ = open_rows(args_of(*flags), all_towers)
    assert (rows.num_rows, held.num_rows) == (NUM_ROWS - 7, 7)
    assert "has no split for validation: its first 7 rows are held out" in capsys.readouterr().out


def test_without_streaming_rows_are_set_aside_as_for_a_file(api):
    rows, held, _ = open_rows(args_of("--dataset_name", "alice/train"), all_towers)
    assert (rows.num_rows, held.num_rows) == (36, 4)
    assert rows.table.origin == held.table.origin


def test_splits_and_revisions_can_be_named_and_wrong_ones_get_a_sentence(api):
    flags = ["--dataset_name", "alice/both", "--dataset_split", "validation", "--dataset_validation_split", "train"]
    rows, held, _ = open_rows(args_of(*flags), all_towers)
    assert (rows.num_rows, held.num_rows) == (10, NUM_ROWS)
    for flag in ("--dataset_split", "--dataset_validation_split"):
        for streaming in ([], ["--streaming"]):
            with pytest.raises(ValueError, match=r"has the splits train, validation and no `dev`"):
                open_rows(args_of("--dataset_name", "alice/both", flag, "dev", *streaming), all_towers)
    with pytest.raises(FileNotFoundError, match="`alice/both` has no such revision"):
        open_rows(args_of("--dataset_name", "alice/both", "--dataset_revision", "nope"), all_towers)


def test_an_older_revision_is_read_as_it_was(hub, api, tmp_path):
    old = push_tables(api, "alice/grows", tmp_path / "old", train=write_rows(tmp_path / "t", 5))
    push_tables(api, "alice/grows", tmp_path / "new", train=write_rows(tmp_path / "t", 9))
    assert len(data.read_table("alice/grows", revision=old)) == 5
    assert len(data.read_table("alice/grows")) == 9
    assert open_stream("alice/grows", revision=old).num_rows == 5


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "either with --train_file .* or with --dataset_name .*, not neither"),
        (["--train_file", "a.csv", "--dataset_name", "a/b"], "not both"),
        (["--train_file", "a.csv", "--streaming"], "--streaming belongs to --dataset_name"),
        (["--train_file", "a.csv", "--dataset_split", "x"], "--dataset_split belongs to --dataset_name"),
        (["--train_file", "a.csv", "--dataset_revision", "x"], "--dataset_revision belongs to --dataset_name"),
        (["--dataset_name", "a/b", "--validation_file", "v.csv", "--dataset_validation_split", "x"], "exclude each"),
    ],
)
def test_flags_that_do_not_fit_together_are_a_usage_error(flags, message, capsys):
    with pytest.raises(SystemExit) as raised:
        args_of(*flags)
    assert raised.value.code == 2
    assert re.search(message, capsys.readouterr().err)


# --- Whole runs

SHORT = [
    "--image_size", "32", "--fusion_hidden_size", "16", "--num_fusion_layers", "1", "--vocab_size", "200",
    "--per_device_train_batch_size", "8", "--max_train_steps", "3",
]  # fmt: skip


def run_train(hub, folder, *flags, token="hf_alice_read"):
    environment = hub.environment(home=folder / "home", token=token)
    command = [sys.executable, ROOT / "train.py", *SHORT, *flags, "--output_dir", folder / "model"]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("streaming", [[], ["--streaming"]])
def test_train_learns_from_a_data_set_on_the_hub_and_records_its_commit(hub, tmp_path, streaming):
    (tmp_path / "alice" / "both").mkdir(parents=True)  # a folder of that name is not what is asked for
    done = run_train(hub, tmp_path, "--dataset_name", "alice/both", *streaming)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "model" / "training_config.json").read_text())["data"]
    assert record["train"] == {
        "name": "alice/both:train", "num_rows": NUM_ROWS,
        "hub_id": "alice/both", "revision": hub.both, "split": "train",
    }  # fmt: skip
    assert (record["validation"]["revision"], record["validation"]["num_rows"]) == (hub.both, 10)
    metrics = json.loads((tmp_path / "model" / "metrics.json").read_text())
    assert metrics["training"]["epochs"][0]["steps"] == 3
    downloaded = list((tmp_path / "home" / "hub").rglob("*.parquet"))
    assert bool(downloaded) != bool(streaming), "a stream leaves no copy of the set behind"
