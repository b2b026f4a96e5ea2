"""The verb `search.py`: an index is built, queried and refused as a user meets it, on a tiny model and real files."""

import csv
import hashlib
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from test_evaluation import COLUMNS, make_folder, make_table

import search
from metrics.retrieval import unit_rows
from searching import matching, nearest, store

CPU = ["--device", "cpu"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("model") / "animals")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return make_table(tmp_path_factory.mktemp("table"), num_rows=9)


def build(model, table, index, *more):
    return search.main(
        ["build", str(model), "--data_file", str(table), "--index_dir", str(index), *COLUMNS, *CPU, *more]
    )


def query(index, *more):
    return search.main(["query", "--index_dir", str(index), *CPU, *more])


@pytest.fixture(scope="module")
def index(model, table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("outputs") / "index"
    assert build(model, table, folder, "--by", "fused,text,audio,image", "--approximate", "--batch_size", "4") == 0
    return folder


@pytest.fixture
def copied(index, tmp_path):
    return shutil.copytree(index, tmp_path / "copy")


def answers(capsys, index, *more):
    capsys.readouterr()
    assert query(index, "--json", *more) == 0
    return json.loads(capsys.readouterr().out)


# -- building ---------------------------------------------------------------------------------------------------------


def test_an_index_holds_unit_vectors_of_the_rows_that_have_something(index):
    opened = store.open_index(index)
    assert opened.views == ("fused", "text", "audio", "image")
    assert [len(opened.view(name)) for name in ("fused", "text", "image", "audio")] == [9, 8, 8, 8]
    assert 1 not in opened.view("text").positions  # row 2 has no text
    for name in opened.views:
        lengths = np.linalg.norm(opened.view(name).vectors, axis=1)
        assert lengths == pytest.approx(np.ones(len(lengths)), abs=1e-5)
    assert not [path.name for path in index.parent.iterdir() if path != index]


def test_rows_keep_their_columns_numbers_and_relative_paths(index):
    row = store.open_index(index).rows([4])[0]
    assert row["row"] == 5 and row["file"].endswith("rows.csv")
    assert row["cells"] == {"id": "id5", "words": "a small animal", "face": "5.png", "voice": "5.wav", "kind": "cat"}


def test_media_that_lie_in_a_table_do_not_travel_into_the_index(model, table, tmp_path):
    import pyarrow as pa

    images = [{"bytes": (table.parent / f"{row}.png").read_bytes(), "path": None} for row in (1, 2)]
    pq.write_table(pa.table({"image": images}), tmp_path / "rows.parquet")
    call = ["build", str(model), "--data_file", str(tmp_path / "rows.parquet"), "--index_dir", str(tmp_path / "index")]
    assert search.main([*call, *CPU, "--dtype", "float16"]) == 0
    opened = store.open_index(tmp_path / "index")
    assert opened.rows([1]) == [{"cells": {}, "row": 2, "file": str(tmp_path / "rows.parquet")}]
    assert opened.view().vectors.dtype == np.float16


def test_an_index_is_replaced_only_when_asked_and_another_folder_never(model, table, copied, tmp_path, capsys):
    assert build(model, table, copied) == 1
    assert "is an index: give another `--index_dir`, or `--overwrite`" in capsys.readouterr().err
    assert build(model, table, copied, "--overwrite") == 0
    assert store.open_index(copied).views == ("fused",)
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "dear.png").write_bytes(b"dear")
    (photos / "index.json").write_text('{"of": "a website"}')
    assert build(model, table, photos, "--overwrite") == 1
    assert "exists and is no index, so it is never replaced" in capsys.readouterr().err
    assert (photos / "dear.png").read_bytes() == b"dear"


def test_a_build_that_fails_leaves_the_old_index_and_nothing_else(model, table, copied, monkeypatch, capsys):
    before = hashlib.sha256((copied / "index.json").read_bytes()).hexdigest()

    def fail(*args, **kwargs):
        raise OSError("no space left on the disk")

    monkeypatch.setattr("searching.build.write_rows", fail)
    assert build(model, table, copied, "--overwrite") == 1
    assert "no space left" in capsys.readouterr().err
    assert hashlib.sha256((copied / "index.json").read_bytes()).hexdigest() == before
    assert [path.name for path in copied.parent.iterdir()] == [copied.name]


@pytest.mark.parametrize(
    ("by", "sentence"),
    [("smell", "`by`: 'smell' is no modality; allowed are `fused`"), ("text,", "`by`: '' is no modality")],
)
def test_vectors_of_what_is_no_modality_are_refused(model, table, tmp_path, capsys, by, sentence):
    assert build(model, table, tmp_path / "index", "--by", by) == 1
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_the_model_or_the_table_lacks_is_refused(model, tmp_path, capsys):
    with pytest.raises(ValueError, match="'audio' is not read by this model; allowed are `fused` and"):
        store.read_views("audio", ["text", "image"])
    (tmp_path / "rows.csv").write_text("text\na small animal\n")
    call = ["build", str(model), "--data_file", str(tmp_path / "rows.csv"), "--index_dir", str(tmp_path / "index")]
    assert search.main([*call, *CPU, "--by", "audio"]) == 1
    assert "has anything of `audio`: leave it out of `--by`" in capsys.readouterr().err
    (tmp_path / "rows.csv").write_text("text\n")
    assert search.main([*call, *CPU]) == 1
    assert "has no rows" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]


# -- asking -----------------------------------------------------------------------------------------------------------


def test_a_row_finds_itself_first(index, table, capsys):
    sample = [
        "--text",
        "a small animal",
        "--image",
        str(table.parent / "6.png"),
        "--audio",
        str(table.parent / "6.wav"),
    ]
    found = answers(capsys, index, *sample, "--top_k", "3")
    assert (
        found[0]["row"] == 6 and found[0]["score"] == pytest.approx(1, abs=1e-5) and found[0]["cells"]["id"] == "id6"
    )
    assert [answer["rank"] for answer in found] == [1, 2, 3]
    assert [answer["score"] for answer in found] == sorted((answer["score"] for answer in found), reverse=True)


def test_a_sound_finds_its_row_by_sound_alone(index, table, capsys):
    found = answers(capsys, index, "--audio", str(table.parent / "7.wav"), "--by", "audio", "--top_k", "100")
    assert found[0]["row"] == 7 and found[0]["score"] == pytest.approx(1, abs=1e-5)
    assert len(found) == 8 and 4 not in [answer["row"] for answer in found]  # row 4 has no sound


def test_equal_rows_come_in_their_order(index, capsys):
    found = answers(capsys, index, "--text", "a small animal", "--by", "text", "--top_k", "8")
    assert [answer["row"] for answer in found] == [1, 3, 4, 5, 6, 7, 8, 9]  # all have the same text


def test_the_search_is_exact_whatever_fits_into_memory(monkeypatch):
    noise = np.random.default_rng(0)
    vectors = unit_rows(noise.normal(size=(500, 16))).astype(np.float16)
    view = store.View("fused", vectors, np.arange(500))
    queries = unit_rows(noise.normal(size=(7, 16))).astype(np.float32)
    monkeypatch.setattr(nearest, "STRETCH_BYTES", 64 * 6)  # six vectors at a time
    scores = queries @ vectors.astype(np.float32).T
    _, places = nearest.nearest(view, queries, 12)
    assert (places == np.argsort(-scores, axis=1)[:, :12]).all()


def test_the_graph_finds_what_the_exact_search_finds(index, table, capsys):
    sample = ["--image", str(table.parent / "8.png"), "--by", "image", "--top_k", "4"]
    exact = answers(capsys, index, *sample)
    assert answers(capsys, index, *sample, "--approximate") == exact
    assert store.open_index(index).manifest["views"]["image"]["recall_at_10_of_graph"] == 1


def test_people_get_one_line_a_row(index, capsys):
    assert query(index, "--text", "a small animal", "--top_k", "2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0].startswith("   1  +") and "id=id" in lines[0]


def test_a_table_of_queries_gets_a_line_for_each_rank(index, table, tmp_path, capsys):
    output = tmp_path / "answers.csv"
    call = ["--data_file", str(table), *COLUMNS, "--output_file", str(output), "--top_k", "2"]
    assert query(index, *call) == 0
    assert "9 rows looked for" in capsys.readouterr().out
    rows = list(csv.DictReader(output.open()))
    assert len(rows) == 18 and list(rows[0])[:5] == ["query_row", "match_rank", "match_score", "match_row", "id"]
    assert all(row["query_row"] == row["match_row"] for row in rows[::2])
    assert query(index, *call) == 1
    assert "exists: give another `--output_file`, or `--overwrite`" in capsys.readouterr().err


def test_modalities_that_no_training_drew_together_are_warned_of(index, capsys):
    assert query(index, "--text", "a small animal", "--by", "audio") == 0
    assert "was trained without `--contrastive_weight`" in capsys.readouterr().err
    assert query(index, "--text", "a small animal", "--by", "text") == 0
    assert "contrastive_weight" not in capsys.readouterr().err


# -- what is refused --------------------------------------------------------------------------------------------------


TEXT = ["--text", "a small animal"]


def test_another_model_is_refused_and_the_same_one_elsewhere_is_not(index, model, tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    moved = shutil.copytree(model, tmp_path / "moved")
    assert query(index, *TEXT, "--model", str(moved)) == 0
    tensors = load_file(moved / "model.safetensors")
    tensors["mmfusion.projectors.text.linear.bias"] += 1
    other = shutil.copytree(model, tmp_path / "other")
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    assert query(index, *TEXT, "--model", str(other)) == 1
    assert "was made with another model than" in capsys.readouterr().err


def test_a_model_that_went_away_is_named(copied, capsys):
    manifest = json.loads((copied / "index.json").read_text())
    manifest["model"]["name"] = "./gone/away"
    (copied / "index.json").write_text(json.dumps(manifest))
    assert query(copied, *TEXT) == 1
    assert "`./gone/away` does not exist" in capsys.readouterr().err


def test_what_is_no_index_gets_a_sentence(tmp_path, capsys):
    assert query(tmp_path / "none", *TEXT) == 1
    assert "none` does not exist: make it with `python search.py build`" in capsys.readouterr().err
    assert query(tmp_path, *TEXT) == 1
    assert "is no index, it has no `index.json`" in capsys.readouterr().err
    (tmp_path / "index.json").write_text('{"kind": "mmfusion-index", "format": 99}')
    assert query(tmp_path, *TEXT) == 1
    assert "is of format 99, this program reads 2: build it again" in capsys.readouterr().err
    (tmp_path / "index.json").write_text("{")
    assert query(tmp_path, *TEXT) == 1
    assert "`index.json` is not JSON" in capsys.readouterr().err


def changed(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "harm", "sentence"),
    [
        ("vectors-fused.npy", lambda path: path.write_bytes(path.read_bytes()[:200]), "has 200 bytes where"),
        ("positions-fused.npy", changed, "is not what was written"),
        ("rows.parquet", lambda path: path.unlink(), "`rows.parquet` is missing"),
        ("graph-fused.faiss", changed, "is not what was written"),
    ],
)
def test_a_torn_file_is_told(copied, capsys, name, harm, sentence):
    harm(copied / name)
    assert query(copied, *TEXT) == 1
    error = capsys.readouterr().err
    assert sentence in error and "Build it again." in error and "Traceback" not in error


def test_vectors_that_the_index_does_not_hold_are_refused(model, table, tmp_path, capsys):
    index = tmp_path / "index"
    assert build(model, table, index) == 0
    assert query(index, *TEXT, "--by", "audio") == 1
    assert "holds vectors of fused: choose one of these, or build it again with `--by fused,audio`" in (
        capsys.readouterr().err
    )
    assert query(index, *TEXT, "--approximate") == 1
    assert "the index has no graph of its `fused` vectors" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sample", "sentence"),
    [
        (["--text", "  "], "give at least one of text, image, audio"),
        (["--image", "nowhere.png"], "nowhere.png"),
    ],
)
def test_a_sample_that_cannot_be_read_gets_a_sentence(index, capsys, sample, sentence):
    assert query(index, *sample) == 1
    assert sentence in capsys.readouterr().err


def test_a_modality_that_the_model_does_not_read_is_refused(table, tmp_path, capsys):
    model = make_folder(tmp_path / "two", audio_config=None)
    columns = ["--text_column", "words", "--image_column", "face"]
    call = ["build", str(model), "--data_file", str(table), "--index_dir", str(tmp_path / "index"), *columns, *CPU]
    assert search.main(call) == 0
    assert query(tmp_path / "index", "--audio", str(table.parent / "1.wav")) == 1
    assert '"audio" was given, but this model reads only text, image' in capsys.readouterr().err


def test_without_the_library_a_sentence_says_how_to_get_it(index, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    assert query(index, *TEXT) == 1
    assert "`pip install faiss-cpu`" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["query"],
        ["query", "--index_dir", "x"],
        ["query", "--index_dir", "x", "--text", "a", "--data_file", "t.csv", "--output_file", "o.csv"],
        ["query", "--index_dir", "x", "--data_file", "t.csv"],
        ["query", "--index_dir", "x", "--data_file", "t.csv", "--output_file", "o.txt"],
        ["query", "--index_dir", "x", "--text", "a", "--top_k", "0"],
        ["match", "m", "--text", "a"],
        ["build", "m"],
    ],
)
def test_a_wrong_call_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        search.main(arguments)
    assert stop.value.code == 2 and "usage:" in capsys.readouterr().err


# -- matching ---------------------------------------------------------------------------------------------------------


def match(model, *more):
    return search.main(["match", str(model), *CPU, *more])


def test_a_match_is_the_cosine_of_the_two_alone(model, index, table, capsys):
    image = str(table.parent / "5.png")
    assert match(model, "--text", "a small animal", "--image", image, "--json") == 0
    captured = capsys.readouterr()
    (answer,) = json.loads(captured.out)
    opened = store.open_index(index)
    text, picture = (opened.view(name) for name in ("text", "image"))
    place = [list(view.positions).index(4) for view in (text, picture)]
    assert answer["pair"] == "text+image" and answer["probability"] is None
    assert answer["cosine"] == pytest.approx(text.vectors[place[0]] @ picture.vectors[place[1]], abs=1e-5)
    assert "was trained without `--contrastive_weight`" in captured.err


def test_all_pairs_of_three_are_scored(model, table, capsys):
    sample = ["--text", "a", "--image", str(table.parent / "5.png"), "--audio", str(table.parent / "5.wav")]
    assert match(model, *sample) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "text+image", "text+audio", "image+audio"
    ]  # fmt: skip


def views_of(together, spread, num_rows=200, seed=0):
    """Text and picture of a row lie near each other, by `together`."""
    noise = np.random.default_rng(seed)
    first = noise.normal(size=(num_rows, 8))
    second = together * first + spread * noise.normal(size=(num_rows, 8))
    unit = [unit_rows(x).astype(np.float32) for x in (first, second)]
    return {name: store.View(name, x, np.arange(num_rows)) for name, x in zip(("text", "image"), unit, strict=True)}


def test_a_probability_says_how_often_such_a_pair_belongs_together():
    found = matching.calibrations(views_of(1.0, 0.5), None)["text+image"]
    assert found["auc"] > 0.95 and found["num_pairs"][0] == 200
    assert matching.probability(0.9, found) > 0.9 and matching.probability(0.0, found) < 0.1
    nothing = matching.calibrations(views_of(0.0, 1.0), None)["text+image"]
    assert 0.35 < nothing["auc"] < 0.65 and 0.2 < matching.probability(0.5, nothing) < 0.8


def test_rows_of_one_class_are_no_mismatch():
    labels = ["cat"] * 199 + ["dog"]
    assert matching.calibrations(views_of(1.0, 0.5), labels) == {}  # too few mismatches to learn from
    labels = ["cat", "dog"] * 100
    found = matching.calibrations(views_of(1.0, 0.5), labels)["text+image"]
    assert found["mismatched"] == "rows with another label" and 60 < found["num_pairs"][1] < 140


def test_an_index_turns_the_cosine_into_a_probability_and_another_model_is_refused(
    copied, model, table, tmp_path, capsys
):
    manifest = json.loads((copied / "index.json").read_text())
    assert manifest["calibration"] == {}  # nine rows say too little
    known = {
        "slope": 5.0,
        "intercept": -1.0,
        "num_pairs": [200, 180],
        "auc": 0.9,
        "mismatched": "rows with other cells",
    }
    manifest["calibration"] = {"text+image": known}
    (copied / "index.json").write_text(json.dumps(manifest))
    sample = [*TEXT, "--image", str(table.parent / "5.png")]
    assert match(model, *sample, "--index_dir", str(copied)) == 0
    assert "probability" in capsys.readouterr().out
    other = make_folder(tmp_path / "other", hidden_size=24)
    assert match(other, *sample, "--index_dir", str(copied)) == 1
    assert "was made with another model than" in capsys.readouterr().err
