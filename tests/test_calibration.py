"""Confidence that means what it says: temperatures, refused answers, modalities that disagree."""

import json
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import make_inputs, make_model, model_config
from scipy.special import expit, log_expit, log_softmax, softmax
from test_evaluation import COLUMNS, LABELS, evaluate, make_folder, make_processor, make_table
from test_pipeline import make_pipeline

import predict
from data import LabelMap
from hub.card import render_model_card
from hub.pictures import draw_pictures
from metrics.calibration import (
    LEAST,
    MOST,
    cross_fitted,
    describe_calibration,
    error_of,
    evaluate_calibrated,
    fit_temperature,
    fit_temperatures,
    scaled,
)
from metrics.coverage import coverage_curve, describe, is_right, shown_points, sureness, threshold_for
from metrics.subsets import Predictions, evaluate_subsets, measure_subsets
from modeling_mmfusion import MMFusionForSequenceClassification
from pipeline_mmfusion import confident
from training.continuing import load_classifier
from training.folder import save_model_folder

SINGLE, MULTI = "single_label_classification", "multi_label_classification"
SEVEN = ["text", "image", "audio", "text+image", "text+audio", "image+audio", "text+image+audio"]


def drawn(num_rows=2000, sharpness=3.0, seed=0, problem=SINGLE, num_labels=4):
    """Logits that are `sharpness` times too sharp, and labels drawn from what they were before."""
    noise = np.random.default_rng(seed)
    honest = noise.normal(0, 1.5, (num_rows, num_labels))
    if problem == MULTI:
        return honest * sharpness, (noise.random(honest.shape) < expit(honest)).astype(float)
    shares = softmax(honest, axis=1).cumsum(axis=1)
    return honest * sharpness, (noise.random((num_rows, 1)) > shares).sum(axis=1).clip(max=num_labels - 1)


def loss(problem, logits, labels):
    if problem == MULTI:
        return -np.where(labels == 1, log_expit(logits), log_expit(-logits)).mean()
    return -log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean()


def predictions(num_rows=600, sharpness=None, problem=SINGLE, complete=False):
    """What an overconfident model says, each subset too sharp in its own way; rows lack modalities at random."""
    sharpness = sharpness or dict(zip(SEVEN, (4.0, 3.0, 2.5, 2.0, 3.5, 1.5, 3.0), strict=True))
    honest, labels = drawn(num_rows, 1.0, problem=problem)
    presence = np.ones((num_rows, 3), bool)
    if not complete:
        presence = np.random.default_rng(1).random((num_rows, 3)) < 0.7
        presence[:, 0] |= ~presence.any(axis=1)
    names = np.array([[m in name.split("+") for m in ("text", "image", "audio")] for name in SEVEN])
    logits = {}
    for name, columns in zip(SEVEN, names, strict=True):
        has = presence & columns
        factors = [
            next((sharpness[n] for n, c in zip(SEVEN, names, strict=True) if (c == row).all()), 1.0) for row in has
        ]
        logits[name] = honest * np.array(factors)[:, None]
    return Predictions(logits, labels, presence)


# -- one temperature --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", [SINGLE, MULTI])
@pytest.mark.parametrize("sharpness", [0.4, 1.0, 3.0])
def test_the_temperature_is_how_much_too_sharp_the_logits_are(problem, sharpness):
    logits, labels = drawn(6000, sharpness, problem=problem)
    temperature = fit_temperature(problem, logits, labels)
    assert temperature == pytest.approx(sharpness, rel=0.1)
    assert loss(problem, logits / temperature, labels) <= loss(problem, logits, labels)
    for other in (0.9, 1.1):
        assert loss(problem, logits / temperature, labels) < loss(problem, logits / temperature / other, labels)


def test_the_temperature_is_the_root_that_a_plain_search_finds_too():
    from scipy.optimize import minimize_scalar

    logits, labels = drawn(300, 2.0)

    def cost(log_inverse):
        inverse = np.exp(log_inverse)
        return 300 * loss(SINGLE, logits * inverse, labels) + inverse - log_inverse  # the prior, up to a constant

    found = minimize_scalar(cost, bounds=(-3, 3), method="bounded", options={"xatol": 1e-10}).x
    assert fit_temperature(SINGLE, logits, labels) == pytest.approx(np.exp(-found), rel=1e-6)


@pytest.mark.parametrize("problem", [SINGLE, MULTI])
def test_rows_without_a_label_are_left_out(problem):
    logits, labels = drawn(400, 3.0, problem=problem)
    gaps = labels.copy()
    gaps[200:] = -100 if problem == SINGLE else np.nan
    assert fit_temperature(problem, logits, gaps) == fit_temperature(problem, logits[:200], labels[:200])


@pytest.mark.parametrize("problem", [SINGLE, MULTI])
def test_answers_that_are_all_right_do_not_ask_for_a_temperature_of_nothing(problem):
    labels = np.arange(1000) % 3
    targets = np.eye(3)[labels]
    logits = 4 * targets if problem == SINGLE else 8 * targets - 4
    temperature = fit_temperature(problem, logits, labels if problem == SINGLE else targets)
    assert 0.2 < temperature < 1, "surer, for they are right, but not without end"


def test_answers_that_are_all_wrong_get_the_highest_temperature_and_timid_right_ones_the_lowest():
    labels = np.arange(3000) % 3
    assert fit_temperature(SINGLE, 50 * np.eye(3)[labels], (labels + 1) % 3) == MOST
    assert fit_temperature(SINGLE, 0.1 * np.eye(3)[labels], labels) == LEAST


def test_few_rows_stay_near_what_is_known_before():
    logits, labels = drawn(2000, 3.0)
    assert fit_temperature(SINGLE, logits[:0], labels[:0], prior=2.5) == pytest.approx(2.5)
    few = fit_temperature(SINGLE, logits[:1], labels[:1], prior=2.5)
    assert 1.2 < few < 5
    sure = np.array([[7.0, 0.0]] * 10)  # ten right answers at 99.9 % say nothing against 99.9 %
    assert fit_temperature(SINGLE, sure, np.zeros(10, int)) == pytest.approx(1, abs=0.05)


# -- those of a model -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", [SINGLE, MULTI])
def test_each_subset_gets_its_own_and_a_row_that_of_what_it_has(problem):
    predicted = predictions(6000, problem=problem)
    found = fit_temperatures(problem, predicted)
    wanted = dict(zip(SEVEN, (4.0, 3.0, 2.5, 2.0, 3.5, 1.5, 3.0), strict=True))
    assert found == pytest.approx(wanted, rel=0.15)
    cooled = scaled(predicted, wanted)  # every row is honest again, whatever it lacks
    honest, _ = drawn(6000, 1.0, problem=problem)
    for name in SEVEN:
        np.testing.assert_allclose(cooled.logits[name], honest, atol=1e-12)


def test_a_subset_that_no_row_has_gets_the_temperature_of_all():
    predicted = predictions(3000, dict.fromkeys(SEVEN, 3.0))
    predicted.presence[:, 2] = False
    predicted = predicted._replace(logits={name: predicted.logits["text"] for name in SEVEN})
    found = fit_temperatures(SINGLE, predicted)
    assert found["audio"] == pytest.approx(found["text"], rel=0.1) and found["audio"] > 2


@pytest.mark.parametrize("problem", [SINGLE, MULTI])
def test_temperatures_make_an_overconfident_model_honest_and_change_no_answer(problem):
    predicted = predictions(4000, problem=problem)
    cooled = scaled(predicted, fit_temperatures(problem, predicted))
    for name in SEVEN:
        before, after = (error_of(problem, each, name) for each in (predicted, cooled))
        assert before > 0.08 and after < 0.03, name
        logits = [each.logits[name] for each in (predicted, cooled)]
        assert (logits[0].argmax(axis=1) == logits[1].argmax(axis=1)).all() and (
            (logits[0] > 0) == (logits[1] > 0)
        ).all()
        assert loss(problem, logits[1], predicted.labels) < loss(problem, logits[0], predicted.labels)


def test_cross_fitting_judges_no_row_with_a_temperature_that_knew_it():
    predicted = predictions(50)
    held = cross_fitted(SINGLE, predicted, seed=3)
    changed = predicted._replace(labels=np.where(np.arange(50) == 7, (predicted.labels + 1) % 4, predicted.labels))
    again = cross_fitted(SINGLE, changed, seed=3)
    same = [(held.logits[name] == again.logits[name]).all(axis=1) for name in SEVEN]
    assert all(rows[7] for rows in same) and not all(rows.all() for rows in same)
    np.testing.assert_array_equal(cross_fitted(SINGLE, predicted, seed=3).logits["text"], held.logits["text"])
    assert not np.array_equal(cross_fitted(SINGLE, predicted, seed=4).logits["text"], held.logits["text"])


def test_noise_looks_better_calibrated_on_the_rows_that_it_was_fitted_on():
    """What cross-fitting is for: labels that have nothing to do with the logits."""
    flattered, honest = [], []
    for seed in range(8):
        logits, _ = drawn(12, 3.0, seed)
        labels = np.random.default_rng(100 + seed).integers(0, 4, 12)
        predicted = Predictions({"text": logits}, labels, np.array([[True, False, False]] * 12))
        flattered.append(loss(SINGLE, scaled(predicted, fit_temperatures(SINGLE, predicted)).logits["text"], labels))
        honest.append(loss(SINGLE, cross_fitted(SINGLE, predicted).logits["text"], labels))
    assert np.mean(flattered) < np.mean(honest)


# -- a model in use ---------------------------------------------------------------------------------------------------


def batches(num=12, labels=None):
    made = [make_inputs(seed=seed) for seed in range(num)]
    noise = torch.Generator().manual_seed(0)
    for batch in made:
        batch["labels"] = torch.randint(0, 3, (5,), generator=noise) if labels is None else labels
    return made


def overconfident(**options):
    model = make_model(model_config(**options))
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter.mul_(8)
    return model


@pytest.mark.parametrize("problem", [SINGLE, MULTI])
def test_an_overconfident_model_says_less_after_its_training(problem, tmp_path):
    rows = batches(labels=None if problem == SINGLE else torch.eye(5, 3))
    model = overconfident(problem_type=problem, id2label=dict(enumerate(LABELS)))
    before = evaluate_subsets(model, rows, progress=False)
    result = evaluate_calibrated(model, rows, progress=False)
    assert set(result["calibration"]["subsets"]) == set(model.config.temperatures) == set(SEVEN)
    assert result["calibration"]["num_folds"] == 5
    for name, values in result["calibration"]["subsets"].items():
        assert values["temperature"] == model.config.temperatures[name] > 1.5
        error = before["metrics"][name]["expected_calibration_error"]
        assert values["error_before"] == pytest.approx(error)
        assert values["error_after"] == result["metrics"][name]["expected_calibration_error"] < error
        if problem == SINGLE:
            assert result["metrics"][name]["accuracy"] == before["metrics"][name]["accuracy"]
    if problem == MULTI:  # with 0.5, temperatures change no yes or no; thresholds do
        assert result["thresholds"]["before"]["micro_f1"] == before["metrics"]["text+image+audio"]["micro_f1"]
    assert result["calibration"]["subsets"]["text+image+audio"]["num_rows"] == 12
    # Of the folder, the evaluation on those rows gives the numbers of the stored temperatures.
    save_model_folder(tmp_path / "m", model, make_processor(), training_config={}, metrics=result)
    again = MMFusionForSequenceClassification.from_pretrained(tmp_path / "m")
    assert again.config.temperatures == model.config.temperatures
    assert json.loads((tmp_path / "m" / "metrics.json").read_text()) == result
    measured = evaluate_subsets(again, rows, progress=False)
    for name, values in result["calibration"]["subsets"].items():
        error = measured["metrics"][name]["expected_calibration_error"]
        assert error == pytest.approx(values["error_same_rows"], abs=1e-5)
    # The picture and the card say it, too.
    assert "coverage.png" in draw_pictures(result, LABELS, tmp_path)
    card = render_model_card(tmp_path / "m", pictures=["coverage.png"])
    full = result["calibration"]["subsets"]["text+image+audio"]
    errors = f"{full['temperature']:.2f} | {full['error_before']:.3f} | {full['error_after']:.3f} |"
    assert f"| text + image + audio | {errors}" in card and "cross-fitted in 5 parts" in card
    assert "Refusing unsure answers, the full fusion is right in " in card
    assert re.search(r"temperatures: text \d.* after \(cross-fitted in 5 parts\)", describe_calibration(result))


def test_what_depends_on_confidence_is_cross_fitted_everywhere():
    model, rows = overconfident(), batches()
    for batch in rows:  # a model that is right more often than not: its temperatures lie within their bounds
        guessed = model(**{name: value for name, value in batch.items() if name != "labels"}).logits.argmax(dim=1)
        batch["labels"] = torch.where(torch.tensor([True, True, True, False, True]), guessed, batch["labels"])
    result = evaluate_calibrated(model, rows, progress=False)
    gaps = [abs(entry["accuracy"] - entry["confidence"]) * entry["num_rows"] for entry in result["reliability"]]
    full = result["metrics"]["text+image+audio"]["expected_calibration_error"]
    assert sum(gaps) / 60 == pytest.approx(full)
    values = result["calibration"]["subsets"]["text+image+audio"]
    assert full == values["error_after"] != values["error_same_rows"]
    assert result["complete_rows"]["num_rows"] == 12
    assert result["coverage"]["points"][0]["coverage"] == 1


def test_a_model_is_calibrated_anew_and_not_on_top_of_what_it_had():
    model = overconfident()
    evaluate_calibrated(model, batches(), progress=False)
    first = dict(model.config.temperatures)
    evaluate_calibrated(model, batches(), progress=False)
    assert model.config.temperatures == pytest.approx(first)
    model.config.forget_fitted()
    assert model.config.temperatures is None and model.config.unimodal_temperatures is None


def test_numbers_and_single_rows_get_no_temperatures():
    model = make_model(model_config(problem_type="regression", num_labels=1))
    result = evaluate_calibrated(model, batches(labels=torch.arange(5.0)), progress=False)
    assert model.config.temperatures is None and "calibration" not in result and "mae" in result["metrics"]["text"]
    assert describe_calibration(result) is None and "coverage" not in result and describe(result) == []
    model, row = make_model(), {name: value[:1] for name, value in batches(1)[0].items()}
    assert "calibration" not in evaluate_calibrated(model, [row], progress=False)
    assert model.config.temperatures is None
    two = {name: value[:2] for name, value in batches(1)[0].items()}
    assert evaluate_calibrated(model, [two], progress=False)["calibration"]["num_folds"] == 2
    with pytest.raises(ValueError, match="have no `labels`"):
        evaluate_calibrated(model, [make_inputs()], progress=False)


def test_going_on_from_a_calibrated_model_forgets_its_temperatures(tmp_path):
    names = dict(enumerate(LABELS))
    model = overconfident(balance="unimodal", id2label=names, label2id={name: i for i, name in names.items()})
    evaluate_calibrated(model, batches(), progress=False)
    assert set(model.config.unimodal_temperatures) == {"text", "image", "audio"}
    save_model_folder(tmp_path / "m", model, make_processor(), training_config={}, metrics={})
    labels = LabelMap(SINGLE, tuple(LABELS))
    again = load_classifier(str(tmp_path / "m"), None, labels, dropout=0.1, choices={"balance": "unimodal"})
    assert again.config.temperatures is None and again.config.unimodal_temperatures is None
    assert torch.equal(again.classifier.weight, model.classifier.weight)


def test_what_a_card_cannot_be_made_of_is_named(tmp_path):
    model = overconfident(id2label=dict(enumerate(LABELS)))
    result = evaluate_calibrated(model, batches(), progress=False)
    save_model_folder(tmp_path / "m", model, make_processor(), training_config={}, metrics=result)
    file = tmp_path / "m" / "metrics.json"
    broken = {"num_folds": 5, "subsets": {name: {"temperature": "<b>"} for name in SEVEN}}
    for change, sentence in (
        ({"calibration": 5}, "`calibration` does not hold `num_folds` and `subsets` text, image"),
        ({"calibration": broken}, "`calibration` of `text` lacks one of the numbers temperature, error_before"),
        ({"coverage": {"points": []}}, "`coverage` holds no `points` with the numbers coverage, accuracy, threshold"),
    ):
        file.write_text(json.dumps(result | change))
        with pytest.raises(ValueError, match=re.escape(sentence)):
            render_model_card(tmp_path / "m")


# -- refused answers --------------------------------------------------------------------------------------------------


def test_the_curve_and_its_area_can_be_worked_out_by_hand():
    confidence, correct = np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, True, False, True])
    curve = coverage_curve(confidence, correct)
    # The surest one, two, three and four: wrong in 0, 0, 1/3 and 1/4.
    assert curve["area_under_risk_coverage"] == pytest.approx((1 / 3 + 1 / 4) / 4)
    assert curve["points"] == [
        {"coverage": 1.0, "accuracy": 0.75, "threshold": 0.6},
        {"coverage": 0.75, "accuracy": pytest.approx(2 / 3), "threshold": 0.7},
        {"coverage": 0.5, "accuracy": 1.0, "threshold": 0.8},
        {"coverage": 0.25, "accuracy": 1.0, "threshold": 0.9},
    ]
    assert [point["coverage"] for point in shown_points(curve)] == [1.0, 0.75, 0.5]
    assert threshold_for(confidence, correct, 0.7) == {"coverage": 1.0, "accuracy": 0.75, "threshold": 0.6}
    assert threshold_for(confidence, correct, 0.9)["threshold"] == 0.8
    assert threshold_for(confidence, ~correct, 0.9) is None


def test_rows_that_are_equally_sure_stay_together_in_any_order():
    confidence = np.array([1.0, 0.5, 0.5, 0.5, 0.5])
    correct = np.array([True, True, False, True, False])
    curves = [coverage_curve(confidence[order], correct[order]) for order in ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1])]
    assert curves[0] == curves[1]
    assert [point["coverage"] for point in curves[0]["points"]] == [1.0, 0.2]


def test_better_calibrated_or_not_the_surest_answers_are_the_same():
    logits, labels = drawn(500, 3.0)
    areas = [
        coverage_curve(shares.max(axis=1), shares.argmax(axis=1) == labels)["area_under_risk_coverage"]
        for shares in (softmax(logits[:, :2], axis=1), softmax(logits[:, :2] / 3, axis=1))  # of two classes
    ]
    assert areas[0] == pytest.approx(areas[1], abs=0.01) and 0 < areas[0] < 1


def test_several_labels_are_as_sure_as_their_least_sure_decision_and_right_when_all_are():
    shown = np.array([[0.9, 0.2], [0.6, 0.01]])
    assert sureness(MULTI, shown).tolist() == pytest.approx([0.8, 0.6])
    assert is_right(MULTI, shown, np.array([[1, 0], [1, 1]])).tolist() == [True, False]
    with pytest.raises(ValueError, match="a regression predicts numbers without probabilities"):
        sureness("regression", shown)


def test_the_threshold_that_is_asked_for_is_told():
    predicted = predictions(300)
    config = model_config(num_labels=4)
    result = measure_subsets(config, predicted, target_accuracy=0.8)
    point = result["reject_below"]
    shown = softmax(predicted.logits["text+image+audio"], axis=1)
    kept = shown.max(axis=1) >= point["threshold"]
    assert point["accuracy"] == (shown[kept].argmax(axis=1) == predicted.labels[kept]).mean() >= 0.8
    table, sentence = describe(result, 0.8)
    assert "answered  accuracy  reject_below" in table
    assert f"{point['coverage']:.1%} of the rows are answered" in sentence and "(wanted: 80.0%)" in sentence
    nothing = describe({"coverage": result["coverage"], "reject_below": None}, 1.0)[1]
    assert nothing == "However sure answers must be, they are never right in 100.0%."


# -- disagreement -----------------------------------------------------------------------------------------------------


def test_a_modality_that_is_unsure_has_no_say():
    said = {"text": torch.tensor([0.9, 0.1]), "image": torch.tensor([0.45, 0.55])}
    assert confident(said, "softmax", 0.5, None) == (["text", "image"], 0)
    assert confident(said, "softmax", 0.6, None)[0] == ["text"]
    said = {"text": torch.tensor([0.9, 0.8]), "image": torch.tensor([0.7, 0.1]), "audio": torch.tensor([0.9, 0.45])}
    assert confident(said, "sigmoid", 0.7, model_config(num_labels=2, problem_type=MULTI)) == (["text", "image"], 1)


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    table = make_table(tmp_path_factory.mktemp("cells"), num_rows=1)
    return {"text": "a red cat", "image": str(table.parent / "1.png"), "audio": str(table.parent / "1.wav")}


@pytest.mark.parametrize("balance", ["none", "unimodal"])
@pytest.mark.parametrize("problem", [SINGLE, MULTI])
def test_opinions_are_those_of_the_heads_or_of_single_modalities(sample, balance, problem):
    classify = make_pipeline(balance=balance, problem_type=problem)
    plain = classify(sample)
    about = classify(sample, opinions=True, top_k=2)
    assert about["labels"] == plain[:2] and list(about["opinions"]) == ["text", "image", "audio"]
    alone = {name: classify({name: sample[name]}) for name in sample}
    is_same = all(
        about["opinions"][name][0]["score"] == pytest.approx(alone[name][0]["score"], abs=1e-5) for name in sample
    )
    assert is_same == (balance == "none")
    said = {entries[0]["label"] for entries in about["opinions"].values() if entries[0]["score"] >= 0.5}
    if problem == SINGLE:
        assert about["disagrees"] == (len(said) > 1)
    assert (about["disagreement"] is not None) == about["disagrees"]
    never = classify(sample, opinions=True, opinion_threshold=1.0)
    assert not never["disagrees"] and never["disagreement"] is None
    few = classify({"text": "a red cat"}, opinions=True)
    assert list(few["opinions"]) == ["text"] and not few["disagrees"]
    several = classify([sample, {"text": "a red cat"}], opinions=True, batch_size=2)
    assert several[1]["labels"][0]["label"] == few["labels"][0]["label"] and list(several[1]["opinions"]) == ["text"]


def test_heads_that_point_to_different_labels_disagree_and_their_temperatures_count(sample):
    classify = make_pipeline(balance="unimodal")
    with torch.no_grad():
        for name, label in (("text", 0), ("image", 2), ("audio", 2)):
            head = classify.model.unimodal.heads[name]
            head.weight.zero_()
            head.bias.copy_(4.0 * torch.eye(3)[label])
    about = classify(sample, opinions=True)
    assert about["disagrees"] is True
    assert about["disagreement"] == (
        'The modalities disagree: text alone says "low" (96%), image alone says "high" (96%), '
        'audio alone says "high" (96%).'
    )
    classify.model.config.unimodal_temperatures = {"text": 10.0}
    calm = classify(sample, opinions=True)
    assert calm["disagrees"] is False and calm["opinions"]["text"][0]["score"] == pytest.approx(0.427, abs=1e-3)
    batch = classify._collate([classify.preprocess(sample), classify.preprocess({"image": sample["image"]})])
    whole = classify.opinions_batch(batch)
    assert whole["disagrees"].tolist() == [False, False]
    assert whole["opinions"].shape == (2, 3, 3) and whole["opinions"][1, [0, 2]].isnan().all()
    classify.model.config.unimodal_temperatures = None
    assert classify.opinions_batch(batch)["disagrees"].tolist() == [True, False]
    assert classify.opinions_batch(batch, opinion_threshold=0.97)["disagrees"].tolist() == [False, False]


def test_an_unsure_answer_is_refused(sample):
    classify = make_pipeline()
    best = classify(sample)[0]["score"]
    assert classify(sample, reject_below=best + 0.01) == [{"label": None, "score": pytest.approx(best)}]
    assert classify(sample, reject_below=best - 0.01) == classify(sample)
    about = classify(sample, reject_below=best + 0.01, opinions=True)
    assert about["labels"][0]["label"] is None and len(about["opinions"]["text"]) == 3
    several = make_pipeline(problem_type=MULTI)
    least = min(max(entry["score"], 1 - entry["score"]) for entry in several(sample))
    assert several(sample, reject_below=least + 0.01) == [{"label": None, "score": pytest.approx(least)}]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"reject_below": 1.5}, "`reject_below` is 1.5; allowed are numbers from 0 to 1"),
        ({"reject_below": True}, "`reject_below` is True; allowed are"),
        ({"opinions": True, "opinion_threshold": -1}, "`opinion_threshold` is -1; allowed are"),
        ({"reject_below": 0.5, "function_to_apply": "none"}, "`reject_below` needs probabilities"),
    ],
)
def test_impossible_thresholds_are_refused(sample, options, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        make_pipeline()(sample, **options)


def test_a_model_of_numbers_is_not_asked_how_sure_it_is(sample):
    classify = make_pipeline(problem_type="regression")
    for options in ({"opinions": True}, {"reject_below": 0.5}):
        with pytest.raises(
            ValueError, match="needs probabilities, and here the answers are plain numbers; leave it out"
        ):
            classify(sample, **options)


# -- the commands -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("model"), balance="unimodal", unimodal_temperatures={"image": 0.5})


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return make_table(tmp_path_factory.mktemp("table"))


def score_table(folder, table, output, *more):
    call = [str(folder), "--data_file", str(table), *COLUMNS, "--output_file", str(output), "--device", "cpu", *more]
    return predict.main(call)


def test_the_evaluation_prints_what_refusing_brings(folder, table, tmp_path, capsys):
    output = tmp_path / "m.json"
    assert evaluate(folder, table, "--target_accuracy", "0.2", "--output_file", str(output)) == 0
    printed = capsys.readouterr().out
    result = json.loads(output.read_text())
    assert "Only the surest answers, with all modalities:" in printed and "(wanted: 20.0%)" in printed
    assert result["coverage"]["points"][0]["coverage"] == 1 and result["reject_below"]["coverage"] > 0


def test_a_table_gets_empty_predictions_and_opinions(folder, table, tmp_path):
    assert score_table(folder, table, tmp_path / "plain.parquet") == 0
    plain = pq.read_table(tmp_path / "plain.parquet").to_pydict()
    limit = sorted(plain["score"])[3] - 1e-6
    asked = ["--reject_below", str(limit), "--opinions", "--opinion_threshold", "0.4"]
    assert score_table(folder, table, tmp_path / "asked.parquet", *asked, "--batch_size", "4") == 0
    scored = pq.read_table(tmp_path / "asked.parquet").to_pydict()
    assert list(scored) == [*plain, "disagrees", "opinion_text", "opinion_image", "opinion_audio"]
    expected = [p if s >= limit else None for p, s in zip(plain["prediction"], plain["score"], strict=True)]
    assert scored["prediction"] == expected and expected.count(None) == 3
    assert scored["score"] == pytest.approx(plain["score"], abs=1e-6)
    absent = [
        [row for row in range(6) if scored[f"opinion_{name}"][row] is None] for name in ("text", "image", "audio")
    ]
    assert absent == [[1], [2], [3]]
    assert all(isinstance(value, bool) for value in scored["disagrees"])


def test_one_sample_may_be_refused_and_says_what_each_modality_says(folder, table, capsys):
    sample = ["--text", "a small animal", "--image", str(table.parent / "1.png")]
    assert predict.main([str(folder), *sample, "--device", "cpu", "--reject_below", "0.9999", "--opinions"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["labels"][0]["label"] is None and list(about["opinions"]) == ["text", "image"]
    assert about["disagrees"] in (True, False)


def test_commands_say_what_cannot_be_asked(tmp_path, table, capsys):
    numbers = make_folder(tmp_path / "numbers", problem_type="regression", num_labels=1)
    for flag in (["--reject_below", "0.5"], ["--opinions"]):
        assert score_table(numbers, table, tmp_path / "out.csv", *flag) == 1
        assert f"`{flag[0]}` needs probabilities, and `{numbers}` predicts numbers" in capsys.readouterr().err
    table = make_table(tmp_path / "table", label=lambda row: row / 2)
    assert evaluate(numbers, table, "--target_accuracy", "0.9") == 1
    assert "`--target_accuracy` needs probabilities, and this model predicts numbers" in capsys.readouterr().err
    old = make_folder(tmp_path / "old")
    code = (old / "pipeline_mmfusion.py").read_text().replace("def opinions_batch(", "def opinions_no_more(")
    (old / "pipeline_mmfusion.py").write_text(code)
    assert predict.main([str(old), "--text", "a", "--reject_below", "0.5"]) == 1
    assert "was saved without opinions: copy `pipeline_mmfusion.py` and" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--reject_below", "1"], "1 is not in [0, 1)"),
        (["--opinion_threshold", "0.7"], "--opinion_threshold without --opinions"),
        (["--opinions", "--explain"], "--opinions and --explain exclude each other"),
        (["--reject_below", "0.5", "--explain"], "--reject_below and --explain of one sample exclude each other"),
    ],
)
def test_a_wrong_call_exits_with_2(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as stop:
        predict.main(["model", "--text", "a", *arguments])
    assert stop.value.code == 2 and sentence in capsys.readouterr().err


def test_a_wrong_target_exits_with_2(capsys):
    for more, sentence in (
        (["--target_accuracy", "99"], "--target_accuracy is a share from 0 to 1, not 99.0"),
        (
            ["--target_accuracy", "0.9", "--task", "retrieval"],
            "--target_accuracy and --task retrieval exclude each other",
        ),
    ):
        with pytest.raises(SystemExit) as stop:
            evaluate("model", "x.csv", *more)
        assert stop.value.code == 2 and sentence in capsys.readouterr().err
