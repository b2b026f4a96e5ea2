"""Compiled models equal uncompiled ones, and processors are hashed and sent to other processes by name."""

import multiprocessing
import os
import subprocess
import sys

import pytest
import torch
from conftest import CONFIGS, make_inputs, make_model, model_config, set_seed

LABELS = torch.tensor([0, 1, 2, 0, 1])
MIXED = [[1, 1, 1], [0, 1, 1], [1, 0, 1], [1, 1, 0], [0, 1, 0]]
ONE_SOUND = [[1, 1, 0], [1, 1, 0], [1, 0, 1], [0, 1, 0], [1, 0, 0]]
NO_SOUND = [[1, 1, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [1, 0, 0]]


def without_dropout(model):
    """A model that draws nothing in training but the random subset of each row."""
    model.config.attention_probs_dropout_prob = 0.0
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model


def step(model, call, inputs):
    """(Loss, logits, gradients) of one step; a gradient that is not there counts as 0."""
    model.zero_grad()
    set_seed(3)
    output = call(**inputs, labels=LABELS)
    output.loss.backward()
    gradients = {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()
    }
    return output.loss.detach(), output.logits.detach(), gradients


@pytest.mark.parametrize(
    ("config", "backend"),
    [
        (CONFIGS["bert-vit-layernorm"], "eager"),
        (CONFIGS["bert-resnet-layernorm"], "eager"),
        pytest.param(lambda: model_config(balance="mmpareto"), "aot_eager", marks=pytest.mark.slow),
        pytest.param(lambda: model_config(fusion_type="bottleneck"), "aot_eager", marks=pytest.mark.slow),
    ],
    ids=["eager, ViT", "eager, ResNet with batch statistics", "aot_eager, mmpareto", "aot_eager, bottleneck"],
)
def test_a_compiled_model_trains_as_an_uncompiled_one_on_rows_that_lack_modalities(config, backend):
    model = without_dropout(make_model(config())).train()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend)
    for presence in (MIXED, ONE_SOUND, NO_SOUND):
        inputs = make_inputs() | {"modality_mask": torch.tensor(presence)}
        torch.testing.assert_close(step(model, compiled, inputs), step(model, model, inputs), rtol=1e-3, atol=1e-5)


HASHES = """
import sys
from datasets.fingerprint import Hasher
from transformers import AutoProcessor
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
before = Hasher.hash(processor)
processor(text=["a longer text", "short"])
print(before, Hasher.hash(processor))
"""


def test_a_processor_has_one_hash_before_and_after_a_call_and_in_each_process(published):
    """So that `Dataset.map` finds its result in the cache again. Sets have another order in each process."""
    told = [
        subprocess.run(
            [sys.executable, "-c", HASHES, published], env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True, text=True, timeout=300, check=True,
        ).stdout.split()
        for seed in (1, 2)
    ]  # fmt: skip
    assert len({value for values in told for value in values}) == 1 and len(told[0]) == 2


def test_a_processor_of_remote_code_goes_to_a_spawned_worker(published):
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(published, trust_remote_code=True)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        keys = pool.apply(processor, kwds={"text": ["one", None], "return_tensors": "np"}).keys()
    assert {"input_ids", "modality_mask"} <= set(keys)
