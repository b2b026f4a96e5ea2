"""Averages of weights over steps and epochs, and learning rates by layer."""

import copy
import json
import os
import random
import re
import resource
import signal
import socket
import time
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from conftest import fresh, make_model, model_config, resnet_config, text_config, vit_config
from filelock import FileLock
from safetensors.torch import load_file, save_file
from test_checkpoints import are_equal, end_at, write_table
from transformers import ConvNextConfig

import train
from data import demo
from training import loop, optimization
from training.arguments import parse_args
from training.averaging import Averaging, MovingAverage, Soup, trained_tensors
from training.checkpoints import CheckpointFolder, read_checkpoint
from training.processes import share_buffers
from training.towers import Towers

TEXT_ONLY = ["--image_column", "none", "--audio_column", "none", "--fusion_hidden_size", "32"]
AVERAGED = ["--ema_decay", 0.9, "--soup", 2]


@pytest.fixture
def resnet_model():
    """One whose image tower has batch norms, and whose text tower is frozen."""
    model = make_model(model_config(vision_config=resnet_config(), text_config=text_config(vocab_size=500)))
    model.mmfusion.text_encoder.requires_grad_(False)
    return model


@torch.no_grad()
def change(model, seed):
    """As a step of training would: all that learns, and the statistics of batch norms."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in trained_tensors(model).values():
        noise = torch.rand(tensor.shape, generator=generator)
        tensor.add_(noise if tensor.is_floating_point() else 1)


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def args_of(*flags):
    return parse_args(["--train_file", "t.csv", "--output_dir", "new_model", *map(str, flags)], "", "")


# ---------------------------------------------------------------------------------------------------------------------
# Over the steps
# ---------------------------------------------------------------------------------------------------------------------


def test_what_training_changes_leaves_out_frozen_towers_and_has_the_statistics_of_batch_norms(resnet_model):
    names = trained_tensors(resnet_model).keys()
    assert not any("text_encoder" in name for name in names)
    assert any(name.endswith("running_var") for name in names)
    assert any(name.endswith("num_batches_tracked") for name in names)
    assert names <= resnet_model.state_dict().keys()


def test_the_average_is_that_of_the_formula_with_a_decay_that_warms_up(resnet_model):
    average, decay = MovingAverage(resnet_model, 0.25), 0.25
    expected = None
    for step in range(5):
        change(resnet_model, step)
        average.update()
        trained = trained_tensors(resnet_model)
        now = {name: tensor.clone() for name, tensor in trained.items() if tensor.is_floating_point()}
        share = min(decay, (1 + step) / (10 + step))
        expected = now if expected is None else {n: share * expected[n] + (1 - share) * v for n, v in now.items()}
    assert average.num_updates == 5 and share == decay, "2/11 at the second, 3/12 from the third on"
    assert average.tensors().keys() == expected.keys() and any("running_mean" in name for name in expected)
    for name, value in average.tensors().items():
        torch.testing.assert_close(value, expected[name], msg=name)


def test_a_frozen_tower_is_not_held_twice(resnet_model):
    average = MovingAverage(resnet_model, 0.9)
    count = sum(tensor.numel() for tensor in average.tensors().values())
    learning = sum(p.numel() for p in resnet_model.parameters() if p.requires_grad)
    statistics = sum(b.numel() for name, b in resnet_model.named_buffers() if "running" in name)
    assert count == learning + statistics
    assert count == sum(p.numel() for p in average._average.parameters()) + sum(
        b.numel() for b in average._average.module.buffers()
    )


def test_the_average_takes_the_models_place_and_gives_it_back_to_the_last_bit(resnet_model):
    average = MovingAverage(resnet_model, 0.9)
    for step in range(3):
        change(resnet_model, step)
        average.update()
    own, averages = state_of(resnet_model), average.tensors()
    assert not any(torch.equal(own[name], value) for name, value in averages.items())
    with pytest.raises(KeyboardInterrupt), average.shown():
        shown = state_of(resnet_model)
        raise KeyboardInterrupt
    assert are_equal({name: shown[name] for name in averages}, averages)
    assert all(torch.equal(shown[name], own[name]) for name in own.keys() - averages.keys()), "frozen, and counters"
    assert are_equal(state_of(resnet_model), own) and are_equal(average.tensors(), averages)


def test_an_average_that_is_given_back_goes_on_to_the_same_bits(resnet_model):
    average = MovingAverage(resnet_model, 0.9)
    for step in range(3):
        change(resnet_model, step)
        average.update()
    model = copy.deepcopy(resnet_model)
    again = MovingAverage(model, 0.9)
    again.give_back(average.tensors(), average.num_updates)
    for step in range(3, 6):
        change(resnet_model, step), change(model, step)
        average.update(), again.update()
    assert are_equal(again.tensors(), average.tensors()) and again.num_updates == 6


# ---------------------------------------------------------------------------------------------------------------------
# Over the best epochs
# ---------------------------------------------------------------------------------------------------------------------


def soup_of(model, folder, scores, size=3):
    """A soup that was offered an epoch with each of these scores, and what the weights were in each."""
    soup, states = Soup(size, folder / "m", Accelerator(cpu=True), model), {}
    for epoch, score in enumerate(scores, start=1):
        change(model, epoch)
        states[epoch] = state_of(model)
        soup.keep(epoch, score)
    return soup, states


def judging(*scores):
    remaining = list(scores)
    return lambda: {"score": remaining.pop(0), "validation": {"accuracy": 0.5, "mean": None}}


def mean_of(*states):
    return {name: sum(state[name] for state in states) / len(states) for name in states[0]}


def test_the_best_epochs_are_kept_and_the_files_of_others_go(resnet_model, tmp_path):
    soup, _ = soup_of(resnet_model, tmp_path, [0.5, 0.7, 0.1, 0.7, 0.6])
    assert [one["epoch"] for one in soup.state()] == [2, 4, 5], "of equals the earlier one first"
    (folder,) = tmp_path.iterdir()
    assert sorted(path.name for path in folder.glob("*.safetensors")) == [
        f"soup-0000{i}.safetensors" for i in (2, 4, 5)
    ]
    assert not any("text_encoder" in name for name in load_file(folder / "soup-00002.safetensors"))
    soup.close()
    assert not list(tmp_path.iterdir())


def test_an_ingredient_joins_when_the_score_of_the_soup_does_not_fall(resnet_model, tmp_path, capsys):
    soup, states = soup_of(resnet_model, tmp_path, [0.7, 0.9, 0.8, 0.6], size=4)
    soup.cook(judging(0.85, 0.9, 0.95))
    joined = mean_of(states[2], states[1], states[4])
    for name, value in state_of(resnet_model).items():
        expected = joined[name] if value.is_floating_point() else states[2][name]
        torch.testing.assert_close(value, expected, msg=name)
    assert soup.facts == {
        "epochs": [2, 1, 4],
        "score": 0.95,
        "tried": [
            {"epoch": 2, "score": 0.9, "soup_score": 0.9, "is_in": True},
            {"epoch": 3, "score": 0.8, "soup_score": 0.85, "is_in": False},
            {"epoch": 1, "score": 0.7, "soup_score": 0.9, "is_in": True},
            {"epoch": 4, "score": 0.6, "soup_score": 0.95, "is_in": True},
        ],
    }
    assert capsys.readouterr().out.splitlines() == [
        "soup: epoch 2 is the best, and 3 more are tried",
        "soup of epochs 2+3  accuracy 0.5000  (not kept)",
        "soup of epochs 2+1  accuracy 0.5000  (kept)",
        "soup of epochs 2+1+4  accuracy 0.5000  (kept)",
    ]


@pytest.mark.parametrize("scores", [[0.9], [0.9, 0.8, 0.7]])
def test_a_soup_of_the_best_alone_is_the_best_to_the_last_bit(scores, resnet_model, tmp_path):
    soup, states = soup_of(resnet_model, tmp_path, scores)
    soup.cook(judging(0.1, 0.1))
    assert are_equal(state_of(resnet_model), states[1]) and soup.facts["epochs"] == [1]


def test_half_precision_weights_are_summed_in_float32(tmp_path):
    model = make_model(model_config()).to(torch.bfloat16)
    soup, states = soup_of(model, tmp_path, [0.9, 0.8])
    soup.cook(judging(0.9))
    expected = mean_of(*({name: value.float() for name, value in state.items()} for state in states.values()))
    assert are_equal(state_of(model), {name: value.to(torch.bfloat16) for name, value in expected.items()})


def test_what_a_killed_run_left_goes_and_the_files_of_one_that_lives_stay(resnet_model, tmp_path):
    left, alive = tmp_path / ".m.soup-left", tmp_path / ".m.soup-alive"
    for folder in (left, alive):
        folder.mkdir()
        (folder / "soup-00001.safetensors").touch()
    with FileLock(alive / ".lock"):
        soup, _ = soup_of(resnet_model, tmp_path, [0.5])
        assert not left.exists() and (alive / "soup-00001.safetensors").exists()
    soup.close()


def test_weights_that_cannot_be_written_are_said(resnet_model, tmp_path):
    message = (
        r"--soup: the weights of epoch 1 cannot be written to `.*` \(.*\): make room, lower --soup \(3\), or leave it "
        "out"
    )
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match=message):
            soup_of(resnet_model, tmp_path, [0.5])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_divided_weights_are_refused(monkeypatch, resnet_model):
    monkeypatch.setattr("training.averaging.is_divided", lambda model: True)
    message = (
        ": the weights of this run are divided among the processes, and are not averaged then; leave it out, or train "
        r"with one whole model a process \(DDP\)"
    )
    for flag, value in (("--ema_decay", 0.9), ("--soup", 2)):
        with pytest.raises(ValueError, match=flag + message):
            Averaging(args_of(flag, value), Accelerator(cpu=True), resnet_model)


def test_what_is_off_holds_nothing_and_saves_nothing(resnet_model):
    for flags in ([], ["--soup", 1]):
        averaging = Averaging(args_of(*flags), None, resnet_model)
        assert averaging.ema is None and averaging.soup is None
        assert averaging.tensors() == averaging.state() == averaging.history() == {}


# ---------------------------------------------------------------------------------------------------------------------
# Several processes
# ---------------------------------------------------------------------------------------------------------------------


def in_two_processes(function, port):
    """Run it in two forks, which see each other; exit codes."""
    pids = []
    for rank in range(2):
        if (pid := os.fork()) == 0:
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "ACCELERATE_USE_CPU": "true"}
            try:
                function(rank)
            finally:
                os._exit(1)
        pids.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def test_every_process_has_the_same_average_and_the_same_soup(resnet_model, tmp_path):
    """Their parameters are alike, as DDP holds them; the statistics of batch norms are of the rows of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def average(rank):
        accelerator = Accelerator(cpu=True)
        assert accelerator.num_processes == 2
        ema = MovingAverage(resnet_model, 0.9)
        soup = Soup(2, tmp_path / "m", accelerator, resnet_model)
        for step in range(3):
            change(resnet_model, step)
            for name, buffer in resnet_model.named_buffers():
                if "running" in name:
                    buffer.add_(rank)
            ema.update()
            with ema.shown():
                share_buffers(accelerator, resnet_model)
                save_file(state_of(resnet_model), tmp_path / f"ema-{step}-{rank}.safetensors")
                soup.keep(step + 1, float(step))
        soup.cook(judging(3.0))
        save_file(state_of(resnet_model), tmp_path / f"soup-{rank}.safetensors")
        soup.close()
        os._exit(0)

    assert in_two_processes(average, port) == [0, 0]
    for name in ("ema-0", "ema-1", "ema-2", "soup"):
        assert are_equal(*(load_file(tmp_path / f"{name}-{rank}.safetensors") for rank in range(2))), name
    states = [load_file(tmp_path / f"ema-{step}-0.safetensors") for step in (1, 2)]
    for name, value in load_file(tmp_path / "soup-1.safetensors").items():
        if value.is_floating_point():
            torch.testing.assert_close(value, mean_of(*states)[name], msg=name)


# ---------------------------------------------------------------------------------------------------------------------
# Whole runs
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def texts(tmp_path):
    """Flags of a run on sixteen rows of text: three epochs of four steps."""
    rows = [{"text": f"{label} thing {i}", "label": label} for i in range(8) for label in ("bad", "good")]
    files = ["--train_file", write_table(tmp_path / "t.csv", rows)]
    held = [{**row, "text": row["text"] + "!"} for row in rows]
    files += ["--validation_file", write_table(tmp_path / "v.csv", held)]
    return [*files, *TEXT_ONLY, "--per_device_train_batch_size", 4, "--num_train_epochs", 3]


def run(flags, folder, *more):
    """Train into `folder` in this process; the exit code."""
    fresh()
    return train.main([str(word) for word in (*flags, "--output_dir", folder, *more)])


def weights_of(folder):
    return load_file(folder / "model.safetensors")


def history_of(folder):
    return json.loads((folder / "metrics.json").read_text())["training"]


def test_the_average_is_validated_and_saved_and_changes_nothing_in_the_training(texts, tmp_path, monkeypatch):
    checkpoints = ["--checkpointing_steps", "epoch"]
    judged, validate = [], loop.validate
    monkeypatch.setattr(loop, "validate", lambda *args: judged.append(state_of(args[1])) or validate(*args))
    assert run(texts, tmp_path / "m", "--ema_decay", 0.9, *checkpoints) == 0
    saved = [read_checkpoint(path) for path in CheckpointFolder(tmp_path / "m-checkpoints").folders()]
    for state, checkpoint in zip(judged, saved, strict=True):
        average = checkpoint.tensors("ema")
        assert are_equal({name: state[name] for name in average}, average)
        assert checkpoint.state()["averaging"] == {"num_ema_updates": checkpoint.step}
    best = history_of(tmp_path / "m")["best_epoch"]
    weights = weights_of(tmp_path / "m")
    assert are_equal(weights, {name: judged[best - 1][name] for name in weights})
    assert run(texts, tmp_path / "plain", *checkpoints) == 0
    plain = CheckpointFolder(tmp_path / "plain-checkpoints").newest()[0]
    assert are_equal(plain.tensors("model"), saved[-1].tensors("model"))
    assert {path.stem for path in plain.folder.glob("*.safetensors")} == {"model", "optimizer", "random", "best"}


def test_a_step_takes_its_batches_together_and_one_that_is_skipped_does_not_count(tmp_path):
    rows = [{"text": f"thing {i}", "label": 3e38 if i == 0 else i / 4} for i in range(16)]
    held = [{"text": f"other {i}", "label": i / 4} for i in range(1, 8)]
    flags = ["--train_file", write_table(tmp_path / "n.csv", rows), "--problem_type", "regression", *TEXT_ONLY]
    flags += ["--validation_file", write_table(tmp_path / "v.csv", held), "--per_device_train_batch_size", 2]
    flags += ["--gradient_accumulation_steps", 2, "--num_train_epochs", 2, "--checkpointing_steps", "epoch"]
    assert run(flags, tmp_path / "m", "--ema_decay", 0.9) == 0
    assert history_of(tmp_path / "m")["num_skipped_steps"] == 2, "one of the four steps of each epoch"
    newest, _ = CheckpointFolder(tmp_path / "m-checkpoints").newest()
    assert newest.step == 8 and newest.state()["averaging"] == {"num_ema_updates": 6}


def test_the_model_folder_is_the_soup_and_says_what_is_in_it(texts, tmp_path, monkeypatch, capsys):
    scores, validate = [0.5, 0.9, 0.7, 0.95], loop.validate
    kept = []

    def judge(*args):
        kept.append(state_of(args[1]))
        return {**validate(*args), "score": scores.pop(0)}

    monkeypatch.setattr(loop, "validate", judge)
    assert run(texts, tmp_path / "m", "--soup", 2) == 0
    history = history_of(tmp_path / "m")
    assert history["soup"]["epochs"] == [2, 3] and history["soup"]["score"] == 0.95 and history["best_epoch"] == 2
    weights, expected = weights_of(tmp_path / "m"), mean_of(*kept[1:3])
    for name, value in weights.items():
        torch.testing.assert_close(value, expected[name], msg=name)
    assert "soup of epochs 2+3  accuracy" in capsys.readouterr().out
    assert not list(tmp_path.glob(".m.soup-*"))


def test_an_interrupted_run_takes_the_best_epoch_and_cooks_no_soup(texts, tmp_path, monkeypatch):
    end_at(monkeypatch, 10)
    assert run(texts, tmp_path / "m", *AVERAGED) == 143
    history = history_of(tmp_path / "m")
    assert history["interrupted"] and "soup" not in history and not list(tmp_path.glob(".m.soup-*"))


def test_a_stop_during_the_validation_finds_every_weight_in_its_place(texts, tmp_path, monkeypatch):
    flags = [*texts, *AVERAGED, "--checkpointing_steps", 100]
    with monkeypatch.context() as patch:
        validate, calls = loop.validate, []

        def stopping(*args):
            calls.append(1)
            if len(calls) == 2:
                os.kill(os.getpid(), signal.SIGINT)
            return validate(*args)

        patch.setattr(loop, "validate", stopping)
        assert run(flags, tmp_path / "m") == 130
    newest, _ = CheckpointFolder(tmp_path / "m-checkpoints").newest()
    assert newest.step == 8 and newest.state()["averaging"]["num_ema_updates"] == 8
    assert {path.stem for path in newest.folder.glob("soup-*")} == {"soup-00001"}
    assert run(flags, tmp_path / "m", "--resume_from_checkpoint", "latest") == 0
    assert run(texts, tmp_path / "whole", *AVERAGED) == 0
    assert are_equal(weights_of(tmp_path / "m"), weights_of(tmp_path / "whole"))
    assert history_of(tmp_path / "m")["soup"] == history_of(tmp_path / "whole")["soup"]


def test_checkpoints_share_the_files_of_the_soup(texts, tmp_path, monkeypatch):
    end_at(monkeypatch, 11)
    assert run(texts, tmp_path / "m", "--soup", 2, "--checkpointing_steps", 5) == 143
    files = list((tmp_path / "m-checkpoints").glob("step-*/soup-00001.safetensors"))
    assert len(files) == 3 and len({file.stat().st_ino for file in files}) == 1, "at 5, 10 and 11; links"


def test_another_average_is_another_run(texts, tmp_path, monkeypatch, capsys):
    flags = [*texts, "--checkpointing_steps", 2]
    with monkeypatch.context() as patch:
        end_at(patch, 5)
        assert run(flags, tmp_path / "m", *AVERAGED) == 143
    latest = ["--resume_from_checkpoint", "latest"]
    assert run(flags, tmp_path / "m", *latest, "--soup", 3, "--ema_decay", 0.5) == 1
    assert "--ema_decay was 0.9 and is 0.5; --soup was 2 and is 3" in capsys.readouterr().err


# -- killed


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Of a run on every modality, with batch norms, dropout and SpecAugment."""
    folder = demo.make_demo(tmp_path_factory.mktemp("demo") / "demo", num_rows=100)
    files = ["--train_file", f"{folder}/train.csv", "--validation_file", f"{folder}/validation.csv"]
    sizes = ["--image_size", 16, "--max_train_samples", 31, "--per_device_train_batch_size", 9]
    return [*files, *sizes, "--fusion_hidden_size", 32, "--num_train_epochs", 3, "--logging_steps", 1, *AVERAGED]


def finished(forks, flags, folder, *more):
    """Train to the end; the weights and the history."""
    fork = forks.run([*flags, "--output_dir", folder / "m", *more], folder / "said")
    assert fork.code == 0, fork.said
    return weights_of(folder / "m"), history_of(folder / "m")["soup"]


def kill_after_saving(fork, folder):
    """At some moment after it has saved something new, or shortly before its end."""
    before = {path.name for path in folder.glob("m-checkpoints/step-*")}
    end = time.monotonic() + 60
    while not {path.name for path in folder.glob("m-checkpoints/step-*")} - before and not (folder / "m").exists():
        assert time.monotonic() < end, fork.said
        time.sleep(0.002)
    time.sleep(random.uniform(0, 0.3))
    return fork.kill(signal.SIGKILL)


def test_a_run_killed_at_random_moments_ends_with_the_same_averages(forks, flags, tmp_path):
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    weights, soup = finished(forks, flags, tmp_path / "whole")
    folder, options = tmp_path / "cut", ["--checkpointing_steps", 1, "--resume_from_checkpoint", "auto"]
    codes = [
        kill_after_saving(forks.start([*flags, "--output_dir", folder / "m", *options], folder / "said"), folder)
        for _ in range(2)
    ]
    assert -signal.SIGKILL in codes
    again, same_soup = finished(forks, flags, folder, *options)
    assert are_equal(again, weights) and same_soup == soup
    assert not list(folder.glob(".m.soup-*")), "what the killed runs left is tidied up"


@pytest.mark.slow
def test_two_processes_killed_and_resumed_end_with_the_same_averages(forks, flags, tmp_path):
    def together(folder, *more):
        folder.mkdir(exist_ok=True)
        return forks.start_together([*flags, "--output_dir", folder / "m", *more], folder / "said")

    def to_the_end(several):
        assert [fork.wait() for fork in several] == [0, 0], several[0].said
        return weights_of(Path(several[0].output).parent / "m")

    weights = to_the_end(together(tmp_path / "whole"))
    options = ["--checkpointing_steps", 1, "--resume_from_checkpoint", "auto"]
    several = together(tmp_path / "cut", *options)
    several[0].wait_for(tmp_path / "cut", "m-checkpoints/step-*5")
    assert [fork.kill(signal.SIGKILL) for fork in several] == [-signal.SIGKILL] * 2
    assert are_equal(to_the_end(together(tmp_path / "cut", *options)), weights)


# ---------------------------------------------------------------------------------------------------------------------
# Learning rates by layer
# ---------------------------------------------------------------------------------------------------------------------


def model_and_towers(pretrained, **configs):
    model = make_model(model_config(**configs))
    encoders = {m: getattr(model.mmfusion, name) for m, name in optimization.TOWERS.items()}
    return model, Towers(encoders, processor=None, pretrained=dict.fromkeys(pretrained, "a tower"))


def rates_of(model, towers, *flags):
    """The learning rate of each parameter by name."""
    args = args_of("--text_learning_rate", 0.01, "--image_learning_rate", 0.02, "--audio_learning_rate", 0.04, *flags)
    optimizer = optimization.make_optimizer(args, model, towers)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    return {name: rates[id(p)] for name, p in model.named_parameters() if id(p) in rates}, optimizer


def only(rates, part):
    """The one learning rate of all parameters with this in their name."""
    (rate,) = {rate for name, rate in rates.items() if part in name}
    return rate


def test_each_layer_learns_at_a_part_of_the_rate_of_the_one_above_it():
    model, towers = model_and_towers(
        ("text", "image", "audio"), text_config=text_config(num_hidden_layers=3), vision_config=vit_config()
    )
    rates, _ = rates_of(model, towers, "--layer_decay", 0.5)
    tower = "mmfusion.text_encoder"
    assert [only(rates, f"{tower}.encoder.layer.{i}.") for i in range(3)] == [0.0025, 0.005, 0.01]
    assert only(rates, f"{tower}.embeddings.") == 0.00125
    images = {name: rate for name, rate in rates.items() if "vision_encoder" in name}
    assert sorted(set(images.values())) == [0.005, 0.01, 0.02]
    assert only(images, "embeddings") == 0.005 and only(images, "encoder.layernorm") == 0.02, "a norm above all layers"
    sounds = {name: rate for name, rate in rates.items() if "audio_encoder" in name}
    assert only(sounds, "feature_extractor") == only(sounds, "feature_projection") == 0.01
    assert [only(sounds, f"encoder.layers.{i}.") for i in range(2)] == [0.02, 0.04]
    assert {rate for name, rate in rates.items() if "_encoder." not in name} == {0.001}, "fusion and head"


@pytest.mark.parametrize(
    "vision",
    [
        resnet_config(hidden_sizes=[8, 20, 24], depths=[1, 2, 1]),
        ConvNextConfig(num_stages=3, hidden_sizes=[8, 12, 20], depths=[1, 2, 1], image_size=16),
    ],
)
def test_a_stage_is_a_layer(vision):
    model, towers = model_and_towers(("image",), vision_config=vision)
    rates, _ = rates_of(model, towers, "--layer_decay", 0.5)
    rates = {name: rate for name, rate in rates.items() if "vision_encoder" in name}
    assert [only(rates, f".stages.{i}.") for i in range(3)] == [0.005, 0.01, 0.02]
    assert only(rates, ".embed") == 0.0025


def test_names_without_numbered_layers_all_have_the_whole_rate():
    assert optimization.decayed(["embeddings.weight", "conv_layers.0.weight", "norm.bias"], 0.5) == [1, 1, 1]
    assert optimization.decayed(["a.w", "blocks.0.layers.1.w", "blocks.1.w", "norm.w"], 0.5) == [0.25, 0.5, 1, 1]


def test_a_tower_from_scratch_keeps_its_rate_and_the_log_shows_that_of_each_tower():
    model, towers = model_and_towers(("text",))
    rates, optimizer = rates_of(model, towers, "--layer_decay", 0.5)
    assert only(rates, "vision_encoder") == 0.02 and only(rates, "audio_encoder") == 0.04
    assert only(rates, "text_encoder.encoder.layer.0.") == 0.005
    assert loop.learning_rates(optimizer) == [0.04, 0.02, 0.01, 0.001]


def test_without_it_the_groups_are_what_they_were():
    model, towers = model_and_towers(("text",))
    _, optimizer = rates_of(model, towers)
    groups = [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    assert sorted(groups) == [(rate, decay) for rate in (0.001, 0.01, 0.02, 0.04) for decay in (0.0, 0.01)]
    assert all("is_deep" not in group for group in optimizer.param_groups)


@pytest.mark.parametrize("pretrained", [(), ("text",)])
def test_a_layer_decay_with_nothing_to_act_on_is_refused(pretrained):
    model, towers = model_and_towers(pretrained)
    model.mmfusion.text_encoder.requires_grad_(False)
    message = (
        r"--layer_decay 0\.5 lowers the learning rates in pretrained towers, and here is none that learns and has "
        "numbered layers: leave it out, or name such a tower by --text_model_name_or_path and its like"
    )
    with pytest.raises(ValueError, match=message):
        rates_of(model, towers, "--layer_decay", 0.5)


def test_a_run_with_rates_by_layer_goes_on_where_it_was(texts, tmp_path, monkeypatch):
    assert run(texts, tmp_path / "first", "--num_train_epochs", 1) == 0
    flags = [*texts, "--model_name_or_path", tmp_path / "first", "--layer_decay", 0.5, "--checkpointing_steps", 3]
    flags.remove("--fusion_hidden_size"), flags.remove("32")
    with monkeypatch.context() as patch:
        end_at(patch, 7)
        assert run(flags, tmp_path / "m") == 143
    assert run(flags, tmp_path / "m", "--resume_from_checkpoint", "latest") == 0
    assert run(flags[:-2], tmp_path / "whole", "--logging_steps", 1) == 0
    assert are_equal(weights_of(tmp_path / "m"), weights_of(tmp_path / "whole"))
    (first, *_) = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert len(first["learning_rates"]) == 2, "that of the tower and that of fusion and head"


WRONG = {
    ("--ema_decay", "1"): r"argument --ema_decay: 1 is not in \[0, 1\)",
    ("--ema_decay", "-0.1"): r"argument --ema_decay: -0.1 is not in \[0, 1\)",
    ("--soup", "-1"): "argument --soup: -1 is not at least 0",
    ("--layer_decay", "0"): r"argument --layer_decay: 0 is not in \(0, 1\]",
    ("--layer_decay", "1.1"): r"argument --layer_decay: 1.1 is not in \(0, 1\]",
    ("--layer_decay", "nan"): r"argument --layer_decay: nan is not in \(0, 1\]",
    ("--layer_decay", "low"): "argument --layer_decay: invalid float value: 'low'",
}


def test_wrong_values_are_said(capsys):
    for (flag, value), message in WRONG.items():
        with pytest.raises(SystemExit) as ended:
            args_of(f"{flag}={value}")
        assert ended.value.code == 2
        assert re.search(message, capsys.readouterr().err), (flag, value)


def test_all_of_it_is_off_by_default():
    args = args_of()
    assert (args.ema_decay, args.soup, args.layer_decay) == (0, 0, 1)
