"""Signals of sensors through the audio tower, at their own rate, from one sample a second on."""

import csv
import json

import numpy as np
import pytest
import soundfile
import torch
from transformers import pipeline

import train
from data import check_table, read_table
from decoding_mmfusion import decode_audio
from hub.probe import made_up_rows
from space.tasks import warm_up_sample
from towers_mmfusion import receptive_field
from training.towers import make_towers

RATES = (1, 7, 100, 500, 2_000, 3_999)


def towers_at(rate, seconds=600.0):
    return make_towers(
        ["audio"], {"audio": None}, texts=(), vocab_size=100, image_size=32, sampling_rate=rate,
        max_text_length=16, max_audio_seconds=seconds,
    )  # fmt: skip


@pytest.mark.parametrize("rate", RATES)
def test_a_signal_at_the_rate_that_the_model_hears_is_read_as_it_is(rate, tmp_path):
    signal = np.sin(np.arange(600) / 9).astype(np.float32) / 2
    soundfile.write(tmp_path / "signal.wav", signal, rate, subtype="FLOAT")
    for source in (tmp_path / "signal.wav", {"array": signal, "sampling_rate": rate}):
        assert np.array_equal(decode_audio(source, sampling_rate=rate), signal)


def test_a_signal_at_another_rate_is_brought_to_that_of_the_model():
    minutes = {"array": np.ones(600, np.float32) / 2, "sampling_rate": 1}
    assert len(decode_audio(minutes, sampling_rate=16)) == 600 * 16
    assert len(decode_audio({"array": np.ones(16_000, np.float32), "sampling_rate": 16_000}, sampling_rate=1)) == 1


@pytest.mark.parametrize(("rate", "target", "lowest"), [(16, 16_000, 1_000), (50, 2_000, 125), (1, 100, 6)])
def test_a_rate_that_is_far_too_low_for_the_model_is_taken_for_a_wrong_unit(rate, target, lowest):
    with pytest.raises(
        ValueError, match=f"`sampling_rate` is {rate} Hz, allowed are {lowest} to 384000 Hz; is the un"
    ):
        decode_audio({"array": np.zeros(600, np.float32), "sampling_rate": rate}, sampling_rate=target)


def test_a_signal_shorter_than_one_sample_of_the_model_is_refused():
    with pytest.raises(ValueError, match=r"lasts 0.5 s \(8000 samples at 16000 Hz\), at least 1 s are needed"):
        decode_audio({"array": np.zeros(8_000, np.float32), "sampling_rate": 16_000}, sampling_rate=1)


@pytest.mark.parametrize("rate", RATES)
def test_a_tiny_tower_for_signals_starts_with_filters_that_they_can_hold(rate):
    tower = towers_at(rate).encoders["audio"]
    weight = tower.feature_extractor.conv_layers[0].conv.weight.detach()[:, 0]  # (filters, samples)
    loudest = torch.fft.rfft(weight, n=4096).abs().argmax(dim=1)[::2] / 4096  # turns a sample; 0.5 is the highest
    assert loudest[0] < 0.05 and loudest[-1] > 0.45 and (loudest.diff() > 0).all()
    assert receptive_field(tower.config) == 290


def test_towers_for_sound_are_what_they_were():
    config = towers_at(4_000).encoders["audio"].config
    assert (config.conv_kernel, config.conv_stride) == ([400, 8, 4], [40, 4, 2])


@pytest.mark.parametrize("rate", [1, 3, 39])
def test_samples_that_are_made_up_for_a_check_hold_something_at_any_rate(rate):
    processor = towers_at(rate).processor
    assert processor(**made_up_rows(("audio",), rate), sampling_rate=rate)["audio_attention_mask"].sum() > 0
    assert processor(audio=[warm_up_sample(processor)["audio"]])["audio_attention_mask"].sum() > 0


def test_a_table_of_slow_signals_can_be_checked_without_a_model(tmp_path):
    write_table(tmp_path, rate=5, num_samples=300)
    cell = {"array": [0.1, -0.2, 0.3] * 10, "sampling_rate": 5}
    (tmp_path / "train.jsonl").write_text(json.dumps({"audio": cell, "label": "calm"}) + "\n")
    for table in ("train.csv", "train.jsonl"):
        assert check_table(read_table(tmp_path / table), progress=False)[1].problems == []


def write_table(folder, *, rate, num_samples, num_rows=24):
    """Slow waves are called calm, quick ones busy; every third row has a note, every fourth no signal."""
    with (folder / "train.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("audio", "text", "label"))
        for row in range(num_rows):
            wave = np.sin(np.arange(num_samples) * (0.2, 1.5)[row % 2] + row) / 2
            soundfile.write(folder / f"{row}.wav", wave, rate)
            note = "checked" if row % 3 == 0 or row % 4 == 0 else ""
            writer.writerow((f"{row}.wav" if row % 4 else "", note, ("calm", "busy")[row % 2]))


def test_a_model_of_signals_once_a_second_is_trained_asked_and_explained(tmp_path):
    write_table(tmp_path, rate=1, num_samples=400)
    sizes = ["--fusion_hidden_size", 32, "--per_device_train_batch_size", 8, "--max_train_steps", 2]
    files = ["--train_file", tmp_path / "train.csv", "--output_dir", tmp_path / "model", "--validation_fraction", 0.25]
    signals = ["--sampling_rate", 1, "--max_audio_seconds", 600]
    assert train.main([str(word) for word in (*files, *signals, *sizes)]) == 0
    classify = pipeline(model=str(tmp_path / "model"), trust_remote_code=True)
    row = {"audio": str(tmp_path / "1.wav"), "text": "checked"}
    assert {answer["label"] for answer in classify(row, top_k=2)} == {"calm", "busy"}
    heard = classify.explain(row, num_steps=2)["audio"]
    assert heard["seconds"] == 400 and heard["segments"][-1]["end"] == 400
