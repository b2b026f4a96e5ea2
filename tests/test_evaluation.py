"""The verb `evaluation.py`, called as a user calls it, on a tiny model folder and a table of real files."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import make_model, model_config
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, ViTImageProcessor, Wav2Vec2FeatureExtractor

import evaluation
from processing_mmfusion import MMFusionProcessor

ROOT = Path(__file__).parent.parent
LABELS = ["ant", "bee", "cat"]
SEVEN = ["text", "image", "audio", "text+image", "text+audio", "image+audio", "text+image+audio"]


def make_processor():
    words = ["[PAD]", "[UNK]", "a", "small", "loud", "red", "animal"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return MMFusionProcessor(
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"),
        ViTImageProcessor(size={"height": 16, "width": 16}),
        Wav2Vec2FeatureExtractor(return_attention_mask=True),
        max_text_length=16,
        max_audio_seconds=0.1,
    )


def make_folder(folder, **config_kwargs):
    """Write a model folder as the Hub would hold it; its classes come from its own copies of the travelling files."""
    kwargs = {"id2label": dict(enumerate(LABELS)), "label2id": {n: i for i, n in enumerate(LABELS)}, **config_kwargs}
    if "num_labels" in config_kwargs:
        del kwargs["id2label"], kwargs["label2id"]
    model = make_model(model_config(**{"num_labels": len(LABELS), **kwargs}))
    model.save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return folder


def make_table(folder, num_rows=6, label=lambda row: LABELS[row % 3]):
    """Write a CSV beside its pictures and sounds; row 2 has no text, row 3 no picture, row 4 no sound."""
    folder.mkdir(exist_ok=True)
    noise = np.random.default_rng(0)
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "words", "face", "voice", "kind"])
        for row in range(1, num_rows + 1):
            Image.fromarray(noise.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(folder / f"{row}.png")
            soundfile.write(folder / f"{row}.wav", noise.normal(0, 0.1, 800), 16_000)
            cells = ["a small animal", f"{row}.png", f"{row}.wav"]
            if 2 <= row <= 4:
                cells[row - 2] = ""
            writer.writerow([f"id{row}", *cells, label(row)])
    return folder / "rows.csv"


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def table(tmp_path_factory):
    return make_table(tmp_path_factory.mktemp("table"))


COLUMNS = ["--text_column", "words", "--image_column", "face", "--audio_column", "voice"]


def evaluate(folder, table, *more):
    arguments = [str(folder), "--data_file", str(table), *COLUMNS, "--label_column", "kind", "--device", "cpu", *more]
    return evaluation.main(arguments)


def test_seven_subsets_are_printed_and_written(folder, table, tmp_path, capsys):
    output = tmp_path / "new" / "metrics.json"
    assert evaluate(folder, table, "--output_file", str(output), "--per_device_eval_batch_size", "4") == 0
    result = json.loads(output.read_text())
    assert list(result["metrics"]) == SEVEN and result["num_rows"] == 6
    assert result["complete_rows"]["num_rows"] == 3
    assert set(result["metrics"]["text"]) == {
        "accuracy", "macro_f1", "expected_calibration_error", "num_rows_with_input"
    }  # fmt: skip
    printed = capsys.readouterr().out
    assert "All 6 rows:" in printed and "The 3 rows that have every modality:" in printed
    assert [path.name for path in output.parent.iterdir()] == ["metrics.json"]


def test_the_batch_size_changes_nothing(folder, table, tmp_path):
    results = []
    for size in ("1", "5"):
        output = tmp_path / f"{size}.json"
        assert evaluate(folder, table, "--output_file", str(output), "--per_device_eval_batch_size", size) == 0
        results.append(json.loads(output.read_text())["metrics"]["text+image+audio"])
    assert results[0] == pytest.approx(results[1], abs=1e-5)


def test_fewer_rows_and_fewer_columns_can_be_asked_for(folder, table, tmp_path):
    output = tmp_path / "metrics.json"
    columns = ["--audio_column", "none", "--max_eval_samples", "5"]
    assert evaluate(folder, table, *columns, "--output_file", str(output)) == 0
    result = json.loads(output.read_text())
    assert result["num_rows"] == 5 and result["metrics"]["audio"]["num_rows_with_input"] == 0
    assert "complete_rows" not in result


def test_a_regression_model_is_measured_in_its_own_metrics(tmp_path, capsys):
    folder = make_folder(tmp_path / "model", num_labels=1, problem_type="regression")
    table = make_table(tmp_path / "table", label=lambda row: row / 2)
    assert evaluate(folder, table) == 0
    assert "MAE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["--label_column", "sort"], "no column `sort`"),
        (["--audio_column", "nothing"], "no column `nothing`"),
        (["--label_column", "id"], "the label 'id1' is not known"),
    ],
)
def test_a_wrong_table_gets_a_sentence(folder, table, capsys, change, sentence):
    assert evaluate(folder, table, *change) == 1
    error = capsys.readouterr().err
    assert error.count("error: ") == 1 and sentence in error and "Traceback" not in error


def test_a_missing_table_gets_a_sentence(folder, tmp_path, capsys):
    assert evaluate(folder, tmp_path / "none.csv") == 1
    assert "none.csv` does not exist" in capsys.readouterr().err


def test_a_failure_leaves_the_old_numbers(folder, table, tmp_path):
    output = tmp_path / "metrics.json"
    output.write_text("old")
    assert evaluate(folder, table, "--label_column", "id", "--output_file", str(output)) == 1
    assert output.read_text() == "old"


def test_a_bad_picture_stops_or_is_left_out_as_asked(folder, tmp_path, capsys):
    table = make_table(tmp_path / "table")
    (table.parent / "5.png").write_bytes(b"no picture")
    assert evaluate(folder, table) == 1
    assert "rows.csv:row 5, column `face`" in capsys.readouterr().err
    assert evaluate(folder, table, "--on_bad_cell", "drop") == 0
    captured = capsys.readouterr()
    assert "All 5 rows:" in captured.out and "1 rows left out" in captured.err


# -- models that must not be measured ---------------------------------------------------------------------------------


def changed(folder, tmp_path, change):
    copy = shutil.copytree(folder, tmp_path / "copy")
    tensors = load_file(copy / "model.safetensors")
    change(tensors)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def test_a_missing_tensor_is_refused(folder, table, tmp_path, capsys):
    broken = changed(folder, tmp_path, lambda tensors: tensors.pop("classifier.weight"))
    assert evaluate(broken, table) == 1
    assert "do not fit its config (missing keys: `classifier.weight`)" in capsys.readouterr().err


def test_an_unknown_tensor_is_refused(folder, table, tmp_path, capsys):
    broken = changed(folder, tmp_path, lambda tensors: tensors.update(extra=torch.zeros(1)))
    assert evaluate(broken, table) == 1
    assert "unexpected keys: `extra`" in capsys.readouterr().err


def test_a_tensor_of_another_shape_is_refused(folder, table, tmp_path, capsys):
    broken = changed(folder, tmp_path, lambda tensors: tensors.update({"classifier.bias": torch.zeros(7)}))
    assert evaluate(broken, table) == 1
    error = capsys.readouterr().err
    assert "cannot be loaded" in error and "Traceback" not in error


def test_weights_that_are_not_numbers_are_refused(folder, table, tmp_path, capsys):
    broken = changed(folder, tmp_path, lambda tensors: tensors["classifier.bias"].fill_(float("nan")))
    assert evaluate(broken, table) == 1
    assert "NaN or infinite in `classifier.bias`" in capsys.readouterr().err


def test_cut_weights_and_pickles_are_refused(folder, table, tmp_path, capsys):
    copy = shutil.copytree(folder, tmp_path / "copy")
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert evaluate(copy, table) == 1
    assert "cannot be loaded: SafetensorError" in capsys.readouterr().err
    weights.unlink()
    torch.save({}, copy / "pytorch_model.bin")
    assert evaluate(copy, table) == 1
    assert "cannot be loaded: OSError" in capsys.readouterr().err


def test_what_is_no_model_folder_gets_a_sentence(table, tmp_path, capsys):
    assert evaluate(tmp_path / "nowhere", table) == 1
    assert "nowhere` does not exist: give a folder that `train.py` wrote" in capsys.readouterr().err
    assert evaluate(tmp_path, table) == 1
    assert "has no `config.json`" in capsys.readouterr().err


def test_a_model_of_another_kind_is_refused(table, tmp_path, capsys):
    from conftest import text_config
    from transformers import BertForSequenceClassification

    BertForSequenceClassification(text_config()).save_pretrained(tmp_path)
    make_processor().tokenizer.save_pretrained(tmp_path)
    assert evaluate(tmp_path, table) == 1
    assert "holds a `bert` model" in capsys.readouterr().err


def test_a_column_for_a_tower_that_the_model_lacks_is_refused(table, tmp_path, capsys):
    folder = make_folder(tmp_path / "model", audio_config=None)
    assert evaluate(folder, table) == 1
    assert "the column `voice` is named as audio, but the model reads only text, image" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["model"], ["model", "--data_file", "x", "--max_eval_samples", "0"]])
def test_a_wrong_call_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        evaluation.main(arguments)
    assert stop.value.code == 2 and "usage:" in capsys.readouterr().err
