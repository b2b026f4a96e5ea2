"""A model beside its specialists: what they are started with, how they are compared, none trained twice."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import test_card
from accelerate.state import AcceleratorState, GradientState
from conftest import model_config
from test_pictures import metrics_of

import train
from cli import children
from data import demo
from hub.card import render_model_card
from hub.pictures import draw_pictures
from metrics.comparison import compare, comparison_warnings, format_comparison
from metrics.subsets import Predictions
from training import specialists
from training.arguments import BASELINES, parse_args
from training.interruption import Signals, Stopped
from training.specialists import claimed, command_of, refuse_processes, remedies, train_specialist

make = test_card.make  # its fixture: files of a model folder
SIX = ["text", "image", "audio", "text+image", "text+audio", "image+audio"]


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """`accelerate` keeps one state a process; every run here starts as in a process of its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


# -- what they are started with ---------------------------------------------------------------------------------------


def command(subset, *flags, folder="m-baselines/s"):
    """The command of a specialist, which `train.py` takes."""
    words = ["--train_file", "t.csv", "--output_dir", "new_model", "--with_baselines", *map(str, flags)]
    built = command_of(parse_args(words, "", ""), words, tuple(subset.split("+")), Path(folder))
    return built, parse_args(built, "", "")


def test_a_specialist_has_the_same_flags_and_the_columns_of_its_modalities():
    _, args = command(
        "text+audio", "--seed", 7, "--audio_column=call", "--class_weights", "a=2", "b=3", "--no-calibrate"
    )
    assert (args.text_column, args.image_column, args.audio_column) == (None, "none", "call")
    assert args.seed == 7 and args.class_weights == {"a": 2, "b": 3} and not args.calibrate
    assert args.with_baselines is None and args.output_dir == Path("m-baselines/s")
    assert (args.checkpointing_steps, args.resume_from_checkpoint, args.on_bad_cell) == ("epoch", "auto", "drop")
    _, args = command("text", "--on_bad_cell=empty", "--checkpointing_steps", 5)
    assert (args.checkpointing_steps, args.on_bad_cell) == (5, "empty")


def test_a_specialist_is_neither_pushed_nor_tracked():
    flags = ["--push_to_hub", "--hub_model_id", "a/b", "--hub_token=secret", "--with_tracking", "--report_to", "wandb"]
    built, args = command("text", *flags)
    assert not args.push_to_hub and not args.with_tracking and not [word for word in built if "secret" in word]


OF_SOME = {
    "lora": ["--lora", "text,image", "--lora_rank", "4", "--preset", "base"],
    "augment": ["--augment", "text,audio", "--audio_gain_db", "3", "--text_word_noise=0.2"],
    "cache": ["--image_learning_rate", "0", "--cache_features", "--cache_dir", "c", "--cache_dtype", "float16"],
    "words": ["--fgm_epsilon", "0.5", "--group_by_length"],
    "layers": ["--audio_model_name_or_path", "a", "--layer_decay", "0.5"],
}  # fmt: skip


@pytest.mark.parametrize("subset", SIX)
@pytest.mark.parametrize("flags", OF_SOME.values(), ids=OF_SOME)
def test_flags_of_modalities_that_it_lacks_are_left_out(subset, flags):
    _, args = command(subset, *flags)  # `train.py` refuses none of them
    has = set(subset.split("+"))
    for modality in {"text", "image", "audio"} - has:
        assert getattr(args, f"{modality}_model_name_or_path") is None
        assert getattr(args, f"{modality}_learning_rate") is None
    assert args.lora is None or {*args.lora} == has & {"text", "image"}
    assert {*args.augment} == (has & {"text", "audio"} if "--augment" in flags else set())
    assert args.cache_features == ("--cache_features" in flags and "image" in has)
    assert args.group_by_length == ("--group_by_length" in flags and "text" in has)
    assert args.layer_decay == (0.5 if "--layer_decay" in flags and "audio" in has else 1)


def test_a_teacher_that_reads_none_of_it_is_left_out(tmp_path):
    model_config(text_config=None).save_pretrained(tmp_path)
    flags = ["--teacher", tmp_path, "--feature_weight", 1]
    _, args = command("image", *flags)
    assert args.teacher == str(tmp_path) and args.feature_weight == 1
    _, args = command("text", *flags)
    assert args.teacher is None and args.feature_weight == 0


def test_a_launcher_is_not_passed_on(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_PORT", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    passed_on = specialists.environment()
    assert "ACCELERATE_USE_CPU" in passed_on
    assert not {"RANK", "WORLD_SIZE", "MASTER_PORT", "TORCHELASTIC_RUN_ID"} & {*passed_on}


def test_several_processes_are_refused():
    args = parse_args(["--train_file", "t.csv", "--output_dir", "new_model", "--with_baselines", "modalities"], "", "")

    class Accelerator:
        num_processes = 2

    with pytest.raises(ValueError, match=r"--with_baselines trains one specialist after the other.*this run has 2"):
        refuse_processes(args, Accelerator)


def test_a_folder_of_something_else_is_not_replaced(tmp_path, capsys):
    words = ["--train_file", "t.csv", "--output_dir", str(tmp_path / "m"), "--with_baselines"]
    (tmp_path / "m-baselines").mkdir()
    with pytest.raises(SystemExit):
        parse_args(words, "", "")
    assert "m-baselines`, which --with_baselines would replace, has no `baselines.json`" in capsys.readouterr().err
    (tmp_path / "m-baselines" / BASELINES).write_text("{}")
    with pytest.raises(SystemExit):
        parse_args(words, "", "")
    assert "m-baselines` is there from an earlier run" in capsys.readouterr().err
    assert parse_args([*words, "--overwrite_output_dir"], "", "").with_baselines == "subsets"


def test_specialists_of_another_run_are_removed_and_those_of_this_one_kept(tmp_path):
    folder = claimed(tmp_path / "m-baselines", "first")
    (folder / "text").mkdir()
    assert (claimed(folder, "first") / "text").exists()
    assert not (claimed(folder, "second") / "text").exists()


# -- a training that fails or is ended --------------------------------------------------------------------------------


@pytest.fixture
def in_its_place(tmp_path, monkeypatch):
    """Run these lines as the training."""

    def put(code):
        script = tmp_path / "train_like.py"
        script.write_text(code)
        monkeypatch.setattr(children, "TRAIN", script)

    return put


def test_a_specialist_that_fails_says_why_and_where_the_rest_is(tmp_path, in_its_place):
    in_its_place("import sys; print('error: every cell of the column `t` is empty', file=sys.stderr); sys.exit(1)")
    message = r"the specialist for `text` was not trained: every cell of the column `t` is empty\. .*text\.txt`.*auto"
    with Signals(finish_step=True) as signals, pytest.raises(ValueError, match=message):
        train_specialist([], tmp_path / "text", signals)


def test_a_signal_ends_the_training_too(tmp_path, in_its_place):
    in_its_place("import os, time; print(os.getpid(), flush=True); os.kill(os.getppid(), 15); time.sleep(60)")
    with Signals(finish_step=True) as signals, pytest.raises(Stopped, match=r"ended by SIGTERM.*auto goes on"):
        train_specialist([], tmp_path / "text", signals)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "text.txt").read_text()), 0)


# -- how they are compared --------------------------------------------------------------------------------------------


def predictions(logits, labels):
    return Predictions(logits, labels, np.ones((len(labels), 3), dtype=bool))


def answering(right, num_labels=3):
    """(Logits, labels) of a model that is right in these rows."""
    right = np.asarray(right, dtype=bool)
    labels = np.arange(len(right)) % num_labels
    return np.eye(num_labels)[np.where(right, labels, (labels + 1) % num_labels)] * 4, labels


def test_the_interval_is_that_of_the_rows_in_which_the_two_differ():
    specialist, labels = answering([1] * 60 + [0] * 40)
    fused, _ = answering([1] * 50 + [0] * 50)
    everything, _ = answering([1] * 90 + [0] * 10)
    given = predictions({"text": fused, "text+image": everything}, labels)
    result = compare(
        "single_label_classification", "text", predictions({"text": specialist}, labels), given, "text+image"
    )
    assert [result[name]["accuracy"] for name in ("metrics", "fused", "fused_with_all")] == [0.6, 0.5, 0.9]
    differences = np.array([0] * 50 + [-1] * 10 + [0] * 40)
    half = 1.96 * differences.std(ddof=1) / 10
    assert result["interval"] == pytest.approx([-0.1 - half, -0.1 + half])
    assert result["num_rows"] == 100 and "expected_calibration_error" not in result["metrics"]


def test_the_interval_of_a_ratio_is_that_of_a_bootstrap():
    generator = np.random.default_rng(0)
    labels = (generator.random((400, 5)) < 0.3).astype(float)
    noisy = {
        name: 2 * labels - 1 + generator.normal(size=labels.shape) * scale for name, scale in (("a", 1), ("b", 1.4))
    }
    given = predictions({"text": noisy["a"], "text+image": noisy["a"]}, labels)
    problem = "multi_label_classification"
    result = compare(problem, "text", predictions({"text": noisy["b"]}, labels), given, "text+image")

    def f1(logits, rows):
        guess, true = logits[rows] >= 0, labels[rows] > 0
        return 2 * (guess & true).sum() / (guess.sum() + true.sum())

    drawn = generator.integers(0, 400, (2000, 400))
    gains = [f1(noisy["a"], rows) - f1(noisy["b"], rows) for rows in drawn]
    assert result["interval"] == pytest.approx(np.quantile(gains, [0.025, 0.975]), abs=0.006)


def test_of_an_error_lower_is_better():
    labels = np.linspace(0, 1, 50)
    given = predictions({"text": labels[:, None] + 0.3, "text+image": labels[:, None] + 0.1}, labels)
    result = compare("regression", "text", predictions({"text": labels[:, None] + 0.2}, labels), given, "text+image")
    assert result["interval"] == pytest.approx([-0.1, -0.1]) and result["interval_with_all"] == pytest.approx(
        [0.1, 0.1]
    )


BASELINES_OF_A_RUN = {
    "text": {
        "num_rows": 430, "metrics": {"accuracy": 0.67}, "fused": {"accuracy": 0.62},
        "fused_with_all": {"accuracy": 0.96},
        "interval": [-0.068, -0.032], "interval_with_all": [0.25, 0.33], "seconds": 60.0, "parameters": 735114,
    },
    "image": {
        "num_rows": 433, "metrics": {"accuracy": 0.7}, "fused": {"accuracy": 0.69},
        "fused_with_all": {"accuracy": 0.66},
        "interval": [-0.02, 0.001], "interval_with_all": [-0.06, -0.02], "seconds": 90.0, "parameters": 727338,
    },
}  # fmt: skip


def test_only_what_chance_does_not_explain_is_warned_of():
    same, all_of_it = comparison_warnings(BASELINES_OF_A_RUN)
    assert same == (
        "the specialist for `text` is better than the fused model given the same, by 3.2 to 6.8 points (95 % "
        "interval): accuracy 67.0% against 62.0% on the 430 rows that have something of it."
    )
    assert all_of_it.startswith("the specialist for `image` is better than the fused model given all that a row has")


def test_a_specialist_that_is_better_can_lend_its_tower():
    words = ["--train_file", "t.csv", "--output_dir", "new_model", "--with_baselines", "modalities"]
    args = parse_args(words, "", "")
    (sentence,) = remedies(args, BASELINES_OF_A_RUN, Path("m-baselines"))
    assert "--text_model_name_or_path m-baselines/text --text_learning_rate 0, and --cache_features" in sentence
    assert "image" not in sentence, "given the same, the fused model is as good as this one"
    level = {name: {**result, "interval": [-0.01, 0.01]} for name, result in BASELINES_OF_A_RUN.items()}
    assert remedies(args, level, Path("m-baselines")) == []
    frozen = parse_args([*words, "--text_learning_rate", "0"], "", "")
    assert remedies(frozen, BASELINES_OF_A_RUN, Path("m-baselines")) == [], "it had that tower"


def test_the_comparison_is_laid_out_as_a_table():
    title, header, *lines = format_comparison(BASELINES_OF_A_RUN).strip().splitlines()
    assert "accuracy, on the rows" in title and header.split()[0] == "modalities"
    assert lines[0].split("  ")[0] == "text" and "−6.8 to −3.2 points" in lines[0] and lines[1].endswith("1.5")


def test_card_and_picture_show_the_comparison(make, tmp_path):
    folder = make(metrics={"baselines": BASELINES_OF_A_RUN})
    card = render_model_card(folder, pictures=["specialists.png"])
    assert "| text | 430 | 67.0% | 62.0% | −6.8 to −3.2 points | 96.0% | 735,114 | 1.0 |" in card
    assert "> **Note:** the specialist for `text` is better than the fused model given the same" in card
    assert "![Bar chart of the comparison above: accuracy of each specialist" in card
    assert "pecialist" not in render_model_card(make(metrics={"baselines": None}))
    drawn = draw_pictures({**metrics_of(3), "baselines": BASELINES_OF_A_RUN}, ["a", "b", "c"], tmp_path)
    assert "specialists.png" in drawn and (tmp_path / "specialists.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"smell": BASELINES_OF_A_RUN["text"]}, "other specialists than those for audio, image"),
        ({"text": {**BASELINES_OF_A_RUN["text"], "fused": {}}}, "`baselines` of `text` lacks a number"),
        ({"text": {**BASELINES_OF_A_RUN["text"], "interval": [1]}}, "`baselines` of `text` lacks a number"),
    ],
)
def test_a_broken_comparison_makes_no_card(make, change, message):
    with pytest.raises(ValueError, match=message):
        render_model_card(make(metrics={"baselines": change}))


# -- a real run -------------------------------------------------------------------------------------------------------


def test_a_run_with_baselines_trains_each_once_and_goes_on_where_it_was_ended(tmp_path, monkeypatch, capsys):
    """Two modalities, so two specialists; the second is trained when the command is repeated."""
    data = demo.make_demo(tmp_path / "demo", num_rows=100)
    words = [
        *("--train_file", f"{data}/train.csv", "--validation_file", f"{data}/validation.csv", "--on_bad_cell", "drop"),
        *("--audio_column", "none", "--num_train_epochs", "1", "--image_size", "16", "--fusion_hidden_size", "32"),
        *("--output_dir", str(tmp_path / "m"), "--with_baselines", "--resume_from_checkpoint", "auto"),
    ]
    started, trainings = specialists.train_specialist, []

    def end_at_the_second(command, output_dir, signals):
        trainings.append(output_dir.name)
        if trainings == ["text", "image"]:
            os.kill(os.getpid(), signal.SIGTERM)  # as it may come between two trainings
        started(command, output_dir, signals)

    monkeypatch.setattr(specialists, "train_specialist", end_at_the_second)
    assert train.main(words) == 143
    assert (tmp_path / "m-baselines/text/model.safetensors").exists() and "auto goes on" in capsys.readouterr().err
    weights = (tmp_path / "m-baselines/text/model.safetensors").stat().st_mtime_ns

    assert train.main(words) == 0
    said = capsys.readouterr().out
    assert "this run is finished" in said and "specialist 2 of 2, `image`" in said and "Specialists (accuracy" in said
    assert (tmp_path / "m-baselines/text/model.safetensors").stat().st_mtime_ns == weights
    assert not list((tmp_path / "m-baselines").glob("*-checkpoints/step-*"))
    metrics = json.loads((tmp_path / "m/metrics.json").read_text())
    assert list(metrics["baselines"]) == ["text", "image"]
    own = json.loads((tmp_path / "m-baselines/text/metrics.json").read_text())
    compared = metrics["baselines"]["text"]
    assert compared["metrics"]["accuracy"] == own["metrics"]["text"]["accuracy"]
    assert compared["num_rows"] == own["num_rows"] == metrics["metrics"]["text"]["num_rows_with_input"]
    assert compared["seconds"] == own["training"]["seconds"] and compared["parameters"] > 10_000

    assert train.main(words) == 0 and "the comparison with its specialists is in" in capsys.readouterr().out
