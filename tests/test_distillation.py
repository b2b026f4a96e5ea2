"""A model that learns from a larger one: what both read, what the loss is, and that it helps."""

import csv
import json
import random
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import fresh, make_inputs, make_model, model_config, vit_config
from safetensors.torch import load_file
from test_distributed import FSDP, difference, steps_of, trained
from test_distributed import flags as one_sided  # noqa: F401

import train
from data import Collator, Columns, FusionDataset, LabelMap, demo, read_table
from training import distillation, resuming
from training.continuing import load_processor, load_weights
from training.distillation import Distillation, TaughtRows, Teacher
from training.objective import Objective
from training.towers import make_towers
from training.views import training_view

LABELS = LabelMap("single_label_classification", ("cat", "dog", "owl"))


WORDS = {"cat": ("purrs", "meows", "scratches"), "dog": ("barks", "fetches", "growls"), "owl": ("hoots", "glides")}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """A folder with texts that one word decides, and beside the training table one whose labels are mostly wrong."""
    folder, draw = tmp_path_factory.mktemp("rows"), random.Random(0)
    for name, count, wrong in (("train", 240, 0.0), ("noisy", 240, 0.8), ("validation", 60, 0.0)):
        with open(folder / f"{name}.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            for number in range(count):
                label = LABELS.names[number % 3]
                text = f"{draw.choice(('it', 'she', 'he'))} {draw.choice(WORDS[label])} in room {draw.randrange(99)}"
                writer.writerow([text, draw.choice(LABELS.names) if draw.random() < wrong else label])
    return folder


def run(rows, folder, *flags, train_file="train.csv"):
    """Train on text alone; the exit code."""
    fresh()
    files = ["--train_file", rows / train_file, "--validation_file", rows / "validation.csv"]
    argv = [*files, "--fusion_hidden_size", 32, "--vocab_size", 200, "--output_dir", folder, *flags]
    return train.main([str(word) for word in argv])


@pytest.fixture(scope="module")
def teacher_folder(rows, tmp_path_factory):
    """A teacher that was trained on the right labels."""
    folder = tmp_path_factory.mktemp("teacher") / "teacher"
    assert run(rows, folder, "--num_train_epochs", 6, "--fusion_hidden_size", 48) == 0
    return folder


def teacher_like(model, labels=LABELS, modalities=("text", "image", "audio")):
    """A teacher around a model that is here, its labels named."""
    teacher = Teacher.__new__(Teacher)
    teacher.name, teacher.config = "teacher", model.config
    teacher.model = lambda device: model.requires_grad_(False).eval()
    return teacher.fit(labels, modalities)


def named(model, names=LABELS.names):
    model.config.id2label, model.config.label2id = dict(enumerate(names)), {n: i for i, n in enumerate(names)}
    return model


def distillation_of(model, teacher, **flags):
    args = SimpleNamespace(distillation_weight=0.5, distillation_temperature=2.0, feature_weight=0.0)
    args.__dict__.update(flags)
    accelerator = SimpleNamespace(
        device=torch.device("cpu"), num_processes=1, sync_gradients=True, autocast=nullcontext, reduce=None
    )
    return Distillation(args, accelerator, model, teacher)


def batch_of(rows=5, **labels):
    return make_inputs(rows) | (labels or {"labels": torch.arange(rows) % 3})


# ---------------------------------------------------------------------------------------------------------------------
# The loss
# ---------------------------------------------------------------------------------------------------------------------


def test_without_a_teacher_the_loss_is_the_models_own():
    model = make_model().train()
    torch.manual_seed(0)
    expected = model(**batch_of()).loss
    torch.manual_seed(0)
    assert torch.equal(Objective()(model, batch_of()), expected)


def test_the_loss_is_that_of_the_labels_and_the_divergence_from_the_teacher():
    """In eval mode the row is fused once, and nothing is drawn."""
    model, other = make_model(seed=1), named(make_model(seed=2))
    loss = distillation_of(model, teacher_like(other), distillation_weight=0.3)(model, batch_of())
    own = model(**batch_of())
    said = other(**make_inputs()).logits
    divergence = F.kl_div(
        (own.logits / 2).log_softmax(1), (said / 2).log_softmax(1), reduction="batchmean", log_target=True
    )
    torch.testing.assert_close(loss, 0.7 * own.loss + 0.3 * 4 * divergence)


def test_a_model_that_answers_as_its_teacher_has_nothing_to_learn_from_it():
    model = named(make_model())
    objective = distillation_of(model, teacher_like(named(make_model())), distillation_weight=1.0)
    torch.testing.assert_close(objective(model, batch_of()), torch.tensor(0.0), atol=1e-6, rtol=0)


def test_labels_are_matched_by_their_names():
    """The same teacher, its labels numbered in another order."""
    order = [2, 0, 1]
    turned = named(make_model(seed=2), [LABELS.names[i] for i in order])
    with torch.no_grad():
        turned.classifier.weight.copy_(turned.classifier.weight[order].clone())
        turned.classifier.bias.copy_(turned.classifier.bias[order].clone())
    model = make_model(seed=1)
    losses = [
        distillation_of(model, teacher_like(one))(model, batch_of()) for one in (named(make_model(seed=2)), turned)
    ]
    torch.testing.assert_close(*losses)


def test_rows_that_have_nothing_the_teacher_reads_have_no_part_in_it():
    model, teacher = make_model(seed=1), named(make_model(model_config(vision_config=None, audio_config=None), seed=2))
    loss = distillation_of(model, teacher_like(teacher), distillation_weight=1.0)(model, batch_of())
    inputs = make_inputs()
    read = {name: inputs[name] for name in ("input_ids", "attention_mask", "modality_mask")}
    said, logits = teacher(**read).logits, model(**inputs).logits
    has_text = inputs["modality_mask"][:, 0]
    each = F.kl_div((logits / 2).log_softmax(1), (said / 2).log_softmax(1), reduction="none", log_target=True).sum(1)
    assert 0 < has_text.sum() < len(has_text)
    torch.testing.assert_close(loss, 4 * (each * has_text).mean())


def test_a_batch_without_anything_for_the_teacher_is_learnt_from_its_labels():
    model, teacher = make_model(seed=1), named(make_model(model_config(vision_config=None, audio_config=None), seed=2))
    objective = distillation_of(model, teacher_like(teacher), feature_weight=1.0)
    batch = {name: value for name, value in batch_of().items() if name not in ("input_ids", "attention_mask")}
    torch.testing.assert_close(objective(model, dict(batch)), 0.5 * model(**batch).loss)


def test_in_training_the_random_subset_of_a_row_is_taught_what_the_teacher_says_of_the_whole():
    model, teacher = make_model(model_config(modality_dropout=0.5), seed=1), named(make_model(seed=2))
    objective, compared = distillation_of(model.train(), teacher_like(teacher), feature_weight=1.0), []
    unlike, distance = objective._unlikeness, objective._distance
    objective._unlikeness = lambda *pair: compared.append(pair) or unlike(*pair)
    objective._distance = lambda *pair: compared.append(pair) or distance(*pair)
    objective(model, batch_of()).backward()
    assert [own.shape[1] for own, _ in compared] == [3, 3, 32, 32]
    assert not torch.equal(compared[0][0], compared[1][0]) and torch.equal(compared[0][1], compared[1][1])
    assert all(parameter.grad is None for parameter in objective.teacher.parameters())


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
def test_several_labels_and_numbers_are_taught_too(problem_type):
    model, teacher = (make_model(model_config(problem_type=problem_type), seed=seed) for seed in (1, 2))
    labels = LabelMap(problem_type, LABELS.names)
    objective = distillation_of(model, teacher_like(named(teacher), labels), distillation_weight=1.0)
    batch = batch_of(labels=torch.rand(5, 3).round())
    said, logits = teacher(**make_inputs()).logits, model(**make_inputs()).logits
    if problem_type == "regression":
        expected = F.mse_loss(logits, said)
    else:
        wanted = (said / 2).sigmoid()
        entropy = F.binary_cross_entropy(wanted, wanted)
        expected = 4 * (F.binary_cross_entropy_with_logits(logits / 2, wanted) - entropy)
    torch.testing.assert_close(objective(model, batch), expected)


def test_fused_vectors_of_another_width_are_compared_through_a_map_that_is_no_part_of_the_model():
    model = make_model(seed=1)
    teacher = named(make_model(model_config(hidden_size=40, num_attention_heads=4), seed=2))
    objective = distillation_of(model, teacher_like(teacher), feature_weight=1.0, distillation_weight=0.0)
    loss = objective.learn(model, batch_of(), torch.Tensor.backward)
    mapped = objective.extra["to_teacher"](model.mmfusion(**make_inputs()).pooler_output)
    vectors = teacher.mmfusion(**make_inputs()).pooler_output
    torch.testing.assert_close(loss, model(**batch_of()).loss + F.mse_loss(mapped, vectors))
    assert objective.extra["to_teacher"].weight.shape == (40, 32)
    assert all(parameter.grad is not None for parameter in objective.extra.parameters())
    assert not any("to_teacher" in name for name in model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters())
    objective.join(SimpleNamespace(learning_rate=1e-3, weight_decay=0.1), optimizer)
    assert [len(group["params"]) for group in optimizer.param_groups[1:]] == [2]


def test_fused_vectors_of_the_same_width_need_no_map():
    model, teacher = make_model(seed=1), named(make_model(seed=2))
    objective = distillation_of(model, teacher_like(teacher), feature_weight=1.0)
    assert not list(objective.extra.parameters()) and not objective.extra.state_dict()


# ---------------------------------------------------------------------------------------------------------------------
# What both read
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = demo.make_demo(tmp_path_factory.mktemp("demo") / "demo", num_rows=100)
    return read_table(str(folder / "train.csv"), columns=Columns()).select(range(12))


def processor_of(texts=("the cat sat", "one two"), image_size=32, sampling_rate=16_000, **more):
    names = ("text", "image", "audio")
    sizes = {"vocab_size": 100, "max_text_length": 32, "max_audio_seconds": 10.0, **more}
    return make_towers(
        names, dict.fromkeys(names), texts=texts, image_size=image_size, sampling_rate=sampling_rate, **sizes
    ).processor


def view(table, processor, teacher_processor, **flags):
    """(Rows, what puts them together) for a model and a teacher with these processors."""
    teacher = Teacher.__new__(Teacher)
    teacher.name, teacher.processor, teacher.modalities = "t", teacher_processor, teacher_processor.modalities
    args = SimpleNamespace(augment=(), **flags)
    return training_view(args, FusionDataset(table, None, processor), Collator(processor), processor, teacher)


def test_what_both_prepare_alike_is_prepared_once(table, tmp_path):
    """Also where one was made and the other loaded."""
    processor = processor_of()
    processor.save_pretrained(tmp_path)
    processor(text=["padded to the longest", "x"])  # the tokenizer remembers how it padded last
    dataset, collate = view(table, processor, load_processor(str(tmp_path)))
    assert type(dataset) is FusionDataset and type(collate) is Collator


def test_what_the_teacher_prepares_otherwise_stands_beside_it(table):
    """A tokenizer that knows other words, pictures of another size, sounds at another rate."""
    processor, others = processor_of(), processor_of(("please press five",), 24, 8000)
    dataset, collate = view(table, processor, others)
    batch = collate([dataset[index] for index in range(12)])
    plain = Collator(processor)([FusionDataset(table, None, processor)[index] for index in range(12)])
    taught = Collator(others)([FusionDataset(table, None, others)[index] for index in range(12)])
    assert isinstance(dataset, TaughtRows)
    assert {name for name in batch if not name.startswith("teacher.")} == set(plain)
    assert all(torch.equal(batch[name], plain[name]) for name in plain)
    read = {name.removeprefix("teacher.") for name in batch} - set(plain) | (set(taught) - {"modality_mask"})
    assert all(torch.equal(batch[f"teacher.{name}"], taught[name]) for name in read)
    assert batch["teacher.pixel_values"].shape[-1] == 24 and batch["pixel_values"].shape[-1] == 32


def test_only_what_differs_is_prepared_twice(table):
    dataset, collate = view(table, processor_of(), processor_of(image_size=24))
    teacher = Teacher.__new__(Teacher)
    teacher.name, teacher.processor, teacher.modalities = "t", processor_of(image_size=24), ("text", "image", "audio")
    assert teacher.describe(processor_of()).endswith("t reads text, image, audio; image prepared for it once more")
    names = [name for name in collate([dataset[0], dataset[1], dataset[2]]) if name.startswith("teacher.")]
    assert type(dataset) is FusionDataset and names == ["teacher.pixel_values"]


def test_the_teacher_gets_its_own_inputs_and_the_model_none_of_them():
    teacher = named(make_model(model_config(vision_config=vit_config(image_size=24)), seed=2))
    model = make_model(seed=1)
    objective, read = distillation_of(model, teacher_like(teacher)), {}
    teacher.register_forward_pre_hook(lambda module, args, kwargs: read.update(kwargs), with_kwargs=True)
    batch = batch_of() | {"teacher.pixel_values": torch.zeros(5, 3, 24, 24)}
    objective(model, batch)
    assert read["pixel_values"].shape[-1] == 24 and "labels" not in read and torch.equal(
        read["input_ids"], batch["input_ids"]
    )  # fmt: skip
    assert batch["pixel_values"].shape[-1] == 16 and not any(name.startswith("teacher.") for name in batch)


def test_a_stream_opens_each_sound_once(table):
    processor, teacher = processor_of(), Teacher.__new__(Teacher)
    teacher.name, teacher.processor, teacher.modalities = "owner/large", processor_of(sampling_rate=8000), ("audio",)
    stream = SimpleNamespace(modalities=("audio",), sampling_rate=16_000)
    with pytest.raises(ValueError, match=r"owner/large hears 10 s at 8,000 Hz .* model 10 s at 16,000 Hz; with --"):
        training_view(SimpleNamespace(augment=()), stream, Collator(processor), processor, teacher)


# ---------------------------------------------------------------------------------------------------------------------
# Refused
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            LabelMap("regression", ("stars",)),
            "was trained for single_label_classification, and these rows are for ",
        ),
        (LabelMap(LABELS.problem_type, ("cat", "dog", "emu")), "does not know `emu` and it also knows `owl`. Give a"),
        (LabelMap(LABELS.problem_type, ("cat", "dog")), "has other labels than these rows: it also knows `owl`"),
    ],
)
def test_a_teacher_of_something_else_is_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        teacher_like(named(make_model()), labels)


def test_a_teacher_of_one_number_may_call_it_otherwise():
    model = make_model(model_config(problem_type="regression", num_labels=1))
    assert teacher_like(named(model, ["rating"]), LabelMap("regression", ("stars",))).order == [0]


def test_a_teacher_that_reads_nothing_of_the_rows_is_refused():
    model = named(make_model(model_config(vision_config=None, audio_config=None)))
    with pytest.raises(ValueError, match="reads text, and the model is trained on image, audio: they have noth"):
        teacher_like(model, modalities=("image", "audio"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--feature_weight", "1"], "--feature_weight belongs to --teacher: name the model"),
        (["--teacher_revision", "main"], "--teacher_revision belongs to --teacher"),
        (["--teacher", "t", "--distillation_weight", "1.5"], "it is a part of the loss, give 0 to 1"),
        (["--teacher", "t", "--distillation_weight", "0"], "are 0, so that nothing would be learnt"),
    ],
)
def test_flags_that_would_change_nothing_are_refused(flags, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        train.main(["--train_file", "t.csv", "--output_dir", "m", *flags])
    assert message in capsys.readouterr().err


def test_a_teacher_that_is_not_there_is_told_before_any_row_is_read(rows, tmp_path, capsys):
    assert run(rows, tmp_path / "m", "--teacher", "./nowhere", train_file="no.csv") == 1
    assert "--teacher ./nowhere: there is no such folder, or it has no `config.json`" in capsys.readouterr().err


def test_a_teacher_whose_weights_are_not_numbers_is_refused(teacher_folder, tmp_path):
    args = SimpleNamespace(teacher=str(teacher_folder), teacher_revision=None)
    teacher = Teacher(args)
    model = load_weights(args.teacher, None, teacher.config, "--teacher")
    torch.nn.init.constant_(model.classifier.bias, float("nan"))
    model.save_pretrained(tmp_path)
    teacher.name = str(tmp_path)
    with pytest.raises(ValueError, match=r"its weights are not finite, `classifier.bias` for one"):
        teacher.model(torch.device("cpu"))


# ---------------------------------------------------------------------------------------------------------------------
# Whole runs
# ---------------------------------------------------------------------------------------------------------------------


def answers(folder, rows):
    """What a model says to the validation texts."""
    processor = load_processor(str(folder))
    model = load_weights(str(folder), None, distillation.load_config(str(folder)), "-").eval()
    with open(rows / "validation.csv", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file) if row["text"].strip()]
    with torch.no_grad():
        said = model(**processor(text=texts)).logits.argmax(1)
    return [model.config.id2label[int(number)] for number in said]


def test_a_model_with_wrong_labels_answers_more_like_its_teacher_than_one_without(rows, teacher_folder, tmp_path):
    epochs = ["--num_train_epochs", 6]
    taught = ["--teacher", teacher_folder, "--distillation_weight", 0.9, "--feature_weight", 0.1]
    assert run(rows, tmp_path / "alone", *epochs, train_file="noisy.csv") == 0
    assert run(rows, tmp_path / "taught", *epochs, *taught, train_file="noisy.csv") == 0
    wanted, alone, learnt = (
        answers(folder, rows) for folder in (teacher_folder, tmp_path / "alone", tmp_path / "taught")
    )
    agreement = [np.mean([a == b for a, b in zip(wanted, said, strict=True)]) for said in (alone, learnt)]
    assert agreement[1] > agreement[0] + 0.15, agreement
    recorded = json.loads((tmp_path / "taught" / "training_config.json").read_text())["arguments"]
    assert (recorded["teacher"], recorded["distillation_weight"]) == ("teacher", 0.9)
    assert not [name for name in load_file(tmp_path / "taught" / "model.safetensors") if "teacher" in name]


def test_a_taught_run_that_was_cut_off_ends_with_the_same_weights(rows, teacher_folder, tmp_path, monkeypatch):
    """With a map to the teacher's width, which is in the checkpoint with the optimizer's state of it."""
    taught = ["--teacher", teacher_folder, "--feature_weight", 1, "--num_train_epochs", 2, "--max_train_samples", 90]
    assert run(rows, tmp_path / "whole", *taught) == 0
    save, cut = resuming.Keeper.save, [*taught, "--checkpointing_steps", 4]

    def save_and_die(*args, **options):
        save(*args, **options)
        raise OSError("cut off")

    with monkeypatch.context() as patched:
        patched.setattr(resuming.Keeper, "save", save_and_die)
        assert run(rows, tmp_path / "cut", *cut) == 1
    beside = load_file(next((tmp_path / "cut-checkpoints").glob("step-*")) / "beside.safetensors")
    assert beside["to_teacher.weight"].shape == (48, 32)
    assert run(rows, tmp_path / "cut", *cut, "--resume_from_checkpoint", "latest") == 0
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_two_processes_learn_from_a_teacher_as_one_does(forks, one_sided, tmp_path):  # noqa: F811
    """One of them has only what the teacher does not read; and each batch counts twice, its words moved."""
    flags = one_sided
    for name in ("teacher", "alone", "together", "divided"):
        (tmp_path / name).mkdir()
    teacher = ["--audio_model_name_or_path", "none", "--fusion_hidden_size", 40, "--on_bad_cell", "drop"]
    trained(forks, flags, tmp_path / "teacher", *teacher, num_processes=1)
    taught = ["--teacher", tmp_path / "teacher" / "m", "--feature_weight", 1, "--fgm_epsilon", 0.1]
    taught += ["--augment", "text,image,audio"]
    alone = trained(forks, flags, tmp_path / "alone", *taught, num_processes=1)
    for name, env in (("together", {}), ("divided", FSDP)):
        folder = trained(forks, flags, tmp_path / name, *taught, **env)
        for value in ("loss", "gradient_norm"):
            ours, expected = ([step[value] for step in steps_of(one)] for one in (folder, alone))
            assert ours == pytest.approx(expected, abs=1e-4), (name, value)
        assert difference(folder, alone) < 1e-4
