"""Metric modules against numbers that can be worked out by hand, and the evaluation of all modality subsets."""

import copy
import doctest
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_inputs, make_model, model_config

from metrics import subsets
from metrics.details import evaluation_details
from metrics.subsets import (
    compute_metrics,
    evaluate_subsets,
    format_table,
    modality_subsets,
    predict_subsets,
    score,
    subset_name,
    warnings,
)

ROOT = Path(__file__).parent.parent
SEVEN = ["text", "image", "audio", "text+image", "text+audio", "image+audio", "text+image+audio"]


@pytest.fixture(scope="module")
def metrics():
    """The three modules as a stranger loads them: by path, from another name than ours in `sys.modules`."""
    import evaluate

    return {
        name: evaluate.load(str(ROOT / "metrics" / f"mmfusion_{name}"), keep_in_memory=True)
        for name in ("classification", "multilabel", "regression")
    }


def batches(num=2, rows=5, labels=None, mixed=True):
    made = [make_inputs(rows=rows, seed=seed, mixed=mixed) for seed in range(num)]
    for batch in made:
        batch["labels"] = torch.arange(rows) % 3 if labels is None else labels
    return made


# -- metric modules ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["classification", "multilabel", "regression"])
def test_the_examples_in_the_docstrings_are_true(metrics, name, monkeypatch):
    import evaluate

    monkeypatch.chdir(ROOT)
    module = sys.modules[metrics[name].__class__.__module__]
    test = doctest.DocTestParser().get_doctest(module._KWARGS_DESCRIPTION, {"evaluate": evaluate}, name, None, 0)
    failed, attempted = doctest.DocTestRunner().run(test)
    assert attempted >= 2 and failed == 0


def test_metric_modules_describe_themselves(metrics):
    for metric in metrics.values():
        assert metric.description.strip() and metric.citation.strip() and "Returns:" in metric.inputs_description


def test_calibration_error_of_a_known_case(metrics):
    # Bins: 0.5 -> (7/15, 8/15], 0.8 twice -> (11/15, 12/15], 1.0 -> (14/15, 1]. Gaps: |0 - 0.5|, |0.5 - 0.8|, |1 - 1|.
    predictions = [[0.5, 0.5], [0.8, 0.2], [0.8, 0.2], [1.0, 0.0]]
    result = metrics["classification"].compute(predictions=predictions, references=[1, 0, 1, 0])
    assert result["expected_calibration_error"] == pytest.approx(0.25 * 0.5 + 0.5 * 0.3 + 0.25 * 0.0)
    assert result["accuracy"] == 0.5


def test_calibration_error_with_one_bin_is_the_gap_of_the_means(metrics):
    result = metrics["classification"].compute(predictions=[[0.6, 0.4], [0.1, 0.9]], references=[0, 0], num_bins=1)
    assert result["expected_calibration_error"] == pytest.approx(0.75 - 0.5)


def test_macro_f1_is_the_mean_over_classes(metrics):
    sure = np.eye(3)[[0, 0, 1, 2]].tolist()
    # class 0: P 1/2 R 1 -> 2/3; class 1: P 1, R 1/2 -> 2/3; class 2: 1.
    result = metrics["classification"].compute(predictions=sure, references=[0, 1, 1, 2])
    assert result["macro_f1"] == pytest.approx(7 / 9)


def test_logits_are_refused_as_probabilities(metrics):
    with pytest.raises(ValueError, match=r"`predictions\[1\]` is \[2.0, -1.0\].*softmax"):
        metrics["classification"].compute(predictions=[[0.5, 0.5], [2.0, -1.0]], references=[0, 1])
    with pytest.raises(ValueError, match=r"`references\[1\]` is 2: `predictions` has 2 classes"):
        metrics["classification"].compute(predictions=[[0.5, 0.5], [0.5, 0.5]], references=[0, 2])
    with pytest.raises(ValueError, match=r"rows of \[2, 3\] probabilities"):
        metrics["classification"].compute(predictions=[[0.5, 0.5], [0.5, 0.5, 0]], references=[0, 1])


def test_multilabel_means_leave_out_labels_that_never_occur(metrics):
    predictions, references = [[0.9, 0.2, 0.9], [0.6, 0.7, 0.1]], [[1, 0, 0], [0, 1, 0]]
    result = metrics["multilabel"].compute(predictions=predictions, references=references)
    # Label 0: 1 hit of 2 predicted, F1 2/3; label 1: F1 1; label 2 never occurs. Micro: 2 hits, 4 predicted, 2 true.
    assert result["macro_f1"] == pytest.approx((2 / 3 + 1) / 2)
    assert result["micro_f1"] == pytest.approx(2 * 2 / (4 + 2))
    assert result["mean_average_precision"] == 1.0


def test_multilabel_without_any_label_is_none_and_not_nan(metrics):
    result = metrics["multilabel"].compute(predictions=[[0.1, 0.2]], references=[[0, 0]])
    assert result == {"micro_f1": 0.0, "macro_f1": None, "mean_average_precision": None}
    with pytest.raises(ValueError, match=r"`predictions\[1\]` is \[0.1, 1.5\]"):
        metrics["multilabel"].compute(predictions=[[0.1, 0.2], [0.1, 1.5]], references=[[0, 0], [0, 1]])


def test_constant_numbers_have_no_correlation(metrics):
    regression = metrics["regression"]
    assert regression.compute(predictions=[0.1] * 3, references=[1.0, 2.0, 3.0])["pearson_r"] is None
    assert regression.compute(predictions=[1.0, 2.0, 3.0], references=[0.1] * 3)["pearson_r"] is None
    assert regression.compute(predictions=[1.0], references=[3.0]) == {"mae": 2.0, "pearson_r": None}


def test_several_numbers_a_row_are_averaged(metrics):
    result = metrics["regression"].compute(predictions=[[0.0, 5.0], [1.0, 5.0]], references=[[0.0, 4.0], [-1.0, 6.0]])
    assert result == {"mae": 1.0, "pearson_r": -1.0}  # the second column is constant


@pytest.mark.parametrize("name", ["classification", "multilabel", "regression"])
def test_keywords_of_other_modules_are_let_through(metrics, name):
    predictions, references = ([1.0], [2.0]) if name == "regression" else ([[0.5, 0.5]], [0])
    references = [[0, 1]] if name == "multilabel" else references
    assert metrics[name].compute(predictions=predictions, references=references, of_another_module=1)


# -- subsets ----------------------------------------------------------------------------------------------------------


def test_subsets_come_small_ones_first():
    assert [subset_name(s) for s in modality_subsets(("text", "image", "audio"))] == SEVEN
    assert modality_subsets(("audio", "text")) == [("text",), ("audio",), ("text", "audio")]
    with pytest.raises(ValueError, match=r"`subset` is \('smell',\): name at least one of text, image, audio"):
        subset_name(("smell",))


def test_problem_type_follows_the_number_of_labels():
    config = model_config(problem_type=None, num_labels=1)
    assert subsets.problem_type(config) == "regression"
    assert subsets.problem_type(model_config(problem_type=None)) == "single_label_classification"


def test_towers_run_once_a_batch_however_many_subsets(model):
    calls = []
    tower = model.mmfusion.vision_encoder
    tower.register_forward_hook(lambda *_: calls.append(1))
    predict_subsets(model, batches(num=2), progress=False)
    assert len(calls) == 2


def test_subset_logits_equal_those_of_a_table_without_the_other_columns(model):
    """The evaluation of `text` says what the model says when only the text is handed in."""
    batch = batches(num=1, mixed=False)[0]
    predicted = predict_subsets(model, [batch], progress=False)
    alone = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert np.allclose(predicted.logits["text"], alone.detach().numpy(), atol=1e-5)
    whole = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
    assert np.allclose(predicted.logits["text+image+audio"], whole.detach().numpy(), atol=1e-5)


def test_prediction_gives_every_module_its_own_mode_back():
    model = make_model().train()
    model.mmfusion.text_encoder.eval()  # frozen
    predict_subsets(model, batches(num=1), progress=False)
    assert model.training and not model.mmfusion.text_encoder.training
    assert model.mmfusion.audio_encoder.training


def test_all_rows_count_and_complete_rows_stand_beside(model):
    result = evaluate_subsets(model, batches(num=2), progress=False)
    assert list(result["metrics"]) == SEVEN and result["num_rows"] == 10
    # Each batch of five: text in 3 rows, image in 4, audio in 3, one row with all.
    having = {name: values["num_rows_with_input"] for name, values in result["metrics"].items()}
    assert (having["text"], having["image"], having["audio"], having["text+image+audio"]) == (6, 8, 6, 10)
    assert result["complete_rows"]["num_rows"] == 2
    assert list(result["complete_rows"]["metrics"]) == SEVEN
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_complete_rows_are_left_out_where_there_are_none(model):
    table = batches(num=1)
    table[0]["modality_mask"][:, 0] = 0
    result = evaluate_subsets(model, table, subsets=[("image", "audio")], progress=False)
    assert "complete_rows" not in result and list(result["metrics"]) == ["image+audio"]


def test_subset_metrics_are_those_of_scikit_learn(model):
    table = batches(num=2)
    predicted = predict_subsets(model, table, progress=False)
    result = evaluate_subsets(model, table, progress=False)
    right = predicted.logits["audio"].argmax(axis=1) == predicted.labels
    assert result["metrics"]["audio"]["accuracy"] == pytest.approx(right.mean())
    complete = predicted.presence.all(axis=1)
    assert result["complete_rows"]["metrics"]["audio"]["accuracy"] == pytest.approx(right[complete].mean())


@pytest.mark.parametrize(
    ("problem", "num_labels", "labels", "keys"),
    [
        ("regression", 1, torch.arange(5.0), {"mae", "pearson_r"}),
        ("regression", 2, torch.randn(5, 2), {"mae", "pearson_r"}),
        (
            "multi_label_classification",
            3,
            torch.eye(5, 3),
            {"micro_f1", "macro_f1", "mean_average_precision", "expected_calibration_error"},
        ),
    ],
)
def test_other_problem_types_get_their_own_metrics(problem, num_labels, labels, keys):
    model = make_model(model_config(problem_type=problem, num_labels=num_labels))
    result = evaluate_subsets(model, batches(num=1, labels=labels), progress=False)
    assert set(result["metrics"]["text"]) == keys | {"num_rows_with_input"}
    assert "text+image+audio" in format_table(result)
    json.dumps(result, allow_nan=False)


def test_regression_metrics_take_labels_of_either_shape():
    flat = compute_metrics("regression", np.array([[1.0], [2.0]]), np.array([1.0, 4.0]))
    assert flat == compute_metrics("regression", np.array([[1.0], [2.0]]), np.array([[1.0], [4.0]]))
    assert flat == {"mae": 1.0, "pearson_r": 1.0}


def test_a_prepared_model_and_loader_give_the_same_numbers(model):
    from accelerate import Accelerator
    from torch.utils.data import DataLoader

    rows = make_inputs(rows=5)
    rows["labels"] = torch.arange(5) % 3
    dataset = [{name: value[row] for name, value in rows.items()} for row in range(5)]
    accelerator = Accelerator(cpu=True)
    prepared, loader = accelerator.prepare(copy.deepcopy(model), DataLoader(dataset, batch_size=2))
    result = evaluate_subsets(prepared, loader, accelerator=accelerator, progress=False)
    assert result["num_rows"] == 5
    plain = evaluate_subsets(model, [rows], progress=False)
    assert result["metrics"]["text"]["accuracy"] == plain["metrics"]["text"]["accuracy"]


def test_what_cannot_be_measured_is_said(model):
    with pytest.raises(ValueError, match="`dataloader` gave no batch"):
        evaluate_subsets(model, [], progress=False)
    unlabelled = batches(num=1)
    del unlabelled[0]["labels"]
    with pytest.raises(ValueError, match="have no `labels`"):
        evaluate_subsets(model, unlabelled, progress=False)
    broken = batches(num=1, mixed=False)
    broken[0]["pixel_values"][2] = float("nan")
    with pytest.raises(ValueError, match="are NaN or infinite in 1 of 5 rows, first in row 3"):
        evaluate_subsets(model, broken, progress=False)


# -- what pictures need -----------------------------------------------------------------------------------------------


def test_calibration_error_follows_from_the_reliability_bins(model):
    table = batches(num=4)
    result = evaluate_subsets(model, table, progress=False)
    bins, error = result["reliability"], result["metrics"]["text+image+audio"]["expected_calibration_error"]
    rows = [entry["num_rows"] for entry in bins]
    assert sum(rows) == result["num_rows"] == 20 and 0 not in rows and len(bins) > 1
    gaps = [abs(entry["accuracy"] - entry["confidence"]) for entry in bins]
    assert np.average(gaps, weights=rows) == pytest.approx(error)


def test_calibration_error_follows_from_the_bins_on_their_edges_too(metrics):
    confidence = np.arange(16) / 15  # of a binary answer: every edge, from both sides
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    labels = np.arange(16) % 2
    bins = evaluation_details("single_label_classification", probabilities, labels)["reliability"]
    gaps = [abs(entry["accuracy"] - entry["confidence"]) * entry["num_rows"] / 16 for entry in bins]
    known = metrics["classification"].compute(predictions=probabilities.tolist(), references=labels.tolist())
    assert sum(gaps) == pytest.approx(known["expected_calibration_error"])


def test_the_confusion_matrix_counts_true_labels_in_rows():
    probabilities = np.eye(4)[[0, 1, 1, 2]]
    details = evaluation_details("single_label_classification", probabilities, np.array([0, 0, 1, 2]))
    # Label 3 never occurs and is never predicted, and has its row and column all the same.
    assert details["confusion_matrix"] == [[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]


def test_multilabel_reliability_pools_the_decisions_of_all_labels():
    details = evaluation_details(
        "multi_label_classification", np.array([[0.9, 0.1], [0.5, 0.1]]), np.array([[1, 0], [0, 1]])
    )
    assert list(details) == ["reliability", "coverage"]
    low, high = details["reliability"]
    # 0.5 says yes and is wrong; of the three that are sure at 0.9, a yes and a no are right and a no is wrong.
    assert low == {"num_rows": 1, "confidence": 0.5, "accuracy": 0.0}
    assert high == {"num_rows": 3, "confidence": pytest.approx(0.9), "accuracy": pytest.approx(2 / 3)}


def test_a_regression_has_quantiles_of_its_errors():
    details = evaluation_details("regression", np.array([[1.0], [2.0], [3.0]]), np.array([1.0, 3.0, 7.0]))
    assert details == {"absolute_error_quantiles": {"0.5": 1.0, "0.9": pytest.approx(3.4), "1.0": 4.0}}


def test_without_the_subset_of_all_modalities_there_is_nothing_to_draw(model):
    result = evaluate_subsets(model, batches(num=1), subsets=[("text",)], progress=False)
    assert not {"confusion_matrix", "reliability"} & set(result)


# -- for people -------------------------------------------------------------------------------------------------------


def accuracies(**values):
    return {name: {"accuracy": value, "num_rows_with_input": 8} for name, value in values.items()}


FUSED_WORSE = accuracies(text=0.5, image=0.9, **{"text+image": 0.8})


def test_a_fusion_worse_than_one_modality_is_warned_of():
    (sentence,) = warnings({"metrics": FUSED_WORSE, "num_rows": 8})
    assert sentence == (
        "the full fusion, `text+image`, is worse than `image` alone: accuracy 80.0% against 90.0% on all rows."
    )


def test_warnings_prefer_the_rows_that_have_everything():
    good = accuracies(text=0.5, image=0.6, **{"text+image": 0.8})
    result = {"metrics": FUSED_WORSE, "num_rows": 8, "complete_rows": {"num_rows": 4, "metrics": good}}
    assert warnings(result) == []
    result = {"metrics": good, "num_rows": 8, "complete_rows": {"num_rows": 4, "metrics": FUSED_WORSE}}
    assert "on the 4 rows that have every modality" in warnings(result)[0]


def test_a_pair_below_its_better_member_is_warned_of():
    pairs = {"text+image": 0.89, "text+audio": 0.7, "text+image+audio": 0.95}
    values = accuracies(text=0.5, image=0.9, audio=0.7, **pairs)
    (sentence,) = warnings({"metrics": values, "num_rows": 8})
    assert sentence.startswith("`text+image` is worse than `image` alone: accuracy 89.0% against 90.0%")


def test_a_lower_error_is_the_better_score():
    errors = {"text": 1.0, "image": 2.0, "text+image": 1.5}
    values = {name: {"mae": mae, "pearson_r": None} for name, mae in errors.items()}
    assert score(values["text"]) > score(values["image"])
    assert "MAE 1.5 against 1" in warnings({"metrics": values, "num_rows": 8})[0]


def test_the_table_is_aligned_and_shows_undefined_values_as_a_dash():
    values = {name: {"mae": 1.25, "pearson_r": None, "num_rows_with_input": 1234} for name in ("text", "text+image")}
    lines = format_table({"metrics": values, "num_rows": 1234}).splitlines()
    assert lines[0] == "All 1,234 rows:"
    assert len({len(line) for line in lines[1:]}) == 1
    assert lines[-1].split() == ["text+image", "1,234", "1.25", "–"]
