"""Rows that are changed at random in training: what is done to a cell, that it comes from seed, epoch and row alone,
and that nothing of it reaches an evaluation."""

import argparse
import math
import random

import numpy as np
import pytest
import torch
from conftest import fresh, make_inputs, make_model, model_config
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import DataLoader, IterableDataset

import train
from data import Collator, Columns, FusionDataset, demo, read_table
from training import augmentation, resuming
from training.arguments import parse_args
from training.augmentation import (
    AugmentedCollator,
    Augmenter,
    Epoch,
    augmented_rows,
    begin_epoch,
    changed_audio,
    changed_image,
    drop_tokens,
    with_typos,
)
from training.flags import STRENGTHS
from training.objective import Adversarial, Objective, make_objective
from training.towers import make_towers
from training.views import training_view
from training.workers import WatchedRows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return demo.make_demo(tmp_path_factory.mktemp("demo") / "demo", num_rows=100)


@pytest.fixture(scope="module")
def table(folder):
    return read_table(str(folder / "train.csv"), columns=Columns()).select(range(10))


@pytest.fixture(scope="module")
def processor():
    names, texts = ("text", "image", "audio"), ("please press one", "not four but three", "seven minus two")
    sizes = {"vocab_size": 200, "image_size": 32, "sampling_rate": 8000, "max_text_length": 32}
    return make_towers(names, dict.fromkeys(names), texts=texts, max_audio_seconds=10.0, **sizes).processor


def args_of(*flags):
    return parse_args(["--train_file", "t.csv", "--output_dir", "new_model", *map(str, flags)], "", "")


def only(**strengths):
    """The named change at that strength, all others off."""
    off = {name: 40.0 if name == "audio_noise_snr_db" else 0 for name in STRENGTHS}
    return argparse.Namespace(**{**off, **strengths})


def drawn(seed=0):
    return np.random.default_rng(seed)


def are_equal(first, second):
    """Rows of a dataset."""
    pairs = [(np.asarray(first[name]), np.asarray(second[name])) for name in ("text", "image", "audio")]
    return all(np.array_equal(a, b) for a, b in pairs)


# ---------------------------------------------------------------------------------------------------------------------
# Sounds
# ---------------------------------------------------------------------------------------------------------------------

RATE = 8000


def tone(hertz=440, seconds=1.0):
    return np.sin(2 * np.pi * hertz * np.arange(round(RATE * seconds)) / RATE).astype(np.float32) / 2


def peak_hertz(sound):
    return np.abs(np.fft.rfft(sound)).argmax() * RATE / len(sound)


def test_a_sound_played_faster_is_shorter_and_higher():
    lengths = set()
    for seed in range(20):
        sound = changed_audio(tone(), RATE, only(audio_speed=0.2), drawn(seed))
        factor = RATE / len(sound)
        assert 1 / 1.21 < factor < 1.21 and abs(peak_hertz(sound) - 440 * factor) < 3
        lengths.add(len(sound) > RATE)
    assert lengths == {True, False}


def test_a_filter_raises_and_lowers_parts_of_the_spectrum_within_its_limits():
    sound = drawn().standard_normal(RATE).astype(np.float32)
    changed = changed_audio(sound, RATE, only(audio_filter_db=6), drawn(1))
    gain = 20 * np.log10(np.abs(np.fft.rfft(changed)[1:-1]) / np.abs(np.fft.rfft(sound)[1:-1]))
    assert np.abs(gain).max() < 6.01 and gain.std() > 1 and np.abs(np.diff(gain)).max() < 0.1


def test_a_shift_loses_nothing():
    sound = drawn().standard_normal(RATE).astype(np.float32)
    changed = changed_audio(sound, RATE, only(audio_shift_seconds=0.1), drawn(1))
    moved = int(np.flatnonzero(changed == sound[0])[0])
    assert 0 < min(moved, RATE - moved) <= 0.1 * RATE
    assert np.array_equal(np.roll(sound, moved), changed)


def test_a_gain_goes_from_one_random_value_to_another():
    sound = np.full(RATE, 0.1, np.float32)
    gain = 20 * np.log10(changed_audio(sound, RATE, only(audio_gain_db=6), drawn(1)) / sound)
    assert np.abs(gain).max() <= 6.001 and abs(gain[0] - gain[-1]) > 0.5
    np.testing.assert_allclose(np.diff(gain), np.diff(gain).mean(), atol=1e-4)


def test_noise_keeps_to_its_ratio():
    for seed in range(10):
        noise = changed_audio(tone(), RATE, only(audio_noise_snr_db=10), drawn(seed)) - tone()
        assert 9.9 < 10 * math.log10(float(np.mean(tone() ** 2) / np.mean(noise**2))) < 40.1


def test_silence_and_the_shortest_clips_can_be_changed(processor):
    everything = only(**{name: value for name, (kind, value) in STRENGTHS.items() if kind == "audio"})
    assert not changed_audio(np.zeros(400, np.float32), RATE, everything, drawn()).any()
    augment = Augmenter(args_of("--augment", "audio", "--audio_speed", 0.9), RATE)
    shortest = np.full(200, 0.1, np.float32)  # 25 ms
    for row in range(20):
        changed = augment({"text": None, "image": None, "audio": shortest, "row": row}, 0)["audio"]
        processor(audio=[changed], sampling_rate=RATE)
        assert len(changed) >= 200


# ---------------------------------------------------------------------------------------------------------------------
# Pictures
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def picture():
    return Image.fromarray(drawn().integers(20, 220, (20, 30, 3), dtype=np.uint8))


def test_a_crop_is_a_part_of_the_picture_at_its_size():
    ramp = Image.fromarray(np.repeat(np.arange(200, dtype=np.uint8)[None, :, None], 100, 0).repeat(3, 2))
    seen = [np.asarray(changed_image(ramp, only(image_crop=0.5), drawn(seed)))[50, :, 0] for seed in range(20)]
    assert all(len(columns) == 200 and (np.diff(columns.astype(int)) >= 0).all() for columns in seen)
    shares = [(int(columns[-1]) - int(columns[0])) / 199 for columns in seen]
    assert min(shares) < 0.8 and all(share > math.sqrt(0.5 * 3 / 4) - 0.02 for share in shares)


def test_every_second_picture_is_mirrored(picture):
    flips = [
        np.array_equal(np.asarray(changed_image(picture, only(image_flip=True), drawn(seed))), np.asarray(picture))
        for seed in range(60)
    ]
    assert 15 < sum(flips) < 45


@pytest.mark.parametrize("index", range(len(augmentation.RAND_OPERATIONS)))
@pytest.mark.parametrize("strength", [-1.0, 1.0])
def test_each_change_of_randaugment_leaves_a_picture(index, strength, picture):
    changed = augmentation.RAND_OPERATIONS[index](picture, strength)
    assert (changed.mode, changed.size) == ("RGB", picture.size)
    assert index == 0 or not np.array_equal(np.asarray(changed), np.asarray(picture))


def test_randaugment_of_no_strength_does_next_to_nothing(picture):
    """All but those that have no strength: the contrast that fills the range, and the even histogram."""
    for index in {*range(len(augmentation.RAND_OPERATIONS))} - {1, 2}:
        changed = augmentation.RAND_OPERATIONS[index](picture, 0.0)
        np.testing.assert_allclose(np.asarray(changed), np.asarray(picture), atol=1)


# ---------------------------------------------------------------------------------------------------------------------
# Text
# ---------------------------------------------------------------------------------------------------------------------


def test_a_slip_of_the_keys_changes_a_word_and_not_the_number_of_words():
    text = "мама мыла раму and the cat sat, 猫坐 on 3 mats"
    changed = [with_typos(text, 1.0, drawn(seed)) for seed in range(30)]
    assert all(len(one.split(" ")) == len(text.split(" ")) for one in changed)
    assert len(set(changed)) == 30 and not any(set(one) - set(text) for one in changed)
    assert with_typos(text, 0.0, drawn()) == text
    assert with_typos("a", 1.0, drawn()) == "a" and with_typos("", 1.0, drawn()) == ""
    assert with_typos("12 34", 1.0, drawn()) == "12 34"


def test_dropped_tokens_become_the_mask_and_special_ones_stay(processor):
    encoded = processor(text=["please press one", "not four but three"])
    tokenizer, ids = processor.tokenizer, encoded["input_ids"].clone()
    for row in range(2):
        drop_tokens(ids[row], encoded["attention_mask"][row], tokenizer, 1.0, drawn())
    special = torch.isin(encoded["input_ids"], torch.tensor(tokenizer.all_special_ids))
    assert torch.equal(ids[special], encoded["input_ids"][special])
    assert (ids[~special] == tokenizer.mask_token_id).all() and (~special).sum() > 6


def test_which_tokens_are_dropped_does_not_depend_on_the_other_rows(processor, table):
    args, rows = args_of("--augment", "text", "--text_token_dropout", 0.5, "--text_word_noise", 0), []
    collate = AugmentedCollator(Collator(processor), processor, Augmenter(args, None), Epoch())
    dataset = FusionDataset(table, None, processor)
    rows = [row for row in (dataset[index] for index in range(10)) if row["text"] is not None]
    together, changed = collate(rows), 0
    for index, row in enumerate(rows):
        alone = collate([row])
        length = int(alone["attention_mask"].sum())
        assert torch.equal(alone["input_ids"][0, :length], together["input_ids"][index, :length])
        changed += not torch.equal(alone["input_ids"], Collator(processor)([row])["input_ids"])
    assert changed > 2


def test_a_tokenizer_without_a_mask_gives_what_it_has_instead(processor):
    class Bare:
        mask_token_id = unk_token_id = pad_token_id = None

    with pytest.raises(ValueError, match="--text_token_dropout: the tokenizer has no mask, unknown or padding token"):
        augmentation.stand_in(Bare())
    Bare.unk_token_id = 7
    assert augmentation.stand_in(Bare()) == 7


# ---------------------------------------------------------------------------------------------------------------------
# By seed, epoch and row
# ---------------------------------------------------------------------------------------------------------------------

ALL = ("--augment", "text,image,audio", "--text_word_noise", 0.9)


def changed_rows(table, processor, *flags, epoch=0):
    number = Epoch()
    number.number = epoch
    return augmented_rows(args_of(*ALL, *flags), FusionDataset(table, None, processor), number)


def test_the_same_seed_epoch_and_row_give_the_same_change_and_no_generator_moves(table, processor):
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    first, again = (changed_rows(table, processor) for _ in range(2))
    assert all(are_equal(first[index], again[index]) for index in (3, 1, 4, 1, 5))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]


def test_another_seed_epoch_or_row_gives_another_change(table, processor):
    whole = next(index for index in range(10) if table.presence[index].all())
    cells = FusionDataset(table, None, processor)[whole]
    first = changed_rows(table, processor)[whole]
    others = [
        changed_rows(table, processor, "--seed", 1)[whole],
        changed_rows(table, processor, epoch=1)[whole],
        Augmenter(args_of(*ALL), 8000)({**cells, "row": cells["row"] + 1}, 0),
        cells,
    ]
    for other in others:
        assert all(not np.array_equal(np.asarray(first[name]), np.asarray(other[name])) for name in ("image", "audio"))
    assert first["text"] != cells["text"]


def test_only_the_modalities_that_are_named_are_changed(table, processor):
    cells = FusionDataset(table, None, processor)
    rows = augmented_rows(args_of("--augment", "audio"), FusionDataset(table, None, processor), Epoch())
    for index in range(10):
        assert rows[index]["text"] == cells[index]["text"] and rows[index]["image"] == cells[index]["image"]
        if cells[index]["audio"] is not None:
            assert not np.array_equal(rows[index]["audio"], cells[index]["audio"])


def test_what_is_kept_in_memory_stays_as_it_is(table, processor):
    rows = changed_rows(table, processor)
    plain = [FusionDataset(table, None, processor)[index] for index in range(10)]
    for epoch in range(3):
        rows.epoch.number = epoch
        [rows[index] for index in range(10)]
    assert len(rows.dataset.cache) > 5
    assert all(are_equal(rows.dataset[index], plain[index]) for index in range(10))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_that_were_started_long_before_know_the_epoch(num_workers, table, processor):
    rows = changed_rows(table, processor)
    watched = WatchedRows(rows, table.place, num_workers)
    loader = DataLoader(watched, 4, num_workers=num_workers, persistent_workers=True, collate_fn=list)
    for epoch in (0, 1, 2):
        begin_epoch(loader, epoch)
        seen = [row for batch in loader for row in batch]
        expected = changed_rows(table, processor, epoch=epoch)
        assert all(are_equal(row, expected[index]) for index, row in enumerate(seen))


def test_a_stream_is_changed_too_and_hears_of_the_epoch():
    class Stream(IterableDataset):
        modalities, sampling_rate, epochs = ("audio",), RATE, []

        def set_epoch(self, epoch):
            self.epochs.append(epoch)

        def __len__(self):
            return 2

        def __iter__(self):
            return iter([{"text": None, "image": None, "audio": tone(), "row": row} for row in (0, 1)])

    stream, flags = Stream(), args_of("--augment", "audio")
    rows, other = (augmented_rows(flags, stream, Epoch(), process) for process in (0, 1))
    loader = DataLoader(rows, None)
    first = [row["audio"] for row in rows]
    rows.set_epoch(1), begin_epoch(loader, 1)
    assert stream.epochs == [1] and len(rows) == 2
    assert not np.array_equal(first[0], next(iter(rows))["audio"]) and not np.array_equal(*first)
    assert not np.array_equal(first[0], next(iter(other))["audio"])


def test_without_the_flag_rows_and_batches_are_what_they_were(table, processor):
    dataset, collate = FusionDataset(table, None, processor), Collator(processor)
    assert training_view(args_of(), dataset, collate, processor, None) == (dataset, collate)


# ---------------------------------------------------------------------------------------------------------------------
# Token embeddings
# ---------------------------------------------------------------------------------------------------------------------


def learnt(objective, model, batch):
    """The gradient of a batch."""
    model.zero_grad()
    objective.learn(model, dict(batch), torch.Tensor.backward)
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_each_text_is_moved_as_far_as_asked_to_where_the_loss_is_higher():
    model, moved = make_model(model_config(modality_dropout=0.0)), []
    batch = make_inputs() | {"labels": torch.arange(5) % 3}
    embeddings = model.mmfusion.get_input_embeddings()
    objective = Adversarial(Objective(), embeddings, 0.5)
    embeddings.register_forward_hook(lambda module, inputs, output: moved.append(output.detach()))
    losses = []
    objective.learn(model, batch, lambda loss: (losses.append(loss.item()), loss.backward()))
    assert losses[1] > losses[0] and len(moved) == 2
    moved.clear()
    seen = []
    objective._keep, keep = lambda output: seen.append(keep(output)) or seen[-1], objective._keep
    objective.learn(model, batch, torch.Tensor.backward)
    lengths = objective._move(seen[0].grad).flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths, torch.full_like(lengths, 0.5))
    assert not embeddings._forward_hooks.keys() - {next(iter(embeddings._forward_hooks))}, "ours are gone"


def test_the_gradient_is_the_sum_of_both_and_a_batch_without_text_counts_twice():
    """Twice, so that in every process there are as many passes."""
    model = make_model(model_config(modality_dropout=0.0))
    objective = Adversarial(Objective(), model.mmfusion.get_input_embeddings(), 0.5)
    batch = make_inputs() | {"labels": torch.arange(5) % 3}
    plain, both = learnt(Objective(), model, batch), learnt(objective, model, batch)
    assert plain.keys() == both.keys() and not torch.allclose(
        2 * plain["classifier.weight"], both["classifier.weight"]
    )
    silent = {name: value for name, value in batch.items() if name not in ("input_ids", "attention_mask")}
    plain, both = learnt(Objective(), model, silent), learnt(objective, model, silent)
    torch.testing.assert_close(both, {name: 2 * value for name, value in plain.items()})


def test_the_words_of_a_frozen_tower_can_be_moved():
    model = make_model(model_config(modality_dropout=0.0))
    model.mmfusion.text_encoder.requires_grad_(False)
    objective = Adversarial(Objective(), model.mmfusion.get_input_embeddings(), 0.5)
    batch = make_inputs() | {"labels": torch.arange(5) % 3}
    plain, both = learnt(Objective(), model, batch), learnt(objective, model, batch)
    assert plain.keys() == both.keys() and not torch.allclose(
        2 * plain["classifier.weight"], both["classifier.weight"]
    )


def test_a_model_without_text_has_no_words_to_move():
    model = make_model(model_config(text_config=None))
    with pytest.raises(ValueError, match="--fgm_epsilon moves the embeddings of words, and this model reads no text"):
        make_objective(args_of("--fgm_epsilon", 1), None, model)


def test_a_frozen_tower_that_does_not_run_has_no_words_to_move():
    model = make_model()
    model.mmfusion.text_encoder.requires_grad_(False)
    args = args_of("--fgm_epsilon", 1)
    args.cache_features = True
    with pytest.raises(ValueError, match="with --cache_features a frozen text tower does not run: leave one"):
        make_objective(args, None, model)


# ---------------------------------------------------------------------------------------------------------------------
# Flags and whole runs
# ---------------------------------------------------------------------------------------------------------------------


def test_strengths_are_filled_in_for_the_modalities_that_are_named():
    args = args_of("--augment", "audio,text", "--audio_speed", 0.3)
    assert args.augment == ("text", "audio")
    assert (args.audio_speed, args.audio_gain_db, args.text_word_noise, args.image_crop) == (0.3, 6.0, 0.1, None)
    assert all(getattr(args_of(), name) is None for name in STRENGTHS)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--audio_speed", 0.1], "--audio_speed belongs to --augment audio: add it, or leave --audio_speed out"),
        (["--augment", "text", "--no-image_flip"], "--image_flip belongs to --augment image"),
        (["--augment", "text,video"], "`video` is not one of text, image, audio; give one or more of them"),
        (["--augment", ""], "`` is not one of text, image, audio"),
    ],
)
def test_flags_that_would_change_nothing_are_refused(flags, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        args_of(*flags)
    assert message in capsys.readouterr().err


def run(folder, output_dir, *flags):
    """Train on everything for two short epochs; the exit code."""
    fresh()
    files = ["--train_file", folder / "train.csv", "--validation_file", folder / "validation.csv"]
    sizes = ["--image_size", 16, "--sampling_rate", 8000, "--fusion_hidden_size", 32, "--max_train_samples", 24]
    argv = [*files, *sizes, "--per_device_train_batch_size", 6, "--num_train_epochs", 2, "--output_dir", output_dir]
    return train.main([str(word) for word in [*argv, *flags]])


def weights_of(folder):
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def unbroken(folder, tmp_path_factory):
    """The weights of a run with every kind of change."""
    output_dir = tmp_path_factory.mktemp("unbroken") / "m"
    fresh()
    assert run(folder, output_dir, *ALL, "--fgm_epsilon", 0.5) == 0
    return weights_of(output_dir)


def test_a_run_with_changed_rows_that_was_cut_off_ends_with_the_same_weights(folder, unbroken, tmp_path, monkeypatch):
    """In its second epoch; so the rows must be told which one it is when they are skipped to."""
    cut = [*ALL, "--fgm_epsilon", 0.5, "--checkpointing_steps", 6]
    save = resuming.Keeper.save

    def save_and_die(*args, **options):
        save(*args, **options)
        raise OSError("cut off")

    with monkeypatch.context() as patched:
        patched.setattr(resuming.Keeper, "save", save_and_die)
        assert run(folder, tmp_path / "m", *cut) == 1
    assert run(folder, tmp_path / "m", *cut, "--resume_from_checkpoint", "latest") == 0
    resumed = weights_of(tmp_path / "m")
    assert resumed.keys() == unbroken.keys() and all(torch.equal(resumed[name], unbroken[name]) for name in resumed)


def test_an_evaluation_sees_the_rows_as_they_are(folder, tmp_path, monkeypatch):
    changed = []
    call = Augmenter.__call__
    monkeypatch.setattr(Augmenter, "__call__", lambda self, row, *rest: changed.append(row) or call(self, row, *rest))
    assert run(folder, tmp_path / "m", "--augment", "text,image,audio", "--max_train_steps", 2) == 0
    assert 0 < len(changed) <= 24, "two batches of six, and what is opened ahead"
