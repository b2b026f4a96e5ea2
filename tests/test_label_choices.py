"""What is said of the labels: their weights in the loss, the order of ordinal classes, and what that changes."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState, GradientState
from conftest import make_inputs, make_model, model_config
from huggingface_hub.errors import StrictDataclassClassValidationError

import train
from data import Columns, LabelMap, read_table
from metrics.subsets import compute_metrics, evaluate_subsets, format_table
from objectives_mmfusion import earth_movers_distances, row_losses
from training.arguments import parse_args
from training.label_choices import balanced_weights, in_order, named_weights, weigh_labels
from training.rows import TableRows

SINGLE, MULTI = "single_label_classification", "multi_label_classification"


def parsed(*flags):
    return parse_args(["--train_file", "t.csv", "--output_dir", "/tmp/no/such/folder", *flags], "", "")


def rows_of(folder, labels, name="t.csv"):
    """Rows of text with these labels, ready to be trained on."""
    with (folder / name).open("w", newline="") as file:
        csv.writer(file).writerows([["text", "label"], *([f"word {i}", label] for i, label in enumerate(labels))])
    return TableRows(read_table(str(folder / name), columns=Columns(None, "none", "none")), is_training=True)


# -- weights ----------------------------------------------------------------------------------------------------------


def test_balanced_classes_weigh_the_same_together_and_a_row_one_on_average():
    labels = LabelMap(SINGLE, ("a", "b", "c"))
    encoded = [0] * 6 + [1] * 3 + [2] * 1
    weights = balanced_weights(labels, encoded)
    assert weights == pytest.approx([10 / (3 * 6), 10 / (3 * 3), 10 / (3 * 1)])
    assert np.mean(np.array(weights)[encoded]) == pytest.approx(1)


def test_a_class_without_a_row_weighs_one():
    assert balanced_weights(LabelMap(SINGLE, ("a", "b", "c")), [0, 0, 2, 2]) == [1.0, 1.0, 1.0]
    assert balanced_weights(LabelMap(MULTI, ("a", "b")), [[1.0, 0.0], [0.0, 0.0]]) == [1.0, 1.0]


def test_of_several_labels_a_presence_weighs_what_the_absences_do_within_bounds():
    table = np.zeros((40, 4))
    table[:10, 0] = table[:20, 1] = table[:1, 2] = table[:, 3] = 1
    assert balanced_weights(LabelMap(MULTI, tuple("abcd")), table.tolist()) == pytest.approx([3, 1, 10, 0.1])


def test_labels_that_are_not_named_weigh_one():
    assert named_weights(("a", "b", "c=d"), {"b": 2.5, "c=d": 0.5}) == [1.0, 2.5, 0.5]
    with pytest.raises(ValueError, match=r"--class_weights x=2: the label 'x' is not known. Allowed are a, b"):
        named_weights(("a", "b"), {"x": 2.0})


def test_weights_are_counted_in_the_rows_and_told_once(tmp_path):
    rows, model = rows_of(tmp_path, ["a"] * 6 + ["b"] * 2), make_model(model_config(num_labels=2))
    args = SimpleNamespace(class_weights="balanced")
    assert weigh_labels(args, model, rows, LabelMap.fit(rows.table)) == ["weights in the loss: a 0.667, b 2"]
    assert model.config.class_weights == pytest.approx([2 / 3, 2])
    numbers = rows_of(tmp_path, [0.5, 1.5], "n.csv")
    with pytest.raises(ValueError, match=r"--class_weights: `.*n.csv` is a regression, which has no classes; leave"):
        weigh_labels(args, model, numbers, LabelMap.fit(numbers.table))


def test_metrics_are_never_weighted():
    plain, weighted = make_model(), make_model(model_config(class_weights=[1.0, 5.0, 0.2]))
    batches = [{**make_inputs(), "labels": torch.arange(5) % 3}]
    assert evaluate_subsets(plain, batches, progress=False) == evaluate_subsets(weighted, batches, progress=False)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--class_weights", "rare"], "rare is neither `balanced` nor a label with a weight above 0, as in `rare=3`"),
        (["--class_weights", "rare=0"], "rare=0 is neither"),
        (["--class_weights", "rare=-1"], "rare=-1 is neither"),
        (["--class_weights", "rare=nan"], "rare=nan is neither"),
        (["--class_weights", "rare=inf"], "rare=inf is neither"),
        (["--class_weights", "=2"], "=2 is neither"),
        (["--class_weights", "balanced", "a=2"], "give `balanced` alone, or a weight for each label that is named on"),
        (["--class_weights", "a=2", "a=3"], "give `balanced` alone, or a weight for each label that is named once"),
        (["--class_weights", "a=2", "--problem_type", "regression"], "is for classes, but --problem_type is regressi"),
        (["--label_order", "a,b"], "--label_order belongs to --ordinal"),
        (["--ordinal", "--label_order", "a,,b"], "a,,b does not name each class once, with commas between"),
        (["--ordinal", "--label_order", "a,b,a"], "a,b,a does not name each class once"),
        (
            ["--ordinal", "--problem_type", "regression"],
            "for one of several classes, but --problem_type is regression",
        ),
    ],
)
def test_a_wrong_call_exits_with_2(flags, sentence, capsys):
    with pytest.raises(SystemExit) as stop:
        parsed(*flags)
    assert stop.value.code == 2 and sentence in capsys.readouterr().err


def test_a_stream_is_not_counted(capsys):
    with pytest.raises(SystemExit):
        parse_args(
            ["--dataset_name", "a/b", "--streaming", "--output_dir", "/tmp/no", "--class_weights", "balanced"], "", ""
        )
    assert "--class_weights balanced counts the labels of all rows, and --streaming sees" in capsys.readouterr().err


def test_weights_by_name_may_hold_an_equals_sign():
    assert parsed("--class_weights", "a=b=2", "c=0.5").class_weights == {"a=b": 2.0, "c": 0.5}
    assert parsed().class_weights is None and parsed("--class_weights", "balanced").class_weights == "balanced"


# -- order ------------------------------------------------------------------------------------------------------------


def ordered(rows, *flags):
    args = parsed(*flags)
    return in_order(args, rows, LabelMap.fit(rows.table, args.problem_type)).names


def test_numbers_have_their_own_order_and_names_the_given_one(tmp_path):
    grades = ["fair", "bad", "good", "fair"]
    assert ordered(rows_of(tmp_path, [10, 2, 1, 2], "n.csv"), "--ordinal") == ("1", "2", "10")
    halves = rows_of(tmp_path, ["1.5", "-2", "10", "0"], "h.csv")
    assert ordered(halves, "--ordinal", "--problem_type", SINGLE) == ("-2", "0", "1.5", "10")
    words = rows_of(tmp_path, grades, "w.csv")
    assert ordered(words, "--ordinal", "--label_order", "bad, fair,good") == ("bad", "fair", "good")
    assert ordered(words) == ("bad", "fair", "good") == tuple(sorted(set(grades)))
    backwards = ("good", "fair", "bad")
    assert ordered(words, "--ordinal", "--label_order", ",".join(backwards)) == backwards
    declared = SimpleNamespace(name="t", declares_labels=True)
    assert in_order(parsed("--ordinal"), declared, LabelMap(SINGLE, backwards)).names == backwards


def test_class_labels_are_declared_and_read_labels_are_not(tmp_path):
    import datasets

    feature = datasets.ClassLabel(names=["low", "high"])
    features = datasets.Features({"text": datasets.Value("string"), "label": feature})
    made = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    made.to_parquet(tmp_path / "t.parquet")
    rows = TableRows(read_table(str(tmp_path / "t.parquet"), columns=Columns(None, "none", "none")))
    assert rows.declares_labels and ordered(rows, "--ordinal") == ("low", "high")
    assert not rows_of(tmp_path, ["a", "b"]).declares_labels


@pytest.mark.parametrize(
    ("labels", "flags", "sentence"),
    [
        (
            ["bad", "good"],
            [],
            r"in which order the labels of `.*t.csv` stand \(bad, good\) is not known.*--label_order",
        ),
        (["1", "2", "none"], [], "is not known, for they are no numbers"),
        (
            ["bad", "good"],
            ["--label_order", "bad,fair,good"],
            "--label_order bad,fair,good: 'fair' is no label; put a",
        ),
        (
            ["bad", "good"],
            ["--label_order", "bad"],
            "--label_order bad: the label 'good' is missing; put all of bad, g",
        ),
        (["0.5", "1.5"], [], r"`.*t.csv` is regression: leave it out, or add --problem_type single_label_classificat"),
    ],
)
def test_an_order_that_is_not_known_is_asked_for(tmp_path, labels, flags, sentence):
    with pytest.raises(ValueError, match=sentence):
        ordered(rows_of(tmp_path, labels), "--ordinal", *flags)


# -- the ordinal loss -------------------------------------------------------------------------------------------------


def settings(**options):
    return model_config(**{"num_labels": 4, "ordinal": True, **options})


def test_the_distance_is_the_squared_difference_of_the_cumulative_shares():
    shares = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    found = earth_movers_distances(shares.log(), torch.tensor([1]))
    assert found.item() == pytest.approx(0.1**2 + (0.3 - 1) ** 2 + (0.6 - 1) ** 2)


def test_an_answer_that_is_farther_off_costs_more_and_cross_entropy_does_not_see_it():
    logits = 6 * torch.eye(4)
    labels = torch.zeros(4, dtype=torch.long)
    far = earth_movers_distances(logits, labels)
    assert far.diff().min() > 0.9 and far[0] < 0.001 and far[3] == pytest.approx(3, abs=0.1)
    plain, _ = row_losses(logits, labels, settings(ordinal=False))
    assert plain[1:].diff().abs().max() < 1e-5
    both, _ = row_losses(logits, labels, settings())
    torch.testing.assert_close(both, F.cross_entropy(logits, labels, reduction="none") + far)


def test_the_distance_is_weighted_and_left_out_as_the_cross_entropy_is():
    logits, labels = torch.randn(5, 4), torch.tensor([0, 3, -100, 1, 2])
    weights = [0.5, 1.0, 2.0, 4.0]
    plain, known = row_losses(logits, labels, settings())
    weighted, _ = row_losses(logits, labels, settings(class_weights=weights))
    factors = torch.tensor([weights[label] if label >= 0 else 1.0 for label in labels.tolist()])
    torch.testing.assert_close(weighted, plain * factors)
    assert plain[2] == 0 and known.tolist() == [True, True, False, True, True]


def test_the_order_has_a_gradient_that_is_the_one_of_finite_differences():
    logits = torch.randn(3, 4, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: earth_movers_distances(x, torch.tensor([0, 2, 3])), logits)


def test_an_order_is_for_one_of_several_classes():
    with pytest.raises(StrictDataclassClassValidationError, match="`ordinal` is for single_label_class"):
        model_config(problem_type="regression", ordinal=True)


def test_ordinal_classes_are_also_judged_by_how_far_off_answers_are():
    sure, labels = 9 * np.eye(4)[[0, 1, 3, 3]], np.array([0, 3, 3, 2])
    metrics = compute_metrics(SINGLE, sure, labels, ordinal=True)
    assert metrics["rank_mae"] == pytest.approx(3 / 4) and metrics["accuracy"] == 0.5
    # Squared distances: 0, 4, 0, 1. By chance: predicted 0, 1, 3, 3 against true 0, 3, 3, 2, each with each, by 4.
    chance = np.mean([(p - t) ** 2 for p in (0, 1, 3, 3) for t in labels])
    assert metrics["quadratic_kappa"] == pytest.approx(1 - (5 / 4) / chance)
    same = compute_metrics(SINGLE, sure[:1], labels[:1], ordinal=True)
    assert same["rank_mae"] == 0 and same["quadratic_kappa"] is None
    assert "rank_mae" not in compute_metrics(SINGLE, sure, labels)


# -- a training -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a short run with weights and an order."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    folder = tmp_path_factory.mktemp("ordinal")
    for name in ("train", "validation"):
        rows_of(folder, ["good", "bad", "fair", "bad"] * 4, f"{name}.csv")
    code = train.main(
        [
            "--train_file", f"{folder}/train.csv", "--validation_file", f"{folder}/validation.csv", "--ordinal",
            "--label_order", "bad,fair,good", "--class_weights", "balanced", "--max_train_steps", "2",
            "--fusion_hidden_size", "32", "--output_dir", f"{folder}/model",
        ]
    )  # fmt: skip
    assert code == 0
    return folder / "model"


def test_a_run_writes_down_weights_and_order_and_measures_by_it(trained):
    config = json.loads((trained / "config.json").read_text())
    assert config["ordinal"] is True and config["class_weights"] == pytest.approx([2 / 3, 4 / 3, 4 / 3])
    assert [config["id2label"][str(i)] for i in range(3)] == ["bad", "fair", "good"]
    recorded = json.loads((trained / "training_config.json").read_text())["arguments"]
    assert recorded["class_weights"] == "balanced" and recorded["label_order"] == ["bad", "fair", "good"]
    metrics = json.loads((trained / "metrics.json").read_text())
    assert {"accuracy", "rank_mae", "quadratic_kappa"} <= metrics["metrics"]["text"].keys()
    assert "MAE in ranks" in format_table(metrics)


def test_the_card_says_the_order_and_how_far_off_answers_are(trained):
    from hub.card import render_model_card

    card = render_model_card(trained)
    assert "Single label classification, in their order, lowest first: bad, fair, good." in card
    assert "MAE in ranks" in card and "quadratic kappa" in card


def test_going_on_without_them_forgets_weights_and_order(trained):
    from training.continuing import load_classifier
    from training.start import learning_choices

    labels = LabelMap(SINGLE, ("bad", "fair", "good"))
    again = load_classifier(str(trained), None, labels, dropout=0.1, choices=learning_choices(parsed()))
    assert again.config.class_weights is None and again.config.ordinal is False
