"""Thresholds of the labels of a multi-label model: how they are fitted, and that everything decides by them."""

import csv
import json
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from conftest import make_inputs, make_model, model_config
from huggingface_hub.errors import StrictDataclassClassValidationError
from scipy.special import expit
from sklearn.metrics import f1_score
from test_calibration import MULTI, SEVEN, SINGLE, predictions, sample, score_table  # noqa: F401
from test_evaluation import LABELS, evaluate, make_folder, make_table
from test_pipeline import make_pipeline

import train
from cli.scored import label_thresholds, predicted_labels, prediction_columns
from explanation_mmfusion import disagreement
from hub.card import render_model_card
from metrics.calibration import cross_fitted, evaluate_calibrated
from metrics.coverage import is_right, sureness
from metrics.details import calibration_error, decisions
from metrics.subsets import compute_metrics, evaluate_subsets, with_thresholds
from metrics.thresholds import MIN_POSITIVES, describe_thresholds, fit_thresholds, is_predicted
from pipeline_mmfusion import confident

THRESHOLDS = [0.1, 0.5, 0.9]


def rare(num_rows=4000, seed=0, shift=-2.5):
    """Honest probabilities of three labels, the first rare, and labels drawn from them."""
    noise = np.random.default_rng(seed)
    shares = expit(noise.normal(0, 2, (num_rows, 3)) + np.array([shift, 0, 1]))
    return shares, (noise.random(shares.shape) < shares).astype(float)


# -- fitting ----------------------------------------------------------------------------------------------------------


def test_thresholds_raise_f1_on_rows_that_they_were_not_fitted_on_most_of_the_rare_label():
    shares, labels = rare()
    fresh, truth = rare(seed=1)
    found = fit_thresholds(shares, labels)
    gains = [
        f1_score(truth[:, i], fresh[:, i] >= found[i]) - f1_score(truth[:, i], fresh[:, i] >= 0.5) for i in range(3)
    ]
    assert gains[0] > 0.05 and min(gains) > -0.01


def test_the_threshold_of_honest_probabilities_is_half_of_the_best_f1():
    shares, labels = rare(40_000)
    found = fit_thresholds(shares, labels)
    for i in range(3):
        assert found[i] == pytest.approx(f1_score(labels[:, i], shares[:, i] >= found[i]) / 2, abs=0.05)


def test_a_threshold_stands_between_two_rows_and_a_clear_cut_keeps_a_half():
    shares = np.repeat([0.02, 0.04, 0.2, 0.24], 50)[:, None]
    labels = (shares > 0.1).astype(float)
    assert fit_thresholds(shares, labels) == pytest.approx([0.12])
    clear = np.repeat([0.1, 0.9], 50)[:, None]
    assert fit_thresholds(clear, (clear > 0.5).astype(float)) == pytest.approx([0.5])


def test_a_label_that_few_rows_have_keeps_a_half():
    shares, labels = np.full((100, 1), 0.02), np.zeros((100, 1))
    labels[: MIN_POSITIVES - 1] = 1
    shares[:MIN_POSITIVES] = 0.3
    assert fit_thresholds(shares, labels) == [0.5]
    labels[:MIN_POSITIVES] = 1
    assert fit_thresholds(shares, labels) == pytest.approx([0.16])


def test_rows_without_a_label_are_left_out():
    shares, labels = rare(400)
    gaps = labels.copy()
    gaps[200:] = np.nan
    np.testing.assert_array_equal(fit_thresholds(shares, gaps), fit_thresholds(shares[:200], labels[:200]))


def test_a_few_positives_by_chance_are_not_believed_alone():
    """Fitted on about eight positives, by the labels alone and with what the model believes: the latter is better."""
    fresh, truth = rare(4000, seed=99)
    gains = []
    for seed in range(100):
        shares, labels = rare(50, seed=seed)
        levels = np.sort(shares[:, 0])
        hits = labels[np.argsort(shares[:, 0]), 0][::-1].cumsum()[::-1]  # of the rows from each level on
        alone = levels[np.argmax(hits / (50 - np.arange(50) + labels[:, 0].sum()))]
        limits = fit_thresholds(shares, labels)[0], alone
        ours, theirs = (f1_score(truth[:, 0], fresh[:, 0] >= limit) for limit in limits)
        gains.append(ours - theirs)
    assert np.mean(gains) > 0.01


# -- what decides -----------------------------------------------------------------------------------------------------


def test_a_decision_is_as_sure_as_the_answer_that_is_given_is_probable():
    shares, labels = np.array([[0.2, 0.2, 0.6]]), np.array([[1, 0, 1]])
    confidence, correct = decisions(MULTI, shares, labels, np.array(THRESHOLDS))
    assert confidence == pytest.approx([0.2, 0.8, 0.4]) and correct.tolist() == [True, True, False]
    assert sureness(MULTI, shares, np.array(THRESHOLDS)) == pytest.approx([0.2])
    assert sureness(MULTI, shares) == pytest.approx([0.6])
    assert is_right(MULTI, shares, np.array([[1, 0, 0]]), np.array(THRESHOLDS)).tolist() == [True]
    assert is_right(MULTI, shares, np.array([[1, 0, 0]])).tolist() == [False]


def test_honest_probabilities_stay_calibrated_whatever_the_thresholds():
    shares, labels = rare(40_000)
    for thresholds in (None, np.array(THRESHOLDS), fit_thresholds(shares, labels)):
        assert calibration_error(MULTI, shares, labels, thresholds) < 0.01


def test_the_metric_module_takes_a_threshold_a_label_or_one_a_label_and_row():
    logits, labels = np.array([[-1.0, 1.0], [-1.0, 1.0]]), np.array([[1, 0], [1, 0]])
    assert compute_metrics(MULTI, logits, labels)["micro_f1"] == 0
    assert compute_metrics(MULTI, logits, labels, np.array([0.2, 0.8]))["micro_f1"] == 1
    each = np.array([[0.2, 0.8], [0.5, 0.5]])
    assert compute_metrics(MULTI, logits, labels, each)["micro_f1"] == pytest.approx(0.5)
    with pytest.raises(ValueError, match=r"`threshold` has the shape \(3,\): give one number, 2 of them, one a label"):
        compute_metrics(MULTI, logits, labels, np.array(THRESHOLDS))


def test_a_config_holds_one_probability_a_label():
    for wrong in ([0.5], [0.5, 0.5, 1.5]):
        with pytest.raises(
            StrictDataclassClassValidationError,
            match="`thresholds` must hold 3 probabilities",
        ):
            model_config(problem_type=MULTI, thresholds=wrong)


# -- a model ----------------------------------------------------------------------------------------------------------


def batches(num=12):
    noise, made = np.random.default_rng(0), [make_inputs(seed=seed) for seed in range(num)]
    for batch in made:
        batch["labels"] = torch.from_numpy((noise.random((5, 3)) < [0.2, 0.4, 0.5]).astype(np.float32))
    return made


@pytest.fixture(scope="module")
def calibrated():
    model = make_model(model_config(problem_type=MULTI, id2label=dict(enumerate(LABELS))))
    return model, evaluate_calibrated(model, batches(), progress=False)


def test_cross_fitting_decides_no_row_by_a_threshold_that_knew_it():
    predicted = predictions(60, problem=MULTI)
    held = cross_fitted(MULTI, predicted, seed=3)
    changed = predicted.labels.copy()
    changed[7] = 1 - changed[7]
    again = cross_fitted(MULTI, predicted._replace(labels=changed), seed=3)
    assert held.thresholds.shape == (60, 4)
    assert (held.thresholds[7] == again.thresholds[7]).all() and not np.array_equal(held.thresholds, again.thresholds)
    assert cross_fitted(SINGLE, predictions(60)).thresholds is None


def test_a_calibrated_model_has_thresholds_and_f1_is_cross_fitted(calibrated):
    model, result = calibrated
    found = result["thresholds"]
    assert [value["threshold"] for value in found["labels"].values()] == model.config.thresholds
    assert list(found["labels"]) == LABELS and all(0 < limit < 1 for limit in model.config.thresholds)
    counts = torch.cat([batch["labels"] for batch in batches()]).sum(dim=0).tolist()
    assert [value["num_positives"] for value in found["labels"].values()] == counts
    shown = result["metrics"]["text+image+audio"]
    assert {name: shown[name] for name in ("micro_f1", "macro_f1")} == found["after"]
    again = evaluate_subsets(model, batches(), progress=False)  # as `evaluation.py` does it
    assert {name: again["metrics"]["text+image+audio"][name] for name in found["same_rows"]} == found["same_rows"]
    assert found["same_rows"]["macro_f1"] > found["before"]["macro_f1"] and set(again["metrics"]) == set(SEVEN)
    limits, model.config.thresholds = model.config.thresholds, None
    plain = evaluate_subsets(model, batches(), progress=False)["metrics"]["text+image+audio"]
    model.config.thresholds = limits
    assert {name: plain[name] for name in found["before"]} == found["before"]
    sentence = describe_thresholds(result)
    assert re.match(
        r"thresholds: ant 0\.\d\d, bee 0\.\d\d, cat 0\.\d\d; macro F1 [\d.]+% with 0.5, [\d.]+% with", sentence
    )


def test_one_of_several_classes_and_numbers_have_no_thresholds():
    for options in ({}, {"problem_type": "regression", "num_labels": 1}):
        model = make_model(model_config(**options))
        rows = batches(2)
        for batch in rows:
            batch["labels"] = batch["labels"][:, 0] if options else batch["labels"][:, 0].long()
        result = evaluate_calibrated(model, rows, progress=False)
        assert "thresholds" not in result and model.config.thresholds is None and describe_thresholds(result) is None


def test_going_on_from_a_model_forgets_its_thresholds():
    config = model_config(problem_type=MULTI, thresholds=THRESHOLDS)
    config.forget_fitted()
    assert config.thresholds is None


# -- in use -----------------------------------------------------------------------------------------------------------


def test_columns_of_a_table_are_decided_by_the_thresholds():
    scores = np.array([[0.2, 0.6, 0.8], [0.05, 0.4, 0.95]])
    names, config = dict(enumerate(LABELS)), model_config(id2label=dict(enumerate(LABELS)), thresholds=THRESHOLDS)
    limits = label_thresholds(config)
    assert limits == {"ant": 0.1, "bee": 0.5, "cat": 0.9} and label_thresholds(model_config()) is None
    assert prediction_columns(MULTI, names, scores, limits)["prediction"] == [["ant", "bee"], ["cat"]]
    assert prediction_columns(MULTI, names, scores)["prediction"] == [["bee", "cat"], ["cat"]]
    assert predicted_labels({"cat": 0.95, "ant": 0.2}, limits) == ["cat", "ant"]
    assert is_predicted(scores, np.array(THRESHOLDS)).tolist() == [[True, True, False], [False, False, True]]


def test_the_pipeline_is_sure_of_the_answer_that_the_thresholds_give(sample):  # noqa: F811
    classify = make_pipeline(problem_type=MULTI)
    scores = {entry["label"]: entry["score"] for entry in classify(sample)}
    best = max(scores.values())
    above = [min(1.0, best + 0.01)] * 3  # everything is a no
    classify.model.config.thresholds = above
    least = min(1 - score for score in scores.values())
    assert classify(sample, reject_below=min(1.0, least + 0.01)) == [{"label": None, "score": pytest.approx(least)}]
    assert len(classify(sample, reject_below=max(0.0, least - 0.01))) == 3


def test_modalities_disagree_about_a_label_where_one_reaches_its_threshold():
    config = model_config(problem_type=MULTI, id2label=dict(enumerate(LABELS)), thresholds=[0.75, 0.5, 0.5])
    said = {"text": torch.tensor([0.9, 0.6, 0.1]), "image": torch.tensor([0.6, 0.6, 0.1])}
    plain = model_config(problem_type=MULTI)
    assert confident(said, "sigmoid", 0.5, plain)[1] == 0 and confident(said, "sigmoid", 0.3, config)[1] == 0
    assert confident(said, "sigmoid", 0.5, config)[0] == ["text"], "0.6 is a no, of which it is sure by 0.4"
    model = type("Model", (), {"config": config})
    ranked = {
        name: [{"label": label, "score": score} for label, score in zip(LABELS, scores.tolist(), strict=True)]
        for name, scores in said.items()
    }
    assert disagreement(model, ranked, "ant").startswith('The modalities disagree: text alone says "ant" (90%)')
    assert disagreement(model, ranked, "bee") is None
    model.config = model_config(problem_type=MULTI, id2label=dict(enumerate(LABELS)))
    assert disagreement(model, ranked, "ant") is None


def test_opposed_answers_come_before_such_as_differ_in_degree():
    said = {"text": torch.tensor([0.99, 0.6]), "image": torch.tensor([0.55, 0.4])}
    assert confident(said, "sigmoid", 0.5, model_config(problem_type=MULTI, num_labels=2)) == (["text", "image"], 1)


def test_a_scored_table_and_an_evaluation_follow_the_thresholds_of_the_folder(tmp_path):
    table = make_table(tmp_path / "table", label=lambda row: LABELS[row % 3])
    folder = make_folder(tmp_path / "model", problem_type=MULTI, thresholds=[0.0, 1.0, 0.0])
    assert score_table(folder, table, tmp_path / "scored.parquet", "--opinions") == 0
    scored = pq.read_table(tmp_path / "scored.parquet").to_pydict()
    assert scored["prediction"] == [["ant", "cat"]] * 6 and scored["opinion_text"][0] == ["ant", "cat"]
    found = tmp_path / "m.json"
    assert evaluate(folder, table, "--label_delimiter", ";", "--output_file", str(found)) == 0
    shown = json.loads(found.read_text())["metrics"]["text+image+audio"]
    assert shown["micro_f1"] == pytest.approx(2 * 4 / (12 + 6)), "two of six rows each have ant, bee and cat"


def test_the_app_tells_the_thresholds_and_decides_by_them(tmp_path):
    from space import views
    from space.batch import ModelFacts
    from space.feedback import FeedbackStore
    from space.model_info import model_info
    from space.options import Options
    from space.schemas import ModelInfo

    limits = {"ant": 0.1, "bee": 0.5, "cat": 0.9}
    classify = make_pipeline(problem_type=MULTI, id2label=dict(enumerate(LABELS)), thresholds=THRESHOLDS)
    info = model_info(classify, Options(), str(tmp_path))
    assert info["thresholds"] == limits and ModelInfo(**info).thresholds == limits
    ranked = [{"label": "cat", "score": 0.8}, {"label": "bee", "score": 0.6}, {"label": "ant", "score": 0.2}]
    shown = views.answer_view("en", ranked, MULTI, thresholds=limits)
    assert re.findall(r"<strong>(\w+)</strong>", shown) == ["bee", "ant"]
    assert ModelFacts(("text",), LABELS, MULTI, limits).thresholds == limits
    store = FeedbackStore(tmp_path / "f", labels=LABELS, problem_type=MULTI, thresholds=limits, model="m")
    assert store.add({"text": "a"}, ranked, "right", consent=True)["predicted"] == ["ant", "bee"]


# -- a training -------------------------------------------------------------------------------------------------------


def train_on_topics(folder, *flags):
    """A short run on rows of several labels; its model folder."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    for name, seed in (("train", 0), ("validation", 1)):
        noise = np.random.default_rng(seed)
        rows = [[label for label in ("ant", "bee", "cat") if noise.random() < 0.3] for _ in range(40)]
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["text", "label"], *([" ".join(row) + " x", ";".join(row)] for row in rows)])
    code = train.main(
        [
            "--train_file", f"{folder}/train.csv", "--validation_file", f"{folder}/validation.csv",
            "--label_delimiter", ";", "--max_train_steps", "2", "--fusion_hidden_size", "32",
            "--output_dir", f"{folder}/model", "--overwrite_output_dir", *flags,
        ]
    )  # fmt: skip
    assert code == 0
    return folder / "model"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train_on_topics(tmp_path_factory.mktemp("topics"))


def test_a_training_leaves_thresholds_in_the_config_and_tells_them_on_the_card(trained):
    limits = json.loads((trained / "config.json").read_text())["thresholds"]
    found = json.loads((trained / "metrics.json").read_text())["thresholds"]
    assert [found["labels"][name]["threshold"] for name in LABELS] == limits
    card = render_model_card(trained)
    assert "A label is predicted from a probability of its own on" in card and "cross-fitted" in card
    assert f"| {LABELS[0]} | {limits[0]:.3f} | {found['labels'][LABELS[0]]['num_positives']} |" in card


def test_a_card_refuses_thresholds_that_are_none(trained, tmp_path):
    import shutil

    folder = shutil.copytree(trained, tmp_path / "model")
    metrics = json.loads((folder / "metrics.json").read_text())
    for wrong in (5, {"labels": {"ant": {"threshold": "<b>"}}}, {**metrics["thresholds"], "after": None}):
        (folder / "metrics.json").write_text(json.dumps({**metrics, "thresholds": wrong}))
        with pytest.raises(ValueError, match="`thresholds` does not hold `labels` with `threshold` and"):
            render_model_card(folder)


def test_without_calibration_there_are_none(tmp_path):
    folder = train_on_topics(tmp_path, "--no-calibrate")
    assert "thresholds" not in json.loads((folder / "metrics.json").read_text())
    assert json.loads((folder / "config.json").read_text()).get("thresholds") is None


def test_predictions_of_rows_take_their_thresholds_with_them():
    from metrics.subsets import rows_of

    whole = with_thresholds(predictions(10, problem=MULTI), [0.1, 0.2, 0.3, 0.4])
    assert rows_of(whole, np.array([1, 3])).thresholds.tolist() == [[0.1, 0.2, 0.3, 0.4]] * 2
    assert with_thresholds(whole, None).thresholds is None
