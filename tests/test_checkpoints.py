"""Trainings that are cut off and go on: real processes, really killed, and their weights compared bit by bit."""

import csv
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import fresh
from filelock import FileLock
from safetensors.torch import load_file

import train
from data import demo
from training import checkpoints, identity, loop, randomness, records
from training.checkpoints import CheckpointFolder, read_checkpoint
from training.resuming import Progress

ROOT = Path(train.__file__).parent
NUM_STEPS = 12  # three epochs of four steps
TEXT_ONLY = ["--image_column", "none", "--audio_column", "none", "--fusion_hidden_size", "32"]


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Of a run on every modality, with dropout, SpecAugment and an epoch whose last batch is short."""
    folder = demo.make_demo(tmp_path_factory.mktemp("demo") / "demo", num_rows=100)
    files = ["--train_file", f"{folder}/train.csv", "--validation_file", f"{folder}/validation.csv"]
    sizes = [
        "--image_size",
        16,
        "--max_train_samples",
        31,
        "--per_device_train_batch_size",
        9,
        "--fusion_hidden_size",
        32,
    ]
    learning = ["--mask_feature_prob", 0.1, "--modality_dropout_ramp", 0.5]
    return [*files, *sizes, "--num_train_epochs", 3, "--logging_steps", 1, *learning]


@pytest.fixture(scope="module")
def unbroken(forks, flags, tmp_path_factory):
    """The weights of that run without checkpoints, never cut off."""
    return finished(forks, flags, tmp_path_factory.mktemp("unbroken"))


def finished(forks, flags, folder, *more):
    """Train to the end; the weights."""
    fork = forks.run([*flags, "--output_dir", folder / "m", *more], folder / "said")
    assert fork.code == 0, fork.said
    return weights_of(folder / "m")


def weights_of(folder):
    return load_file(folder / "model.safetensors")


def are_equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ---------------------------------------------------------------------------------------------------------------------
# Killed
# ---------------------------------------------------------------------------------------------------------------------


def kill_and_go_on(forks, flags, folder, num_kills, *options):
    """Kill the run so often, each time at some moment after it has saved something new; the weights at the end."""
    argv = [*flags, "--output_dir", folder / "m", "--resume_from_checkpoint", "auto", *options]
    moments, codes = [random.uniform(0, 0.5) for _ in range(num_kills)], []
    for moment in moments:
        before = {path.name for path in folder.glob("m-checkpoints/step-*")}
        fork = forks.start(argv, folder / "said")
        while not {path.name for path in fork.wait_for(folder, "m-checkpoints/step-*")} - before:
            if (folder / "m").exists():
                break
            time.sleep(0.002)
        time.sleep(moment)
        codes.append(fork.kill(signal.SIGKILL))
        assert codes[-1] in (-signal.SIGKILL, 0), fork.said
    assert -signal.SIGKILL in codes
    return finished(forks, flags, folder, "--resume_from_checkpoint", "auto", *options)


def test_a_run_killed_at_random_moments_ends_with_the_weights_of_one_that_never_was(forks, flags, unbroken, tmp_path):
    assert are_equal(kill_and_go_on(forks, flags, tmp_path, 4, "--checkpointing_steps", 1), unbroken)
    assert [
        epoch["steps"] for epoch in json.loads((tmp_path / "m/metrics.json").read_text())["training"]["epochs"]
    ] == [4] * 3
    lines = lines_of(tmp_path / "m" / "log.jsonl")
    assert [line["step"] for line in lines if "event" not in line] == list(range(1, NUM_STEPS + 1)), "none twice"
    assert [line["step"] for line in lines if line.get("event") == "epoch"] == [4, 8, 12]


SLOW_RUNS = {
    "every step": ["--checkpointing_steps", 1],
    "every third step, which no epoch ends with": ["--checkpointing_steps", 3],
    "every epoch": ["--checkpointing_steps", "epoch"],
    "workers": ["--checkpointing_steps", 3, "--num_workers", 2],
    "accumulated batches": ["--checkpointing_steps", 1, "--gradient_accumulation_steps", 3],
    "half precision": ["--checkpointing_steps", 1, "--mixed_precision", "bf16"],
    "early stopping": ["--checkpointing_steps", 1, "--early_stopping_patience", 1],
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SLOW_RUNS)
def test_ten_random_moments(kind, forks, flags, tmp_path):
    options = [*SLOW_RUNS[kind], "--num_train_epochs", 6]
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    unbroken = finished(forks, flags, tmp_path / "whole", *options)
    assert are_equal(kill_and_go_on(forks, flags, tmp_path / "cut", 10, *options), unbroken)


def test_a_run_killed_while_it_writes_a_checkpoint_goes_on_from_the_one_before(forks, flags, unbroken, tmp_path):
    argv = [*flags, "--output_dir", tmp_path / "m", "--resume_from_checkpoint", "auto", "--checkpointing_steps", 1]
    num_torn = 0
    for _ in range(3):
        fork = forks.start(argv, tmp_path / "said")
        fork.wait_for(tmp_path, "m-checkpoints/step-*")
        fork.wait_for(tmp_path, "m-checkpoints/.step-*.partial-*/optimizer.safetensors")
        assert fork.kill(signal.SIGKILL) == -signal.SIGKILL, fork.said
        num_torn += len(list(tmp_path.glob("m-checkpoints/.step-*.partial-*")))
    assert num_torn > 0
    assert are_equal(finished(forks, flags, tmp_path, *argv[-4:]), unbroken)
    assert not list(tmp_path.glob("m-checkpoints/.step-*")), "what the killed runs left is tidied up"


def save_and_die(folder, tensors, moment):
    """In a fork: save a checkpoint, and be killed at the so-manieth thing that touches the disk; whether it was."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    calls = iter(range(1000))

    def dying(function):
        def call(*args, **options):
            if next(calls) == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)

        return call

    for module, name in ((checkpoints, "save_file"), (checkpoints, "write_json"), (os, "replace"), (os, "fsync"),
                         (shutil, "rmtree"), (os, "unlink"), (os, "mkdir")):  # fmt: skip
        setattr(module, name, dying(getattr(module, name)))
    store = CheckpointFolder(folder, limit=1)
    store.acquire()
    store.save(8, "run", tensors, {"is": "new"})
    os._exit(0)


@pytest.mark.parametrize("is_same_step", [False, True])
def test_at_whatever_call_it_is_killed_one_whole_checkpoint_is_there(is_same_step, tmp_path):
    """Also with room for one only, and when a checkpoint of the same step is replaced."""
    seen, moment = set(), 0
    while True:
        folder = tmp_path / str(moment)
        store = CheckpointFolder(folder, limit=1)
        store.acquire()
        store.save(8 if is_same_step else 4, "run", {"model": {"w": torch.zeros(3)}}, {"is": "old"})
        store.release()
        is_killed = save_and_die(folder, {"model": {"w": torch.ones(3)}, "best": {"w": torch.ones(2)}}, moment)
        store = CheckpointFolder(folder, limit=1)
        store.acquire()
        newest, problems = store.newest()
        state = newest.state()["is"]
        assert newest.tensors("model")["w"].tolist() == [float(state == "new")] * 3
        assert {path.name for path in folder.glob(".*")} == {".lock"}
        store.release()
        seen.add(state)
        if not is_killed:
            break
        moment += 1
    assert seen == {"old", "new"} and state == "new" and not problems and moment > 10


# ---------------------------------------------------------------------------------------------------------------------
# Asked to end
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_ends_the_run_after_its_step_with_a_checkpoint(name, forks, flags, unbroken, tmp_path):
    signum = getattr(signal, name)
    options = ["--checkpointing_steps", 1000, "--num_workers", 1 if name == "SIGINT" else 0]
    fork = forks.start([*flags, "--output_dir", tmp_path / "m", *options], tmp_path / "said")
    wait_for_steps(fork, tmp_path)
    for worker in children_of(fork.pid):  # Ctrl-C goes to the whole group
        os.kill(worker, signum)
    assert fork.kill(signum) == 128 + signum, fork.said
    (saved,) = tmp_path.glob("m-checkpoints/step-*")
    step = read_checkpoint(saved).step
    assert f"ended by {name} after step {step}: go on with --resume_from_checkpoint latest" in fork.said
    assert "Traceback" not in fork.said and not (tmp_path / "m").exists()
    weights = finished(forks, flags, tmp_path, *options, "--resume_from_checkpoint", "latest")
    if name == "SIGTERM":
        assert are_equal(weights, unbroken)


def wait_for_steps(fork, folder):
    """Until the log tells of steps: only then does the training answer signals in its own way."""
    log = folder / "m-checkpoints" / "log.jsonl"
    fork.wait_for(folder, "m-checkpoints/log.jsonl")
    end = time.monotonic() + 60
    while log.read_text().count("\n") < 2:
        assert time.monotonic() < end, fork.said
        time.sleep(0.001)


def children_of(pid):
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_second_signal_ends_the_run_at_once(forks, flags, tmp_path):
    fork = forks.start([*flags, "--output_dir", tmp_path / "m", "--checkpointing_steps", 1000], tmp_path / "said")
    wait_for_steps(fork, tmp_path)
    fork.send(signal.SIGTERM)
    assert fork.kill(signal.SIGINT) in (143, 130)
    assert not (tmp_path / "m").exists()


# ---------------------------------------------------------------------------------------------------------------------
# In this process: what is refused, and what is torn
# ---------------------------------------------------------------------------------------------------------------------


def write_table(path, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def texts(tmp_path):
    """Flags of a run on sixteen rows of text: three epochs of four steps, saved at every second one."""
    rows = [{"text": f"{label} thing {i}", "label": label} for i in range(8) for label in ("bad", "good")]
    files = ["--train_file", write_table(tmp_path / "t.csv", rows)]
    held = [{**row, "text": row["text"] + "!"} for row in rows]
    files += ["--validation_file", write_table(tmp_path / "v.csv", held)]
    sizes = ["--per_device_train_batch_size", 4, "--num_train_epochs", 3, "--checkpointing_steps", 2]
    return [*files, *TEXT_ONLY, *sizes]


def run(flags, folder, *more):
    """Train into `folder` in this process; the exit code."""
    return train.main([str(word) for word in (*flags, "--output_dir", folder, *more)])


def end_at(monkeypatch, step, signum=signal.SIGTERM):
    """Have the run get a signal while it makes this step."""
    count = loop.Training.count

    def counting(self, *values):
        count(self, *values)
        if self.progress.step == step:
            os.kill(os.getpid(), signum)

    monkeypatch.setattr(loop.Training, "count", counting)


@pytest.fixture
def cut(texts, tmp_path, monkeypatch, capsys):
    """The folder of that run, ended in its seventh step, and its checkpoints."""
    with monkeypatch.context() as patch:
        end_at(patch, 7)
        assert run(texts, tmp_path / "m") == 143
    assert "ended by SIGTERM after step 7: go on with --resume_from_checkpoint latest" in capsys.readouterr().err
    folder = tmp_path / "m-checkpoints"
    assert [path.name for path in CheckpointFolder(folder).folders()] == [f"step-0000000{i}" for i in (4, 6, 7)]
    fresh()
    return folder


def says(flags, folder, capsys, *more):
    """What a failed run says: one message on stderr, exit code 1."""
    assert run(flags, folder, *more) == 1
    error = capsys.readouterr().err
    _, *messages = re.split("^error: ", error, flags=re.MULTILINE)
    assert len(messages) == 1 and "Traceback" not in error, error
    fresh()
    return messages[0]


LATEST = ["--resume_from_checkpoint", "latest"]


def test_a_checkpoint_changes_nothing_and_holds_neither_pickle_nor_path(cut, texts, tmp_path):
    assert run(texts, tmp_path / "m", *LATEST) == 0
    fresh()
    assert run(texts[:-2], tmp_path / "whole", "--logging_steps", 1) == 0
    assert are_equal(weights_of(tmp_path / "m"), weights_of(tmp_path / "whole"))
    for folder in CheckpointFolder(cut).folders():
        assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}
        stems = {path.stem for path in folder.iterdir()}
        assert stems == {"model", "optimizer", "random", "best", "state", "manifest"}
    histories = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("m", "whole")]
    assert histories[0]["training"].pop("resumed_at_steps") == [7]
    assert [history["training"].pop("seconds") > 0 for history in histories] == [True, True]
    assert histories[0] == histories[1]
    recorded = [json.loads((tmp_path / name / "training_config.json").read_text()) for name in ("m", "whole")]
    assert recorded[0]["arguments"].keys() == recorded[1]["arguments"].keys()
    assert "resume_from_checkpoint" not in recorded[0]["command"], "the command that started the run"


def tear(path, how):
    if how == "missing":
        path.unlink()
    elif how == "flipped":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        path.write_bytes({"empty": b"", "half": path.read_bytes()[: path.stat().st_size // 2], "null": b"null"}[how])


TORN = {
    ("model.safetensors", "half"): r"`model.safetensors` has [\d,]+ of [\d,]+ bytes",
    ("optimizer.safetensors", "flipped"): "the content of `optimizer.safetensors` is not what was written",
    ("random.safetensors", "missing"): "`random.safetensors` is missing",
    ("best.safetensors", "empty"): r"`best.safetensors` has 0 of [\d,]+ bytes",
    ("state.json", "flipped"): "the content of `state.json` is not what was written",
    ("manifest.json", "missing"): "`manifest.json` is missing",
    ("manifest.json", "half"): "`manifest.json` cannot be read",
    ("manifest.json", "null"): "`manifest.json` cannot be read",
}


def test_a_torn_checkpoint_is_said_and_the_one_before_it_is_taken(cut):
    whole = [path.name for path in CheckpointFolder(cut).folders()]
    for number, ((name, how), message) in enumerate(TORN.items()):
        shutil.copytree(cut, copy := cut.with_name(f"copy-{number}"))
        tear(copy / whole[-1] / name, how)
        newest, problems = CheckpointFolder(copy).newest()
        assert newest.folder.name == whole[-2], (name, how)
        (problem,) = problems
        assert re.search(f"`.*{whole[-1]}` is not whole: {message}", problem), problem


def test_a_run_goes_on_from_the_one_before_a_torn_one_and_ends_with_the_same_weights(cut, texts, tmp_path, capsys):
    tear(cut / "step-00000007" / "random.safetensors", "half")
    tear(cut / "step-00000006" / "manifest.json", "half")
    assert run(texts, tmp_path / "m", *LATEST) == 0
    said = capsys.readouterr().out
    assert re.search("warning: .*step-00000007` is not whole: `random.safetensors` has .*; the one before it is", said)
    assert re.search("going on from `.*step-00000004`", said)
    fresh()
    assert run(texts[:-2], tmp_path / "whole") == 0
    assert are_equal(weights_of(tmp_path / "m"), weights_of(tmp_path / "whole"))


def test_where_there_is_nothing_whole_to_go_on_from_nothing_is_started(cut, texts, tmp_path, capsys):
    error = says(texts, tmp_path / "other", capsys, *LATEST)
    assert re.search(
        "_checkpoint latest: `.*other-checkpoints` holds no checkpoint that is whole. Leave the fl", error
    )
    error = says(texts, tmp_path / "m", capsys, "--resume_from_checkpoint", tmp_path / "gone")
    assert re.search(
        "--resume_from_checkpoint .*gone: there is no checkpoint `.*gone`. `latest` takes the newe", error
    )
    tear(cut / "step-00000006" / "model.safetensors", "half")
    error = says(texts, tmp_path / "m", capsys, "--resume_from_checkpoint", cut / "step-00000006")
    assert re.search("step-00000006` is not whole: `model.safetensors` has .* bytes. `latest` takes the newest", error)
    for path in CheckpointFolder(cut).folders():
        tear(path / "manifest.json", "null")
    for asked in ("latest", "auto"):
        error = says(texts, tmp_path / "m", capsys, "--resume_from_checkpoint", asked)
        assert re.search(r"holds no checkpoint that is whole \(.*`manifest.json` cannot be read", error)
    assert not (tmp_path / "m").exists() and not (tmp_path / "other-checkpoints").exists()


def test_a_named_checkpoint_is_taken_from_wherever_it_lies(cut, texts, tmp_path, capsys):
    cut.rename(tmp_path / "moved")
    assert run(texts, tmp_path / "n", "--resume_from_checkpoint", tmp_path / "moved" / "step-00000006") == 0
    assert (tmp_path / "n-checkpoints" / "step-00000012").is_dir()
    fresh()
    assert run(texts, tmp_path / "o", "--resume_from_checkpoint", tmp_path / "moved") == 0
    assert re.search("going on from `.*moved/step-00000007`", capsys.readouterr().out)
    assert are_equal(weights_of(tmp_path / "n"), weights_of(tmp_path / "o"))


OTHERS = {
    "a seed": (["--seed", 3], "--seed was 0 and is 3"),
    "a batch size": (["--per_device_train_batch_size", 8], "--per_device_train_batch_size was 4 and is 8"),
    "more epochs": (["--num_train_epochs", 4], "--num_train_epochs was 3 and is 4"),
    "a model": (["--num_fusion_queries", 3, "--mixed_precision", "bf16"],
                "--mixed_precision was no and is bf16; --num_fusion_queries was 8 and is 3"),
    "workers": (["--num_workers", 1], "--num_workers was 0 and is some"),
}  # fmt: skip


def test_a_run_with_other_settings_or_rows_is_refused_with_what_differs(cut, texts, tmp_path, capsys, monkeypatch):
    for flags, message in OTHERS.values():
        error = says(texts, tmp_path / "m", capsys, *LATEST, *flags)
        assert f"is of a run with other settings: {message}. Go on with the old ones" in error
    table = Path(texts[1])
    content = table.read_text()
    for other, message in {
        content.replace("bad thing 3", "bad thing 9"): "the rows to train on are others (16 then, 16 now)",
        content + "bad,bad\n": "the rows to train on are others (16 then, 17 now)",
    }.items():
        table.write_text(other)
        assert message in says(texts, tmp_path / "m", capsys, *LATEST)
    table.write_text(content)
    moved = table.rename(tmp_path / "moved.csv")
    free = ["--logging_steps", 3, "--checkpoints_total_limit", 1, "--train_file", moved, "--max_bad_steps", 2]
    monkeypatch.setattr(identity, "versions", lambda: {"torch": "9.9"})
    assert run(texts, tmp_path / "m", *LATEST, *free) == 0, "these change nothing"
    assert "note: the checkpoint was written with torch " in capsys.readouterr().out
    assert len(CheckpointFolder(cut).folders()) == 1


def test_the_number_of_processes_is_compared():
    args = train.parse_args(["--train_file", "t.csv", "--output_dir", "new_model"], "", "")
    then, now = (identity.settings_of(args, count) for count in (2, 1))
    assert identity.differences(then, now) == ["the number of processes was 2 and is 1"]


def test_checkpoints_of_an_earlier_run_are_not_passed_over_in_silence(cut, texts, tmp_path, capsys):
    error = says(texts, tmp_path / "m", capsys)
    assert re.search("m-checkpoints` holds checkpoints of an earlier run: go on from them with --resume_from_", error)
    assert run(texts, tmp_path / "m", "--overwrite_output_dir") == 0
    assert [path.name[-2:] for path in CheckpointFolder(cut).folders()] == ["08", "10", "12"]
    fresh()
    assert run(texts, tmp_path / "m", *LATEST) == 0
    assert re.search("this run is finished: its model is in `.*m`", capsys.readouterr().out)
    fresh()
    with pytest.raises(SystemExit):
        run(texts, tmp_path / "m")
    assert "already holds a model" in capsys.readouterr().err


def test_a_run_killed_behind_its_end_is_finished_and_gets_its_curves(cut, texts, tmp_path, monkeypatch, capsys):
    """Between the moment at which the model stands and the end of the process."""
    with monkeypatch.context() as patch:
        patch.setattr(records.Records, "save", lambda *values: os.kill(os.getpid(), signal.SIGKILL))
        pid = os.fork()
        if pid == 0:
            os._exit(run(texts, tmp_path / "m", *LATEST))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    weights = weights_of(tmp_path / "m")
    assert not (tmp_path / "m" / "log.jsonl").exists()
    assert run(texts, tmp_path / "m", *LATEST) == 0
    assert re.search("this run is finished: its model is in `.*m`", capsys.readouterr().out)
    assert are_equal(weights_of(tmp_path / "m"), weights)
    assert {"log.jsonl", "curves.png"} <= {path.name for path in (tmp_path / "m").iterdir()}


def test_a_folder_that_another_run_writes_to_is_refused(cut, texts, tmp_path, capsys):
    with FileLock(cut / ".lock"):
        error = says(texts, tmp_path / "m", capsys, *LATEST)
    assert re.search("another run writes its checkpoints to `.*m-checkpoints`: wait for its end, or name ano", error)
    assert run(texts, tmp_path / "m", *LATEST) == 0, "the lock goes with the run that holds it"


def test_a_folder_that_cannot_be_written_to_is_said(texts, tmp_path, capsys):
    (tmp_path / "m-checkpoints").touch()
    assert re.search("checkpoints cannot be written to `.*m-checkpoints`: ", says(texts, tmp_path / "m", capsys))


def test_on_a_full_disk_the_run_ends_with_the_checkpoints_before_it_intact(cut, texts, tmp_path, capsys):
    before = {path: path.read_bytes() for path in cut.rglob("*") if path.suffix == ".safetensors"}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # less than the weights take
    try:
        error = says(texts, tmp_path / "m", capsys, *LATEST, "--checkpoints_total_limit", 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert re.search(
        r"the checkpoint `.*step-00000008` cannot be written \(.*File too large.*\); the one before it, "
        "`step-00000007`, is whole: make room, then go on from it with --resume_from_checkpoint latest",
        error,
    )
    assert {path: path.read_bytes() for path in cut.rglob("*") if path.suffix == ".safetensors"} == before
    assert not list(cut.glob(".step-*"))
    assert run(texts, tmp_path / "m", *LATEST) == 0


def test_a_stop_during_the_validation_is_one_before_it(texts, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        validate = loop.validate
        patch.setattr(loop, "validate", lambda *args: os.kill(os.getpid(), signal.SIGINT) or validate(*args))
        assert run(texts, tmp_path / "m") == 130
    fresh()
    assert [path.name for path in CheckpointFolder(tmp_path / "m-checkpoints").folders()][-1] == "step-00000004"
    assert run(texts, tmp_path / "m", *LATEST) == 0
    fresh()
    assert run(texts[:-2], tmp_path / "whole") == 0
    assert are_equal(weights_of(tmp_path / "m"), weights_of(tmp_path / "whole"))


def test_early_stopping_goes_on_where_it_was(texts, tmp_path, monkeypatch):
    """Cut off behind the epoch after which it would have stopped, it does not train another one."""
    flags = [*texts[:-2], "--checkpointing_steps", "epoch", "--early_stopping_patience", 1, "--num_train_epochs", 9]
    scores, validate = [0.5, 0.4], loop.validate
    with monkeypatch.context() as patch:
        patch.setattr(loop, "validate", lambda *args: {**validate(*args), "score": scores.pop(0)})
        patch.setattr(loop.Training, "is_over", lambda self: not scores and os.kill(os.getpid(), signal.SIGKILL))
        pid = os.fork()
        if pid == 0:
            os._exit(run(flags, tmp_path / "m"))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert run(flags, tmp_path / "m", *LATEST) == 0
    training = json.loads((tmp_path / "m" / "metrics.json").read_text())["training"]
    assert (len(training["epochs"]), training["best_epoch"]) == (2, 1)
    best = load_file(tmp_path / "m-checkpoints" / "step-00000008" / "best.safetensors")
    assert are_equal(weights_of(tmp_path / "m"), {name: best[name] for name in weights_of(tmp_path / "m")})


def test_without_checkpoints_sigterm_saves_the_best_epoch_so_far(texts, tmp_path, monkeypatch, capsys):
    end_at(monkeypatch, 6)
    assert run(texts[:-2], tmp_path / "m") == 143
    seen = capsys.readouterr()
    assert "interrupted: the best model so far is saved" in seen.out and seen.err.endswith("ended by SIGTERM\n")
    training = json.loads((tmp_path / "m" / "metrics.json").read_text())["training"]
    assert training["interrupted"] and len(training["epochs"]) == 1
    assert not (tmp_path / "m-checkpoints").exists()


def test_a_stream_is_read_again_up_to_where_it_was(tmp_path, monkeypatch):
    from hub_here import datasets_online, push_tables, write_rows
    from local_hub import running_hub

    with running_hub(tmp_path / "hub") as hub, datasets_online(hub, tmp_path / "home") as api:
        tables = {"train": write_rows(tmp_path / "t", 40)}
        tables["validation"] = write_rows(tmp_path / "t", 10, first=40, name="validation")
        push_tables(api, "alice/both", tmp_path / "both", **tables)
        flags = ["--dataset_name", "alice/both", "--streaming", "--shuffle_buffer_size", 7, *TEXT_ONLY]
        flags += ["--per_device_train_batch_size", 8, "--num_train_epochs", 2, "--on_bad_cell", "drop"]
        assert run(flags, tmp_path / "whole") == 0
        fresh()
        flags += ["--checkpointing_steps", 100]
        with monkeypatch.context() as patch:
            end_at(patch, 7)
            assert run(flags, tmp_path / "m") == 143
        fresh()
        assert run(flags, tmp_path / "m", *LATEST) == 0
    assert are_equal(weights_of(tmp_path / "m"), weights_of(tmp_path / "whole"))


# ---------------------------------------------------------------------------------------------------------------------
# Parts
# ---------------------------------------------------------------------------------------------------------------------


def test_random_numbers_go_on_where_they_were(tmp_path):
    import numpy as np

    random.gauss(0, 1), np.random.standard_normal()  # both keep the second of a pair
    state = randomness.random_state()
    plain, tensors = randomness.split_state(state)
    drawn = [random.gauss(0, 1), np.random.standard_normal(), torch.rand(3).tolist()]
    randomness.set_random_state({**json.loads(json.dumps(plain)), **tensors})
    assert [random.gauss(0, 1), np.random.standard_normal(), torch.rand(3).tolist()] == drawn


def test_what_a_run_counts_survives_json():
    progress = Progress(loss_sum=torch.tensor(0.1), num_losses=torch.tensor(3), step=7, epochs=[{"score": 1 / 3}])
    again = Progress(**json.loads(json.dumps(progress.as_json())))
    assert again.loss_sum == torch.tensor(0.1).item() and again.as_json() == progress.as_json()


def test_an_old_checkpoint_goes_only_when_the_new_one_stands_and_the_newest_written_is_the_newest(tmp_path):
    store = CheckpointFolder(tmp_path / "c", limit=2)
    store.acquire()
    for step in (3, 9, 6):  # the third went on from the first
        store.save(step, "run", {"model": {"w": torch.ones(1)}}, {})
    assert [path.name for path in store.folders()] == ["step-00000009", "step-00000006"]
    assert store.newest()[0].step == 6
    store.save(1, "another run", {"model": {"w": torch.ones(1)}}, {})
    assert [path.name for path in store.folders()] == ["step-00000001"]
    store.release()


@pytest.mark.slow
def test_two_processes_killed_and_resumed_end_with_the_weights_of_two_that_never_were(flags, tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29611"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
    command = [*launcher, "train.py", *map(str, flags), "--num_train_epochs", "6"]

    def start(folder, *more):
        argv = [*command, "--output_dir", str(folder), *more]
        return subprocess.Popen(argv, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def to_the_end(process):
        said = process.communicate(timeout=300)[0]
        assert process.returncode == 0, said

    to_the_end(start(tmp_path / "whole"))
    options = ["--checkpointing_steps", "1", "--resume_from_checkpoint", "auto"]
    for signum in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        process, before = start(tmp_path / "m", *options), set(tmp_path.glob("m-checkpoints/step-*"))
        while not set(tmp_path.glob("m-checkpoints/step-*")) - before:
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.3))
        workers = children_of(process.pid)
        process.send_signal(signum)
        for worker in workers if signum == signal.SIGKILL else ():
            os.kill(worker, signum)
        process.communicate(timeout=120)
        assert process.returncode != 0 and not (tmp_path / "m").exists()
    to_the_end(start(tmp_path / "m", *options))
    assert are_equal(weights_of(tmp_path / "m"), weights_of(tmp_path / "whole"))
