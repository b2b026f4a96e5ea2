"""The tables of docs/recipes.md: complete, repeatable, balanced, and what their labels say is in them."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data import Columns, check_table, demo, read_table, recipes

REPOSITORY = Path(__file__).parents[1]
COLUMNS = {
    "digits": Columns(image="image", label="label"),
    "pairs": Columns(image="image", text="text", label="label"),
    "leaves": Columns(image="picture", text="report", label="diagnosis"),
    "machines": Columns(audio="signal", text="note", label="fault"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("recipes")
    return {name: recipes.make_recipe_set(name, root / name, num_rows=180, seed=4) for name in recipes.SETS}


def rows_of(folder, split="train"):
    with (folder / f"{split}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", recipes.SETS)
def test_a_set_is_a_table_as_a_user_brings_it(folders, name):
    sizes = {split: len(rows_of(folders[name], split)) for split in demo.SPLITS}
    assert sizes == {"train": 144, "validation": 18, "test": 18}
    for split in demo.SPLITS:
        table = read_table(folders[name] / f"{split}.csv", columns=COLUMNS[name])
        assert check_table(table, sampling_rate=recipes.SIGNAL_RATE, progress=False)[1].problems == []
    media = {cell for split in demo.SPLITS for row in rows_of(folders[name], split) for cell in row.values()}
    files = {path.relative_to(folders[name]).as_posix() for path in folders[name].glob("files/*")}
    assert files == {cell for cell in media if cell.startswith("files/")}


@pytest.mark.parametrize(("name", "num_labels"), [("pairs", 2), ("leaves", 6), ("machines", 4)])
def test_the_labels_of_a_synthetic_set_are_balanced(folders, name, num_labels):
    labels = [row[COLUMNS[name].label] for row in rows_of(folders[name])]
    assert {labels.count(label) for label in set(labels)} == {144 // num_labels}


def test_some_cells_are_empty_but_never_a_whole_row(folders):
    for name, columns in {"leaves": ("picture", "report"), "machines": ("signal", "note")}.items():
        filled = np.array([[bool(row[column]) for column in columns] for row in rows_of(folders[name])])
        assert filled.any(axis=1).all() and ((filled.mean(0) > 0.85) & (filled.mean(0) < 1)).all()


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(folders, tmp_path):
    for name in ("leaves", "machines"):
        again = recipes.make_recipe_set(name, tmp_path / name, num_rows=180, seed=4)
        files = sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
        assert all((again / file).read_bytes() == (folders[name] / file).read_bytes() for file in files)
        other = recipes.make_recipe_set(name, tmp_path / f"{name}-other", num_rows=180, seed=5)
        assert (other / "train.csv").read_bytes() != (again / "train.csv").read_bytes()


def test_a_caption_fits_exactly_where_it_names_the_digit():
    rng = np.random.default_rng(0)
    for digit in [*range(10)] * 10:
        words = recipes.write_caption(digit, rng).replace(",", "").split()
        named = [word for word in words if word in demo.DIGITS]
        first_is_meant = {"instead", "not"} & set(words) and words[0] != "not" and words[:2] != ["forget", named[0]]
        assert demo.DIGITS[digit] == (named[0] if first_is_meant else named[-1])


def test_the_two_causes_of_a_brown_rim_cannot_be_told_from_the_picture():
    drawn = [
        np.asarray(recipes.draw_leaf(diagnosis, np.random.default_rng(7)))
        for diagnosis in ("drought", "potassium deficiency", "healthy")
    ]
    assert np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[0], drawn[2])


def test_each_fault_of_a_machine_shows_where_it_should():
    rate, turns = recipes.SIGNAL_RATE, slice(18, 33)  # Hz, of which a spectrum of one second has one a bin
    power, peaked = {}, {}
    for fault in recipes.FAULTS:
        signals = [recipes.vibrate(fault, 1.0, np.random.default_rng(seed)) for seed in range(20)]
        spectra = np.abs(np.fft.rfft(signals)) ** 2
        assert spectra.shape == (20, rate // 2 + 1) and np.abs(signals).max() <= 0.9 + 1e-9
        power[fault] = {
            "once a turn": float((spectra[:, turns].sum(1) / spectra.sum(1)).mean()),
            "halves and multiples": float((spectra[:, 33:160].sum(1) / spectra.sum(1)).mean()),
        }
        scaled = np.array(signals) / np.std(signals, axis=1, keepdims=True)
        peaked[fault] = float((scaled**4).mean())
    assert power["imbalance"]["once a turn"] > 2 * power["none"]["once a turn"]
    assert power["looseness"]["halves and multiples"] > 2 * power["none"]["halves and multiples"]
    assert max(peaked, key=peaked.get) == "bearing" and peaked["bearing"] > 3.3  # of noise it is 3


def test_severity_is_a_number_and_stands_only_where_there_is_a_fault(folders):
    for row in rows_of(folders["machines"]):
        assert (row["severity"] == "") == (row["fault"] == "none")
        assert row["severity"] == "" or 0.1 <= float(row["severity"]) <= 1


def test_what_cannot_be_made_is_refused_and_what_is_there_is_left_alone(folders, tmp_path):
    before = (folders["leaves"] / "train.csv").stat().st_mtime_ns
    assert recipes.make_recipe_set("leaves", folders["leaves"], num_rows=180, seed=4) == folders["leaves"]
    assert (folders["leaves"] / "train.csv").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"other settings .*'recipe': 'leaves'.* and is not overwritten"):
        recipes.make_recipe_set("pairs", folders["leaves"], num_rows=180, seed=4)
    with pytest.raises(ValueError, match="`name` is 'flowers'; allowed are digits, pairs, leaves, machines"):
        recipes.make_recipe_set("flowers", tmp_path / "new")
    with pytest.raises(ValueError, match="`num_rows` is 1798; of `digits` there can be from 100 to 1797"):
        recipes.make_recipe_set("digits", tmp_path / "new", num_rows=1798)
    with pytest.raises(ValueError, match="`num_rows` is 99; of `pairs` there can be from 100"):
        recipes.make_recipe_set("pairs", tmp_path / "new", num_rows=99)
    with pytest.raises(ValueError, match="`seed` is -1"):
        recipes.make_recipe_set("pairs", tmp_path / "new", seed=-1)
    assert not (tmp_path / "new").exists()


def test_the_command_writes_a_set_and_tells_errors_in_one_line(tmp_path, capsys):
    assert recipes.main(["machines", str(tmp_path / "set"), "--num_rows", "100", "--seed", "3"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'set'}\n"
    assert json.loads((tmp_path / "set" / "demo.json").read_text())["recipe"] == "machines"
    assert recipes.main(["machines", str(tmp_path / "set"), "--num_rows", "100", "--seed", "4"]) == 1
    assert capsys.readouterr().err.startswith("error: `")
    with pytest.raises(SystemExit, match="2"):
        recipes.main(["flowers", "x"])


def test_asking_for_help_loads_nothing_heavy():
    code = (
        "import sys, data.recipes; print([n for n in ('torch', 'transformers', 'sklearn', 'PIL') if n in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
