"""What training asks of the model: losses row by row, subsets in their order, modalities in balance, temperatures."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import make_inputs, make_model, model_config, save_folder
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import AutoModelForSequenceClassification, set_seed
from transformers.loss.loss_utils import ForSequenceClassificationLoss

from modeling_mmfusion import MODALITIES
from objectives_mmfusion import (
    GradientSurgery,
    ScaledGradient,
    compromise,
    contrastive_loss,
    mean_of,
    ogm_coefficients,
    ranking_losses,
    row_losses,
)

LABELS = torch.tensor([0, 2, 1, 1, 0])
NAN = float("nan")
CASES = {
    "single_label_classification": (torch.randn(5, 3), LABELS),
    "multi_label_classification": (torch.randn(5, 3), torch.tensor([[1.0, 0, 1]] * 5)),
    "regression": (torch.randn(5, 1), torch.randn(5)),
}


def settings(problem_type=None, **kwargs):
    chosen = {"problem_type": problem_type, "label_smoothing": 0.0, "class_weights": None, "num_labels": 3,
              "ordinal": False, "tasks": None, **kwargs}  # fmt: skip
    return SimpleNamespace(**chosen)


# -- losses row by row ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_told", [True, False])
@pytest.mark.parametrize("problem", CASES)
def test_the_mean_of_the_rows_is_the_loss_of_transformers(problem, is_told):
    logits, labels = CASES[problem]
    config = settings(problem if is_told else None, num_labels=logits.shape[1])
    ours = mean_of(*row_losses(logits, labels, config))
    torch.testing.assert_close(ours, ForSequenceClassificationLoss(labels, logits, config))


@pytest.mark.parametrize("problem", CASES)
def test_a_row_without_a_label_does_not_count(problem):
    logits, labels = CASES[problem]
    gaps = labels.clone()
    gaps[[1, 3]] = -100 if problem.startswith("single") else NAN
    losses, has_label = row_losses(logits, gaps, settings(problem))
    assert has_label.tolist() == [True, False, True, False, True] and losses[1] == 0
    keep = [0, 2, 4]
    expected = mean_of(*row_losses(logits[keep], labels[keep], settings(problem)))
    torch.testing.assert_close(mean_of(losses, has_label), expected)


def test_class_weights_and_smoothing_are_those_of_torch():
    logits, labels = CASES["single_label_classification"]
    weights = [0.2, 1.0, 3.0]
    losses, _ = row_losses(logits, labels, settings(class_weights=weights, label_smoothing=0.1, problem_type=None))
    expected = F.cross_entropy(logits, labels, torch.tensor(weights), label_smoothing=0.1, reduction="none")
    torch.testing.assert_close(losses, expected)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("class_weights", [1.0], "must hold 3 numbers of at least 0, one for each label"),
        ("class_weights", [1.0, -1.0, 2.0], "must hold 3 numbers of at least 0"),
        ("label_smoothing", 1.0, r"`label_smoothing` must be in \[0, 1\), got 1.0"),
        ("balance", "often", "`balance` must be one of none, unimodal, ogm_ge, mmpareto, got 'often'"),
        ("contrastive_weight", -1.0, "`contrastive_weight` must be a number of at least 0, got -1.0"),
        ("temperatures", {"text": 0.0}, "`temperatures` must give a number greater than 0"),
        ("temperatures", {"smell": 1.0}, "`temperatures` must give .* got 1.0 for 'smell'"),
    ],
)
def test_a_setting_out_of_its_range_is_named(field, value, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        model_config(**{field: value})


# -- more is not worse than fewer -------------------------------------------------------------------------------------


def test_only_what_has_more_modalities_is_taught_by_the_ranking():
    more = torch.tensor([1.0, 3.0], requires_grad=True)
    fewer = torch.tensor([2.0, 1.0], requires_grad=True)
    losses = ranking_losses(more, fewer)
    assert losses.tolist() == [0.0, 2.0]
    losses.sum().backward()
    assert more.grad.tolist() == [0.0, 1.0] and fewer.grad is None


# -- contrast ---------------------------------------------------------------------------------------------------------


def unit(*rows):
    return F.normalize(torch.tensor(rows), dim=-1)


def test_contrast_is_low_where_a_row_s_modalities_agree_and_high_where_they_are_swapped():
    vectors, everyone = unit([1.0, 0.0], [0.0, 1.0]), torch.tensor([True, True])
    presence = {"text": everyone, "audio": everyone}
    near = contrastive_loss({"text": vectors, "audio": vectors}, presence)
    far = contrastive_loss({"text": vectors, "audio": vectors.flip(0)}, presence)
    assert near < 0.01 and far > 5


def test_a_row_that_lacks_one_of_a_pair_does_not_ask_for_it_and_is_no_answer():
    presence = {"text": torch.tensor([True, True, True]), "audio": torch.tensor([True, True, False])}
    vectors = unit([1.0, 0.0], [0.0, 1.0], [1.0, 0.0])
    text, audio = unit([1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]), vectors  # the third sound, which is not there, fits
    whole = {name: torch.tensor([True, True]) for name in presence}
    with_gap = contrastive_loss({"text": text, "audio": audio}, presence)
    without = contrastive_loss({"text": text[:2], "audio": audio[:2]}, whole)
    torch.testing.assert_close(with_gap, without, rtol=0, atol=1e-4)
    nobody = {"text": torch.tensor([True] * 3), "audio": torch.tensor([False] * 3)}
    assert contrastive_loss({"text": text, "audio": audio}, nobody) == 0


def test_rows_of_a_class_belong_together_when_classes_are_given():
    vectors = unit([1.0, 0.0], [1.0, 0.0], [0.0, 1.0])
    presence = {name: torch.tensor([True] * 3) for name in ("text", "audio")}
    both = {"text": vectors, "audio": vectors}
    by_class = contrastive_loss(both, presence, torch.tensor([0, 0, 1]))
    other = contrastive_loss(both, presence, torch.tensor([0, 1, 1]))
    assert by_class < other


def test_contrast_brings_the_modalities_of_a_row_together():
    model = make_model(model_config(contrastive_weight=1.0, modality_dropout=0.0)).train()
    inputs = make_inputs(mixed=False)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)

    def nearness():
        model.eval()
        with torch.no_grad():
            text = model.mmfusion.get_text_features(inputs["input_ids"], inputs["attention_mask"])
            image = model.mmfusion.get_image_features(inputs["pixel_values"])
        model.train()
        cosines = text @ image.T
        return (cosines.diag().mean() - cosines.mean()).item()

    before = nearness()
    for _ in range(25):
        model(**inputs, labels=LABELS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert nearness() > before + 0.1


# -- balance ----------------------------------------------------------------------------------------------------------


def test_unimodal_heads_answer_for_what_a_row_has_and_stay_out_of_the_joint_answer():
    inputs = make_inputs()
    model = make_model(model_config(balance="unimodal"))
    output = model(**inputs)
    absent = inputs["modality_mask"] == 0
    assert output.unimodal_logits.shape == (5, 3, 3)
    assert (output.unimodal_logits[absent] == 0).all() and (output.unimodal_logits[~absent] != 0).all()
    encoded = model.encode(**inputs)
    only_image = torch.tensor([[0, 1, 0]] * 5)
    masked = model(encoder_outputs=encoded, modality_mask=only_image).unimodal_logits
    torch.testing.assert_close(masked[:, 1], output.unimodal_logits[:, 1])
    assert (masked[:, [0, 2]] == 0).all()
    assert make_model()(**inputs).unimodal_logits is None


@pytest.mark.parametrize("balance", ["unimodal", "ogm_ge", "mmpareto"])
def test_every_balance_trains_heads_and_towers_and_comes_back_from_a_folder(balance, tmp_path):
    model, inputs = make_model(model_config(balance=balance)).train(), make_inputs()
    output = model(**inputs, labels=LABELS)
    output.loss.backward()
    for part in (model.unimodal, model.mmfusion.text_encoder, model.mmfusion.vision_encoder, model.mmfusion.fusion):
        assert sum(p.grad.abs().sum() for p in part.parameters() if p.grad is not None) > 0
    model.eval()
    again = AutoModelForSequenceClassification.from_pretrained(
        save_folder(model, tmp_path / balance), trust_remote_code=True
    )
    assert torch.equal(again(**inputs).unimodal_logits, model(**inputs).unimodal_logits)


def test_gradients_that_agree_are_added_and_two_that_conflict_are_met_between():
    first, second = torch.tensor([1.0, 1.0]), torch.tensor([1.0, 0.0])
    assert compromise(first, second).tolist() == [2.0, 1.0]
    first, second = torch.tensor([1.0, 0.5]), torch.tensor([-1.0, 0.5])
    met = compromise(first, second)
    torch.testing.assert_close(met, torch.tensor([0.0, 1.0]))  # the shortest between them, as long as their sum
    for gradient in (first, second):
        assert met @ gradient > 0  # both get better


def test_surgery_treats_each_modality_by_itself():
    tokens = torch.zeros(1, 2, 2, requires_grad=True)
    joint, own = GradientSurgery.apply(tokens, torch.tensor([0, 2]))
    wanted = torch.tensor([[[1.0, 0.5], [1.0, 1.0]]]), torch.tensor([[[-1.0, 0.5], [1.0, 0.0]]])
    ((joint * wanted[0]).sum() + (own * wanted[1]).sum()).backward()
    torch.testing.assert_close(tokens.grad, torch.tensor([[[0.0, 1.0], [2.0, 1.0]]]))


def test_only_the_modality_that_is_ahead_is_slowed():
    sure, unsure = torch.tensor([[5.0, 0.0]] * 4), torch.tensor([[0.1, 0.0]] * 4)
    logits, labels = {"text": sure, "image": unsure, "audio": unsure}, torch.zeros(4, dtype=torch.long)
    presence = {name: torch.ones(4).bool() for name in logits}
    factors = ogm_coefficients(logits, labels, presence, alpha=0.5)
    assert 0 < factors["text"] < 0.8 and factors["image"] == factors["audio"] == 1


def test_a_slowed_gradient_is_smaller_and_noise_makes_up_for_it():
    set_seed(0)
    tokens = torch.randn(50, 2, 40, requires_grad=True)
    gradient = torch.randn(50, 2, 40) + 1
    ScaledGradient.apply(tokens, torch.tensor([0.5, 1.0])).backward(gradient)
    assert torch.equal(tokens.grad[:, 1], gradient[:, 1])
    assert abs(tokens.grad[:, 0].mean() - 0.5) < 0.05
    left = tokens.grad[:, 0] - 0.5 * gradient[:, 0]
    assert 0.4 < left.std() / gradient.std() < 0.6


# -- temperatures -----------------------------------------------------------------------------------------------------


def test_logits_in_use_are_divided_by_the_temperature_of_what_a_row_has(tmp_path):
    inputs = make_inputs()
    plain = make_model()
    cool = make_model()
    cool.config.temperatures = {"text+image+audio": 2.0, "image+audio": 4.0, "image": 0.5}
    expected = plain(**inputs).logits / torch.tensor([2.0, 4.0, 1.0, 1.0, 0.5])[:, None]
    torch.testing.assert_close(cool(**inputs).logits, expected)
    encoded = cool.encode(**make_inputs(mixed=False))
    only = torch.tensor([[int(name == "image") for name in MODALITIES]] * 5)
    subset = plain(encoder_outputs=encoded, modality_mask=only).logits
    torch.testing.assert_close(cool(encoder_outputs=encoded, modality_mask=only).logits, subset / 0.5)
    again = AutoModelForSequenceClassification.from_pretrained(
        save_folder(cool, tmp_path / "cool"), trust_remote_code=True
    )
    assert torch.equal(again(**inputs).logits, cool(**inputs).logits)


def test_temperatures_leave_training_alone():
    inputs, losses = make_inputs(), []
    for temperatures in (None, {"text+image+audio": 5.0}):
        model = make_model().train()
        model.config.temperatures = temperatures
        set_seed(1)
        losses.append(model(**inputs, labels=LABELS).loss)
    assert torch.equal(*losses)
