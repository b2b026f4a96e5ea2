"""The demo set: complete, repeatable, disjoint, hard enough, and never written over anything."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import data.demo
from data import Columns, check_table, count_shared_rows, make_demo, read_table

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return make_demo(tmp_path_factory.mktemp("demo") / "set", num_rows=600, seed=5)


def tables(folder):
    return {split: read_table(folder / f"{split}.csv") for split in data.demo.SPLITS}


def test_it_is_a_table_as_a_user_brings_it(demo):
    by_split = tables(demo)
    assert {split: len(table) for split, table in by_split.items()} == {"train": 480, "validation": 60, "test": 60}
    for table in by_split.values():
        assert table.available_columns == ("text", "image", "audio", "label")
        counts = [table.labels().count(digit) for digit in data.demo.DIGITS]
        assert max(counts) - min(counts) <= 1
        assert check_table(table, sampling_rate=16_000, progress=False)[1].problems == []
    files = {path.relative_to(demo).as_posix() for path in demo.glob("*/*")}
    named = {table.cell(i, m) for table in by_split.values() for i in range(len(table)) for m in ("image", "audio")}
    assert files == named - {None}


def test_some_cells_of_each_modality_are_empty_but_never_a_whole_row(demo):
    presence = tables(demo)["train"].presence
    assert presence.any(axis=1).all()
    assert ((presence.mean(0) > 0.82) & (presence.mean(0) < 0.94)).all()


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(demo, tmp_path):
    again, other = make_demo(tmp_path / "a", num_rows=600, seed=5), make_demo(tmp_path / "b", num_rows=600, seed=6)
    files = sorted(path.relative_to(demo) for path in demo.rglob("*") if path.is_file())
    assert all((demo / name).read_bytes() == (again / name).read_bytes() for name in files)
    assert (demo / "train.csv").read_bytes() != (other / "train.csv").read_bytes()


def test_splits_share_no_picture_source_and_no_row(demo):
    _, digits = data.demo.handwriting()
    sources = data.demo.split_pictures(digits, seed=5)
    assert sorted(np.concatenate(list(sources.values()))) == list(range(1797))
    assert all({*digits[part]} == set(range(10)) for part in sources.values())
    by_split = tables(demo)
    media = Columns(text="none")
    assert count_shared_rows(by_split["train"], by_split["test"]) == 0
    assert count_shared_rows(read_table(demo / "train.csv", columns=media), by_split["validation"]) == 0


def test_phrases_imply_their_digit():
    rng = np.random.default_rng(0)
    for digit in range(10):
        for _ in range(50):
            words = data.demo.NUMBER_WORDS["en"]
            phrase = data.demo._write_arithmetic(digit, words, data.demo.PHRASES["en"], rng)
            a, b = (words.index(word) for word in phrase.split() if word in words)
            assert digit == (a - b if "minus" in phrase or "away" in phrase else a + b)


def test_tones_are_those_of_the_keypad(monkeypatch):
    for name, value in {"SNR_DB": (40, 40), "HUM_DB": (-90, -90), "LOST_TONE_SHARE": 0, "DETUNE": 0}.items():
        monkeypatch.setattr(data.demo, name, value)
    for digit, pair in {0: (941, 1336), 1: (697, 1209), 6: (770, 1477), 9: (852, 1477)}.items():
        sound = data.demo.dial_digit(digit, np.random.default_rng(digit))
        spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound)), 8_000))  # 1 Hz a bin
        low, high = spectrum[600:1_050].argmax() + 600, spectrum[1_100:1_600].argmax() + 1_100
        assert (abs(low - pair[0]) < 5, abs(high - pair[1]) < 5) == (True, True)


def test_a_complete_set_is_reused_and_anything_else_is_left_alone(demo, tmp_path):
    before = (demo / "train.csv").stat().st_mtime_ns
    assert make_demo(demo, num_rows=600, seed=5) == demo
    assert (demo / "train.csv").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"holds a demo set of other settings .*'seed': 5.* and is not overwritten"):
        make_demo(demo, num_rows=600, seed=6)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something else and is not overwritten"):
        make_demo(tmp_path / "full", num_rows=600)
    with pytest.raises(ValueError, match="`num_rows` is 99; at least 100"):
        make_demo(tmp_path / "few", num_rows=99)
    with pytest.raises(ValueError, match="`seed` is -1"):
        make_demo(tmp_path / "few", seed=-1)


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(data.demo, "dial_digit", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        make_demo(tmp_path / "set", num_rows=100)
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_the_set_and_tells_errors_in_one_line(tmp_path, capsys):
    assert data.demo.main([str(tmp_path / "set"), "--num_rows", "100", "--seed", "3"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{tmp_path / 'set'}\n" and "100/100" in captured.err
    assert json.loads((tmp_path / "set" / "demo.json").read_text())["seed"] == 3
    assert data.demo.main([str(tmp_path / "set"), "--num_rows", "100", "--seed", "4"]) == 1
    assert capsys.readouterr().err.startswith("error: `")
    with pytest.raises(SystemExit, match="2"):
        data.demo.main(["--num_rows", "many", "x"])


def test_importing_data_and_asking_for_help_load_nothing_heavy():
    heavy = ("torch", "transformers", "datasets", "evaluate")
    code = f"import sys, data.demo, data.table; print([name for name in {heavy} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
    run = subprocess.run([sys.executable, "-m", "data.demo", "--help"], cwd=REPOSITORY, capture_output=True, text=True)
    assert run.returncode == 0 and "--num_rows" in run.stdout
