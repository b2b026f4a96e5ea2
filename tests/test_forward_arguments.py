"""What `forward` is given: embeddings in place of ids, outputs of towers, and no keyword that disappears."""

import pytest
import torch
from conftest import make_inputs, make_model, model_config, resnet_config
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from test_modeling import still_config
from transformers import Trainer, TrainingArguments

from modeling_mmfusion import MODALITIES
from training.adapters import keep_statistics


@torch.no_grad()
def logits(model, inputs, **kwargs):
    return model(**inputs, **kwargs).logits


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


def embedded(model, inputs):
    """The same inputs with the embeddings of the tokens in place of their numbers."""
    table = model.get_input_embeddings()
    rest = {name: value for name, value in inputs.items() if name != "input_ids"}
    return {**rest, "inputs_embeds": table(inputs["input_ids"]).detach()}


# -- embeddings -------------------------------------------------------------------------------------------------------


def test_embeddings_of_the_tokens_are_the_text(model, inputs):
    assert_close(logits(model, embedded(model, inputs)), logits(model, inputs))


def test_what_lies_under_the_mask_of_embeddings_cannot_change_the_output(model, inputs):
    given = embedded(model, inputs)
    expected = logits(model, given)
    given["inputs_embeds"][~inputs["attention_mask"].bool()] = float("nan")
    assert_close(logits(model, given), expected)


def test_gradients_reach_the_embeddings(model, inputs):
    given = embedded(model, inputs)
    given["inputs_embeds"].requires_grad_()
    model(**given).logits.sum().backward()
    assert given["inputs_embeds"].grad[0].abs().sum() > 0


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"input_ids": torch.ones(5, 8, dtype=torch.long)}, "input_ids"),
        ({"inputs_embeds": torch.zeros(5, 16)}, "inputs_embeds"),
        ({"inputs_embeds": torch.zeros(5, 0, 16)}, "inputs_embeds"),
        ({"inputs_embeds": torch.zeros(5, 9, 16)}, "attention_mask"),
        ({"inputs_embeds": torch.zeros(4, 8, 16), "attention_mask": None}, "inputs_embeds|number of rows"),
        ({"inputs_embeds": torch.zeros(5, 99, 16), "attention_mask": None}, "inputs_embeds"),
        ({"inputs_embeds": torch.zeros(5, 8, 20)}, "inputs_embeds"),
    ],
)
def test_embeddings_that_do_not_fit_are_refused_by_name(model, inputs, change, name):
    with pytest.raises(ValueError, match=name):
        model(**{**embedded(model, inputs), **change})


def test_prompts_of_peft_stand_before_the_text_and_are_trained(inputs):
    plain = make_model()
    tuned = get_peft_model(make_model(), PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4)).eval()
    answers, alone = logits(tuned, inputs), logits(plain, inputs)
    assert answers.shape == (5, 3)
    has_text = inputs["modality_mask"][:, 0].bool()
    assert_close(answers[~has_text], alone[~has_text])  # no prompt makes a text where there is none
    assert (answers[has_text] - alone[has_text]).abs().max() > 1e-3
    other = {**inputs, "input_ids": inputs["input_ids"].flip(0)}
    assert (logits(tuned, other)[has_text] - answers[has_text]).abs().max() > 1e-3, "the words count, too"
    tuned.train()(**inputs, labels=torch.tensor([0, 1, 2, 0, 1])).loss.backward()
    (prompt,) = (p for name, p in tuned.named_parameters() if "prompt_encoder" in name)
    assert prompt.grad.abs().sum() > 0


# -- keywords ---------------------------------------------------------------------------------------------------------

UNKNOWN = {
    "image": torch.zeros(5, 3, 16, 16), "input_id": torch.ones(5, 8), "pixel_value": torch.zeros(5, 3, 16, 16),
    "token_type_ids": torch.zeros(5, 8, dtype=torch.long), "position_ids": torch.arange(8).expand(5, 8),
    "label": torch.zeros(5), "is_causal": True, "mask": None,
    "output_router_logits": True, "past_key_values": (), "audio_mask": torch.ones(5, 400),
}  # fmt: skip


@pytest.mark.parametrize("name", UNKNOWN)
@pytest.mark.parametrize("head", [True, False])
def test_no_keyword_of_forward_disappears(model, inputs, name, head):
    called = model if head else model.base_model
    with pytest.raises(TypeError, match=f"`{name}`"):
        called(**inputs, **{name: UNKNOWN[name]})


@pytest.mark.parametrize(
    "keywords",
    [
        {"output_attentions": None, "output_hidden_states": None, "return_dict": None, "inputs_embeds": None},
        {"use_cache": False}, {"use_cache": True}, {"position_ids": None}, {"num_items_in_batch": None},
        {"output_hidden_states": True}, {"return_dict": True}, {"num_items_in_batch": torch.tensor(5)},
        {"num_items_in_batch": 5},
    ],
)  # fmt: skip
def test_what_libraries_pass_to_any_model_is_taken(model, inputs, keywords):
    assert_close(logits(model, inputs, **keywords), logits(model, inputs))


@pytest.mark.parametrize("name", ["input_ids", "attention_mask", "pixel_values", "input_values", "inputs_embeds"])
def test_inputs_beside_encoder_outputs_are_refused(model, inputs, name):
    given = {**inputs, **embedded(model, inputs)}
    encoded = model.encode(**inputs)
    for called in (model, model.base_model):
        with pytest.raises(ValueError, match=name):
            called(encoder_outputs=encoded, **{name: given[name]})


@pytest.mark.parametrize("mask", ["attention_mask", "audio_attention_mask"])
def test_a_mask_without_its_input_is_refused(model, inputs, mask):
    with pytest.raises(ValueError, match=mask):
        model(pixel_values=inputs["pixel_values"], **{mask: inputs[mask]})


# -- accumulated gradients --------------------------------------------------------------------------------------------


def test_losses_of_parts_weighted_by_their_labels_add_up_to_that_of_the_whole(model, inputs):
    labels = torch.tensor([0, 1, -100, 2, 1])
    whole = model(**inputs, labels=labels).loss
    parts = [
        model(**{k: v[rows] for k, v in inputs.items()}, labels=labels[rows], num_items_in_batch=torch.tensor(4)).loss
        for rows in (slice(0, 1), slice(1, 5))
    ]
    assert_close(sum(parts), whole)


def test_a_trainer_that_accumulates_takes_the_step_of_one_large_batch(tmp_path):
    inputs = make_inputs(rows=6)
    rows = [{**{k: v[i] for k, v in inputs.items()}, "labels": torch.tensor(i % 3)} for i in range(6)]
    ends = []
    for size, steps in ((6, 1), (2, 3)):
        model = make_model(still_config(modality_dropout=0.0))
        arguments = TrainingArguments(
            output_dir=str(tmp_path / str(size)), per_device_train_batch_size=size, gradient_accumulation_steps=steps,
            max_steps=1, learning_rate=0.1, optim="sgd", lr_scheduler_type="constant", max_grad_norm=0.0, seed=0,
            report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True, logging_strategy="no",
        )  # fmt: skip
        Trainer(model=model, args=arguments, train_dataset=rows).train()
        ends.append(model.classifier.weight.detach().clone())
    assert_close(*ends)


# -- outputs of towers ------------------------------------------------------------------------------------------------


def run(model, inputs):
    with torch.no_grad():
        outputs, presence = model.base_model.run_towers(**inputs)
    return {"tower_outputs": outputs, "modality_mask": presence.long()}


def test_outputs_of_towers_answer_like_their_inputs(model, inputs):
    assert_close(logits(model, run(model, inputs)), logits(model, inputs))


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("kept", [slice(0, 1), slice(0, 2), slice(0, 0)])
def test_too_few_rows_of_a_tower_are_refused_with_the_numbers(model, inputs, modality, kept):
    given = run(model, inputs)
    hidden, mask = given["tower_outputs"][modality]
    given["tower_outputs"][modality] = (hidden[kept], mask[kept])
    with pytest.raises(ValueError, match=rf"{modality}.* {len(hidden[kept])} rows.* {len(hidden)} of its 5"):
        model(**given)


@pytest.mark.parametrize("modality", MODALITIES)
def test_too_many_rows_of_a_tower_are_refused_with_the_numbers(model, inputs, modality):
    given = run(model, inputs)
    hidden, mask = given["tower_outputs"][modality]
    given["tower_outputs"][modality] = (hidden.repeat(3, 1, 1), mask.repeat(3, 1))
    with pytest.raises(ValueError, match=rf"{modality}.* {3 * len(hidden)} rows"):
        model(**given)


@pytest.mark.parametrize("change", ["one row less in the mask", "one token less in the mask", "flat"])
def test_states_and_mask_of_a_tower_fit_each_other(model, inputs, change):
    given = run(model, inputs)
    hidden, mask = given["tower_outputs"]["text"]
    changed = {"one row less in the mask": (hidden, mask[1:]), "one token less in the mask": (hidden, mask[:, 1:])}
    given["tower_outputs"]["text"] = changed.get(change, (hidden.flatten(1), mask))
    with pytest.raises(ValueError, match="text"):
        model(**given)


def test_a_mask_of_two_columns_is_refused_beside_outputs_of_towers(model, inputs):
    given = run(model, inputs)
    with pytest.raises(ValueError, match="modality_mask"):
        model(**{**given, "modality_mask": given["modality_mask"][:, :2]})


def test_a_modality_without_outputs_is_absent_whatever_the_mask_says(model, inputs):
    given = run(model, inputs)
    del given["tower_outputs"]["audio"]
    denied = {**inputs, "modality_mask": inputs["modality_mask"] * torch.tensor([1, 1, 0])}
    assert_close(logits(model, given), logits(model, denied))


# -- modes of a tower -------------------------------------------------------------------------------------------------


def test_a_frozen_batch_norm_learns_nothing_after_a_batch_with_one_picture(inputs):
    model = make_model(model_config(vision_config=resnet_config()))
    config = LoraConfig(r=2, target_modules=r".*vision_encoder.*\.convolution", modules_to_save=["classifier"])
    tuned = get_peft_model(model, config).train()
    tower = model.base_model.vision_encoder
    keep_statistics(tower)
    modes = {name: module.training for name, module in tower.named_modules()}
    assert len(set(modes.values())) == 2
    before = {name: buffer.clone() for name, buffer in tower.named_buffers()}
    one, many = {"pixel_values": inputs["pixel_values"][:1]}, {"pixel_values": inputs["pixel_values"]}
    for batch in (one, many, one, many):
        tuned(**batch)
    assert {name: module.training for name, module in tower.named_modules()} == modes
    for name, buffer in tower.named_buffers():
        assert torch.equal(buffer, before[name]), name


def test_the_modes_of_a_tower_come_back_after_an_error(inputs):
    model = make_model(model_config(vision_config=resnet_config())).train()
    keep_statistics(tower := model.base_model.vision_encoder.requires_grad_(False))
    modes = [module.training for module in tower.modules()]
    tower.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(pixel_values=inputs["pixel_values"][:1])
    assert [module.training for module in tower.modules()] == modes
