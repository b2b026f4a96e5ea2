"""A table on its way to the Hub and back: what is published, what is not, and what others load."""

import io
import re
from argparse import Namespace

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from datasets import Audio, ClassLabel, Image, List, Value, load_dataset
from hub_here import datasets_online, picture, push, push_tables, sound, write_rows
from huggingface_hub import DatasetCard
from local_hub import running_hub

from data import LabelMap, read_table
from hub import dataset as hub_dataset
from hub.dataset import export_dataset, open_tables


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with running_hub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture
def api(hub, tmp_path):
    with datasets_online(hub, tmp_path / "home") as api:
        yield api


def table_of(path, columns, **options):
    """A Parquet file as pandas or a user may have written it, read as a table."""
    import pyarrow as pa

    pq.write_table(pa.table(columns), path)
    return read_table(path, **options)


def export(tmp_path, tables, labels="fit", **options):
    folder = tmp_path / "export"
    folder.mkdir()
    labels = LabelMap.fit(tables["train"]) if labels == "fit" else labels
    return folder, export_dataset(tables, labels, folder, repo_id="alice/data", progress=False, **options)


def card(folder):
    return DatasetCard.load(folder / "README.md")


# --- There and back


def test_a_table_comes_back_from_the_hub_cell_by_cell(api, tmp_path):
    paths = {
        "train": write_rows(tmp_path / "t", 12),
        "test": write_rows(tmp_path / "t", 5, first=12, name="test"),
    }
    commit = push_tables(api, "alice/there-and-back", tmp_path / "export", **paths)
    for split, path in paths.items():
        here, there = read_table(path), read_table("alice/there-and-back", split=split)
        assert there.origin == {"hub_id": "alice/there-and-back", "revision": commit, "split": split}
        assert (there.presence == here.presence).all()
        assert there.labels() == here.labels()
        for row in range(len(here)):
            assert there.cell(row, "text") == here.cell(row, "text")
            for modality in ("image", "audio"):
                file = here.media(row, modality)
                assert there.media(row, modality) == (file and file.read_bytes())
                assert there.file_name(row, modality) == (file and file.name)
    assert LabelMap.fit(read_table("alice/there-and-back")) == LabelMap.fit(read_table(paths["train"]))


def test_others_load_pictures_decoded_and_sounds_as_audio(api, tmp_path):
    push_tables(api, "alice/for-others", tmp_path / "export", train=write_rows(tmp_path / "t", 5))
    loaded = load_dataset("alice/for-others", split="train")
    assert loaded.features == datasets.Features(
        {"text": Value("string"), "image": Image(), "audio": Audio(), "label": ClassLabel(names=["bad", "good"])}
    )
    row = loaded.cast_column("audio", Audio(decode=False))[1]
    assert row["image"].size == (12, 12) and row["label"] == 1
    assert soundfile.read(io.BytesIO(row["audio"]["bytes"]))[1] == 8000
    assert row["audio"]["path"] == "1.flac"


def test_everything_goes_up_in_one_commit(hub, api, tmp_path):
    folder, exported = export(tmp_path, {"train": read_table(write_rows(tmp_path / "t", 5))})
    push(api, "alice/one-commit", folder)
    files = set(hub.files("alice/one-commit", "dataset"))
    assert files == {"README.md", ".gitattributes", "data/train-00000-of-00001.parquet"}
    assert exported.splits["train"].files == ["data/train-00000-of-00001.parquet"]


# --- Labels


def test_several_labels_a_row_become_a_list_of_class_labels(tmp_path):
    table = table_of(tmp_path / "t.parquet", {"text": ["a", "b", "c"], "label": [["x", "y"], [], ["z"]]})
    folder, _ = export(tmp_path, {"train": table})
    back = read_table(folder / "data" / "train-00000-of-00001.parquet")
    assert back.source.features["label"] == List(ClassLabel(names=["x", "y", "z"]))
    assert back.labels() == [["x", "y"], [], ["z"]]
    assert LabelMap.fit(back) == LabelMap.fit(table)


@pytest.mark.parametrize("cells", [[0.5, 1.0, 2.0], [[0.5, 1.0], [2.0, 3.0], [4.0, 5.0]]])
def test_numbers_to_predict_stay_numbers(tmp_path, cells):
    table = table_of(tmp_path / "t.parquet", {"text": ["a", "b", "c"], "label": cells})
    labels = LabelMap.fit(table, "regression")
    folder, _ = export(tmp_path, {"train": table}, labels)
    back = read_table(folder / "data" / "train-00000-of-00001.parquet")
    assert back.labels() == cells
    feature = back.source.features["label"]
    assert feature == (List(Value("float64"), length=2) if isinstance(cells[0], list) else Value("float64"))
    assert LabelMap.declared(feature, "label", "x") == labels
    assert "--problem_type regression" in card(folder).text
    assert card(folder).data.task_categories is None


def test_a_table_without_labels_is_published_without(tmp_path):
    folder, _ = export(tmp_path, {"train": table_of(tmp_path / "t.parquet", {"text": ["a"]})}, labels=None)
    assert pq.read_schema(folder / "data" / "train-00000-of-00001.parquet").names == ["text"]
    assert "## Labels" not in card(folder).text


def test_a_split_without_labels_or_pictures_has_empty_cells_there(tmp_path):
    train = read_table(write_rows(tmp_path / "t", 6))
    test = table_of(tmp_path / "test.parquet", {"text": ["a", "b"]})
    folder, _ = export(tmp_path, {"train": train, "test": test})
    rows = pq.read_table(folder / "data" / "test-00000-of-00001.parquet").to_pylist()
    assert rows == [{"text": text, "image": None, "audio": None, "label": None} for text in "ab"]
    assert load_dataset("parquet", data_dir=str(folder / "data"), split="test", cache_dir=tmp_path).num_rows == 2


# --- What is published, and what is not


def test_other_columns_and_folders_stay_here_and_that_is_said(tmp_path):
    path = write_rows(tmp_path / "private_folder", 8)
    folder, exported = export(tmp_path, {"train": read_table(path)})
    assert exported.splits["train"].left_out == ("secret",)
    assert "train: not published: `secret`" in exported.describe()
    for file in folder.rglob("*"):
        if file.is_file():
            assert b"private_folder" not in file.read_bytes() and b"not for publication" not in file.read_bytes()


def test_of_a_path_only_the_file_name_is_published(tmp_path):
    cells = [
        {"bytes": picture(1), "path": "/home/alice/faces/one.png"},
        {"bytes": picture(2), "path": r"C:\Users\alice\two.png"},
        {"bytes": picture(3), "path": None},
    ]
    table = table_of(tmp_path / "t.parquet", {"image": cells, "label": ["a", "b", "a"]})
    folder, _ = export(tmp_path, {"train": table})
    rows = pq.read_table(folder / "data" / "train-00000-of-00001.parquet").to_pylist()
    assert [row["image"]["path"] for row in rows] == ["one.png", "two.png", "image_000003.png"]
    assert [row["image"]["bytes"] for row in rows] == [cell["bytes"] for cell in cells]


def test_a_sound_that_is_an_array_becomes_a_file_without_loss(tmp_path):
    wave = np.sin(np.arange(800) / 9).astype(np.float32)
    cells = [{"array": wave.tolist(), "sampling_rate": 8000}, None]
    table = table_of(tmp_path / "t.parquet", {"text": ["a", "b"], "audio": cells, "label": ["x", "y"]})
    folder, _ = export(tmp_path, {"train": table})
    audio = pq.read_table(folder / "data" / "train-00000-of-00001.parquet").to_pylist()[0]["audio"]
    samples, rate = soundfile.read(io.BytesIO(audio["bytes"]), dtype="float32")
    assert rate == 8000 and (samples == wave).all()
    assert audio["path"] == "audio_000001.wav"


def test_a_url_a_path_outside_and_what_is_no_file_are_refused_with_their_place(tmp_path):
    (tmp_path / "t").mkdir()
    (tmp_path / "secret.png").write_bytes(picture(1))
    (tmp_path / "t" / "notes.png").write_bytes(b"not a picture")
    for cell, reason in [
        ("http://127.0.0.1/a.png", "is a URL; URLs are never fetched"),
        ("../secret.png", "outside of"),
        ("notes.png", "are no image file that is known"),
        ("gone.png", "No such file"),
    ]:
        path = tmp_path / "t" / "t.csv"
        path.write_text(f"text,image,label\na,,x\nb,{cell},y\n")
        folder = tmp_path / re.sub(r"\W", "", cell)
        folder.mkdir()
        table = read_table(path)
        with pytest.raises(ValueError, match=rf"t\.csv:row 2, column `image`: .*{reason}"):
            export_dataset({"train": table}, None, folder, repo_id="alice/x", progress=False)


# --- Files


def test_large_splits_are_cut_into_files_in_the_order_of_the_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(hub_dataset, "MAX_SHARD_BYTES", 8_000)
    monkeypatch.setattr(hub_dataset, "MAX_GROUP_BYTES", 3_000)
    table = read_table(write_rows(tmp_path / "t", 30))
    folder, exported = export(tmp_path, {"train": table})
    files = exported.splits["train"].files
    assert len(files) > 3
    assert files == [f"data/train-{i:05d}-of-{len(files):05d}.parquet" for i in range(len(files))]
    assert sorted(str(path.relative_to(folder)) for path in (folder / "data").iterdir()) == files
    back = read_table(str(folder / "data" / "train-*.parquet"))
    assert [back.cell(i, "text") for i in range(30)] == [table.cell(i, "text") for i in range(30)]
    assert pq.ParquetFile(folder / files[0]).num_row_groups > 1


# --- The card


def test_the_card_says_what_datasets_needs_to_know(tmp_path):
    tables = {
        "train": read_table(write_rows(tmp_path / "t", 12)),
        "validation": read_table(write_rows(tmp_path / "t", 5, first=12, name="v")),
    }
    folder, exported = export(tmp_path, tables, license="cc-by-4.0")
    data = card(folder).data.to_dict()
    assert data["license"] == "cc-by-4.0"
    assert data["task_categories"] == ["text-classification", "image-classification", "audio-classification"]
    assert data["size_categories"] == ["n<1K"]
    assert data["configs"] == [
        {
            "config_name": "default",
            "data_files": [
                {"split": "train", "path": "data/train-*"},
                {"split": "validation", "path": "data/validation-*"},
            ],
        }
    ]
    splits = {split["name"]: split["num_examples"] for split in data["dataset_info"]["splits"]}
    assert splits == {"train": 12, "validation": 5}
    sizes = sum((folder / name).stat().st_size for split in exported.splits.values() for name in split.files)
    assert data["dataset_info"]["download_size"] == sizes


def test_the_card_counts_cells_labels_and_files_and_shows_no_row(tmp_path):
    table = read_table(write_rows(tmp_path / "t", 12))
    folder, _ = export(tmp_path, {"train": table})
    text = card(folder).text
    num_image, num_audio = int(table.presence[:, 1].sum()), int(table.presence[:, 2].sum())
    assert f"| `train` | 12 | {table.presence[:, 0].sum()} | {num_image} | {num_audio} |" in text
    assert "| bad | 6 |\n| good | 6 |" in text
    files = [table.media(row, "audio") for row in range(12)]
    assert f"| audio | FLAC ({num_audio}) | {sum(f.stat().st_size for f in files if f):,} |" in text
    assert 'load_dataset("alice/data")' in text
    assert "python train.py --dataset_name alice/data --output_dir" in text
    assert "words of row" not in text and ".png" not in text and str(tmp_path) not in text
    assert "None" not in text and "## Licence" not in text


def test_names_of_labels_stay_words_in_the_card(tmp_path):
    names = ["<script>alert(1)</script>", "a|b", "[x](http://evil)"]
    table = table_of(tmp_path / "t.parquet", {"text": ["a", "b", "c"], "label": names})
    folder, _ = export(tmp_path, {"train": table})
    text = card(folder).text
    assert "<script>" not in text and "](http" not in text
    assert read_table(folder / "data" / "train-00000-of-00001.parquet").labels() == names


# --- The helper of the command


def arguments(**given):
    names = ("validation_file", "test_file", "text_column", "image_column", "audio_column", "label_column")
    args = {**dict.fromkeys(names), "label_delimiter": None, "dataset_config_name": None}
    return Namespace(**{**args, "on_bad_cell": "error", "allow_outside_paths": False, **given})


def test_the_tables_of_a_command_are_opened_checked_and_labelled(tmp_path, capsys):
    train = write_rows(tmp_path / "t", 6)
    test = write_rows(tmp_path / "t", 4, first=6, name="test")
    tables, labels = open_tables(arguments(dataset=str(train), test_file=str(test)))
    assert {split: len(table) for split, table in tables.items()} == {"train": 6, "test": 4}
    assert labels.names == ("bad", "good")
    assert "test.csv: 4 rows checked" in capsys.readouterr().out


def test_a_bad_cell_or_an_unknown_label_stops_before_anything_is_written(tmp_path):
    train = write_rows(tmp_path / "t", 6)
    other = write_rows(tmp_path / "t", 4, labels=("bad", "ugly"), first=6, name="other")
    with pytest.raises(ValueError, match=r"other\.csv:row 2.*the label 'ugly' is not known"):
        open_tables(arguments(dataset=str(train), test_file=str(other)))
    (tmp_path / "t" / "1.flac").write_bytes(sound(1)[:30])
    with pytest.raises(ValueError, match=r"train\.csv:row 2, column `audio`.*\n.*--on_bad_cell"):
        open_tables(arguments(dataset=str(train)))
    tables, _ = open_tables(arguments(dataset=str(train), on_bad_cell="drop"))
    assert len(tables["train"]) == 5
