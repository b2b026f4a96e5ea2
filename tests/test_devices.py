"""A model whose parts are on two devices, as `device_map="auto"` leaves it where there are two GPUs; none is needed.

The tensors have a shape, a dtype and a device, and no values: an operation on tensors of two devices raises. The
devices are of a kind that torch lets one register, once a process; so this happens in a fork.
"""

import os
import traceback

import pytest
import torch
from accelerate import infer_auto_device_map
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from conftest import CONFIGS, make_inputs, make_model, model_config
from torch._subclasses.fake_tensor import FakeTensorMode

from configuration_mmfusion import BALANCES, FUSION_TYPES

FIRST, SECOND = "npy:0", "npy:1"
FUSION = ("mmfusion.audio_encoder", "mmfusion.projectors", "mmfusion.fusion", "classifier", "unimodal")
TEXT = ("mmfusion.text_encoder", "mmfusion.projectors.image", "mmfusion.projectors.audio")
EVERYTHING = {"temperatures": {"text": 2.0}, "contrastive_weight": 0.1, "subset_ranking_weight": 0.1}
CASES = {
    **{f"fusion {kind}": lambda kind=kind: model_config(fusion_type=kind) for kind in FUSION_TYPES},
    **{f"balance {kind}": lambda kind=kind: model_config(balance=kind, **EVERYTHING) for kind in BALANCES},
    # How many rows have a picture is always asked where the tower takes statistics of the batch.
    **{f"towers {kind}": make for kind, make in CONFIGS.items() if "resnet" not in kind},
}  # fmt: skip


def spread(model, second: tuple[str, ...], mode: FakeTensorMode):
    """Put the named parts on the second device and all else on the first, with the hooks that a `device_map` adds."""
    for name, module in model.named_modules():
        device = SECOND if any(f"{name}.".startswith(f"{part}.") for part in second) else FIRST
        for kind in (module._parameters, module._buffers):
            for key, value in kind.items():
                if value is not None:
                    value = mode.from_tensor(value.detach()).to(device)
                    kind[key] = torch.nn.Parameter(value) if kind is module._parameters else value
        if any(p is not None for p in module._parameters.values()):
            add_hook_to_module(module, AlignDevicesHook(execution_device=device, io_same_device=False))
    return model


def run(config, second: tuple[str, ...], training: bool):
    """Run a step or a prediction; raises where tensors of two devices meet."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend("npy")
    make_tensor = torch.tensor
    torch.tensor = lambda data, dtype=None, device=None: make_tensor(data, dtype=dtype).to(device)
    torch.compiler.is_compiling = lambda: True  # without values it is not known how many rows have a modality
    model, inputs, mode = make_model(config).train(training), make_inputs(), FakeTensorMode(allow_non_fake_inputs=True)
    model = spread(model, second, mode)
    inputs = {name: mode.from_tensor(value).to(FIRST) for name, value in inputs.items()}
    with mode, torch.set_grad_enabled(training):
        output = model(**inputs, labels=make_tensor([0, 1, 2, 0, 1]).to(FIRST))
        assert output.logits.device == torch.device(FIRST) and output.loss.device == torch.device(FIRST)


def in_a_fork(call, *args) -> str:
    """What the call raised, in a process of its own; empty where it raised nothing."""
    receiver, sender = os.pipe()
    if (child := os.fork()) == 0:
        try:
            call(*args)
            told = ""
        except BaseException:
            told = traceback.format_exc()
        os.write(sender, told[-9_000:].encode())
        os._exit(0)
    os.close(sender)
    with open(receiver, encoding="utf-8") as file:
        told = file.read()
    os.waitpid(child, 0)
    return told


@pytest.mark.parametrize(
    ("case", "second", "training"),
    [
        *((case, FUSION, True) for case in CASES),
        ("fusion cross_attention", FUSION, False),
        ("fusion cross_attention", TEXT, True),
        ("balance mmpareto", TEXT, False),
    ],
)
def test_parts_on_two_devices_meet_where_the_inputs_are(case, second, training):
    if told := in_a_fork(run, CASES[case](), second, training):
        pytest.fail(told)


def test_tensors_of_two_devices_that_meet_are_seen():
    def meet():
        from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

        _setup_privateuseone_for_python_backend("npy")
        mode = FakeTensorMode()
        with mode:
            torch.ones(3).to(FIRST) + torch.ones(3).to(SECOND)

    assert "npy:1" in in_a_fork(meet)


@pytest.mark.parametrize("kind", FUSION_TYPES)
def test_a_device_map_leaves_the_fusion_in_one_piece(kind):
    model = make_model(model_config(fusion_type=kind))
    size = sum(p.numel() * 4 for p in model.mmfusion.fusion.parameters())
    placed = infer_auto_device_map(
        model, {"cpu": size, "disk": 10**9}, no_split_module_classes=list(model._no_split_modules)
    )
    assert not [name for name in placed if name.startswith("mmfusion.fusion.")]
