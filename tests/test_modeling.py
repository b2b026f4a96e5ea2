"""The model's contract, as properties: masks, presence, subsets, gradients, precision, errors."""

import itertools
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from conftest import (
    CONFIGS,
    audio_config,
    make_inputs,
    make_model,
    model_config,
    resnet_config,
    save_folder,
    text_config,
    vit_config,
)
from transformers import (
    AutoModelForSequenceClassification,
    RobertaConfig,
    Wav2Vec2Config,
    set_seed,
)

from modeling_mmfusion import (
    MODALITIES,
    TOWERS,
    MMFusionForSequenceClassification,
    MMFusionModel,
)
from objectives_mmfusion import sample_subsets
from towers_mmfusion import grid_positions, receptive_field

SUBSETS = [subset for size in (1, 2, 3) for subset in itertools.combinations(MODALITIES, size)]
ARGUMENTS = {
    "text": ("input_ids", "attention_mask"),
    "image": ("pixel_values",),
    "audio": ("input_values", "audio_attention_mask"),
}
LAYERNORM_CONFIGS = [name for name in CONFIGS if "groupnorm" not in name]


@torch.no_grad()
def logits(model, inputs, **kwargs):
    return model(**inputs, **kwargs).logits


def assert_close(actual, expected, atol=1e-5):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=1e-4)


def columns(subset, rows=5):
    """(rows, 3) modality mask of a subset."""
    return torch.tensor([[int(modality in subset) for modality in MODALITIES]]).expand(rows, -1)


def only(inputs, subset):
    """The inputs of some modalities, without a modality mask."""
    return {name: inputs[name] for modality in subset for name in ARGUMENTS[modality]}


def row_alone(inputs, row, trim_audio=True):
    """One row as a user would send it: what it lacks is not passed, and nothing is padded."""
    present = [modality for modality, has in zip(MODALITIES, inputs["modality_mask"][row], strict=True) if has]
    alone = {name: value[row : row + 1] for name, value in only(inputs, present).items()}
    pairs = [("input_ids", "attention_mask")] + [("input_values", "audio_attention_mask")] * trim_audio
    for name, mask in pairs:
        if name in alone:
            length = int(alone[mask].sum())
            alone |= {name: alone[name][:, :length], mask: alone[mask][:, :length]}
    return alone


def still_config(**kwargs):
    """Without any dropout: training and evaluation compute the same."""
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    audio = ("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout")
    towers = {
        "text_config": text_config(**quiet),
        "vision_config": vit_config(**quiet),
        "audio_config": audio_config(**dict.fromkeys(audio, 0.0)),
    }
    return model_config(**{**towers, **quiet, **kwargs})


def gradients(model, inputs, labels):
    """Gradients by parameter name after one backward pass with fixed draws."""
    set_seed(0)
    model.zero_grad()
    model(**inputs, labels=labels).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


LABELS = torch.tensor([0, 1, 2, 0, 1])


# -- masks and rows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("garbage", ["other numbers", "nan", "inf", "outside the vocabulary"])
@pytest.mark.parametrize("name", CONFIGS)
def test_what_lies_under_a_zero_in_any_mask_cannot_change_the_output(name, garbage):
    model, inputs = make_model(CONFIGS[name]()), make_inputs()
    presence = inputs["modality_mask"].bool()
    no_text = ~(inputs["attention_mask"].bool() & presence[:, :1])
    no_audio = ~(inputs["audio_attention_mask"].bool() & presence[:, 2:])
    token = {"outside the vocabulary": 10**6, "nan": -1, "inf": 2**40}.get(garbage, 7)
    number = {"nan": float("nan"), "inf": float("inf")}.get(garbage, 1e4)
    changed = {
        **inputs,
        "input_ids": inputs["input_ids"].masked_fill(no_text, token),
        "pixel_values": inputs["pixel_values"].masked_fill(~presence[:, 1].view(-1, 1, 1, 1), number),
        "input_values": inputs["input_values"].masked_fill(no_audio, number),
    }
    assert torch.equal(logits(model, changed), logits(model, inputs))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_modality_of_a_row_matters(name):
    model, inputs, others = make_model(CONFIGS[name]()), make_inputs(mixed=False), make_inputs(seed=1, mixed=False)
    expected = logits(model, inputs)
    for argument in ("input_ids", "pixel_values", "input_values"):
        difference = (logits(model, {**inputs, argument: others[argument]}) - expected).abs().amax(dim=1)
        assert (difference > 1e-2).all(), argument


@pytest.mark.parametrize("name", CONFIGS)
def test_permuting_a_batch_permutes_the_output(name):
    model, inputs = make_model(CONFIGS[name]()), make_inputs()
    order = torch.tensor([3, 0, 4, 2, 1])
    permuted = {argument: value[order] for argument, value in inputs.items()}
    assert_close(logits(model, permuted), logits(model, inputs)[order])


@pytest.mark.parametrize("name", CONFIGS)
def test_a_row_alone_equals_the_row_in_a_batch(name):
    """Group-norm towers: with clips padded to one length, as the processor pads them."""
    model, inputs = make_model(CONFIGS[name]()), make_inputs()
    expected = logits(model, inputs)
    for row in range(5):
        alone = row_alone(inputs, row, trim_audio=name in LAYERNORM_CONFIGS)
        assert_close(logits(model, alone), expected[row : row + 1])


@pytest.mark.parametrize("name", CONFIGS)
def test_longer_padding_changes_nothing(name):
    model, inputs = make_model(CONFIGS[name]()), make_inputs()
    longer = dict(inputs)
    for argument in ("input_ids", "attention_mask"):
        longer[argument] = F.pad(inputs[argument], (0, 5))
    if name in LAYERNORM_CONFIGS:
        for argument in ("input_values", "audio_attention_mask"):
            longer[argument] = F.pad(inputs[argument], (0, 333))
    assert_close(logits(model, longer), logits(model, inputs))


def test_group_norm_audio_depends_on_its_padding_hence_the_processors_rule():
    """Should this fail one day, the fixed length of the processor for group-norm towers has lost its reason."""
    model, inputs = make_model(CONFIGS["bert-vit-groupnorm"]()), make_inputs(mixed=False)
    alone = row_alone(inputs, 0)
    padded = {**alone, **{name: F.pad(alone[name], (0, 300)) for name in ARGUMENTS["audio"]}}
    assert (logits(model, padded) - logits(model, alone)).abs().max() > 1e-3


def test_writing_into_a_recorded_state_leaves_the_weights_alone(model, inputs):
    before = model.mmfusion.fusion.queries.detach().clone()
    with torch.no_grad():
        model(**inputs, output_hidden_states=True).hidden_states[0].zero_()
    assert torch.equal(model.mmfusion.fusion.queries, before)


@pytest.mark.parametrize("samples", [1, 20, 39])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_clip_too_short_for_one_frame_is_the_same_in_any_batch(name, samples):
    model, inputs = make_model(CONFIGS[name]()), make_inputs(mixed=False)
    mask = inputs["audio_attention_mask"].clone()
    mask[0] = torch.arange(400) < samples
    in_batch = logits(model, {**inputs, "audio_attention_mask": mask})
    assert in_batch.isfinite().all()
    length = samples if name in LAYERNORM_CONFIGS else 400  # 40 samples are the receptive field
    alone = {name: value[:1] for name, value in inputs.items()}
    alone |= {"input_values": inputs["input_values"][:1, :length], "audio_attention_mask": mask[:1, :length]}
    assert_close(logits(model, alone), in_batch[:1])


def test_a_short_clip_can_be_trained_on_with_specaugment():
    audio = audio_config(mask_time_prob=0.2, mask_time_length=10, mask_time_min_masks=1)
    model = make_model(model_config(audio_config=audio)).train()
    loss = model(input_values=torch.randn(2, 60), labels=torch.tensor([0, 1])).loss
    loss.backward()
    assert loss.isfinite()


@pytest.mark.parametrize("modality", ["text", "audio"])
def test_a_row_whose_mask_is_empty_lacks_the_modality(model, modality):
    inputs = make_inputs(mixed=False)
    mask, presence = inputs[ARGUMENTS[modality][1]].clone(), inputs["modality_mask"].clone()
    mask[0], presence[0, MODALITIES.index(modality)] = 0, 0
    expected = logits(model, {**inputs, "modality_mask": presence})
    assert_close(logits(model, {**inputs, ARGUMENTS[modality][1]: mask}), expected)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONFIGS)
def test_masks_may_be_of_any_dtype(name, dtype):
    model, inputs = make_model(CONFIGS[name]()), make_inputs()
    cast = {argument: value.to(dtype) if "mask" in argument else value for argument, value in inputs.items()}
    assert torch.equal(logits(model, cast), logits(model, inputs))


def test_a_row_without_any_modality_is_finite_and_reads_the_absent_embeddings(model, inputs):
    inputs["modality_mask"][2] = 0
    output = logits(model, inputs)
    assert output.isfinite().all()
    assert_close(output[2:3], logits(model, {**inputs, "modality_mask": torch.zeros(5, 3)})[:1])


def test_nan_in_one_row_stays_in_that_row(model):
    inputs = make_inputs(mixed=False)
    expected = logits(model, inputs)
    inputs["pixel_values"][1, 0, 0, 0] = float("nan")
    output = logits(model, inputs)
    assert output[1].isnan().all()
    keep = [0, 2, 3, 4]
    assert_close(output[keep], expected[keep])


# -- subsets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_all_seven_subsets_equal_running_with_those_inputs_alone(name):
    model, inputs = make_model(CONFIGS[name]()), make_inputs(mixed=False)
    results = []
    for subset in SUBSETS:
        masked = logits(model, {**inputs, "modality_mask": columns(subset)})
        assert masked.isfinite().all()
        assert_close(masked, logits(model, only(inputs, subset)))
        results.append(masked)
    assert all((a - b).abs().max() > 1e-3 for a, b in itertools.combinations(results, 2))


@pytest.mark.parametrize("head", [True, False])
def test_encoding_once_and_fusing_a_subset_equals_running_with_that_presence(inputs, head):
    model = make_model()
    model = model if head else model.mmfusion
    with torch.no_grad():
        encoded = model.encode(**inputs)
        for subset in SUBSETS:
            presence = inputs["modality_mask"] * columns(subset)
            fused = model(encoder_outputs=encoded, modality_mask=columns(subset))[0]
            assert_close(fused, model(**{**inputs, "modality_mask": presence})[0])
        assert_close(model(encoder_outputs=encoded)[0], model(**inputs)[0])


def test_fusing_does_not_run_the_towers(model, inputs):
    rows = count_rows(model)
    encoded = model.encode(**inputs)
    rows.clear()
    model(encoder_outputs=encoded, modality_mask=columns(["image"]))
    assert rows == {}


def test_a_mask_cannot_bring_back_what_a_row_lacks(model, inputs):
    encoded = model.encode(**inputs)
    with torch.no_grad():
        kept = model(encoder_outputs=encoded, modality_mask=torch.ones(5, 3)).logits
    assert torch.equal(kept, logits(model, inputs))


def test_features_are_unit_vectors_of_the_space_that_the_head_reads(model):
    base, inputs = model.mmfusion, make_inputs(mixed=False)
    with torch.no_grad():
        features = {
            "text": base.get_text_features(inputs["input_ids"], inputs["attention_mask"]),
            "image": base.get_image_features(inputs["pixel_values"]),
            "audio": base.get_audio_features(inputs["input_values"], inputs["audio_attention_mask"]),
        }
        for modality, vectors in features.items():
            assert vectors.shape == (5, 32)
            assert_close(vectors.norm(dim=1), torch.ones(5))
            pooled = base(**{**inputs, "modality_mask": columns([modality])}).pooler_output
            assert_close(vectors, F.normalize(pooled, dim=-1))


# -- towers -----------------------------------------------------------------------------------------------------------


def count_rows(model) -> Counter:
    """Rows that each tower is run on, counted from now on."""
    rows = Counter()
    for modality, attribute in TOWERS.items():

        def count(module, args, kwargs, output, modality=modality):
            rows[modality] += next(value for value in (*args, *kwargs.values()) if torch.is_tensor(value)).shape[0]

        getattr(getattr(model, "mmfusion", model), attribute).register_forward_hook(count, with_kwargs=True)
    return rows


@pytest.mark.parametrize("name", CONFIGS)
def test_towers_run_on_the_rows_that_have_their_modality_only(name):
    model, inputs = make_model(CONFIGS[name]()), make_inputs()
    rows = count_rows(model)
    logits(model, inputs)
    assert dict(rows) == dict(zip(MODALITIES, inputs["modality_mask"].sum(dim=0).tolist(), strict=True))


@pytest.mark.parametrize("absent", MODALITIES)
def test_a_tower_is_not_called_when_no_row_has_its_modality(model, absent):
    inputs, rows = make_inputs(mixed=False), count_rows(model)
    logits(model, {**inputs, "modality_mask": columns(set(MODALITIES) - {absent})})
    assert set(rows) == set(MODALITIES) - {absent}
    rows.clear()
    logits(model, {**inputs, "modality_mask": torch.zeros(5, 3)})
    assert rows == {}


@pytest.mark.parametrize("subset", SUBSETS, ids="+".join)
def test_a_model_of_any_towers_builds_runs_saves_and_loads(subset, tmp_path):
    fields = {"text": "text_config", "image": "vision_config", "audio": "audio_config"}
    left_out = {field: None for modality, field in fields.items() if modality not in subset}
    model, inputs = make_model(model_config(**left_out)), only(make_inputs(), subset)
    assert model.config.modalities == subset
    expected = logits(model, inputs)
    assert expected.shape == (5, 3) and expected.isfinite().all()
    model.save_pretrained(tmp_path)
    loaded = MMFusionForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded, inputs), expected)
    for modality in set(MODALITIES) - set(subset):
        with pytest.raises(ValueError, match=f"`{ARGUMENTS[modality][0]}` was given, but this model has no tower for"):
            model(**only(make_inputs(), [*subset, modality]))


def test_the_features_of_a_missing_tower_are_refused():
    model = make_model(model_config(audio_config=None))
    with pytest.raises(ValueError, match=r"no tower for audio: it reads text, image"):
        model.mmfusion.get_audio_features(torch.randn(2, 200))
    with pytest.raises(NotImplementedError, match="has no `text_encoder`"):
        make_model(model_config(text_config=None)).get_input_embeddings()


def test_token_embeddings_are_those_of_the_text_tower_and_can_be_resized(model, inputs):
    assert model.get_input_embeddings() is model.mmfusion.text_encoder.get_input_embeddings()
    model.resize_token_embeddings(70)
    assert model.config.text_config.vocab_size == model.get_input_embeddings().num_embeddings == 70
    inputs["input_ids"][0, 0] = 69
    assert logits(model, inputs).isfinite().all()


def test_a_tower_whose_own_config_asks_for_tuples_is_understood(inputs):
    plain = make_model()
    towers = {"text_config": text_config(return_dict=False), "vision_config": vit_config(return_dict=False)}
    odd = make_model(model_config(**towers, audio_config=audio_config(return_dict=False)))
    assert torch.equal(logits(odd, inputs), logits(plain, inputs))


# -- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_every_trainable_parameter_receives_a_gradient(name):
    model = make_model(CONFIGS[name]()).train()
    received = gradients(model, make_inputs(rows=10), LABELS.repeat(2))
    assert [name for name, gradient in received.items() if gradient is None] == []
    # The bias of a key shifts all scores alike and has no gradient but rounding; every matrix has one.
    matrices = {name: gradient for name, gradient in received.items() if gradient.ndim > 1 or "projectors" in name}
    assert [name for name, gradient in matrices.items() if not gradient.any()] == []
    assert all(gradient.isfinite().all() for gradient in received.values())


def test_garbage_under_a_mask_reaches_no_gradient():
    model, inputs = make_model(still_config()).train(), make_inputs()
    expected = gradients(model, inputs, LABELS)
    inputs["pixel_values"][inputs["modality_mask"][:, 1] == 0] = float("nan")
    inputs["input_values"][inputs["audio_attention_mask"] == 0] = float("nan")
    for name, gradient in gradients(model, inputs, LABELS).items():
        torch.testing.assert_close(gradient, expected[name], msg=name)


@pytest.mark.parametrize("zeroed", ["last layers", "all parameters"])
def test_a_zeroed_fusion_block_is_the_identity(model, zeroed):
    block = model.mmfusion.fusion.layers[0]
    parts = [block.attention.o_proj, block.mlp[-1]] if zeroed == "last layers" else [block]
    with torch.no_grad():
        for parameter in itertools.chain.from_iterable(part.parameters() for part in parts):
            parameter.zero_()
        queries, tokens = torch.randn(2, 3, 32), torch.randn(2, 7, 32)
        assert torch.equal(block(queries, tokens, None), queries)


@pytest.mark.parametrize(
    ("problem", "labels", "expected_loss"),
    [
        ("single_label_classification", LABELS, F.cross_entropy),
        ("multi_label_classification", torch.eye(3)[LABELS], F.binary_cross_entropy_with_logits),
        ("regression", torch.eye(3)[LABELS] * 2.5, F.mse_loss),
    ],
)
def test_the_loss_follows_the_problem_type(problem, labels, expected_loss, inputs):
    model = make_model(model_config(problem_type=problem))
    output = model(**inputs, labels=labels)
    assert_close(output.loss, expected_loss(output.logits, labels))


@pytest.mark.parametrize("shape", [(5,), (5, 1)])
def test_regression_to_one_number_takes_flat_and_columned_labels(shape, inputs):
    model = make_model(model_config(problem_type="regression", num_labels=1))
    labels = torch.linspace(-1, 1, 5)
    output = model(**inputs, labels=labels.view(shape))
    assert_close(output.loss, F.mse_loss(output.logits.squeeze(1), labels))


def test_rows_labelled_minus_100_do_not_count(model, inputs):
    ignored = LABELS.clone()
    ignored[[1, 3]] = -100
    output = model(**inputs, labels=ignored)
    keep = [0, 2, 4]
    assert_close(output.loss, F.cross_entropy(output.logits[keep], LABELS[keep]))
    assert model(**inputs, labels=torch.full((5,), -100)).loss == 0  # a batch without labels teaches nothing


def test_training_adds_the_loss_of_a_second_view_with_fewer_modalities(inputs):
    model = make_model(still_config(modality_dropout=0.5))
    evaluated = model(**inputs, labels=LABELS)
    model.train()
    set_seed(3)
    trained = model(**inputs, labels=LABELS)
    set_seed(3)
    subset = sample_subsets(inputs["modality_mask"].bool(), 0.5)
    model.eval()
    partial = model(**{**inputs, "modality_mask": subset}, labels=LABELS)
    assert (subset != inputs["modality_mask"].bool()).any()
    assert_close(trained.loss, (evaluated.loss + partial.loss) / 2)
    assert_close(trained.logits, evaluated.logits)


def test_without_modality_dropout_training_and_evaluation_have_the_same_loss(inputs):
    model = make_model(still_config(modality_dropout=0.0))
    evaluated = model(**inputs, labels=LABELS).loss
    assert_close(model.train()(**inputs, labels=LABELS).loss, evaluated)


def test_the_second_view_leaves_out_what_the_caller_denied():
    model, inputs = make_model(still_config()), make_inputs(mixed=False)
    losses = []
    for seed in (0, 1):
        encoded = model.eval().encode(**{**inputs, "pixel_values": make_inputs(seed=seed)["pixel_values"]})
        set_seed(0)
        losses.append(model.train()(encoder_outputs=encoded, modality_mask=columns(["text"]), labels=LABELS).loss)
    assert_close(losses[0], losses[1])


def test_sampled_subsets_are_subsets_and_empty_only_where_presence_is():
    set_seed(0)
    presence = torch.tensor(list(itertools.product([0, 1], repeat=3))).bool().repeat(200, 1)
    for dropout in (0.0, 0.3, 0.99):
        kept = sample_subsets(presence, dropout)
        assert not (kept & ~presence).any()
        assert torch.equal(kept.any(dim=1), presence.any(dim=1))
    assert torch.equal(sample_subsets(presence, 0.0), presence)


def test_subsets_are_sampled_as_often_as_documented():
    set_seed(0)
    kept = sample_subsets(torch.ones(60_000, 3, dtype=torch.bool), 0.5)
    counts = Counter(map(tuple, kept.int().tolist()))
    for subset, count in counts.items():
        assert count / 60_000 == pytest.approx(1 / 6 if sum(subset) == 1 else 1 / 8, abs=0.01), subset
    assert len(counts) == 7


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_frozen_tower_is_unchanged_bit_for_bit_by_a_step(modality, inputs):
    model = make_model(model_config(vision_config=resnet_config())).train()
    tower = (
        getattr(model.mmfusion, TOWERS[modality]).requires_grad_(False).eval()
    )  # eval: batch norm keeps its statistics
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    model(**inputs, labels=LABELS).loss.backward()
    optimizer.step()
    frozen = {f"mmfusion.{TOWERS[modality]}.{name}" for name in tower.state_dict()}
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert frozen.isdisjoint(moved)
    for other in set(TOWERS.values()) - {TOWERS[modality]}:
        assert any(name.startswith(f"mmfusion.{other}.") for name in moved)


def test_activation_checkpointing_gives_the_same_gradients(inputs):
    model = make_model(still_config()).train()
    expected = gradients(model, inputs, LABELS)
    model.activation_checkpointing_enable()
    assert model.mmfusion.fusion.gradient_checkpointing
    for name, gradient in gradients(model, inputs, LABELS).items():
        torch.testing.assert_close(gradient, expected[name], msg=name)


# -- attention, outputs, precision ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_sdpa_equals_eager(name):
    model, inputs = make_model(CONFIGS[name]()), make_inputs()
    inputs["modality_mask"][3] = 0
    assert model.config._attn_implementation == "sdpa"
    fast = logits(model, inputs)
    model.set_attn_implementation("eager")
    assert_close(logits(model, inputs), fast)


def test_attentions_and_hidden_states_are_those_of_the_fusion(inputs):
    model = make_model()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        encoded = model.encode(**inputs)
        output = model(**inputs, output_attentions=True, output_hidden_states=True)
    num_tokens = 3 + encoded.tokens.shape[1]  # one absent slot a tower, then the tokens
    assert [tuple(state.shape) for state in output.hidden_states] == [(5, 3, 32)] * 3
    assert [tuple(weights.shape) for weights in output.attentions] == [(5, 4, 3, num_tokens)] * 2
    attended = torch.cat([~encoded.modality_mask, encoded.token_mask], dim=1)[:, None, None]
    for weights in output.attentions:
        assert_close(weights.sum(dim=-1), torch.ones(5, 4, 3))
        assert not weights.masked_select(~attended).any()
        assert (weights.masked_select(attended) > 0).all()


def test_nothing_is_recorded_unless_asked_for(model, inputs):
    output = model(**inputs)
    assert output.loss is None and output.hidden_states is None and output.attentions is None


def test_outputs_can_be_tuples(model, inputs):
    named, plain = model(**inputs, labels=LABELS), model(**inputs, labels=LABELS, return_dict=False)
    assert isinstance(plain, tuple) and len(plain) == 2
    assert torch.equal(plain[0], named.loss) and torch.equal(plain[1], named.logits)
    hidden, pooled = model.mmfusion(**inputs, return_dict=False)
    assert hidden.shape == (5, 3, 32) and pooled.shape == (5, 32)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_loads_and_stays_near_float32(name, dtype, tmp_path):
    model, inputs = make_model(CONFIGS[name]()), make_inputs()
    inputs["modality_mask"][3] = 0
    model.save_pretrained(tmp_path)
    half = MMFusionForSequenceClassification.from_pretrained(tmp_path, dtype=dtype)
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}
    output = logits(half, inputs)
    assert output.dtype == dtype and output.isfinite().all()
    assert_close(output.float(), logits(model, inputs), atol=0.2 if dtype == torch.bfloat16 else 0.02)


@pytest.mark.parametrize("training", [True, False])
def test_autocast_is_finite_forward_and_backward(training, inputs):
    model = make_model().train(training)
    inputs["modality_mask"][3] = 0
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**inputs, labels=LABELS)
    output.loss.backward()
    assert output.logits.isfinite().all() and output.loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_four_threads_calling_one_model_get_the_same_answers():
    model = make_model()
    model.set_attn_implementation("eager")
    batches = [make_inputs(rows=1 + seed % 5, seed=seed) for seed in range(16)]

    def call(inputs):
        with torch.no_grad():
            output = model(**inputs, output_attentions=True, output_hidden_states=True)
        return output.logits, *output.attentions, *output.hidden_states

    expected = [call(inputs) for inputs in batches]
    with ThreadPoolExecutor(4) as pool:
        for answer, reference in zip(pool.map(call, batches), expected, strict=True):
            assert len(answer) == len(reference)
            assert all(torch.equal(a, b) for a, b in zip(answer, reference, strict=True))


def test_an_exported_model_equals_eager_for_any_presence(model):
    exported = torch.export.export(model, (), make_inputs(mixed=False)).module()
    for seed in (1, 2):
        inputs = make_inputs(seed=seed)
        inputs["modality_mask"] = inputs["modality_mask"].roll(seed, dims=1)
        inputs["modality_mask"][3] = 0
        inputs["pixel_values"][inputs["modality_mask"][:, 1] == 0] = float("nan")
        with torch.no_grad():
            assert_close(exported(**inputs).logits, logits(model, inputs))


# -- errors -----------------------------------------------------------------------------------------------------------


def changed(name, change):
    """Inputs of five rows, one of them changed."""
    inputs = make_inputs()
    return {**inputs, name: change(inputs[name])}


TEXT, AUDIO = only(make_inputs(), ["text"]), only(make_inputs(), ["audio"])
ERRORS = {
    "nothing": ({}, r"at least one of `input_ids`, `pixel_values`, `input_values` must be given, got none"),
    "a mask alone": ({"modality_mask": torch.ones(2, 3)}, "at least one of `input_ids`"),
    "batch sizes": (
        changed("pixel_values", lambda x: x[:2]) | {"modality_mask": None},
        r"same number of rows, got `input_ids` 5, `pixel_values` 2, `input_values` 5",
    ),
    "modality mask rows": (changed("modality_mask", lambda x: x[:4]), "same number of rows, .*`modality_mask` 4"),
    "modality mask columns": (
        changed("modality_mask", lambda x: x[:, :2]),
        r"must be of shape \(B, 3\), got \(5, 2\)",
    ),
    "no rows": ({name: value[:0] for name, value in TEXT.items()}, "`input_ids` has no rows"),
    "text too long": (
        {"input_ids": torch.ones(1, 33, dtype=torch.long)},
        "has 33 tokens, the text tower takes at most 32: truncate",
    ),
    "text of no tokens": (
        {"input_ids": torch.ones(2, 0, dtype=torch.long)},
        r"shape \(B, T\) with T > 0, got \(2, 0\)",
    ),
    "text of one dimension": ({"input_ids": torch.ones(4, dtype=torch.long)}, r"with T > 0, got \(4,\)"),
    "text mask": (
        {**TEXT, "attention_mask": torch.ones(5, 7)},
        r"`attention_mask` must be of the shape of `input_ids` \(5, 8\), got \(5, 7\)",
    ),
    "image without channels": ({"pixel_values": torch.randn(3, 16, 16)}, r"shape \(B, C, H, W\), got \(3, 16, 16\)"),
    "grey image": ({"pixel_values": torch.randn(2, 1, 16, 16)}, "`pixel_values` must have 3 channels, got 1"),
    "image of bytes": (
        {"pixel_values": torch.zeros(2, 3, 16, 16, dtype=torch.uint8)},
        "`pixel_values` must be floating point, got torch.uint8: let the processor",
    ),
    "image of another size": ({"pixel_values": torch.randn(2, 3, 24, 16)}, r"image size \(24\*16\) doesn't match"),
    "audio with channels": ({"input_values": torch.randn(2, 1, 400)}, r"shape \(B, samples\) .*, got \(2, 1, 400\)"),
    "audio of integers": (
        {"input_values": torch.ones(2, 400, dtype=torch.int16)},
        "`input_values` must be floating point, got torch.int16: let the processor",
    ),
    "audio mask": (
        {**AUDIO, "audio_attention_mask": torch.ones(5, 399)},
        r"`audio_attention_mask` must be of the shape of `input_values` \(5, 400\), got \(5, 399\)",
    ),
    "audio of no samples": ({"input_values": torch.randn(2, 0)}, r"with samples > 0, got \(2, 0\)"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_inputs_that_do_not_fit_are_refused_with_a_sentence(model, case):
    inputs, sentence = ERRORS[case]
    with pytest.raises(ValueError, match=sentence):
        model(**inputs)


def test_the_shortest_clip_is_400_samples_for_wav2vec2_base():
    assert receptive_field(Wav2Vec2Config()) == 400


def test_a_subset_mask_must_fit_the_encoder_outputs(model, inputs):
    encoded = model.encode(**inputs)
    for shape in [(5, 2), (4, 3), (3,)]:
        with pytest.raises(
            ValueError, match=r"`modality_mask` must be of shape \(5, 3\), as in `encoder_outputs`, got"
        ):
            model(encoder_outputs=encoded, modality_mask=torch.ones(shape))


def test_roberta_like_towers_take_fewer_tokens_than_they_have_positions():
    sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    roberta = RobertaConfig(
        **{name: getattr(text_config(), name) for name in sizes}, max_position_embeddings=32, pad_token_id=1
    )
    model = make_model(model_config(text_config=roberta))
    assert logits(model, {"input_ids": torch.full((1, 30), 5)}).isfinite().all()
    with pytest.raises(ValueError, match="has 31 tokens, the text tower takes at most 30: truncate"):
        model(input_ids=torch.full((1, 31), 5))


# -- code that a configuration names ----------------------------------------------------------------------------------


def test_code_that_a_tower_config_names_is_never_run(model, inputs, tmp_path):
    """Trust given to this model's own files is not trust for whatever its `text_config` points at."""
    folder, marker = save_folder(model, tmp_path / "model"), tmp_path / "was_run"
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Evil: pass\nclass EvilConfig: pass\n")
    config = json.loads((folder / "config.json").read_text())
    for field in ("text_config", "vision_config", "audio_config"):
        config[field]["auto_map"] = {"AutoConfig": "evil.EvilConfig", "AutoModel": "evil.Evil"}
        config[field]["trust_remote_code"] = True
    (folder / "config.json").write_text(json.dumps(config))
    loaded = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
    assert torch.equal(logits(loaded, inputs), logits(model, inputs))
    assert not marker.exists()


def test_the_base_model_of_a_classifier_folder_is_its_fusion(model, inputs, tmp_path):
    model.save_pretrained(tmp_path)
    base, info = MMFusionModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and set(info["unexpected_keys"]) == {"classifier.weight", "classifier.bias"}
    with torch.no_grad():
        assert torch.equal(base(**inputs).pooler_output, model.mmfusion(**inputs).pooler_output)


def test_tokens_of_a_feature_map_know_where_they_come_from():
    grid = grid_positions(3, 4, 32)
    assert grid.shape == (12, 32) and grid.abs().max() <= 1
    assert (torch.cdist(grid, grid) + torch.eye(12) > 0.5).all()  # no two places are alike
    # Half of the channels tell the row, half the column.
    assert torch.equal(grid[:4, :16], grid[:1, :16].expand(4, -1)) and torch.equal(
        grid[::4, 16:], grid[:1, 16:].expand(3, -1)
    )


def test_a_feature_map_and_its_mirror_are_told_apart():
    """The features of a mirrored picture here are the mirrored features: only positions can tell left from right."""
    model = make_model(CONFIGS["bert-resnet-layernorm"]())
    projector = model.mmfusion.projectors["image"]
    hidden = torch.randn(1, 20, 2, 3)
    tokens = projector(hidden)
    mirrored = projector(hidden.flip(-1)).unflatten(1, (2, 3)).flip(2).flatten(1, 2)
    assert tokens.shape == (1, 6, 32)
    assert (tokens - mirrored).abs().max() > 0.1


def test_a_lone_picture_of_one_pixel_after_the_resnet_can_be_trained_on():
    model = make_model(model_config(vision_config=resnet_config(hidden_sizes=[8, 20], downsample_in_first_stage=True)))
    inputs = make_inputs(rows=3, mixed=False)
    inputs["pixel_values"] = inputs["pixel_values"][..., :8, :8]
    inputs["modality_mask"] = torch.tensor([[1, 0, 1], [1, 1, 1], [1, 0, 1]])
    model.train()
    model(**inputs, labels=torch.tensor([0, 1, 2])).loss.backward()
    assert model.mmfusion.vision_encoder.training
    assert all(module.training for module in model.mmfusion.vision_encoder.modules())
