"""Rows as people have them become batches, and no keyword of the processor disappears."""

import io
import math
import pickle

import datasets
import numpy as np
import pytest
import soundfile
import torch
from conftest import make_model, model_config
from PIL import Image
from test_evaluation import make_processor

LABELS = {0: "ant", 1: "bee", 2: "cat"}
PICTURE = Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3))
TONE = {"array": np.sin(np.arange(1600) / 9), "sampling_rate": 16_000}
TASKS = [
    {"name": "mood", "problem_type": "single_label_classification", "labels": ["good", "bad"]},
    {"name": "topics", "problem_type": "multi_label_classification", "labels": ["x", "y"]},
    {"name": "age", "problem_type": "regression", "labels": ["age"]},
]


def config(**kwargs):
    label2id = {name: number for number, name in LABELS.items()}
    return model_config(**{"id2label": LABELS, "label2id": label2id, **kwargs})


def png():
    file = io.BytesIO()
    PICTURE.save(file, "PNG")
    return file.getvalue()


def wav():
    file = io.BytesIO()
    soundfile.write(file, TONE["array"], TONE["sampling_rate"], format="WAV", subtype="FLOAT")
    return file.getvalue()


@pytest.fixture(scope="module")
def processor():
    return make_processor()


def are_close(first, second):
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=1e-4, rtol=1e-4)


# -- keywords ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "meant"),
    [("imagse", "image"), ("img", "image"), ("texts", "text"), ("sound", "audio"), ("audios", "audio"),
     ("sampling_rates", "sampling_rate"), ("max_lenght", "max_length"), ("videos", "image"), ("labels", "text")],
)  # fmt: skip
def test_an_unknown_keyword_of_the_processor_is_an_error_that_names_what_is_near(name, meant, processor):
    with pytest.raises(TypeError, match=f"`{name}`.*{meant}"):
        processor(text="a", **{name: [1]})


@pytest.mark.parametrize("group", ["text_kwargs", "images_kwargs", "audio_kwargs"])
def test_a_nested_keyword_too(group, processor):
    with pytest.raises(TypeError, match=f"`no_such_option` in `{group}`"):
        processor(text="a", **{group: {"no_such_option": 1}})


@pytest.mark.parametrize(
    "kwargs",
    [{"padding": "max_length", "max_length": 7}, {"do_resize": False}, {"return_tensors": "np"},
     {"text_kwargs": {"split_special_tokens": False}}, {"images_kwargs": {"do_normalize": False}},
     {"audio_kwargs": {"padding": "max_length", "max_length": 2000}}, {"common_kwargs": {"return_tensors": "pt"}}],
    ids=str,
)  # fmt: skip
def test_options_of_the_parts_are_taken(kwargs, processor):
    processor(text="a", images=np.zeros((16, 16, 3), np.uint8), audio=TONE, **kwargs)


def test_image_and_images_mean_the_same(processor):
    are_close(processor(image=PICTURE), processor(images=[PICTURE]))
    with pytest.raises(ValueError, match="`image` and `images`"):
        processor(image=PICTURE, images=PICTURE)


def test_all_modalities_can_be_asked_for(processor):
    full = processor(text="a", images=PICTURE, audio=TONE)
    for given in ({"text": ["a", None]}, {"images": [PICTURE, None]}, {"audio": [TONE, None]}, {"text": [None, None]}):
        batch = processor(**given, all_modalities=True)
        assert batch.keys() == full.keys() and {len(value) for value in batch.values()} == {2}
        assert batch["modality_mask"].sum() == sum(cell is not None for cells in given.values() for cell in cells)
        model = make_model(config())
        plain = processor(**given)
        if batch["modality_mask"].any():
            are_close({"logits": model(**batch).logits}, {"logits": model(**plain).logits})


# -- rows -------------------------------------------------------------------------------------------------------------


def test_a_cell_means_the_same_in_every_form(processor, tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "a.wav").write_bytes(wav())
    collate = processor.collator()
    expected = collate([{"text": "a", "image": PICTURE, "audio": TONE}, {"text": None}])
    empty = {"text": math.nan, "image": {"bytes": None, "path": None}, "audio": None}
    for image, audio in [
        (png(), wav()),
        (tmp_path / "a.png", str(tmp_path / "a.wav")),
        ({"bytes": png(), "path": None}, {"bytes": None, "path": str(tmp_path / "a.wav")}),
        (np.asarray(PICTURE), TONE),
    ]:
        are_close(collate([{"text": "a", "image": image, "audio": audio, "id": 7}, empty]), expected)
    are_close(collate([{"text": "a", "images": PICTURE, "audio": TONE}, {"text": " "}]), expected)


def test_columns_of_other_names_are_named(processor):
    collate = processor.collator(text="utterance", image="face", labels="mood")
    batch = collate([{"utterance": "a", "face": PICTURE, "mood": 2}, {"utterance": "b", "face": None, "mood": 0}])
    assert batch["labels"].tolist() == [2, 0] and batch["modality_mask"].tolist() == [[1, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize(
    ("columns", "row"),
    [({}, {"label": 1}), ({"text": "utterance"}, {"text": "a"}), ({}, {"labels": 1, "id": 3})],
    ids=str,
)
def test_rows_without_the_columns_are_refused_with_the_argument_of_trainer(columns, row, processor):
    with pytest.raises(ValueError, match="remove_unused_columns=False"):
        processor.collator(**columns)([row])


def test_a_cell_that_cannot_be_opened_is_named(processor):
    with pytest.raises(ValueError, match="`image` of row 1 of the batch"):
        processor.collator()([{"image": PICTURE}, {"image": b"no picture"}])
    with pytest.raises(ValueError, match=r"`audio` of row 0.*URL"):
        processor.collator()([{"audio": "https://example.com/a.wav"}])
    with pytest.raises(ValueError, match="no rows"):
        processor.collator()([])


def test_a_collator_goes_to_workers(processor):
    collate = pickle.loads(pickle.dumps(processor.collator(config())))
    assert collate([{"text": "a", "label": "bee"}])["labels"].tolist() == [1]


# -- rows that were prepared ------------------------------------------------------------------------------------------


def test_prepared_rows_are_padded_to_what_the_processor_gives(processor):
    rows = [{"text": "a small red", "image": PICTURE}, {"text": "a", "audio": TONE, "image": None}]
    data = datasets.Dataset.from_dict({"text": ["a small red", "a"], "label": [1, 2]})

    def prepare(batch):
        return processor(text=batch["text"], all_modalities=True)

    prepared = data.map(prepare, batched=True, batch_size=1, remove_columns=["text"])
    batch = processor.collator(config())([*prepared])
    assert batch.pop("labels").tolist() == [1, 2]
    are_close(batch, processor(text=["a small red", "a"], all_modalities=True))
    each = [{name: value[0] for name, value in processor.collator()([row]).items()} for row in rows]
    are_close(processor.collator()(each), processor.collator()(rows))


# -- labels -----------------------------------------------------------------------------------------------------------

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
NAN = math.nan


@pytest.mark.parametrize(
    ("problem", "cells", "expected"),
    [
        (SINGLE, ["bee", "ant", " cat "], [1, 0, 2]),
        (SINGLE, [1, 0, 2], [1, 0, 2]),
        (SINGLE, [np.int64(1), 2.0, torch.tensor(0)], [1, 2, 0]),
        (SINGLE, ["1", None, NAN], [1, -100, -100]),
        (MULTI, [[1, 0, 1], [0, 0, 0]], [[1, 0, 1], [0, 0, 0]]),
        (MULTI, [["ant", "cat"], []], [[1, 0, 1], [0, 0, 0]]),
        (MULTI, [[0, 2], "bee"], [[1, 0, 1], [0, 1, 0]]),
        (MULTI, [np.array([True, False, True]), (0.0, 1.0, 0.0)], [[1, 0, 1], [0, 1, 0]]),
        (MULTI, [["ant"], None], [[1, 0, 0], [NAN, NAN, NAN]]),
        (REGRESSION, [[1.5, 2, None], (0, 0, 0)], [[1.5, 2, NAN], [0, 0, 0]]),
    ],
    ids=str,
)  # fmt: skip
def test_labels_are_read_by_the_configuration(problem, cells, expected, processor):
    rows = [{"text": "a", "label": cell} for cell in cells]
    labels = processor.collator(config(problem_type=problem))(rows)["labels"]
    assert labels.dtype == (torch.long if problem == SINGLE else torch.float32)
    torch.testing.assert_close(labels, torch.tensor(expected, dtype=labels.dtype), equal_nan=True)


def test_one_number_is_one_number(processor):
    collate = processor.collator(model_config(num_labels=1, problem_type=REGRESSION))
    assert collate([{"text": "a", "labels": 2.5}, {"text": "b", "labels": 3}])["labels"].tolist() == [
        [2.5],
        [3],
    ]


@pytest.mark.parametrize(
    ("problem", "cell"),
    [(SINGLE, "be"), (SINGLE, 3), (SINGLE, -1), (SINGLE, 0.5), (MULTI, ["ant", "dog"]), (MULTI, [7]),
     (REGRESSION, [1.0]), (REGRESSION, "much")],
)  # fmt: skip
def test_an_unknown_label_is_named_with_its_row(problem, cell, processor):
    with pytest.raises(ValueError, match="`label` of row 1 of the batch"):
        rows = [{"text": "a", "label": None}, {"text": "a", "label": cell}]
        processor.collator(config(problem_type=problem))(rows)


def test_labels_of_several_tasks_stand_side_by_side(processor):
    several = model_config(tasks=TASKS, num_labels=5)
    rows = [{"text": "a", "mood": "bad", "topics": ["y"], "years": 40}, {"text": "b", "mood": None, "topics": None}]
    labels = processor.collator(several, labels={"age": "years"})(rows)["labels"]
    expected = torch.tensor([[1.0, 0, 1, 40], [NAN, NAN, NAN, NAN]])
    torch.testing.assert_close(labels, expected, equal_nan=True)
    assert make_model(several)(**processor.collator(several)(rows)).loss.isfinite()


@pytest.mark.parametrize(
    ("cells", "kind"), [([1, 0], torch.int64), ([0.5, 1.0], torch.float32), ([[0, 1], [1, 1]], torch.float32)], ids=str
)
def test_without_a_configuration_labels_are_numbers(cells, kind, processor):
    rows = [{"text": "a", "label": cell} for cell in cells]
    assert processor.collator()(rows)["labels"].dtype == kind
    with pytest.raises(ValueError, match="config"):
        processor.collator()([{"text": "a", "label": "bee"}])


def test_rows_without_labels_make_a_batch_without(processor):
    assert "labels" not in processor.collator(config())([{"text": "a"}])
