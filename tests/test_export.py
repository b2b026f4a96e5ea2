"""A model exported by `torch.export` answers rows of any number and length, any modality missing, as it does."""

import pytest
import torch
from conftest import CONFIGS, make_inputs, make_model, model_config
from torch.export import Dim, export

from configuration_mmfusion import FUSION_TYPES

ANY = Dim.DYNAMIC
SHAPES = {
    "input_ids": {0: ANY, 1: ANY}, "attention_mask": {0: ANY, 1: ANY}, "pixel_values": {0: ANY},
    "input_values": {0: ANY, 1: ANY}, "audio_attention_mask": {0: ANY, 1: ANY}, "modality_mask": {0: ANY},
}  # fmt: skip
SIZES = [(5, 8, 400), (3, 6, 300), (7, 11, 520)]  # rows, tokens, samples
KINDS = {
    **CONFIGS,
    **{kind: lambda kind=kind: model_config(fusion_type=kind) for kind in FUSION_TYPES[1:]},
    "heads of the modalities": lambda: model_config(balance="unimodal"),
    "calibrated": lambda: model_config(temperatures={"text": 2.0, "text+image+audio": 3.0}),
}


def inputs_of(num_rows, num_tokens, num_samples):
    inputs = make_inputs(num_rows, seed=num_rows)
    generator = torch.Generator().manual_seed(num_rows)
    for ids, mask, size, least in (
        ("input_ids", "attention_mask", num_tokens, 3), ("input_values", "audio_attention_mask", num_samples, 150),
    ):  # fmt: skip
        lengths = torch.randint(least, size + 1, (num_rows, 1), generator=generator)
        inputs[mask] = (torch.arange(size) < lengths).long()
        inputs[ids] = torch.randn(num_rows, size, generator=generator)
    inputs["input_ids"] = (inputs["input_ids"].abs() * 20 + 1).long().clamp(max=63)
    return inputs


def assert_exported(config, strict):
    model = make_model(config)
    exported = export(model, (), inputs_of(*SIZES[0]), dynamic_shapes=SHAPES, strict=strict).module()
    for size in SIZES:
        inputs = inputs_of(*size)
        torch.testing.assert_close(exported(**inputs).logits, model(**inputs).logits, atol=1e-5, rtol=1e-4)


SLOW = [
    pytest.param(name, marks=pytest.mark.slow) for name in KINDS if name not in ("bert-resnet-layernorm", "concat")
]


@pytest.mark.parametrize("name", ["bert-resnet-layernorm", "concat", *SLOW])
def test_an_exported_model_answers_rows_of_any_number_and_length(name):
    assert_exported(KINDS[name](), strict=False)


def test_a_model_is_exported_strictly_too():
    assert_exported(model_config(), strict=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in KINDS if name != "bert-vit-layernorm"])
def test_every_model_is_exported_strictly(name):
    assert_exported(KINDS[name](), strict=True)
