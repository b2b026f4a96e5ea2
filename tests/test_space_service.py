"""Many callers and one model, in this process: who gets what, who is turned away, what a failure spoils."""

import asyncio
import io
import sys
import threading
import time

import numpy as np
import pytest
import torch
from conftest import make_model, model_config
from PIL import Image
from test_pipeline import LABELS, make_pipeline
from test_space_inputs import picture, sound

from space.errors import Refusal
from space.inputs import read_sample
from space.options import Options
from space.service import Service
from space.tasks import embed, predict


@pytest.fixture
def classify():
    return make_pipeline()


def run(classify, scenario, **options):
    """Run `scenario(service)` in a loop of its own, and give what it gives and the service."""

    async def inside():
        async with Service(classify, Options(**options)) as service:
            return await scenario(service), service

    return asyncio.run(inside())


def noise_picture(seed):
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def mixed_rows(count):
    """Samples of mixed subsets, no two of them alike."""
    rows = []
    for seed in range(count):
        row = {"image": noise_picture(seed), "text": "a red cat"[: 1 + seed % 9], "audio": sound(0.03 + 0.001 * seed)}
        for name in ("text", "audio")[: seed % 3]:
            del row[name]
        rows.append(row)
    return rows


def scores(ranked):
    return {entry["label"]: entry["score"] for entry in ranked}


def batch_sizes(service):
    (metric,) = service.telemetry.batch_sizes.collect()
    return {sample.labels.get("le", sample.name): sample.value for sample in metric.samples}


class Brake:
    """Holds the model until it is let go."""

    def __init__(self, classify, monkeypatch):
        self.go, self.started, forward = threading.Event(), threading.Event(), classify.forward

        def slow(*args, **kwargs):
            self.started.set()
            self.go.wait(10)
            return forward(*args, **kwargs)

        monkeypatch.setattr(classify, "forward", slow)

    async def until_started(self):
        await asyncio.to_thread(self.started.wait, 10)


# -- answers ----------------------------------------------------------------------------------------------------------


def test_every_one_of_many_callers_gets_the_answer_to_his_own_sample(classify):
    rows = mixed_rows(40)
    processor = classify.processor
    alone = [classify(read_sample(row, processor, Options())) for row in rows]
    assert len({str(sorted(scores(answer).items())) for answer in alone}) == len(rows), "all are different"

    async def scenario(service):
        return await asyncio.gather(*(service.ask(row) for row in rows))

    answers, service = run(classify, scenario)
    for answer, expected in zip(answers, alone, strict=True):
        assert scores(answer) == pytest.approx(scores(expected), abs=1e-5)
    sizes = batch_sizes(service)
    assert sizes["mmfusion_batch_size_sum"] == len(rows) and sizes["mmfusion_batch_size_count"] < len(rows) / 2


def test_a_batch_is_never_larger_than_allowed(classify):
    async def scenario(service):
        await asyncio.gather(*(service.ask({"text": "cat"}) for _ in range(9)))

    _, service = run(classify, scenario, max_batch_size=1)
    assert batch_sizes(service)["1.0"] == 9
    _, service = run(classify, scenario, max_batch_size=4)
    assert batch_sizes(service)["4.0"] == batch_sizes(service)["mmfusion_batch_size_count"] <= 8


def test_a_lone_caller_does_not_wait_for_the_window(classify):
    async def scenario(service):
        start = time.perf_counter()
        await service.ask({"text": "cat"})
        return time.perf_counter() - start

    seconds, _ = run(classify, scenario, batch_window_ms=5000)
    assert seconds < 2


def test_vectors_are_those_of_the_model_and_of_unit_length(classify):
    processor, model = classify.processor, classify.model
    sample = {"text": "a red cat", "image": picture(), "audio": sound(0.1)}
    (whole, only_text), _ = run(
        classify, lambda service: asyncio.gather(service.ask(sample, "embed"), service.ask({"text": "cat"}, "embed"))
    )
    assert list(whole) == ["fused", "text", "image", "audio"] and list(only_text) == ["fused", "text"]
    assert only_text["fused"] == pytest.approx(only_text["text"], abs=1e-6)
    assert all(np.linalg.norm(vector) == pytest.approx(1, abs=1e-5) for vector in whole.values())
    with torch.inference_mode():
        inputs = processor(text=["a red cat"])
        expected = model.base_model.get_text_features(inputs["input_ids"], inputs["attention_mask"])[0]
    assert whole["text"] == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_caller_in_another_thread_gets_the_same(classify):
    async def scenario(service):
        return await asyncio.to_thread(service.ask_blocking, {"text": "cat"}), await service.ask({"text": "cat"})

    (first, second), _ = run(classify, scenario)
    assert scores(first) == pytest.approx(scores(second), abs=1e-6) and scores(first).keys() == set(LABELS.values())


# -- explanations -----------------------------------------------------------------------------------------------------


def test_without_captum_attention_explains_unless_integrated_gradients_were_asked_for(classify, monkeypatch):
    monkeypatch.setitem(sys.modules, "captum", None)

    async def scenario(service):
        told = await service.ask({"text": "cat"}, "explain")
        without = await service.ask({"text": "cat"}, "explain", details=False)
        with pytest.raises(Refusal, match=r"no Captum.*ask for `method=attention`, or for `details=false`") as caught:
            await service.ask({"text": "cat"}, "explain", method="integrated_gradients")
        return told["method"], without["method"], caught.value.code

    told, _ = run(classify, scenario)
    assert told == ("attention", None, "not_supported")


@pytest.mark.parametrize("has_captum", [True, False])
def test_attention_of_a_fusion_without_is_not_supported(monkeypatch, has_captum):
    if not has_captum:
        monkeypatch.setitem(sys.modules, "captum", None)

    async def scenario(service):
        with pytest.raises(Refusal) as caught:
            await service.ask({"text": "cat"}, "explain", method="attention")
        return caught.value.code, caught.value.message, await service.ask({"text": "cat"}, "explain", details=False)

    (code, message, told), _ = run(make_pipeline(fusion_type="gate"), scenario)
    assert code == "not_supported" and ("integrated_gradients" in message) == has_captum
    assert told["modalities"]["text"] is not None


def test_a_fault_inside_an_explanation_is_not_told_as_something_missing(classify, monkeypatch):
    def fails(*_, **__):
        raise ImportError("libfoo.so: cannot open shared object file")

    monkeypatch.setattr(classify, "explain", fails)
    with pytest.raises(ImportError, match="libfoo"):
        run(classify, lambda service: service.ask({"text": "cat"}, "explain"))


def test_explanations_with_details_keep_nobody_waiting_and_those_without_share_a_call(classify, monkeypatch):
    calls, go, explain = [], threading.Event(), classify.explain

    def slow(samples, *, details, **options):
        calls.append((len(samples), details))
        if details:
            go.wait(10)
        return explain(samples, details=details, **options)

    async def scenario(service):
        long = [asyncio.create_task(service.ask({"text": "cat"}, "explain")) for _ in range(2)]
        await asyncio.sleep(0.1)
        short = [service.ask({"text": text}, "explain", details=False) for text in ("cat", "red", "a red cat")]
        done = await asyncio.gather(*short, service.ask({"text": "cat"}))
        go.set()
        return done, await asyncio.gather(*long)

    monkeypatch.setattr(classify, "explain", slow)
    (done, long), _ = run(classify, scenario)
    assert len(done) == 4 and len(long) == 2
    sizes = [size for size, details in calls if not details]
    assert calls[0] == calls[-1] == (1, True) and sum(sizes) == 3 and len(sizes) < 3


# -- failures ---------------------------------------------------------------------------------------------------------


def test_a_bad_row_has_its_refusal_and_the_others_their_answers(classify):
    rows = [{"text": "cat"}, {"image": b"no picture"}, Refusal("wrong_type", "…"), {"text": "red"}, {}]
    answers, service = run(classify, lambda service: service.ask_all(rows))
    codes = [answer.code if isinstance(answer, Refusal) else "answered" for answer in answers]
    assert codes == ["answered", "image_unreadable", "wrong_type", "answered", "nothing_given"]
    assert service.num_inside == 0


def test_a_sample_that_breaks_the_model_does_not_break_its_neighbours(classify, monkeypatch):
    forward = classify.forward

    def fragile(inputs):
        if inputs["input_ids"].shape[1] > 6:  # only the long text makes such a batch
            raise RuntimeError("out of memory")
        return forward(inputs)

    monkeypatch.setattr(classify, "forward", fragile)
    rows = [{"text": "cat"}, {"text": "a red cat a red cat"}, {"text": "red"}]

    async def scenario(service):
        answers = await asyncio.gather(*(service.ask(row) for row in rows), return_exceptions=True)
        return answers, await service.ask({"text": "cat"})

    ((first, broken, last), after), service = run(classify, scenario)
    assert isinstance(broken, RuntimeError) and service.broken is None
    assert scores(first) == pytest.approx(scores(after), abs=1e-6) and scores(last) != scores(first)


def test_nan_from_the_model_is_an_error_and_never_an_answer(classify):
    async def scenario(service):
        with torch.no_grad():
            classify.model.classifier.bias.fill_(float("nan"))
        return await asyncio.gather(
            service.ask({"text": "cat"}), service.ask({"text": "cat"}, "embed"), return_exceptions=True
        )

    (error, vectors), _ = run(classify, scenario)
    assert isinstance(error, ValueError) and "NaN" in str(error) and "fused" in vectors


def test_after_a_fault_of_the_accelerator_the_process_is_broken(classify, monkeypatch):
    def fail(*_):
        raise torch.AcceleratorError("CUDA error: device-side assert triggered\nCompile with …")

    async def scenario(service):
        monkeypatch.setattr(classify, "forward", fail)
        return await asyncio.gather(service.ask({"text": "cat"}), return_exceptions=True)

    _, service = run(classify, scenario)
    assert service.broken == "AcceleratorError: CUDA error: device-side assert triggered" and not service.is_ready


# -- limits -----------------------------------------------------------------------------------------------------------


def test_who_comes_beyond_the_limit_is_turned_away_at_once(classify, monkeypatch):
    async def scenario(service):
        brake = Brake(classify, monkeypatch)
        asked = [asyncio.create_task(service.ask({"text": "cat"})) for _ in range(3)]
        await brake.until_started()
        with pytest.raises(Refusal, match="3 samples are waiting already") as caught:
            await service.ask({"text": "one too many"})
        assert caught.value.headers() == {"Retry-After": "1"} and caught.value.status == 429
        brake.go.set()
        await asyncio.gather(*asked)
        return await service.ask_all([{"text": "cat"}] * 5)  # an idle server takes a whole list

    answers, service = run(classify, scenario, max_waiting=3)
    assert len(answers) == 5 and service.num_inside == 0
    assert 'mmfusion_refusals_total{code="overloaded"} 1.0' in service.telemetry.exposition()[0].decode()


def test_a_call_that_takes_too_long_is_given_up_and_not_run_later(classify, monkeypatch):
    async def scenario(service):
        brake = Brake(classify, monkeypatch)
        first = asyncio.create_task(service.ask({"text": "cat"}))
        await brake.until_started()
        second = asyncio.create_task(service.ask({"text": "cat"}))
        refusals = await asyncio.gather(first, second, return_exceptions=True)
        brake.go.set()
        await service.ask({"text": "cat"})
        return refusals

    refusals, service = run(classify, scenario, timeout_seconds=0.3)
    assert [(refusal.code, refusal.status) for refusal in refusals] == [("timeout", 504)] * 2
    assert batch_sizes(service)["mmfusion_batch_size_sum"] == 2, "the one that waited was never run"


def test_large_pictures_do_not_pile_up_in_memory(classify, monkeypatch):
    import space.service as module

    opened, large = [], picture(1200, 900)

    def counting(*args):
        opened.append(1)
        return read_sample(*args)

    async def scenario(service):
        brake = Brake(classify, monkeypatch)
        monkeypatch.setattr(module, "open_sample", counting)
        asked = [asyncio.create_task(service.ask({"image": large})) for _ in range(8)]
        await brake.until_started()
        await asyncio.sleep(0.5)
        held = len(opened)
        brake.go.set()
        await asyncio.gather(*asked)
        return held

    held, _ = run(classify, scenario)
    assert held == module.NUM_OPENERS and len(opened) == 8


def test_a_model_with_one_modality_warms_up_and_answers():
    from test_pipeline import make_processor

    from pipeline_mmfusion import TASK, MMFusionPipeline

    model = make_model(model_config(text_config=None, vision_config=None))
    pipeline = MMFusionPipeline(model=model, processor=make_processor(model.config), task=TASK)
    answer, service = run(pipeline, lambda service: service.ask({"audio": sound(0.1)}))
    assert service.is_warm and len(answer) == 3
    opened = read_sample({"audio": sound(0.1)}, pipeline.processor, Options())
    assert predict(pipeline, [opened])[0] == answer and list(embed(pipeline, [opened])[0]) == ["fused", "audio"]
