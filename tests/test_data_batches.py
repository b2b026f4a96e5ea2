"""Rows and batches as the model gets them, with a real processor."""

import pickle

import datasets
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast, ViTImageProcessorPil, Wav2Vec2FeatureExtractor

import data.batches
from data import Collator, FusionDataset, LabelMap, read_table
from processing_mmfusion import MMFusionProcessor


@pytest.fixture
def processor():
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "a": 2, "b": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return MMFusionProcessor(
        PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]"),
        ViTImageProcessorPil(size={"height": 16, "width": 16}),
        Wav2Vec2FeatureExtractor(sampling_rate=4_000, return_attention_mask=True),
        max_audio_seconds=0.2,
    )


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Six rows of every kind; the rows share two pictures and two sounds."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name, size in (("small", (8, 8)), ("large", (20, 10))):
        Image.new("RGB", size, "blue").save(tmp_path / f"{name}.png")
    for name, seconds in (("short", 0.1), ("long", 0.5)):
        soundfile.write(tmp_path / f"{name}.wav", np.sin(np.arange(int(8_000 * seconds)) / 9), 8_000)
    rows = [
        "a b,small.png,short.wav,x",
        "a,,,y",
        ",small.png,,x",
        ",,long.wav,y",
        "b b b,large.png,,z",
        "a,,short.wav,z",
    ]
    (tmp_path / "t.csv").write_text("\n".join(["text,image,audio,label", *rows]) + "\n")
    return read_table(tmp_path / "t.csv")


def test_rows_hold_opened_cells_or_none(table, processor):
    rows = FusionDataset(table, LabelMap.fit(table), processor)
    first, third, fourth = rows[0], rows[2], rows[3]
    assert (first["text"], first["label"], first["row"]) == ("a b", 0, 0)
    assert first["image"].size == (8, 8) and first["image"].mode == "RGB"
    assert first["audio"].dtype == np.float32 and first["audio"].shape == (400,)
    assert (third["text"], third["audio"], third["label"]) == (None, None, 0)
    assert (fourth["image"], fourth["audio"].shape) == (None, (800,))  # cut to 0.2 s


def test_a_batch_holds_what_the_model_takes_and_nothing_else(table, processor):
    rows = FusionDataset(table, LabelMap.fit(table), processor)
    batch = Collator(processor)([rows[index] for index in range(len(rows))])
    assert {name: tuple(tensor.shape) for name, tensor in batch.items()} == {
        "input_ids": (6, 3),
        "attention_mask": (6, 3),
        "pixel_values": (6, 3, 16, 16),
        "input_values": (6, 800),
        "audio_attention_mask": (6, 800),
        "modality_mask": (6, 3),
        "labels": (6,),
    }
    assert batch["modality_mask"].tolist() == table.presence.astype(int).tolist()
    assert batch["labels"].tolist() == [0, 1, 0, 1, 2, 2] and batch["labels"].dtype == torch.long
    assert batch["audio_attention_mask"].sum(1).tolist() == [400, 0, 0, 800, 0, 400]


def test_padding_is_that_of_the_batch_and_absent_modalities_are_left_out(table, processor):
    rows = FusionDataset(table, None, processor)
    batch = Collator(processor)([rows[1], rows[5]])
    assert batch["input_ids"].shape == (2, 1) and batch["input_values"].shape == (2, 400)
    assert not {"pixel_values", "labels"} & set(batch)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [(["0.5", "1.5"], [[0.5], [1.5]]), (["p;q", "q"], [[1.0, 1.0], [0.0, 1.0]])],
)
def test_labels_of_regression_and_multi_label_are_float_matrices(tmp_path, processor, cells, expected):
    (tmp_path / "f.csv").write_text("text,label\n" + "".join(f"a,{cell}\n" for cell in cells))
    table = read_table(tmp_path / "f.csv")
    rows = FusionDataset(table, LabelMap.fit(table, delimiter=";" if "p" in cells[0] else None), processor)
    labels = Collator(processor)([rows[0], rows[1]])["labels"]
    assert labels.dtype == torch.float32 and labels.tolist() == expected


def test_places_of_rows_come_when_asked_for(table, processor):
    rows = FusionDataset(table.select([4, 1]), None, processor)
    assert Collator(processor, with_rows=True)([rows[0], rows[1]])["rows"].tolist() == [4, 1]


def test_a_processor_that_cannot_read_a_modality_is_not_given_it(table, processor):
    only_text = MMFusionProcessor(processor.tokenizer)
    rows = FusionDataset(table, None, only_text)
    assert rows.modalities == ("text",) and rows[0]["image"] is rows[0]["audio"] is None
    assert set(Collator(only_text)([rows[0], rows[1]])) == {"input_ids", "attention_mask", "modality_mask"}


def test_a_cell_that_cannot_be_opened_is_named(table, processor):
    (table.root / "small.png").write_text("no picture")
    (table.root / "long.wav").unlink()
    rows = FusionDataset(table, None, processor)
    with pytest.raises(ValueError, match=r"t\.csv:row 3, column `image`: .*cannot be read as a picture"):
        rows[2]
    with pytest.raises(FileNotFoundError, match=r"t\.csv:row 4, column `audio`: .*does not exist"):
        rows[3]


def test_an_unknown_label_is_told_before_the_first_row(table, processor):
    with pytest.raises(ValueError, match=r"t\.csv:row 5, column `label`: the label 'z' is not known"):
        FusionDataset(table, LabelMap("single_label_classification", ("x", "y")), processor)


# --- The cache


@pytest.fixture
def opened(monkeypatch):
    calls = []
    real = data.batches.open_media
    monkeypatch.setattr(data.batches, "open_media", lambda *args: (calls.append(args[0]), real(*args))[1])
    return calls


def test_each_file_is_opened_once_for_all_rows_and_epochs(table, processor, opened):
    rows = FusionDataset(table, None, processor)
    for _ in range(3):
        [rows[index] for index in range(6)]
    assert len(opened) == 4 and rows[0]["image"] is rows[2]["image"] and rows[0]["audio"] is rows[5]["audio"]
    assert rows.cache.num_bytes == 3 * (64 + 200) + 4 * (400 + 800)


def test_the_cache_is_bounded_and_can_be_turned_off(table, processor, opened):
    rows = FusionDataset(table, None, processor, cache_bytes=2_000)
    [rows[index] for index in range(6)]
    assert rows.cache.num_bytes == 3 * 64 + 4 * 400  # what comes later does not push out what is there
    opened.clear()
    off = FusionDataset(table, None, processor, cache_bytes=0)
    assert np.array_equal(off[0]["audio"], rows[0]["audio"]) and off[0] is not None and len(off.cache) == 0
    with pytest.raises(ValueError, match="`cache_bytes` is -1"):
        FusionDataset(table, None, processor, cache_bytes=-1)


def test_bytes_in_a_table_are_kept_by_row(tmp_path, table, processor, opened):
    import pyarrow as pa
    import pyarrow.parquet as pq

    picture = (table.root / "small.png").read_bytes()
    pq.write_table(pa.table({"image": [picture, picture]}), tmp_path / "b.parquet")
    rows = FusionDataset(read_table(tmp_path / "b.parquet").select([1, 0]), None, processor)
    assert np.array_equal(rows[0]["image"], rows[1]["image"]) and len(opened) == 2
    assert rows[0]["image"] is rows[0]["image"] and len(opened) == 2


def test_workers_give_the_same_batches(table, processor):
    rows = FusionDataset(table, LabelMap.fit(table), processor)
    [rows[index] for index in range(6)]
    assert len(pickle.loads(pickle.dumps(rows)).cache) == 0
    here, there = (
        list(DataLoader(rows, batch_size=4, collate_fn=Collator(processor), num_workers=workers)) for workers in (0, 1)
    )
    for a, b in zip(here, there, strict=True):
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
