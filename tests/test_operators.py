"""The operators of training and use, one by one: those that CUDA or MPS lack, and waits for the device, are refused.

No GPU is needed: an operator is dispatched on the CPU by the same name and with the same dtypes. What `.cpu()` gives,
and what is made of it, counts as on the host: it may be what a device lacks, and nothing waits for it.
"""

import collections
import traceback
from pathlib import Path
from unittest import mock

import pytest
import torch
from conftest import CONFIGS, make_inputs, make_model, model_config
from test_distillation import distillation_of, named, teacher_like
from test_explanation import make_pipeline
from test_explanation import sample as sample  # a fixture
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from configuration_mmfusion import BALANCES, FUSION_TYPES
from metrics.calibration import evaluate_calibrated
from metrics.subsets import evaluate_subsets
from metrics.vectors import embed_rows
from training.averaging import MovingAverage
from training.objective import Adversarial, Objective

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
# Operators that MPS lacks. Source: `torch.testing._internal.common_mps` (torch 2.13), `UNIMPLEMENTED_XFAILLIST` where
# it names no dtypes, and `XFAILLIST_GRAD`.
LACKING_ON_MPS = {
    "logspace", "linalg_eig", "linalg_eigvals", "linalg_eigh", "_linalg_eigh", "linalg_eigvalsh", "put", "frexp",
    "geqrf", "hash_tensor", "heaviside", "linalg_cond", "linalg_ldl_factor", "linalg_ldl_factor_ex",
    "linalg_ldl_solve", "linalg_lstsq", "linalg_svdvals", "linalg_matrix_exp", "matrix_exp", "mode", "ormqr",
    "fractional_max_pool2d", "fractional_max_pool3d", "_adaptive_avg_pool3d", "adaptive_max_pool3d", "_ctc_loss",
    "multi_margin_loss", "_pdist_forward", "rrelu_with_noise", "segment_reduce", "special_airy_ai",
    "special_log_ndtr", "special_ndtri", "take", "linalg_householder_product", "igamma", "igammac", "special_zeta",
    "_upsample_bilinear2d_aa_backward", "_upsample_bicubic2d_aa_backward",
}  # fmt: skip
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "is_nonzero", "equal"}
# (File, function) -> why it may wait for the device.
MAY_WAIT = {
    ("modeling_mmfusion.py", "_run_tower"): "which rows have the modality: work that is saved is worth the wait",
    ("masking_utils.py", "_ignore_bidirectional_mask_sdpa"): "the library drops a mask that masks nothing",
    ("modeling_wav2vec2.py", "forward"): "the library zeroes padded frames by a boolean index",
    ("modeling_hubert.py", "forward"): "the library zeroes padded frames by a boolean index",
    None: "the backward pass of the library's boolean index",
}
# What people read goes to the host, and asks there how it shall go on.
REPORTS = {"explanation_mmfusion.py", "pipeline_mmfusion.py", "pt_utils.py", "subsets.py", "vectors.py"}


class Operators(TorchDispatchMode):
    """Records operators that a device lacks, and those that wait for it, each with the function that asked for it."""

    def __init__(self):
        super().__init__()
        self.num, self.missing, self.waits = 0, collections.Counter(), collections.Counter()
        self.patches = [
            mock.patch.object(torch.Tensor, name, self._fetching(getattr(torch.Tensor, name)))
            for name in ("cpu", "numpy", "tolist")
        ]

    def __enter__(self):
        for patch in self.patches:
            patch.start()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        for patch in self.patches:
            patch.stop()

    def _fetching(self, method):
        """A method of tensors by which their values come to the host."""

        def fetch(tensor, *args):
            if not on_host(tensor):
                self.waits[asked_by()] += 1
            value = method(tensor, *args)
            if isinstance(value, torch.Tensor):
                value = value.view_as(value)  # another tensor than the device's, as it would be there
                value.place = "host"
            return value

        return fetch

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        output = operator(*args, **(kwargs or {}))
        self.num += 1
        name = operator._schema.name.split("::")[1].removesuffix("_")
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        outputs = [x for x in tree_leaves(output) if isinstance(x, torch.Tensor)]
        if any(map(on_host, inputs)):
            if any(place(x) == "device" and x.ndim > 0 for x in inputs) and name != "copy":
                self.missing["two devices", name, asked_by()] += 1
            return put(output, outputs, "host")
        if name == "lift_fresh" or all(place(x) == "anywhere" for x in inputs):
            put(output, outputs, "anywhere")
            outputs = []  # where it is shows when it meets something
        if name in NOT_OF_INTEGERS_ON_CUDA and inputs and inputs[0].dtype in INTEGERS:
            self.missing["CUDA", name, inputs[0].dtype, asked_by()] += 1
        if name in LACKING_ON_MPS or any(x.dtype in NOT_ON_MPS for x in outputs):
            self.missing["MPS", name, asked_by()] += 1
        by_mask = name in ("index", "index_put") and any(
            isinstance(x, torch.Tensor) and x.dtype == torch.bool for x in tree_leaves(args[1])
        )
        if name in WAITS or by_mask:
            self.waits[asked_by()] += 1
        return output


def place(tensor: torch.Tensor) -> str:
    """`device`; or `host`, for what came from there; or `anywhere`, for what was made of no tensor."""
    return getattr(tensor, "place", "device")


def on_host(tensor: torch.Tensor) -> bool:
    return place(tensor) == "host"


def put(output, tensors: list[torch.Tensor], where: str):
    """Note where tensors are; the output that they are of."""
    for tensor in tensors:
        tensor.place = where
    return output


def asked_by() -> tuple[str, str] | None:
    """Return (file, function) of ours or of the library in which an operator stands; None: in the backward pass."""
    for frame in reversed(traceback.extract_stack()):
        if frame.filename.endswith("torch/autograd/graph.py"):
            return None
        folders = Path(frame.filename).parts
        if "_mmfusion.py" in frame.filename or {"transformers", "metrics", "training"} & {*folders}:
            return folders[-1], frame.name
    return None


def check(operators: Operators, reports: bool = False):
    """Fail where an operator is missing on a device, or one waits that may not; what reports to people may."""
    assert operators.num > 50, "nothing was recorded"
    assert not operators.missing
    waiting = {name for name in operators.waits if name not in MAY_WAIT}
    assert not {name for name in waiting if not reports or name[0] not in REPORTS}


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
    ones = torch.ones(3)
    with Operators() as operators:
        torch.ones(2, 3).long() @ ones.long()
        ones.double().sum().item()
        ones[torch.ones(3).bool()]
    assert {(device, name) for device, name, *_ in operators.missing} >= {("CUDA", "mv"), ("MPS", "_to_copy")}
    assert sum(operators.waits.values()) == 2


# -- use --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("integrated_gradients", {}),
        ("integrated_gradients", {"vision": "bert-resnet-layernorm"}),
        ("integrated_gradients", {"vision": "bert-vit-groupnorm"}),
        *(("attention", {"fusion_type": kind}) for kind in ("cross_attention", "bottleneck", "pairwise")),
    ],
    ids=str,
)
def test_an_explanation_needs_nothing_that_a_device_lacks(method, options, sample):
    config = CONFIGS[options["vision"]]() if "vision" in options else model_config(**options)
    classify = make_pipeline(config)
    with Operators() as operators:
        assert classify.explain(dict(sample), method=method, num_steps=2)["text"]
    check(operators, reports=True)


@pytest.mark.parametrize("balance", ["none", "unimodal"])
@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification"])
def test_answers_opinions_and_shares_need_nothing_that_a_device_lacks(balance, problem, sample, inputs):
    fitted = {"temperatures": {"text": 2.0}, "problem_type": problem}
    fitted |= {"unimodal_temperatures": {"text": 2.0}} if balance != "none" else {}
    classify = make_pipeline(model_config(balance=balance, **fitted))
    forward = classify.forward  # at its end the base class asks for a copy on the CPU, which here is no copy
    classify.forward = lambda *args, **kwargs: {name: x.cpu() for name, x in forward(*args, **kwargs).items()}
    with Operators() as operators:
        classify([dict(sample), {"text": "a cat"}], opinions=True, reject_below=0.4, batch_size=2)
        classify.opinions_batch(inputs)
        classify.explain_batch(inputs)
    check(operators, reports=True)


@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification", "regression"])
@pytest.mark.parametrize("measure", [evaluate_subsets, evaluate_calibrated, embed_rows], ids=lambda m: m.__name__)
def test_what_measures_a_model_needs_nothing_that_a_device_lacks(measure, problem):
    rows, labels = 10, {"single_label_classification": torch.arange(10) % 3}
    labels = labels.get(problem, torch.eye(3)[torch.arange(10) % 3])
    model = make_model(model_config(problem_type=problem, balance="unimodal"))
    batches = [make_inputs(rows) | {"labels": labels}]
    more = {"subsets": [("text",), ("text", "image")], "with_logits": True} if measure is embed_rows else {}
    with Operators() as operators:
        measure(model, batches, progress=False, **more)
    check(operators, reports=True)


# -- a training's step ------------------------------------------------------------------------------------------------


def make_objective(kind: str, model) -> Objective:
    if kind == "own":
        return Objective()
    if kind == "adversarial":
        return Adversarial(Objective(), model.mmfusion.get_input_embeddings(), 0.5)
    return distillation_of(model, teacher_like(named(make_model(seed=2))), feature_weight=0.5)


@pytest.mark.parametrize("kind", ["own", "adversarial", "distillation"])
def test_a_step_of_a_training_needs_nothing_that_a_device_lacks_and_waits_only_where_it_is_worth_it(kind):
    model = make_model(model_config(balance="mmpareto", contrastive_weight=0.1, contrastive_by_class=True)).train()
    objective, average = make_objective(kind, model), MovingAverage(model, 0.9)
    average._average.n_averaged.place = "host"  # a buffer that torch makes there
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with Operators() as operators:
        objective.learn(model, make_inputs() | {"labels": CLASSES}, torch.Tensor.backward)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update()
    check(operators)


def test_what_meets_on_two_devices_is_seen():
    ones = torch.ones(3)
    with Operators() as operators:
        ones.cpu().double() + ones
        ones.tolist()
        (ones.cpu() + torch.ones(3)).tolist()
    assert [device for device, *_ in operators.missing] == ["two devices"]
    assert sum(operators.waits.values()) == 3
