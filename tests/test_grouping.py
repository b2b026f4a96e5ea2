"""Rows of about the same length in a batch: how long rows are, in which order they come, and that a run finds it."""

import csv
import io
import json
import math
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from conftest import fresh
from test_checkpoints import are_equal, end_at, run, weights_of
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader, RandomSampler
from transformers import PreTrainedTokenizerFast, Wav2Vec2FeatureExtractor

import train
from data import Columns, read_table
from data.lengths import audio_seconds, text_tokens
from processing_mmfusion import MMFusionProcessor, decode_audio
from training.grouping import LEVEL, LengthGroupedSampler, lengths_of

EMOTION7 = Path(train.__file__).parent.parent / "shared" / "data" / "emotion7" / "train.csv"
RATE = 8_000


def make_processor(is_layer_norm=True, max_text_length=5, max_audio_seconds=4.0):
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return MMFusionProcessor(
        PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]"),
        feature_extractor=Wav2Vec2FeatureExtractor(sampling_rate=4_000, return_attention_mask=is_layer_norm),
        max_text_length=max_text_length,
        max_audio_seconds=max_audio_seconds,
    )


def sound(seconds, rate=RATE, channels=1):
    return 0.5 * np.random.default_rng(0).uniform(-1, 1, (round(seconds * rate), channels)).astype(np.float32)


def sound_file(seconds, form="WAV", **options):
    file = io.BytesIO()
    soundfile.write(file, sound(seconds, **options), options.get("rate", RATE), format=form)
    return file.getvalue()


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes rows to a Parquet table and reads it."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def written(**columns):
        pq.write_table(pa.table(columns), tmp_path / "t.parquet")
        return read_table(tmp_path / "t.parquet")

    return written


# -- lengths ----------------------------------------------------------------------------------------------------------


def decoded_seconds(table):
    return [len(decode_audio(table.media(index, "audio"), sampling_rate=RATE)) / RATE for index in range(len(table))]


def test_lengths_from_headers_are_those_of_opened_sounds(write, tmp_path):
    forms = [("WAV", {}), ("FLAC", {}), ("OGG", {}), ("AIFF", {"channels": 2}), ("FLAC", {"rate": 16_000})]
    sounds = [sound_file(0.1 + i / 7, form, **options) for i, (form, options) in enumerate(forms)]
    table = write(audio=sounds)
    assert audio_seconds(table) == pytest.approx(decoded_seconds(table), abs=2 / RATE)

    (tmp_path / "a.wav").write_bytes(sounds[0])
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.flac").write_bytes(sounds[1])
    table = write(audio=["a.wav", "sub/b.flac", "a.wav"])
    assert audio_seconds(table) == pytest.approx(decoded_seconds(table), abs=2 / RATE)


def test_waveforms_in_a_table_are_as_long_as_their_samples(write):
    def cell(samples):
        return {"array": samples.tolist(), "sampling_rate": RATE}

    table = write(audio=[cell(sound(0.3)[:, 0]), cell(sound(0.2)[:, 0]), None])
    assert audio_seconds(table) == pytest.approx([0.3, 0.2, np.nan], nan_ok=True)
    stereo = sound(0.25, channels=2)
    table = write(audio=[cell(stereo), cell(stereo.T)])
    assert audio_seconds(table).tolist() == decoded_seconds(table) == [0.25, 0.25]


def test_a_sound_whose_length_cannot_be_told_is_left_to_whoever_opens_it(write, tmp_path, capfd):
    (tmp_path / "whole.wav").write_bytes(sound_file(0.5))
    (tmp_path / "torn.wav").write_bytes(b"RIFF")
    cells = ["whole.wav", "torn.wav", "gone.wav", "https://a.b/c.wav", "../../c.wav", "", None]
    assert audio_seconds(write(audio=cells)) == pytest.approx([0.5, *[np.nan] * 6], nan_ok=True)
    cells = [sound_file(0.5), b"no sound", sound_file(0.5)[:20], b"", None]
    assert audio_seconds(write(audio=cells)) == pytest.approx([0.5, *[np.nan] * 4], nan_ok=True)
    assert "Traceback" not in capfd.readouterr().err


def test_a_file_that_stands_in_many_rows_is_looked_at_once(write, tmp_path, monkeypatch):
    (tmp_path / "a.wav").write_bytes(sound_file(0.5))
    looks, look = [], soundfile.info
    monkeypatch.setattr(soundfile, "info", lambda file: (looks.append(file), look(file))[1])
    table = write(audio=["a.wav"])
    table = table.select([0] * 50)
    monkeypatch.setattr("data.lengths.ThreadPoolExecutor", one_thread)
    assert audio_seconds(table).tolist() == [0.5] * 50 and len(looks) == 1


def one_thread():
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(1)


def test_a_text_is_as_long_as_its_tokens_and_not_longer_than_is_kept_of_it(write):
    table = write(text=["one two", None, "a", "  ", "1 2 3 4 5 6 7 8"]).select([4, 3, 2, 1, 0])
    assert text_tokens(table, make_processor()) == pytest.approx([5, np.nan, 1, np.nan, 2], nan_ok=True)


def test_the_costliest_comes_first_and_what_is_always_padded_to_the_same_length_not_at_all(write):
    table = write(
        text=["a b", "a", None], audio=[sound_file(1), None, sound_file(9)], image=[b"png"] * 3, label=["x"] * 3
    )
    seconds, tokens = lengths_of(table, make_processor())
    assert seconds == pytest.approx([1, np.nan, 4], nan_ok=True), "no more is kept of it"
    assert tokens == pytest.approx([2, 1, np.nan], nan_ok=True)
    assert len(lengths_of(table, make_processor(is_layer_norm=False))) == 1
    assert len(lengths_of(table.keep_modalities(["text", "image"]), make_processor())) == 1
    message = (
        r"--group_by_length: to this model, all rows of `.*t\.parquet` are equally long \(it has image\), so that"
    )
    with pytest.raises(ValueError, match=message):
        lengths_of(table.keep_modalities(["image"]), make_processor())
    with pytest.raises(ValueError, match=r"it has audio\), so that there is nothing to group by: leave the flag out"):
        lengths_of(table.select([0, 1]).keep_modalities(["audio"]), make_processor())


# -- the order --------------------------------------------------------------------------------------------------------


def made_lengths(num_rows, seed=0):
    """Seconds and tokens, some of each missing."""
    generator = np.random.default_rng(seed)
    seconds, tokens = generator.uniform(0.5, 10, num_rows), generator.integers(3, 60, num_rows).astype(float)
    for lengths, share in ((seconds, 0.3), (tokens, 0.2)):
        lengths[np.append(False, generator.random(num_rows - 1) < share)] = np.nan
    return [seconds, tokens]


def order_of(sampler, epoch=0):
    sampler.set_epoch(epoch)
    return list(sampler)


def waste(order, lengths, size):
    """The part of the padded batches that is padding, as towers see them."""
    batches = [lengths[order[start : start + size]] for start in range(0, len(order), size)]
    batches = [some[~np.isnan(some)] for some in batches]
    return 1 - np.nansum(lengths) / sum(len(some) * some.max() for some in batches if len(some))


@pytest.mark.parametrize(("num_rows", "size"), [(640, 32), (641, 32), (33, 4), (31, 9), (8, 8), (5, 32), (1, 1)])
def test_every_row_comes_once_an_epoch_in_another_order_each_time_which_seed_and_epoch_decide(num_rows, size):
    lengths = made_lengths(num_rows, seed=1)
    state = torch.get_rng_state()
    first, second = (LengthGroupedSampler(lengths, size, seed=7) for _ in range(2))
    orders = [order_of(first, epoch) for epoch in range(3)]
    assert all(sorted(order) == list(range(num_rows)) for order in orders) and len(first) == num_rows
    assert orders[2] == order_of(second, 2) and orders[0] == order_of(first, 0)
    assert orders[0] == list(LengthGroupedSampler(lengths, size, seed=7)), "the first epoch, where nobody sets one"
    if num_rows > 30:
        assert len({tuple(order) for order in (*orders, order_of(LengthGroupedSampler(lengths, size, 17)))}) == 4
    assert torch.equal(torch.get_rng_state(), state), "from nobody else's random numbers"


def test_a_batch_has_rows_of_about_the_same_length_in_both_modalities():
    lengths, size = made_lengths(6400), 32
    at_random = np.random.default_rng(0).permutation(6400)
    sampler = LengthGroupedSampler(lengths, size, seed=0)
    for epoch in range(2):
        order = order_of(sampler, epoch)
        assert waste(at_random, lengths[0], size) > 0.4 and waste(order, lengths[0], size) < 0.08
        assert waste(order, lengths[1], size) < waste(at_random, lengths[1], size)
    one = LengthGroupedSampler(lengths[1:], size, seed=0)
    assert waste(order_of(one), lengths[1], size) < 0.06


def test_sounds_of_one_level_are_sorted_by_their_texts():
    seconds = np.random.default_rng(0).uniform(3.0, 3.0 * math.sqrt(LEVEL) - 0.01, 640)
    tokens = made_lengths(640)[1]
    assert len(set(np.ceil(np.log(seconds) / math.log(LEVEL)))) <= 2
    assert waste(order_of(LengthGroupedSampler([seconds, tokens], 16, 0)), tokens, 16) < 0.25


def test_a_row_without_sound_stands_anywhere():
    lengths, size = made_lengths(6400), 32
    order = np.array(order_of(LengthGroupedSampler(lengths, size, seed=0), 1))
    for some in lengths:
        shares = np.isnan(some)[order].reshape(-1, size).mean(axis=1)
        expected = math.sqrt(shares.mean() * (1 - shares.mean()) / size)
        assert shares.std() == pytest.approx(expected, rel=0.15), "as in a random order"


def test_the_order_of_the_batches_says_nothing_but_that_the_longest_row_comes_first():
    lengths, size = made_lengths(3200), 32
    sampler = LengthGroupedSampler(lengths, size, seed=0)
    order = np.array(order_of(sampler))
    assert int(np.nanargmax(lengths[0])) in order[:size], "too little memory is known at once"
    places = np.arange(3200) // size
    for epoch in (0, 1):
        seconds = lengths[0][order_of(sampler, epoch)]
        there = ~np.isnan(seconds)
        assert abs(np.corrcoef(places[there], seconds[there])[0, 1]) < 0.2


def test_the_short_last_batch_is_of_any_rows():
    lengths = [np.arange(1.0, 101.0)]
    last = [row for epoch in range(30) for row in order_of(LengthGroupedSampler(lengths, 16, seed=0), epoch)[-4:]]
    assert 30 < np.mean(last) < 70 and np.ptp(last) > 80


@pytest.mark.skipif(not EMOTION7.is_file(), reason="the data set emotion7 is not here")
def test_less_than_a_tenth_of_the_batches_of_emotion7_is_padding():
    columns = Columns(text="utterance", audio="speech", label="emotion")
    seconds, tokens = lengths_of(read_table(EMOTION7, columns=columns), make_processor(max_text_length=128))
    order = order_of(LengthGroupedSampler([seconds, tokens], 32, seed=0))
    at_random = np.random.default_rng(0).permutation(len(seconds))
    assert waste(order, seconds, 32) < 0.03 < 0.09 < waste(at_random, seconds, 32)
    assert waste(order, tokens, 32) < 0.35 and waste(at_random, tokens, 32) > 0.55


# -- with accelerate --------------------------------------------------------------------------------------------------


def loaders_of(num_processes, num_rows, size=4):
    """The prepared loader of each process."""
    lengths = [np.linspace(1, 10, num_rows)]
    return [
        prepare_data_loader(
            DataLoader(range(num_rows), size, sampler=LengthGroupedSampler(lengths, size * num_processes, seed=3)),
            num_processes=num_processes, process_index=rank, put_on_device=False, use_seedable_sampler=True,
        )
        for rank in range(num_processes)
    ]  # fmt: skip


@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_processes_share_the_rows_of_a_step_and_are_about_equally_long(num_processes):
    loaders, seen = loaders_of(num_processes, num_rows=480), []
    for _ in range(2):
        ranks = [[batch.tolist() for batch in loader] for loader in loaders]
        assert sorted(row for batches in ranks for batch in batches for row in batch) == list(range(480))
        spread = [max(map(max, step)) - min(map(min, step)) for step in zip(*ranks, strict=True)]
        assert np.mean(spread) < 480 / 8, "of all processes' rows together"
        seen.append(ranks)
    assert seen[0] != seen[1], "the prepared loader sets the epoch"


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_loader_that_goes_on_gives_the_batches_that_are_left(num_processes):
    whole = loaders_of(num_processes, num_rows=50)
    epochs = [[[batch.tolist() for batch in loader] for loader in whole] for _ in range(2)]
    for rank, loader in enumerate(loaders_of(num_processes, num_rows=50)):
        loader.set_epoch(1)
        rest = [batch.tolist() for batch in skip_first_batches(loader, 3)]
        assert rest == epochs[1][rank][3:]
    assert {row for batches in epochs[0] for batch in batches for row in batch} == set(range(50)), "also the short one"


# -- trainings --------------------------------------------------------------------------------------------------------


@pytest.fixture
def flags(tmp_path):
    """Of a run on text and sound, both of any length and now and then missing."""
    fresh()
    for name, count in (("train", 26), ("validation", 6)):
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "audio", "label"])
            for row in range(count):
                soundfile.write(tmp_path / f"{name}{row}.wav", sound(0.2 + row * 7 % 13 / 20), RATE)
                text = "" if row % 5 == 3 else f"{name} " + "so " * (row * 5 % 11)
                writer.writerow([text, "" if row % 5 == 1 else f"{name}{row}.wav", ["bad", "good"][row % 2]])
    files = ["--train_file", tmp_path / "train.csv", "--validation_file", tmp_path / "validation.csv"]
    sizes = ["--fusion_hidden_size", 32, "--sampling_rate", 4000, "--max_audio_seconds", 1, "--logging_steps", 1]
    return [*files, *sizes, "--per_device_train_batch_size", 4, "--num_train_epochs", 2]


def test_a_grouped_run_that_is_cut_off_within_an_epoch_ends_with_the_weights_of_one_that_was_not(
    flags, tmp_path, monkeypatch
):
    flags = [*flags, "--group_by_length"]
    with monkeypatch.context() as patch:
        end_at(patch, 9)  # the second of seven steps of the second epoch
        assert run(flags, tmp_path / "m", "--checkpointing_steps", 100) == 143
    fresh()
    assert run(flags, tmp_path / "m", "--checkpointing_steps", 100, "--resume_from_checkpoint", "latest") == 0
    fresh()
    assert run(flags, tmp_path / "whole") == 0
    assert are_equal(weights_of(tmp_path / "m"), weights_of(tmp_path / "whole"))
    recorded = json.loads((tmp_path / "whole" / "training_config.json").read_text())["arguments"]
    assert recorded["group_by_length"] is True and "prefetch_factor" not in recorded


def loader_of(flags, tmp_path, *more):
    from training.optimization import make_accelerator
    from training.rows import open_rows
    from training.start import choose_start

    argv = [str(word) for word in (*flags, "--output_dir", tmp_path / "m", *more)]
    args = train.parse_args(argv, "", "")
    accelerator, start = make_accelerator(args), choose_start(args)
    rows, held, labels = open_rows(args, reads=start.reads)
    processor = start.towers(rows).processor
    return [some.loader(args, accelerator, processor, labels) for some in (rows, held)]


def test_without_the_flag_rows_come_as_they_did_and_validation_rows_always_do(flags, tmp_path):
    train_loader, held_loader = loader_of(flags, tmp_path, "--num_workers", 1, "--prefetch_factor", 5)
    assert type(train_loader.sampler) is RandomSampler and train_loader.prefetch_factor == 5
    fresh()
    train_loader, grouped_held_loader = loader_of(flags, tmp_path, "--group_by_length", "--num_workers", 1)
    assert type(train_loader.sampler) is LengthGroupedSampler and train_loader.sampler.step_size == 4
    assert type(grouped_held_loader.sampler) is type(held_loader.sampler) and train_loader.prefetch_factor == 2


def test_flags_that_would_do_nothing_are_refused(flags, tmp_path, capsys):
    streamed = ["--dataset_name", "a/b", "--streaming", "--group_by_length"]
    for argv, message in (
        (streamed, "--group_by_length needs to know how long all rows are, and --streaming sees them as they come: "),
        ([*flags, "--prefetch_factor", 4], "--prefetch_factor belongs to --num_workers: say how many processes shall"),
    ):
        with pytest.raises(SystemExit) as ended:
            run(argv, tmp_path / "m")
        assert ended.value.code == 2 and message in capsys.readouterr().err
