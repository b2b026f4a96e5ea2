"""The commands on an accelerator, from a training to an index: `make test-gpu`, which needs nothing else.

MMFUSION_TEST_DEVICE=cpu runs the same on a CPU. What the device answers is compared with what a CPU answers.
"""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import fresh

import evaluation
import predict
import search
import train
from cli.loading import load_pipeline
from data import demo

ROOT = Path(train.__file__).parent
DEVICE = os.environ.get("MMFUSION_TEST_DEVICE", "cuda")
SUBSETS = ["text", "image", "audio", "text+image", "text+audio", "image+audio", "text+image+audio"]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return demo.make_demo(tmp_path_factory.mktemp("demo") / "demo", num_rows=100)


@pytest.fixture(scope="module")
def sample(rows):
    """A row of the table that has everything."""
    with (rows / "validation.csv").open(encoding="utf-8", newline="") as file:
        row = next(row for row in csv.DictReader(file) if row["text"] and row["image"] and row["audio"])
    return {"text": row["text"], "image": str(rows / row["image"]), "audio": str(rows / row["audio"])}


def flags(rows):
    return ["--train_file", str(rows / "train.csv"), "--validation_file", str(rows / "validation.csv"),
            "--image_size", "32", "--per_device_train_batch_size", "8", "--max_train_steps", "2"]  # fmt: skip


@pytest.fixture(scope="module")
def environment():
    """Trainings find the device themselves; a CPU beside a GPU has to be asked for."""
    with pytest.MonkeyPatch.context() as patch:
        if DEVICE == "cpu":
            patch.setenv("ACCELERATE_USE_CPU", "true")
        yield


@pytest.fixture(scope="module")
def trained(rows, environment, tmp_path_factory):
    fresh()
    folder = tmp_path_factory.mktemp("trained") / "model"
    assert train.main([*flags(rows), "--output_dir", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def classify(trained):
    """The pipeline on the CPU, and on the device."""
    return {device: load_pipeline(str(trained), device=device) for device in {"cpu", DEVICE}}


def test_a_training_ends_calibrated(trained):
    assert read_json(trained / "training_config.json")["device"] == DEVICE
    assert set(read_json(trained / "metrics.json")["calibration"]["subsets"]) == {*SUBSETS}
    temperatures = read_json(trained / "config.json")["temperatures"]
    assert set(temperatures) == {*SUBSETS} and all(0 < value < 100 for value in temperatures.values())


@pytest.mark.parametrize(
    "more",
    [
        ["--mixed_precision", "bf16", "--balance", "mmpareto", "--contrastive_weight", "0.1", "--fgm_epsilon", "0.5"],
        pytest.param(["--mixed_precision", "fp16", "--ema_decay", "0.9", "--activation_checkpointing"],
                     marks=pytest.mark.skipif(DEVICE == "cpu", reason="a CPU trains in fp32 and bf16")),
    ],
    ids=["bf16", "fp16"],
)  # fmt: skip
def test_a_training_in_half_precision_ends_with_a_model(rows, environment, tmp_path, more):
    assert train.main([*flags(rows), *more, "--output_dir", str(tmp_path / "model")]) == 0
    assert read_json(tmp_path / "model" / "metrics.json")["num_rows"] > 0


def test_the_device_measures_what_a_cpu_measures(rows, trained, tmp_path):
    found = {}
    for device in ("cpu", DEVICE):
        output = tmp_path / f"{device}.json"
        call = [str(trained), "--data_file", str(rows / "validation.csv"), "--task", "both", "--device", device]
        assert evaluation.main([*call, "--output_file", str(output)]) == 0
        found[device] = read_json(output)
    for subset in SUBSETS:
        error = "expected_calibration_error"
        values = [found[device]["metrics"][subset][error] for device in ("cpu", DEVICE)]
        assert values[0] == pytest.approx(values[1], abs=0.02)


def test_one_sample_gets_the_same_answer_and_opinions(classify, sample):
    answers = {device: one(dict(sample), opinions=True) for device, one in classify.items()}
    for name in ("labels", "opinions"):
        entries = [answers[device][name] for device in ("cpu", DEVICE)]
        entries = [[value] if name == "labels" else [*value.values()] for value in entries]
        for expected, found in zip(*entries, strict=True):
            scores = [{entry["label"]: entry["score"] for entry in value} for value in (expected, found)]
            assert scores[0] == pytest.approx(scores[1], abs=2e-3)


@pytest.mark.parametrize("more", [[], ["--opinions"], ["--explain"]], ids=["plain", "opinions", "explained"])
def test_a_table_is_scored(rows, trained, tmp_path, more):
    output = tmp_path / "scored.csv"
    call = [str(trained), "--data_file", str(rows / "validation.csv"), "--output_file", str(output)]
    assert predict.main([*call, "--device", DEVICE, *more]) == 0
    assert output.read_text(encoding="utf-8").count("\n") > 5


@pytest.mark.parametrize("method", ["integrated_gradients", "attention"])
def test_an_explanation_is_that_of_a_cpu(classify, sample, method):
    told = [classify[device].explain(dict(sample), method=method, num_steps=8) for device in ("cpu", DEVICE)]
    expected, found = told
    assert found["label"] == expected["label"]
    assert found["modalities"] == pytest.approx(expected["modalities"], abs=2e-3)
    for name, part in (("text", "words"), ("audio", "segments")):
        scores = [[entry["score"] for entry in each[name][part]] for each in told]
        assert scores[0] == pytest.approx(scores[1], abs=5e-3)


def test_an_index_is_built_and_asked(rows, trained, sample, tmp_path, capsys):
    index, device = tmp_path / "index", ["--device", DEVICE]
    table = ["--data_file", str(rows / "validation.csv"), "--index_dir", str(index)]
    assert search.main(["build", str(trained), *table, "--by", "fused,text,image", *device]) == 0
    given = [word for name in ("text", "image", "audio") for word in (f"--{name}", sample[name])]
    capsys.readouterr()
    assert search.main(["query", "--index_dir", str(index), *given, "--top_k", "3", "--json", *device]) == 0
    assert '"score"' in capsys.readouterr().out
    assert search.main(["match", str(trained), *given[:4], *device]) == 0


def test_a_device_map_puts_the_model_where_there_is_room(trained, sample, classify):
    from transformers import pipeline

    where = "cpu" if DEVICE == "cpu" and torch.cuda.is_available() else "auto"
    placed = pipeline(model=str(trained), trust_remote_code=True, device_map=where)
    assert placed.model.device.type == DEVICE
    scores = [{x["label"]: x["score"] for x in one(dict(sample))} for one in (placed, classify["cpu"])]
    assert scores[0] == pytest.approx(scores[1], abs=2e-3)


@pytest.mark.skipif(DEVICE == "cuda" and torch.cuda.device_count() < 2, reason="torch sees one CUDA device, not two")
def test_two_processes_train_one_model(rows, tmp_path):
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, **({"ACCELERATE_USE_CPU": "true"} if DEVICE == "cpu" else {})}
    done = subprocess.run(
        [*words, ROOT / "train.py", *flags(rows), "--output_dir", tmp_path / "model"], cwd=ROOT,
        env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3_000:]
    said = read_json(tmp_path / "model" / "training_config.json")
    assert (said["num_processes"], said["device"]) == (2, DEVICE)
