"""The operators of training and use, one by one: those that CUDA or MPS lack, and waits for the device, are refused.

No GPU is needed: an operator is dispatched on the CPU by the same name and with the same dtypes.
"""

import collections
import traceback
from pathlib import Path

import pytest
import torch
from conftest import CONFIGS, make_inputs, make_model, model_config
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from configuration_mmfusion import BALANCES, FUSION_TYPES

INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.bool)
# Operators whose CPU kernels take integers and whose CUDA kernels do not. Source: `op_db` of
# `torch.testing._internal.common_methods_invocations` (torch 2.13), `dtypes` without `dtypesIfCUDA`.
NOT_OF_INTEGERS_ON_CUDA = {
    "addbmm", "addmm", "addmv", "avg_pool2d", "avg_pool3d", "baddbmm", "bilinear", "bmm", "convolution", "dot",
    "einsum", "inner", "linear", "matmul", "max_pool2d_with_indices", "max_pool3d_with_indices", "mm", "mv",
    "native_dropout_backward", "tensordot", "vdot", "_upsample_bilinear2d_aa",
}  # fmt: skip
# MPS has no float64 and no complex128 (https://docs.pytorch.org/docs/stable/notes/mps.html).
NOT_ON_MPS = (torch.float64, torch.complex128)
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "is_nonzero", "equal"}
# (File, function) -> why it may wait for the device.
MAY_WAIT = {
    ("modeling_mmfusion.py", "_run_tower"): "which rows have the modality: work that is saved is worth the wait",
    ("masking_utils.py", "_ignore_bidirectional_mask_sdpa"): "the library drops a mask that masks nothing",
    ("modeling_wav2vec2.py", "forward"): "the library zeroes padded frames by a boolean index",
    ("modeling_hubert.py", "forward"): "the library zeroes padded frames by a boolean index",
    None: "the backward pass of the library's boolean index",
}


class Operators(TorchDispatchMode):
    """Records operators that a device lacks, and those that wait for it, each with the function that asked for it."""

    def __init__(self):
        super().__init__()
        self.num, self.missing, self.waits = 0, collections.Counter(), collections.Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        output = operator(*args, **(kwargs or {}))
        self.num += 1
        name = operator._schema.name.split("::")[1].removesuffix("_")
        inputs = [x for x in tree_leaves(args) if isinstance(x, torch.Tensor)]
        outputs = [x for x in tree_leaves(output) if isinstance(x, torch.Tensor)]
        if name in NOT_OF_INTEGERS_ON_CUDA and inputs and inputs[0].dtype in INTEGERS:
            self.missing["CUDA", name, inputs[0].dtype, asked_by()] += 1
        if any(x.dtype in NOT_ON_MPS for x in outputs):
            self.missing["MPS", name, asked_by()] += 1
        by_mask = name in ("index", "index_put") and any(
            isinstance(x, torch.Tensor) and x.dtype == torch.bool for x in tree_leaves(args[1])
        )
        if name in WAITS or by_mask:
            self.waits[asked_by()] += 1
        return output


def asked_by() -> tuple[str, str] | None:
    """Return (file, function) of ours or of the library in which an operator stands; None: in the backward pass."""
    ours = [frame for frame in traceback.extract_stack() if "_mmfusion.py" in frame.filename
            or "/transformers/" in frame.filename or "/metrics/" in frame.filename]  # fmt: skip
    return (Path(ours[-1].filename).name, ours[-1].name) if ours else None


def check(operators: Operators):
    """Fail where an operator is missing on a device, or one waits that may not."""
    assert operators.num > 50, "nothing was recorded"
    assert not operators.missing
    assert set(operators.waits) <= {*MAY_WAIT}, {name for name in operators.waits if name not in MAY_WAIT}


def step(model, labels, **inputs) -> Operators:
    """Record a training step, or a prediction where the model is in eval mode."""
    with Operators() as operators:
        output = model(**(inputs or make_inputs()), labels=labels)
        if model.training:
            output.loss.backward()
    return operators


EVERYTHING = {"temperatures": {"text": 2.0, "text+image": 0.5}, "class_weights": [1.0, 2.0, 3.0], "ordinal": True,
              "contrastive_weight": 0.1, "contrastive_by_class": True, "subset_ranking_weight": 0.1,
              "label_smoothing": 0.1}  # fmt: skip
CASES = {
    **{f"fusion {kind}": lambda kind=kind: model_config(fusion_type=kind) for kind in FUSION_TYPES},
    **{f"balance {kind}": lambda kind=kind: model_config(balance=kind, **EVERYTHING) for kind in BALANCES},
    **{f"towers {kind}": make for kind, make in CONFIGS.items()},
}
CLASSES = torch.tensor([0, 1, 2, 0, -100])


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("case", CASES)
def test_training_and_use_need_nothing_that_a_device_lacks_and_wait_only_where_it_is_worth_it(case, mode):
    check(step(getattr(make_model(CASES[case]()), mode)(), CLASSES))


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize(
    ("problem", "labels"),
    [
        ("multi_label_classification", torch.eye(3)[[0, 1, 2, 0, 1]]),
        ("regression", torch.tensor([[0.1, 1.0, torch.nan]] * 5)),
    ],
)
def test_other_problems_need_nothing_that_a_device_lacks(problem, labels, mode):
    check(step(getattr(make_model(model_config(problem_type=problem)), mode)(), labels))


def test_vectors_of_one_modality_need_nothing_that_a_device_lacks(inputs):
    model = make_model().mmfusion
    with Operators() as operators, torch.no_grad():
        model.get_text_features(inputs["input_ids"], inputs["attention_mask"])
        model.get_image_features(inputs["pixel_values"])
        model.get_audio_features(inputs["input_values"], inputs["audio_attention_mask"])
    check(operators)


def test_a_product_of_integers_and_a_number_that_is_fetched_are_seen():
    with Operators() as operators:
        torch.ones(2, 3).long() @ torch.ones(3).long()
        torch.ones(3).double().sum().item()
        torch.ones(3)[torch.ones(3).bool()]
    assert {(device, name) for device, name, *_ in operators.missing} >= {("CUDA", "mv"), ("MPS", "_to_copy")}
    assert sum(operators.waits.values()) == 2
