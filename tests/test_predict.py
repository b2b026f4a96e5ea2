"""The verb `predict.py` and the benchmark, called as a user calls them, on a tiny model folder."""

import csv
import json
import os
import shutil
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from test_evaluation import COLUMNS, LABELS, ROOT, make_folder, make_table

import predict
from benchmarks import explanation, inference
from cli.scored import prediction_columns, without_formula


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return make_table(tmp_path_factory.mktemp("table"))


def score_table(folder, table, output, *more):
    call = [str(folder), "--data_file", str(table), *COLUMNS, "--output_file", str(output), "--device", "cpu", *more]
    return predict.main(call)


# -- one sample -------------------------------------------------------------------------------------------------------


def test_one_sample_prints_ranked_labels_as_json(folder, table, capsys):
    sample = [
        "--text",
        "a small animal",
        "--image",
        str(table.parent / "1.png"),
        "--audio",
        str(table.parent / "1.wav"),
    ]
    assert predict.main([str(folder), *sample, "--device", "cpu"]) == 0
    ranked = json.loads(capsys.readouterr().out)
    assert sorted(entry["label"] for entry in ranked) == LABELS
    scores = [entry["score"] for entry in ranked]
    assert scores == sorted(scores, reverse=True) and sum(scores) == pytest.approx(1)


def test_one_modality_and_one_label_are_enough(folder, capsys):
    assert predict.main([str(folder), "--text", "a loud animal", "--top_k", "1"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 1


@pytest.mark.parametrize(
    ("sample", "sentence"),
    [
        (["--text", "  "], "give at least one of text, image, audio"),
        (["--image", "nowhere.png"], "nowhere.png"),
        (["--image", "http://127.0.0.1/x.png"], "http://127.0.0.1/x.png"),
    ],
)
def test_a_sample_that_cannot_be_read_gets_a_sentence(folder, capsys, sample, sentence):
    assert predict.main([str(folder), *sample]) == 1
    captured = capsys.readouterr()
    assert sentence in captured.err and "error: " in captured.err and captured.out == ""


# -- a table ----------------------------------------------------------------------------------------------------------


def test_a_scored_table_keeps_rows_and_columns_and_adds_probabilities(folder, table, tmp_path):
    output = tmp_path / "new" / "scored.parquet"
    assert score_table(folder, table, output, "--batch_size", "4") == 0
    scored = pq.read_table(output).to_pydict()
    assert list(scored) == [
        "id", "words", "face", "voice", "kind",
        "prediction", "score", "probability_ant", "probability_bee", "probability_cat",
    ]  # fmt: skip
    assert scored["id"] == [f"id{row}" for row in range(1, 7)]
    for row in range(6):
        probabilities = {label: scored[f"probability_{label}"][row] for label in LABELS}
        assert sum(probabilities.values()) == pytest.approx(1)
        assert scored["prediction"][row] == max(probabilities, key=probabilities.get)
        assert scored["score"][row] == max(probabilities.values())
    assert [path.name for path in output.parent.iterdir()] == ["scored.parquet"]


def test_a_row_scores_the_same_in_a_table_and_alone(folder, table, tmp_path, capsys):
    output = tmp_path / "scored.jsonl"
    assert score_table(folder, table, output) == 0
    row = json.loads(output.read_text().splitlines()[1])  # has no text
    capsys.readouterr()
    files = ["--image", str(table.parent / row["face"]), "--audio", str(table.parent / row["voice"])]
    assert predict.main([str(folder), *files, "--device", "cpu"]) == 0
    best = json.loads(capsys.readouterr().out)[0]
    assert best == {"label": row["prediction"], "score": pytest.approx(row["score"], abs=1e-5)}


def test_embedded_media_do_not_travel_into_the_output(folder, table, tmp_path):
    import pyarrow as pa

    images = [{"bytes": (table.parent / f"{row}.png").read_bytes(), "path": None} for row in (1, 2)]
    pq.write_table(pa.table({"id": [1, 2], "image": images}), tmp_path / "rows.parquet")
    call = [str(folder), "--data_file", str(tmp_path / "rows.parquet"), "--output_file", str(tmp_path / "out.parquet")]
    assert predict.main(call) == 0
    assert pq.read_table(tmp_path / "out.parquet").column_names[:2] == ["id", "prediction"]


def test_numbers_that_stand_for_names_are_written_as_names(folder, tmp_path):
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "kind": ClassLabel(names=["ant", "bee"])})
    rows = Dataset.from_dict({"text": ["a small animal", "loud"], "kind": [1, None]}, features=features)
    rows.to_parquet(tmp_path / "rows.parquet")
    call = [str(folder), "--data_file", str(tmp_path / "rows.parquet"), "--output_file", str(tmp_path / "out.parquet")]
    assert predict.main(call) == 0
    assert pq.read_table(tmp_path / "out.parquet")["kind"].to_pylist() == ["bee", None]


def test_csv_output_cannot_start_a_formula(folder, tmp_path):
    table = make_table(tmp_path / "table", num_rows=2, label=lambda row: "=cmd|'/c calc'!A0" if row == 1 else "-0.5")
    output = tmp_path / "scored.csv"
    assert score_table(folder, table, output) == 0
    rows = list(csv.DictReader(output.open(newline="")))
    assert [row["kind"] for row in rows] == ["'=cmd|'/c calc'!A0", "-0.5"]
    assert float(rows[0]["score"]) > 0


@pytest.mark.parametrize("value", ["=1+1", "+1+1", "-1+1", "@A1", "\t=1", "\r=1", "\n=1", " =1", "＝1", "-"])
def test_formulas_get_an_apostrophe(value):
    assert without_formula(value) == f"'{value}"


@pytest.mark.parametrize("value", ["a=1", "-5", "+3.5e-7", "", "'=1", -1.5, None])
def test_what_is_no_formula_stays(value):
    assert without_formula(value) == value


def test_an_output_is_replaced_only_when_asked(folder, table, tmp_path, capsys):
    output = tmp_path / "scored.csv"
    output.write_text("old")
    assert score_table(folder, table, output) == 1
    assert "exists: give another `--output_file`, or `--overwrite`" in capsys.readouterr().err
    assert output.read_text() == "old"
    assert score_table(folder, table, output, "--overwrite") == 0
    assert len(output.read_text().splitlines()) == 7


def test_a_scored_table_is_not_scored_over(folder, table, tmp_path, capsys):
    first = table.parent / "scored.csv"
    assert score_table(folder, table, first) == 0
    assert score_table(folder, first, tmp_path / "again.csv") == 1
    assert "already has the column(s) `prediction`, `score`" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("problem", "names", "scores", "columns"),
    [
        ("regression", ["age"], [[1.5], [2.5]], {"prediction": [1.5, 2.5]}),
        ("regression", ["x", "y"], [[1.0, 2.0]], {"prediction_x": [1.0], "prediction_y": [2.0]}),
        (
            "multi_label_classification", ["a", "b"], [[0.9, 0.5], [0.1, 0.2]],
            {"prediction": [["a", "b"], []], "probability_a": [0.9, 0.1], "probability_b": [0.5, 0.2]},
        ),
    ],
)  # fmt: skip
def test_other_problem_types_have_their_own_columns(problem, names, scores, columns):
    import numpy as np

    id2label = dict(enumerate(names))
    assert prediction_columns(problem, id2label, np.array(scores)) == columns
    assert list(prediction_columns(problem, id2label, None)) == list(columns)


# -- why --------------------------------------------------------------------------------------------------------------


def sample_arguments(table):
    return ["--text", "a small animal", "--image", str(table.parent / "1.png"), "--audio", str(table.parent / "1.wav")]


@pytest.mark.parametrize("method", ["integrated_gradients", "attention"])
def test_one_sample_is_explained_as_json(folder, table, capsys, method):
    assert predict.main([str(folder), *sample_arguments(table), "--explain", "--explain_method", method]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["method"] == method and about["label"] in LABELS
    assert sum(about["modalities"].values()) == pytest.approx(about["score"] - about["baseline"], abs=1e-5)
    assert [word["text"] for word in about["text"]["words"]] == ["a", "small", "animal"]
    assert about["image"]["scores"] and about["audio"]["segments"]


def test_another_label_can_be_explained_with_other_steps(folder, capsys):
    more = ["--explain", "--label", "bee", "--explain_steps", "3", "--top_k", "1"]
    assert predict.main([str(folder), "--text", "a loud animal", *more]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["label"] == "bee" and about["completeness"]["num_steps"] == 3
    assert list(about["subsets"]) == ["text"] and len(about["subsets"]["text"]) == 1


def test_an_unknown_label_gets_a_sentence(folder, capsys):
    assert predict.main([str(folder), "--text", "a loud animal", "--explain", "--label", "dog"]) == 1
    assert "error: `label` is 'dog'; this model knows ant, bee, cat" in capsys.readouterr().err


def test_a_table_gets_a_column_for_what_each_modality_gave(folder, table, tmp_path):
    plain, explained = tmp_path / "plain.parquet", tmp_path / "explained.parquet"
    assert score_table(folder, table, plain) == 0
    assert score_table(folder, table, explained, "--explain", "--batch_size", "4") == 0
    expected, scored = pq.read_table(plain).to_pydict(), pq.read_table(explained).to_pydict()
    names = ["contribution_text", "contribution_image", "contribution_audio"]
    assert list(scored) == [*expected, *names]
    assert scored["prediction"] == expected["prediction"]
    assert scored["score"] == pytest.approx(expected["score"], abs=1e-5)
    absent = [[row for row in range(6) if scored[name][row] is None] for name in names]
    assert absent == [[1], [2], [3]]  # as the table lacks them
    shares = [sum(scored[name][row] or 0 for name in names) for row in range(6)]
    bases = [score - share for score, share in zip(scored["score"], shares, strict=True)]
    for label in LABELS:  # nothing but the label decides what nothing at all would score
        same = [base for base, said in zip(bases, scored["prediction"], strict=True) if said == label]
        assert same == pytest.approx(same[:1] * len(same), abs=1e-5)


def test_a_table_may_be_explained_for_one_label_and_written_as_csv(folder, table, tmp_path):
    output = tmp_path / "bee.csv"
    assert score_table(folder, table, output, "--explain", "--label", "bee") == 0
    rows = list(csv.DictReader(output.open(newline="")))
    assert rows[1]["contribution_text"] == "" and rows[0]["contribution_text"] != ""
    bases = [
        float(row["probability_bee"]) - sum(float(row[f"contribution_{m}"] or 0) for m in ("text", "image", "audio"))
        for row in rows
    ]
    assert bases == pytest.approx(bases[:1] * 6, abs=1e-5)


def test_contributions_are_not_written_over(folder, table, tmp_path, capsys):
    first = table.parent / "explained.csv"
    assert score_table(folder, table, first, "--explain") == 0
    assert score_table(folder, first, tmp_path / "again.csv", "--explain") == 1
    assert "`contribution_audio`, which are written here" in capsys.readouterr().err


def test_a_folder_from_before_explanations_gets_a_sentence(folder, tmp_path, capsys):
    old = shutil.copytree(folder, tmp_path / "old")
    code = (old / "pipeline_mmfusion.py").read_text().replace("def explain(", "def explain_no_more(")
    (old / "pipeline_mmfusion.py").write_text(code)
    assert predict.main([str(old), "--text", "a loud animal", "--explain"]) == 1
    assert "was saved without explanations: copy `pipeline_mmfusion.py` and" in capsys.readouterr().err


# -- calls ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "nothing to predict"),
        (["--text", "a", "--data_file", "x.csv", "--output_file", "y.csv"], "exclude each other"),
        (["--data_file", "x.csv"], "--data_file needs --output_file"),
        (["--text", "a", "--output_file", "y.csv"], "--output_file needs --data_file"),
        (["--data_file", "x.csv", "--output_file", "y.xlsx"], "allowed are .csv, .jsonl, .parquet"),
        (["--text", "a", "--top_k", "0"], "0 is not at least 1"),
        (["--text", "a", "--label", "bee"], "--label without --explain: nothing is explained"),
        (["--text", "a", "--explain_steps", "3"], "--explain_steps without --explain"),
        (["--text", "a", "--explain", "--explain_method", "lime"], "invalid choice: 'lime'"),
        (["--text", "a", "--explain", "--explain_steps", "0"], "0 is not at least 1"),
        (
            ["--text", "a", "--explain", "--explain_method", "attention", "--explain_steps", "3"],
            "--explain_steps belongs to integrated gradients",
        ),
        (
            ["--data_file", "x.csv", "--output_file", "y.csv", "--explain", "--explain_method", "attention"],
            "--explain_method and --data_file exclude each other",
        ),
    ],
)
def test_a_wrong_call_exits_with_2(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as stop:
        predict.main(["model", *arguments])
    assert stop.value.code == 2 and sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    "script", ["evaluation.py", "predict.py", "benchmarks/inference.py", "benchmarks/explanation.py"]
)
def test_help_needs_no_heavy_import(script, tmp_path):
    """A process of its own, from another folder: no torch, no transformers, hence quick."""
    call = [sys.executable, "-X", "importtime", str(ROOT / script), "--help"]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "COLUMNS": "100"})
    assert done.returncode == 0 and "usage:" in done.stdout
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert not imported & {"torch", "transformers", "evaluate", "datasets", "numpy"}


# -- the benchmark ----------------------------------------------------------------------------------------------------


def test_the_benchmark_ends_with_one_json_object(folder, capsys):
    arguments = ["--batch_sizes", "1", "2", "--num_repeats", "2", "--audio_seconds", "0.05", "--device", "cpu"]
    assert inference.main([str(folder), *arguments]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["inputs"] == {"input_ids": [16], "pixel_values": [3, 16, 16], "input_values": [800]}
    cases = {(line["batch_size"], line["modalities"]): line for line in report["results"]}
    assert len(cases) == 2 * 8 and cases[1, "text+image+audio"]["time_ratio_to_full"] == 1.0
    parts = report["parameters"]
    assert parts["text"] + parts["image"] + parts["audio"] + parts["fusion"] == parts["total"]
    assert 0 < report["memory"]["weights_mib"] < report["memory"]["rss_mib"] <= report["memory"]["peak_rss_mib"]


def test_the_benchmark_says_what_is_wrong(tmp_path, capsys):
    assert inference.main([str(tmp_path / "nowhere")]) == 1
    assert "error: the model folder" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        inference.main(["model", "--audio_seconds", "0"])
    assert stop.value.code == 2


def test_the_benchmark_of_explanations_ends_with_one_json_object(folder, capsys):
    arguments = ["--batch_sizes", "2", "--num_steps", "2", "4", "--num_repeats", "2", "--audio_seconds", "0.05"]
    assert explanation.main([str(folder), *arguments, "--device", "cpu"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    cases = {(line["batch_size"], line["what"]): line for line in report["results"]}
    inside = [(1, "forward"), (1, "integrated_gradients 2"), (1, "integrated_gradients 4"), (1, "attention")]
    assert set(cases) == {(2, "forward"), (2, "shapley"), *inside}
    assert all(cases[size, "forward"]["time_ratio_to_forward"] == 1.0 for size in (1, 2))
    assert [check["num_steps"] for check in report["completeness"]] == [2, 4]


def test_the_benchmark_of_explanations_says_what_is_wrong(tmp_path, capsys):
    assert explanation.main([str(tmp_path / "nowhere")]) == 1
    assert "error: the model folder" in capsys.readouterr().err
