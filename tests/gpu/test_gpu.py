"""Steps on an accelerator: `make test-gpu`.

MMFUSION_TEST_DEVICE=cpu runs the same steps without one, MMFUSION_TEST_COMPILER=none leaves out those that are
compiled, which take ten seconds and more each, and another backend of `torch.compile` is named in the same way.
"""

import os

import pytest
import torch
from conftest import audio_config, make_inputs, make_model, model_config, text_config, vit_config

DEVICE = os.environ.get("MMFUSION_TEST_DEVICE", "cuda")
COMPILER = os.environ.get("MMFUSION_TEST_COMPILER", "inductor" if DEVICE == "cuda" else "eager")
COMPILED = pytest.param(
    True, id="compiled", marks=pytest.mark.skipif(COMPILER == "none", reason="MMFUSION_TEST_COMPILER is none")
)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]
LABELS = torch.tensor([0, 1, 2, 0, 1])


def on_device():
    return {name: tensor.to(DEVICE) for name, tensor in make_inputs().items()}


def one_block_each():
    """As small as it can be: compilers work block by block."""
    one = {"num_hidden_layers": 1}
    return model_config(
        text_config=text_config(**one), vision_config=vit_config(**one), audio_config=audio_config(**one), **one
    )


@pytest.mark.parametrize("compiled", [pytest.param(False, id="eager"), COMPILED])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_two_steps_change_the_weights_and_stay_finite(dtype, compiled):
    model = make_model(one_block_each() if compiled else model_config()).to(DEVICE).train()
    torch._dynamo.reset()  # graphs of another test's model would only be tried in vain
    call = torch.compile(model, backend=COMPILER) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    before = model.classifier.weight.detach().clone()
    for _ in range(2):
        with torch.autocast(DEVICE, dtype=dtype, enabled=dtype != torch.float32):
            loss = call(**on_device(), labels=LABELS.to(DEVICE)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert loss.isfinite()
    assert not torch.equal(model.classifier.weight, before)


def test_calibrated_logits_equal_those_of_the_cpu():
    config = model_config(temperatures={"text": 2.0, "text+image": 0.5}, balance="mmpareto")
    model = make_model(config)
    with torch.no_grad():
        expected = model(**make_inputs()).logits
        found = model.to(DEVICE)(**on_device()).logits.cpu()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
