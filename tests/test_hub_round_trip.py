"""From a table to a stranger's process: train, push, load by name, go on from there, on a Hub that clients believe.

Everything runs as users run it: processes of their own, an empty cache, real HTTP; and once more without a network.
"""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from local_hub import LocalHub
from test_evaluation import ROOT

NAME = "alice/demo"

# What a stranger does, with nothing of this repository at hand; what the model says goes into a file.
STRANGER = """
import json, sys
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoProcessor, pipeline

torch.set_num_threads(1)
name, revision, rows, output = sys.argv[1], sys.argv[2] or None, json.loads(sys.argv[3]), sys.argv[4]
options = {"revision": revision, "trust_remote_code": True}
config = AutoConfig.from_pretrained(name, **options)
processor = AutoProcessor.from_pretrained(name, **options)
cells = {
    "text": [row.get("text") for row in rows],
    "images": [processor.decode_image(row["image"]) if "image" in row else None for row in rows],
    "audio": [processor.decode_audio(row["audio"]) if "audio" in row else None for row in rows],
}
inputs = processor(**cells, sampling_rate=processor.audio_sampling_rate)
with torch.no_grad():
    fused = AutoModel.from_pretrained(name, **options)(**inputs).pooler_output
    logits = AutoModelForSequenceClassification.from_pretrained(name, **options)(**inputs).logits
classify = pipeline("multimodal-classification", model=name, **options)
answers = {
    "modalities": list(config.modalities), "labels": [config.id2label[i] for i in range(config.num_labels)],
    "fused": fused.tolist(), "logits": logits.tolist(), "ranked": [classify(row) for row in rows],
}
with open(output, "w") as file:
    json.dump(answers, file)
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with LocalHub(tmp_path_factory.mktemp("hub")) as hub:
        hub.add_user("alice", write_token="hf_alice_write", read_token="hf_alice_read")
        yield hub


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("work")


def run(*command, env):
    done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, env=env, capture_output=True, text=True,
                          timeout=400, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def demo(hub, work):
    """The demo, trained and pushed by one command; gives (local folder, commit)."""
    env = hub.environment(work / "pusher", "hf_alice_write")
    run("-m", "data.demo", work / "data", "--num_rows", 200, env=env)
    out = run(
        "train.py", "--train_file", work / "data/train.csv", "--validation_file", work / "data/validation.csv",
        "--num_train_epochs", 1, "--image_size", 32, "--output_dir", work / "demo",
        "--push_to_hub", "--hub_model_id", NAME, "--hub_token", "hf_alice_write", "--license", "apache-2.0", env=env,
    )  # fmt: skip
    return work / "demo", re.search(r'name, revision = "alice/demo", "(\w{40})"', out)[1]


@pytest.fixture(scope="module")
def rows(work, demo):
    """Rows of the demo's test table, one for each subset of the modalities."""
    data = work / "data"
    with (data / "test.csv").open(newline="") as file:
        full = next(row for row in csv.DictReader(file) if all(row[name] for name in ("text", "image", "audio")))
    media = {"text": full["text"], "image": str(data / full["image"]), "audio": str(data / full["audio"])}
    subsets = ["text", "image", "audio", "text image", "text audio", "image audio", "text image audio"]
    return [{name: media[name] for name in subset.split()} for subset in subsets]


def ask(name, revision, rows, folder, env):
    """Let a stranger load a model in a fresh process that has nothing of ours, and give what it says."""
    folder.mkdir(exist_ok=True)
    script, output = folder / "stranger.py", folder / "answers.json"
    script.write_text(STRANGER)
    command = [sys.executable, "-P", str(script), str(name), revision, json.dumps(rows), str(output)]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(output.read_text())


@pytest.fixture(scope="module")
def local(hub, work, demo, rows):
    """What the folder that was trained says."""
    return ask(demo[0], "", rows, work / "local", hub.environment(work / "local-home", offline=True))


@pytest.fixture(scope="module")
def loaded(hub, work, demo, rows):
    """What the model says when it is loaded by its name, at its commit, with an empty cache."""
    return ask(NAME, demo[1], rows, work / "stranger", hub.environment(work / "stranger-home"))


def test_what_is_loaded_by_name_says_the_same_to_the_last_bit(local, loaded):
    assert loaded == local and loaded["modalities"] == ["text", "image", "audio"]
    assert len(loaded["logits"]) == 7 and len(loaded["labels"]) == 10


def test_what_was_loaded_once_is_there_without_a_network(hub, work, demo, rows, loaded):
    before = len(hub.requests)
    offline = ask(NAME, demo[1], rows, work / "offline", hub.environment(work / "stranger-home", offline=True))
    assert offline == loaded and len(hub.requests) == before


def test_hf_download_gives_the_folder(hub, work, demo):
    folder, commit = demo
    env = hub.environment(work / "download-home")
    hf = Path(sys.executable).with_name("hf")
    command = [str(hf), "download", NAME, "--revision", commit, "--local-dir", str(work / "copy")]
    subprocess.run(command, env=env, check=True, capture_output=True, timeout=120)
    stays_here = {"curves.png", "log.jsonl"}
    for path in folder.iterdir():
        if path.name not in stays_here:
            assert (work / "copy" / path.name).read_bytes() == path.read_bytes(), path.name
    card = (work / "copy/README.md").read_text()
    assert "license: apache-2.0" in card and "hf_alice_write" not in card and str(work) not in card


def test_no_file_that_was_pushed_tells_of_this_machine_or_the_token(hub, work, demo):
    for name in hub.files(NAME):
        content = hub.read(NAME, name)
        assert b"hf_alice_write" not in content and str(work).encode() not in content, name
    command = json.loads(hub.read(NAME, "training_config.json"))["command"]
    assert command.startswith("python train.py --train_file train.csv") and "--hub_token" not in command


def test_a_download_that_is_cut_in_half_is_resumed_or_reported_and_never_loaded(hub, work, demo, rows, local):
    env = hub.environment(work / "cut-home")
    weights = rf"/{NAME}/resolve/.*/model\.safetensors"
    hub.fail("GET", weights, times=100, cut_after_bytes=20_000)
    with pytest.raises(AssertionError, match=r"(?s)model\.safetensors|peer closed|incomplete|connection"):
        ask(NAME, demo[1], rows, work / "cut", env)
    hub.clear_failures()
    hub.fail("GET", weights, times=1, cut_after_bytes=20_000)
    assert ask(NAME, demo[1], rows, work / "cut", env) == local


# -- going on from a pushed model -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def second(hub, work, demo):
    """The pushed model, trained on with other labels and pushed to a branch beside it; gives the commit."""
    with (work / "data/train.csv").open(newline="") as file:
        header, *lines = csv.reader(file)
    label = header.index("label")
    for row in lines:
        row[label] = "even" if row[label] in ("zero", "two", "four", "six", "eight") else "odd"
    with (work / "data/parity.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *lines])
    env = hub.environment(work / "second-home", "hf_alice_write")
    run(
        "train.py", "--train_file", work / "data/parity.csv",
        "--model_name_or_path", NAME, "--model_revision", demo[1],
        "--num_train_epochs", 1, "--output_dir", work / "parity", env=env,
    )  # fmt: skip
    out = run("push_to_hub.py", work / "parity", NAME, "--revision", "parity", env=env)
    return re.search(r'name, revision = "alice/demo", "(\w{40})"', out)[1]


def test_both_revisions_load_in_processes_of_their_own(hub, work, demo, second, rows, local):
    env = hub.environment(work / "both-home")
    first = ask(NAME, demo[1], rows, work / "first", env)
    parity = ask(NAME, "parity", rows, work / "parity-stranger", env)
    pinned = ask(NAME, second, rows, work / "pinned", env)
    assert first == local and parity == pinned
    assert parity["labels"] == ["even", "odd"] and len(first["labels"]) == 10
    assert hub.head(NAME) == demo[1] and hub.head(NAME, revision="parity") == second


def test_the_second_card_names_the_first_model_as_its_base(hub, second):
    import yaml

    settings = yaml.safe_load(hub.read(NAME, "README.md", revision="parity").decode().split("---")[1])
    assert settings["base_model"] in (NAME, [NAME]) and settings["base_model_relation"] == "finetune"
