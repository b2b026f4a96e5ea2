"""Retrieval between modalities: its numbers, by hand and against brute force, and the verb that prints them."""

import itertools
import json

import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from test_evaluation import COLUMNS, LABELS, make_folder, make_table

import evaluation
from metrics import retrieval
from metrics.vectors import Embedded

NAMES = ["a", "b", "c"]


def units(num_rows, width=5, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(num_rows, width)).astype(np.float32)
    return retrieval.unit_rows(vectors)


def classes_of(labels, num_labels=3):
    return retrieval.class_matrix(np.array(labels), num_labels)


def same_numbers(found, expected):
    by_class = "mean_average_precision_by_class"
    assert found.pop(by_class) == pytest.approx(expected.pop(by_class))
    assert found == pytest.approx(expected)


# -- the numbers ------------------------------------------------------------------------------------------------------


def test_rows_that_find_themselves_score_one():
    vectors = units(12)
    found = retrieval.ranking_metrics(vectors, vectors)
    assert [found[f"recall_at_{k}"] for k in (1, 5, 10)] == [1, 1, 1] and found["median_rank"] == 1
    assert found["mean_average_precision"] is None


def test_ranks_are_those_that_a_reader_counts():
    queries = np.eye(3, dtype=np.float32)
    items = retrieval.unit_rows(np.array([[1, 0, 0], [2, 1, 0], [0, 1, 1]], dtype=np.float32))
    # Of the columns: query 0 scores 1.00, 0.89, 0.00; query 1 scores 0.00, 0.45, 0.71; query 2 scores 0, 0, 0.71.
    found = retrieval.ranking_metrics(queries, items)
    assert found["recall_at_1"] == pytest.approx(2 / 3) and found["recall_at_5"] == 1 and found["median_rank"] == 1


def test_a_model_that_gives_all_rows_one_vector_scores_as_chance_does():
    labels = [0, 0, 0, 1, 1, 2, 2, 2, 2, 1, 0, 1]
    same = np.repeat(units(1, width=7), 12, axis=0)
    found = retrieval.ranking_metrics(same, same, classes_of(labels), NAMES)
    by_chance = retrieval.random_metrics(12, classes_of(labels), NAMES)
    same_numbers(found, by_chance)
    assert found["recall_at_1"] == pytest.approx(1 / 12) and found["median_rank"] == 6.5


def test_rounding_does_not_break_ties():
    noise = np.random.default_rng(3).normal(size=(40, 16)) * 1e-8
    items = (np.repeat(units(1, width=16), 40, axis=0) + noise).astype(np.float32)
    found = retrieval.ranking_metrics(units(40, width=16, seed=1), items)
    assert found["recall_at_1"] == pytest.approx(1 / 40, abs=0.01) and found["median_rank"] == 20.5


def test_chance_is_the_mean_over_random_orders():
    noise, labels = np.random.default_rng(0), np.arange(30) % 3
    relevant = classes_of(labels) @ classes_of(labels).T
    shuffled = [retrieval.average_precisions(noise.random((30, 30)), relevant).mean() for _ in range(300)]
    expected = retrieval.random_metrics(30, classes_of(labels), NAMES)["mean_average_precision"]
    assert np.mean(shuffled) == pytest.approx(expected, abs=0.003)


def test_average_precision_without_ties_is_that_of_scikit_learn():
    noise = np.random.default_rng(1)
    scores, relevant = noise.random((20, 50)), noise.random((20, 50)) < 0.2
    relevant[:, 0] = True
    expected = [average_precision_score(*row) for row in zip(relevant, scores, strict=True)]
    assert retrieval.average_precisions(scores, relevant) == pytest.approx(expected)


def test_average_precision_with_ties_is_the_mean_over_their_orders():
    scores = np.array([3, 2, 2, 2, 1, 1])
    relevant = np.array([False, True, False, True, False, True])
    orders = [
        (*first, *second)
        for first, second in itertools.product(itertools.permutations((1, 2, 3)), itertools.permutations((4, 5)))
    ]
    precisions = []
    for order in orders:
        hits = relevant[[0, *order]]
        precisions.append((hits.cumsum() / np.arange(1, 7))[hits].mean())
    found = retrieval.average_precisions(scores[None].astype(float), relevant[None])
    assert found[0] == pytest.approx(np.mean(precisions))


def test_chunks_change_nothing(monkeypatch):
    labels = classes_of(np.arange(23) % 3)
    whole = retrieval.ranking_metrics(units(23), units(23, seed=1), labels, NAMES)
    monkeypatch.setattr(retrieval, "MAX_SCORES", 50)  # two queries at a time
    same_numbers(retrieval.ranking_metrics(units(23), units(23, seed=1), labels, NAMES), whole)


def test_rows_without_a_class_are_neither_asked_nor_found():
    labels = [0, -100, 1, 0, 1, -100]
    queries, items = units(6), units(6, seed=1)
    known = [0, 2, 3, 4]
    found = retrieval.ranking_metrics(queries, items, classes_of(labels), NAMES)
    alone = retrieval.ranking_metrics(queries[known], items[known], classes_of([0, 1, 0, 1]), NAMES)
    assert found["mean_average_precision"] == pytest.approx(alone["mean_average_precision"])
    assert found["mean_average_precision_by_class"]["c"] is None
    none = retrieval.ranking_metrics(queries, items, classes_of([-100] * 6), NAMES)
    assert none["mean_average_precision"] is None
    assert retrieval.random_metrics(6, classes_of([-100] * 6), NAMES)["mean_average_precision"] is None


def test_rows_of_several_classes_belong_with_any_that_share_one():
    classes = retrieval.class_matrix(np.array([[1.0, 1, 0], [0, 1, 0], [0, 0, 1]]), 3)
    found = retrieval.ranking_metrics(np.eye(3), np.eye(3)[[1, 0, 2]], classes, NAMES)
    # Row 0 finds row 1 first, which shares class b, then its own sound, tied with that of row 2: half the time it is
    # second (precision 1), half the time third (2/3). Row 1 the same; row 2 finds itself.
    two_found = (1 + (1 + 2 / 3) / 2) / 2
    assert found["mean_average_precision_by_class"] == pytest.approx({"a": two_found, "b": two_found, "c": 1})
    assert found["mean_average_precision"] == pytest.approx((2 * two_found + 1) / 3)


# -- directions -------------------------------------------------------------------------------------------------------


def embedded(presence, labels=None, modalities=("text", "image", "audio")):
    num_rows = len(presence)
    vectors = {name: units(num_rows, seed=seed) for seed, name in enumerate(modalities)}
    logits = {name: np.random.default_rng(9).normal(size=(num_rows, 3)) for name in modalities}
    return Embedded(vectors, logits, labels, np.array(presence, dtype=bool))


def test_rows_that_lack_one_of_a_pair_stand_aside_and_are_counted():
    presence = [[1, 1, 1], [1, 0, 1], [0, 1, 1], [1, 1, 0], [1, 1, 1]]
    result = retrieval.retrieval_of_rows(
        embedded(presence, np.array([0, 1, 2, 0, 1])), "single_label_classification", dict(enumerate(NAMES))
    )
    directions = result["directions"]
    assert list(directions) == [
        "text->image", "text->audio", "image->text", "image->audio", "audio->text", "audio->image"
    ]  # fmt: skip
    assert [(d["num_rows"], d["num_left_out"]) for d in directions.values()] == [(3, 2)] * 6
    assert directions["text->image"]["random"]["recall_at_1"] == pytest.approx(1 / 3)
    # Both modalities were given the same logits: the classifier finds every row.
    assert directions["text->audio"]["classifier"]["recall_at_1"] == 1
    json.dumps(result, allow_nan=False)


def test_a_regression_has_no_classes_and_a_direction_without_rows_no_numbers():
    presence = [[1, 0, 1], [1, 0, 1]]
    result = retrieval.retrieval_of_rows(embedded(presence, np.array([0.5, 1.5])), "regression", {0: "x"})
    text_audio = result["directions"]["text->audio"]
    assert text_audio["classifier"] is None and text_audio["model"]["mean_average_precision"] is None
    assert result["directions"]["text->image"] == {
        "num_rows": 0, "num_left_out": 2, "model": None, "classifier": None, "random": None
    }  # fmt: skip
    assert "–" in retrieval.format_retrieval(result)


def test_rows_that_have_one_modality_each_are_refused():
    with pytest.raises(ValueError, match="no row has two of text, image, audio"):
        retrieval.retrieval_of_rows(embedded([[1, 0, 0], [0, 1, 0]]), "regression", {0: "x"})


def test_warnings_name_what_is_left_out_untrained_or_worse_than_the_classifier():
    presence = [[1, 0, 1]] * 6 + [[1, 0, 0]]
    result = retrieval.retrieval_of_rows(
        embedded(presence, np.arange(7) % 3, ("text", "audio")), "single_label_classification", dict(enumerate(NAMES))
    )
    told = " ".join(retrieval.retrieval_warnings({**result, "contrastive_weight": 0.0}))
    assert "trained without `--contrastive_weight`" in told and "1 rows lack one of the two" in told
    assert "the vectors do worse than the classifier's answers: mAP" in told
    assert "contrastive_weight" not in " ".join(retrieval.retrieval_warnings({**result, "contrastive_weight": 0.5}))


# -- the verb ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return make_table(tmp_path_factory.mktemp("table"), num_rows=9)


def evaluate(folder, table, *more):
    return evaluation.main([str(folder), "--data_file", str(table), *COLUMNS, "--device", "cpu", *more])


def test_six_directions_are_printed_and_written(folder, table, tmp_path, capsys):
    output = tmp_path / "metrics.json"
    more = ["--label_column", "kind", "--task", "retrieval", "--output_file", str(output)]
    assert evaluate(folder, table, *more) == 0
    result = json.loads(output.read_text())
    assert list(result) == ["retrieval"] and len(result["retrieval"]["directions"]) == 6
    direction = result["retrieval"]["directions"]["text->audio"]
    assert direction["num_rows"] == 7 and direction["num_left_out"] == 2
    assert list(direction["model"]["mean_average_precision_by_class"]) == LABELS
    printed = capsys.readouterr().out
    assert "Retrieval among 9 rows:" in printed and "audio->image  chance" in printed
    assert "trained without `--contrastive_weight`" in printed


def test_both_tasks_are_in_one_file(folder, table, tmp_path):
    output = tmp_path / "metrics.json"
    assert evaluate(folder, table, "--label_column", "kind", "--task", "both", "--output_file", str(output)) == 0
    result = json.loads(output.read_text())
    assert {"metrics", "complete_rows", "retrieval"} <= set(result)


def test_a_table_without_labels_gives_recall_only(folder, table, tmp_path):
    output = tmp_path / "metrics.json"
    assert evaluate(folder, table, "--task", "retrieval", "--output_file", str(output)) == 0
    direction = json.loads(output.read_text())["retrieval"]["directions"]["image->text"]
    assert direction["model"]["mean_average_precision"] is None and direction["random"]["recall_at_10"] == 1


def test_a_model_of_one_modality_has_nothing_to_find(table, tmp_path, capsys):
    folder = make_folder(tmp_path / "model", vision_config=None, audio_config=None)
    columns = ["--text_column", "words", "--image_column", "none", "--audio_column", "none"]
    call = [str(folder), "--data_file", str(table), *columns, "--task", "retrieval", "--on_bad_cell", "drop"]
    assert evaluation.main(call) == 1
    assert "the model reads only text: retrieval needs a model that reads two" in capsys.readouterr().err
