"""Each strategy of fusion: what is masked cannot leak, all of it learns, and it comes back from a folder unchanged."""

import pytest
import torch
from conftest import make_inputs, make_model, model_config, save_folder
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import AutoModelForSequenceClassification, set_seed

import configuration_mmfusion
import training.flags
from fusion_mmfusion import FUSIONS, BottleneckFusion, CrossAttentionFusion, LowRankFusion

LABELS = torch.tensor([0, 2, 1, 1, 0])
KINDS = list(FUSIONS)


def make(kind, **kwargs):
    return make_model(model_config(fusion_type=kind, **kwargs))


def test_configuration_flags_and_strategies_name_the_same():
    assert tuple(FUSIONS) == configuration_mmfusion.FUSION_TYPES == training.flags.FUSION_TYPES
    assert configuration_mmfusion.BALANCES == training.flags.BALANCES


def test_an_unknown_strategy_is_refused_with_those_that_are_known():
    with pytest.raises(StrictDataclassClassValidationError, match="`fusion_type` must be one of cross_att"):
        model_config(fusion_type="sum")


@pytest.mark.parametrize("kind", KINDS)
def test_what_lies_under_a_mask_cannot_leak(kind):
    model, inputs = make(kind), make_inputs()
    clean = model(**inputs).logits
    soiled = {name: value.clone() for name, value in inputs.items()}
    soiled["input_ids"][inputs["attention_mask"] == 0] = 63
    soiled["input_values"][inputs["audio_attention_mask"] == 0] = float("nan")
    for column, name in enumerate(("input_ids", "pixel_values", "input_values")):
        absent = inputs["modality_mask"][:, column] == 0
        soiled[name][absent] = 63 if name == "input_ids" else float("nan")
    assert torch.equal(model(**soiled).logits, clean)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_depend_on_its_neighbours_and_each_modality_counts(kind):
    model, inputs = make(kind), make_inputs()
    together = model(**inputs).logits
    for row in range(5):
        alone = model(**{name: value[row : row + 1] for name, value in inputs.items()}).logits
        torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-5)
    encoded = model.encode(**make_inputs(mixed=False))
    full = model(encoder_outputs=encoded).logits
    for column in range(3):
        without = torch.ones(5, 3).index_fill(1, torch.tensor([column]), 0)
        assert (model(encoder_outputs=encoded, modality_mask=without).logits - full).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_a_subset_is_the_same_as_rows_that_never_had_the_rest(kind):
    model, inputs = make(kind), make_inputs(mixed=False)
    encoded = model.encode(**inputs)
    mask = torch.tensor([[1, 0, 1]] * 5)
    subset = model(encoder_outputs=encoded, modality_mask=mask).logits
    named = ("input_ids", "attention_mask", "input_values", "audio_attention_mask")
    never = model(**{name: inputs[name] for name in named}).logits
    torch.testing.assert_close(subset, never, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns(kind):
    model = make(kind, modality_dropout=0.5, balance="unimodal").train()
    model(**make_inputs(), labels=LABELS).loss.backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # Without a pooler's user and with all positions masked out of SpecAugment, towers have parameters of their own.
    assert [name for name in still if "encoder." not in name] == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_strategy_comes_back_from_a_folder_unchanged(kind, tmp_path):
    model, inputs = make(kind), make_inputs()
    folder = save_folder(model, tmp_path / f"model_{kind}")
    again = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
    assert type(again.mmfusion.fusion).__name__ == type(model.mmfusion.fusion).__name__
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("left_out", [("audio_config",), ("vision_config", "audio_config")])
def test_a_strategy_fuses_two_modalities_and_one(kind, left_out):
    model = make(kind, **dict.fromkeys(left_out))
    names = {"vision_config": ("pixel_values",), "audio_config": ("input_values", "audio_attention_mask")}
    inputs = make_inputs(mixed=False)
    for config in left_out:
        for name in names[config]:
            del inputs[name]
    assert model(**inputs).logits.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_strategy_is_exported_and_answers_as_before(kind):
    model, inputs = make(kind), make_inputs()
    exported = torch.export.export(model, (), inputs, strict=False).module()
    torch.testing.assert_close(exported(**inputs).logits, model(**inputs).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["cross_attention", "bottleneck", "pairwise"])
def test_attention_by_either_implementation_is_the_same_and_is_recorded(kind):
    model, inputs = make(kind), make_inputs()
    fast = model(**inputs).logits
    model.set_attn_implementation("eager")
    output = model(**inputs, output_attentions=True)
    torch.testing.assert_close(output.logits, fast, rtol=1e-4, atol=1e-5)
    assert len(output.attentions) > 0
    for weights in output.attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights.sum(-1)))


# -- what each of them promises ---------------------------------------------------------------------------------------


def fusion_inputs(config, lengths=(7, 4, 20)):
    set_seed(5)
    modality = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))
    return torch.randn(2, len(modality), config.hidden_size), torch.ones(2, len(modality)).bool(), modality


@pytest.mark.parametrize("is_balanced", [True, False])
def test_balanced_attention_gives_each_modality_the_same_share_before_anything_is_learnt(is_balanced):
    config = model_config(balanced_attention=is_balanced, attn_implementation="eager")
    fusion = CrossAttentionFusion(config).eval()
    fusion.layers[0].attention.q_proj.weight.data.zero_()
    fusion.layers[0].attention.q_proj.bias.data.zero_()
    tokens, mask, modality = fusion_inputs(config)
    mask[1, 8:11] = False
    weights = fusion(tokens, mask, modality, output_attentions=True).attentions[0]
    shares = torch.stack([weights[..., modality == column].sum(-1) for column in range(3)], dim=-1)
    by_token = torch.tensor([[7, 4, 20], [7, 1, 20]]) / torch.tensor([[31], [28]])
    expected = torch.full((2, 3), 1 / 3) if is_balanced else by_token
    torch.testing.assert_close(shares, expected[:, None, None].expand_as(shares))


def test_modalities_exchange_through_the_bottleneck_alone():
    config = model_config(num_hidden_layers=1)
    fusion = BottleneckFusion(config).eval()
    tokens, mask, modality = fusion_inputs(config)
    changed = tokens.clone()
    changed[:, modality == 2] = torch.randn(2, 20, config.hidden_size)
    size = config.num_fusion_queries
    before, after = (fusion.read(x, mask, modality) for x in (tokens, changed))
    assert before.shape == (2, 3 + size, config.hidden_size)
    torch.testing.assert_close(before[:, :2], after[:, :2])  # text and picture after one block: as they were
    assert (before[:, 3:] - after[:, 3:]).abs().max() > 1e-3


def test_the_low_rank_product_is_the_outer_product_of_the_means():
    config = model_config(fusion_rank=3)
    fusion = LowRankFusion(config).eval()
    tokens, mask, modality = fusion_inputs(config)
    means = torch.stack([tokens[:, modality == column].mean(1) for column in range(3)], dim=1)
    ones = torch.cat([means, torch.ones(2, 3, 1)], dim=-1)
    outer = torch.einsum("bi,bj,bk->bijk", *ones.unbind(1))
    tensor = torch.einsum("r,rio,rjo,rko->ijko", fusion.shares.weight[0], *fusion.factors)
    expected = torch.einsum("bijk,ijko->bo", outer, tensor) + fusion.shares.bias
    torch.testing.assert_close(fusion.read(tokens, mask, modality)[:, 0], expected, rtol=1e-3, atol=1e-4)


def test_the_gate_and_the_mixture_answer_as_their_formulas_say():
    gate, mixture = make("gate").mmfusion.fusion, make("weighted_sum").mmfusion.fusion
    tokens, mask, modality = fusion_inputs(gate.config)
    means = [tokens[:, modality == column].mean(1) for column in range(3)]
    gates = gate.gates(torch.cat(means, dim=-1)).sigmoid().chunk(3, dim=-1)
    expected = sum(g * layer(mean).tanh() for g, layer, mean in zip(gates, gate.values, means, strict=True))
    torch.testing.assert_close(gate.read(tokens, mask, modality)[:, 0], expected, rtol=1e-4, atol=1e-5)
    shares = mixture.weights.softmax(0)
    parts = [mixture.activation(layer(mean)) for layer, mean in zip(mixture.values, means, strict=True)]
    expected = sum(share * part for share, part in zip(shares, parts, strict=True))
    torch.testing.assert_close(mixture.read(tokens, mask, modality)[:, 0], expected, rtol=1e-4, atol=1e-5)


# -- tower outputs instead of inputs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("vision", ["vit", "resnet"])
@pytest.mark.parametrize("kept", [("text", "image", "audio"), ("image",), ("text", "audio")])
def test_what_the_towers_said_stands_in_for_the_inputs(vision, kept):
    from conftest import CONFIGS

    model, inputs = make_model(CONFIGS[f"bert-{vision}-layernorm"]()), make_inputs()
    outputs, presence = model.mmfusion.run_towers(**inputs)
    assert torch.equal(presence, inputs["modality_mask"].bool())
    assert {name: len(hidden) for name, (hidden, _) in outputs.items()} == {"text": 3, "image": 4, "audio": 3}
    of = {"text": ("input_ids", "attention_mask"), "image": ("pixel_values",),
          "audio": ("input_values", "audio_attention_mask")}  # fmt: skip
    rest = {name: value for name, value in inputs.items() if not any(name in of[modality] for modality in kept)}
    given = {modality: outputs[modality] for modality in kept}
    assert torch.equal(model(**rest, tower_outputs=given).logits, model(**inputs).logits)


def test_tower_outputs_that_fit_nothing_are_refused(model, inputs):
    outputs, _ = model.mmfusion.run_towers(**inputs)
    with pytest.raises(ValueError, match="`tower_outputs` needs `modality_mask`"):
        model(tower_outputs=outputs)
    with pytest.raises(ValueError, match="`tower_outputs` holds 'smell': it may hold text, image, audio"):
        model(tower_outputs={"smell": outputs["text"]}, modality_mask=inputs["modality_mask"])
    with pytest.raises(ValueError, match="`tower_outputs` holds 'text': leave `input_ids` out"):
        model(tower_outputs=outputs, input_ids=inputs["input_ids"], modality_mask=inputs["modality_mask"])
