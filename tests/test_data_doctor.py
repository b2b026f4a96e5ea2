"""The data doctor on small real tables: a clean one has nothing to tell, and each planted fault is named."""

import csv
import io
import json

import numpy as np
import pytest
import soundfile
from PIL import Image

from data.checking import BadCellsError, check_table
from data.demo import make_demo
from data.doctor import diagnose, main
from data.table import read_table

LABELS = ("calm", "cross", "glad")
NUM = {"train": 90, "validation": 30}
RATE = 8_000


def picture(rng, side=24, mode="RGB"):
    """A soft pattern unlike any other."""
    small = rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC).convert(mode)


def sound(rng, seconds=0.5):
    """Bursts of noise in a rhythm of its own."""
    loudness = np.repeat(rng.random(10) ** 2, int(seconds * RATE) // 10)
    waves = np.sin(np.cumsum(np.repeat(rng.uniform(0.1, 2.5, 10), int(seconds * RATE) // 10)))
    return 0.4 * loudness * waves + 0.002 * rng.standard_normal(len(waves))


def sentence(rng):
    return " ".join("".join(rng.choice(list("abcdefghijklmnoprstuvwz"), rng.integers(3, 9))) for _ in range(12))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures and sounds of a clean table, and the table itself as lists of rows."""
    folder, rng = tmp_path_factory.mktemp("doctor"), np.random.default_rng(0)
    for split, num_rows in NUM.items():
        for number in range(num_rows):
            picture(rng).save(folder / f"{split}{number}.png")
            soundfile.write(folder / f"{split}{number}.wav", sound(rng), RATE)
    return folder


@pytest.fixture
def rows():
    """The rows of a clean table, free to be spoilt: a fifth of the cells is empty, whatever the label."""
    rng, tables = np.random.default_rng(1), {}
    for split, num_rows in NUM.items():
        # An order that neither the numbers nor the names of the files tell.
        labels = rng.permutation(np.arange(num_rows) % 3)
        tables[split] = [
            {"text": sentence(rng), "image": f"{split}{number}.png", "audio": f"{split}{number}.wav",
             "label": LABELS[labels[number]]}
            for number in range(num_rows)
        ]  # fmt: skip
        for number, row in enumerate(tables[split]):
            if number % 5 == 4:
                row[("text", "image", "audio")[(number // 5) % 3]] = ""
    return tables


def write(folder, name, rows):
    with (folder / name).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["text", "image", "audio", "label"])
        writer.writeheader()
        writer.writerows(rows)
    return folder / name


def examined(folder, rows, **options):
    tables = {split: read_table(write(folder, f"{split}.csv", part)) for split, part in rows.items()}
    return diagnose(tables, progress=False, num_workers=2, **options)


def found(diagnosis, code):
    """The only finding of this code, and the rows it lists."""
    findings = [finding for finding in diagnosis.findings if finding.code == code]
    assert len(findings) == 1, [finding.code for finding in diagnosis.findings]
    return findings[0], [example.row for example in findings[0].examples]


def codes(diagnosis, *severities):
    return {finding.code for finding in diagnosis.findings if finding.severity in severities}


# -- no false alarms


def test_a_clean_table_has_neither_errors_nor_warnings(folder, rows):
    assert codes(examined(folder, rows), "error", "warning") == set()


def test_the_demo_set_has_neither_errors_nor_warnings(tmp_path):
    demo = make_demo(tmp_path / "demo", num_rows=400, seed=3)
    tables = {split: read_table(demo / f"{split}.csv") for split in ("train", "validation", "test")}
    assert codes(diagnose(tables, progress=False), "error", "warning") == set()


# -- cells


def test_cells_that_cannot_be_opened_are_those_that_the_training_refuses_all_of_them_with_their_reasons(folder, rows):
    (folder / "cut.png").write_bytes((folder / "train0.png").read_bytes()[:60])
    (folder / "noise.wav").write_bytes(b"this is no sound")
    rows["train"][3]["image"], rows["train"][5]["audio"], rows["train"][7]["image"] = (
        "cut.png",
        "noise.wav",
        "gone.png",
    )
    rows["train"][8]["image"] = "https://example.org/a.png"
    rows["train"][11]["image"] = "../outside.png"
    diagnosis = examined(folder, rows)
    finding, listed = found(diagnosis, "undecodable.image")
    assert (finding.severity, finding.count, listed) == ("error", 4, [4, 8, 9, 12])
    assert finding.examples[0].column == "image" and finding.examples[0].value == "cut.png"
    assert found(diagnosis, "undecodable.audio")[1] == [6]
    with pytest.raises(BadCellsError) as refused:
        check_table(read_table(folder / "train.csv"), progress=False)
    told = [(problem.index, problem.modality, problem.reason) for problem in refused.value.problems]
    ours = [(problem.index, problem.modality, problem.reason) for problem in diagnosis.records.splits[0].problems]
    assert sorted(ours) == sorted(told)


def test_a_row_that_holds_nothing_is_an_error(folder, rows):
    rows["validation"][2] = {"text": " ", "image": "", "audio": "", "label": "calm"}
    finding, listed = found(examined(folder, rows), "empty.row")
    assert (finding.severity, listed, finding.examples[0].split) == ("error", [3], "validation")


def test_blank_pictures_silent_clipped_and_long_sounds_are_told_with_their_rows(folder, rows):
    Image.new("RGB", (24, 24), "grey").save(folder / "grey.png")
    soundfile.write(folder / "silent.wav", np.zeros(4000), RATE)
    soundfile.write(folder / "loud.wav", np.clip(8 * sound(np.random.default_rng(5)), -1, 1), RATE)
    soundfile.write(folder / "long.wav", sound(np.random.default_rng(6), 3), RATE)
    for at, name in ((0, "silent.wav"), (1, "loud.wav"), (2, "long.wav")):
        rows["train"][at]["audio"] = name
    rows["train"][5]["image"] = rows["validation"][6]["image"] = "grey.png"
    diagnosis = examined(folder, rows, max_audio_seconds=2)
    assert found(diagnosis, "silent.audio")[1] == [1]
    assert found(diagnosis, "clipped.audio")[1] == [2]
    assert found(diagnosis, "long.audio")[1] == [3]
    blank = [finding for finding in diagnosis.findings if finding.code == "blank.image"]
    assert [[example.row for example in finding.examples] for finding in blank] == [[6], [7]]
    assert "leak.image" not in codes(diagnosis, "error")  # that a blank picture stands twice says nothing more


def test_words_for_nothing_and_letters_of_a_wrong_encoding_are_told(folder, rows):
    rows["train"][0]["text"], rows["train"][1]["text"] = "N/A", "dÃ©jÃ vu and so on"
    diagnosis = examined(folder, rows)
    assert found(diagnosis, "placeholder.text")[1] == [1]
    assert found(diagnosis, "garbled.text")[1] == [2]


def test_a_modality_that_is_rarer_in_one_split_is_told_with_both_shares(folder, rows):
    for row in rows["validation"][:25]:
        row["image"] = ""
    finding, _ = found(examined(folder, rows), "shift.image")
    assert finding.severity == "warning"
    assert finding.what == "93.3 % of the rows of train have a picture, and 16.7 % of validation."


def test_modalities_that_never_stand_together_are_told(folder, rows):
    for number, row in enumerate(rows["train"]):
        row["image" if number % 2 else "audio"] = ""
    assert "never.together" in codes(examined(folder, rows), "warning")


# -- duplicates and leaks


def test_a_row_of_the_validation_that_stands_in_the_training_is_an_error_that_names_both(folder, rows):
    rows["validation"][10] = dict(rows["train"][41])
    finding, listed = found(examined(folder, rows), "leak.row")
    assert (finding.severity, finding.count, listed) == ("error", 1, [11])
    assert finding.examples[0].remark.endswith("train.csv:row 42")
    assert "1 of them with the same label" in finding.what


def test_the_same_picture_in_another_file_format_is_a_leak_and_is_not_told_of_the_whole_row(folder, rows):
    Image.open(folder / "train20.png").save(folder / "other.bmp")
    rows["validation"][0]["image"] = "other.bmp"
    diagnosis = examined(folder, rows)
    finding, listed = found(diagnosis, "leak.image")
    assert (finding.severity, listed, finding.examples[0].value) == ("error", [1], "other.bmp")
    assert finding.examples[0].remark.endswith("train.csv:row 21")
    assert "leak.row" not in codes(diagnosis, "error")


def test_a_picture_that_was_scaled_and_stored_again_nearly_equals_its_original(folder, rows):
    Image.open(folder / "train20.png").resize((64, 64), Image.Resampling.BICUBIC).save(folder / "near.jpg", quality=70)
    rows["validation"][1]["image"] = "near.jpg"
    finding, listed = found(examined(folder, rows), "near_leak.image")
    assert (finding.severity, listed) == ("warning", [2])
    assert finding.examples[0].remark.endswith("train.csv:row 21")


def test_a_sound_stored_in_another_format_is_found_and_a_quieter_one_nearly(folder, rows):
    samples, rate = soundfile.read(folder / "train30.wav")
    soundfile.write(folder / "same.flac", samples, rate)
    soundfile.write(folder / "quieter.wav", 0.4 * samples, rate)
    rows["validation"][2]["audio"], rows["validation"][3]["audio"] = "same.flac", "quieter.wav"
    diagnosis = examined(folder, rows)
    assert found(diagnosis, "leak.audio")[1] == [3]
    assert found(diagnosis, "near_leak.audio")[1] == [4]


def test_a_text_is_the_same_in_another_case_and_nearly_with_another_word(folder, rows):
    text = rows["train"][6]["text"]
    rows["validation"][5]["text"] = f"  {text.upper()} "
    rows["validation"][6]["text"] = f"{text} also"
    diagnosis = examined(folder, rows)
    assert found(diagnosis, "leak.text")[1] == [6]
    assert found(diagnosis, "near_leak.text")[1] == [7]


def test_short_texts_that_repeat_by_nature_are_no_leak(folder, rows):
    for row in (*rows["train"][:20], *rows["validation"][:10]):
        row["text"] = "Yes, of course."
    assert codes(examined(folder, rows), "error", "warning") == set()


def test_a_row_that_stands_twice_under_two_labels_is_told_as_both(folder, rows):
    rows["train"][50] = dict(rows["train"][12], label="glad" if rows["train"][12]["label"] != "glad" else "calm")
    diagnosis = examined(folder, rows)
    assert found(diagnosis, "duplicate.row")[1] == [51]
    finding, listed = found(diagnosis, "conflict.row")
    assert (finding.severity, listed) == ("warning", [51])


def test_a_file_that_many_rows_name_is_opened_once(folder, rows, monkeypatch):
    from data import doctor_media

    opened = []
    plain = doctor_media.open_media
    monkeypatch.setattr(
        doctor_media, "open_media", lambda source, *rest: opened.append(source) or plain(source, *rest)
    )
    for row in rows["train"][:40]:
        row["image"] = "train0.png"
    examined(folder, rows)
    assert len([source for source in opened if str(source).endswith("train0.png")]) == 1


# -- labels


def test_a_label_that_training_lacks_an_empty_one_and_a_rare_one_are_told(folder, rows):
    rows["validation"][4]["label"], rows["train"][9]["label"], rows["train"][14]["label"] = "furious", " ", "odd"
    diagnosis = examined(folder, rows)
    unknown, listed = found(diagnosis, "unknown.label")
    assert (unknown.severity, listed) == ("error", [5]) and "`furious`" in unknown.what
    assert found(diagnosis, "empty.label")[1] == [10]
    rare, _ = found(diagnosis, "rare.label")
    assert rare.severity == "warning" and rare.details == ["`odd`: 1 row"]


def test_labels_that_are_spread_otherwise_in_the_validation_are_told(folder, rows):
    for row in rows["validation"]:
        row["label"] = "calm"
    diagnosis = examined(folder, rows)
    assert {"shift.label", "missing.label"} <= codes(diagnosis, "warning")


def test_labels_that_cannot_be_learnt_from_end_only_the_questions_about_labels(folder, rows):
    for row in rows["train"]:
        row["label"] = "calm"
    rows["validation"][10] = dict(rows["train"][41])
    diagnosis = examined(folder, rows)
    assert {"unreadable.label", "leak.row"} <= codes(diagnosis, "error")


def test_a_quantity_far_from_all_others_is_told(folder, rows):
    rng = np.random.default_rng(2)
    for part in rows.values():
        for row in part:
            row["label"] = f"{rng.normal(5, 1):.2f}"
    rows["train"][8]["label"] = "-999.5"
    assert found(examined(folder, rows), "far.label")[1] == [9]


def test_several_labels_in_a_cell_are_counted_each_and_an_empty_cell_is_none_of_them(folder, rows):
    for row in rows["train"]:
        row["label"] = f"{row['label']};{LABELS[0]}"
    rows["train"][0]["label"] = ""
    diagnosis = examined(folder, rows, label_delimiter=";")
    assert diagnosis.labels.map.num_labels == 3
    assert diagnosis.labels.counts(0)[0] == 89
    assert "empty.label" not in codes(diagnosis, "error")


# -- leakage


def test_texts_that_say_their_label_are_an_error_with_the_share_of_each_label(folder, rows):
    for row in rows["train"]:
        row["text"] = row["text"] and f"{row['text']} ({row['label'].upper()})"
    finding, _ = found(examined(folder, rows), "text.says.label")
    assert finding.severity == "error"
    assert "84 of 84 texts of train (100 %) contain their own label" in finding.what
    assert any(line.startswith("`cross`: ") and "(100 %)" in line for line in finding.details)


def test_a_label_inside_another_word_is_not_said(folder, rows):
    rows["train"][0]["text"] = f"{rows['train'][0]['label']}ness is not the word that we look for"
    assert "text.says.label" not in codes(examined(folder, rows), "error", "warning", "note")


def test_empty_cells_that_foretell_the_label_are_told_with_both_shares(folder, rows):
    for row in rows["train"]:
        row["image"] = "" if row["label"] == "cross" else row["image"]
    finding, _ = found(examined(folder, rows), "leak.missing")
    assert finding.severity == "warning"
    assert "always saying" in finding.what and "33.3 %" in finding.what
    assert any("picture: empty in 100 % of the rows with `cross`" in line for line in finding.details)


def test_file_names_durations_and_sizes_that_foretell_the_label_are_told(folder, rows):
    rng = np.random.default_rng(7)
    for number, row in enumerate(rows["train"]):
        kind = LABELS.index(row["label"])
        row["image"], row["audio"] = f"{row['label']}_{number}.png", f"{number}.wav"
        picture(rng, side=(20, 30, 40)[kind]).save(folder / row["image"])
        soundfile.write(folder / row["audio"], sound(rng, (0.3, 0.5, 0.7)[kind]), RATE)
    diagnosis = examined(folder, rows)
    assert {"shortcut.image.width", "shortcut.audio.seconds"} <= codes(diagnosis, "warning")
    name, _ = found(diagnosis, "shortcut.image.name")
    assert name.severity == "note"  # no model sees it
    assert "of 100 % of the rows" in name.what and any("part 1 = " in line for line in name.details)
    assert "shortcut.audio.name" not in codes(diagnosis, "note")


def test_a_sorted_table_is_told(folder, rows):
    rows["train"].sort(key=lambda row: row["label"])
    assert "shortcut.row.order" in codes(examined(folder, rows), "note")


# -- media in the table


def test_a_table_with_the_bytes_in_it_is_looked_at_in_the_same_way(folder, rows, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    def column(kind):
        cells = [row[kind] for row in rows["train"]]
        return [{"bytes": (folder / name).read_bytes(), "path": name} if name else None for name in cells]

    rows["train"][30]["image"] = rows["train"][31]["image"] = "train1.png"
    labels = [row["label"] for row in rows["train"]]
    table = {"text": [row["text"] for row in rows["train"]], "image": column("image"), "audio": column("audio")}
    pq.write_table(pa.table(table | {"label": labels}), tmp_path / "train.parquet")
    diagnosis = diagnose({"train": read_table(tmp_path / "train.parquet")}, progress=False)
    finding, listed = found(diagnosis, "duplicate.image")
    assert listed == [31, 32] and finding.examples[0].value.startswith("train1.png (")


# -- the command


def test_the_command_prints_a_line_a_finding_worst_first_and_writes_json_and_page(folder, rows, tmp_path, capsys):
    rows["validation"][10] = dict(rows["train"][41])
    paths = [str(write(folder, f"{split}.csv", part)) for split, part in rows.items()]
    page, findings = tmp_path / "page.html", tmp_path / "findings.json"
    command = [paths[0], "--validation_file", paths[1], "--output_file", str(page), "--json", str(findings)]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "rows: train 90, validation 30"
    assert lines[1].split()[:3] == ["error", "leak.row", "1"]
    stored = json.loads(findings.read_text())
    assert stored["num_errors"] == 1 and stored["findings"][0]["code"] == "leak.row"
    assert stored["findings"][0]["examples"][0]["row"] == 11
    assert stored["splits"]["train"]["rows"] == 90
    assert 0.7 < stored["splits"]["train"]["present"]["text + image + audio"] < 0.9
    assert "<h1>train.csv</h1>" in page.read_text()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_fail_on_ends_with_1_for_findings_that_severe_or_worse(folder, rows):
    path = str(write(folder, "train.csv", rows["train"]))
    assert main([path, "--fail_on", "warning"]) == 0
    rows["train"][0]["image"] = rows["train"][1]["image"] = ""
    rows["train"][0]["text"] = "dÃ©jÃ vu"
    path = str(write(folder, "train.csv", rows["train"]))
    assert main([path, "--fail_on", "error"]) == 0
    assert main([path, "--fail_on", "warning"]) == 1
    rows["train"][0]["audio"] = "gone.wav"
    assert main([str(write(folder, "train.csv", rows["train"])), "--fail_on", "warning"]) == 1


def test_a_wrong_call_ends_with_2_and_a_wrong_file_with_1_and_one_line(tmp_path, capsys):
    for wrong in (["--fail_on", "note"], ["--max_audio_seconds", "0"], ["--seed", "x"]):
        with pytest.raises(SystemExit) as ended:
            main(["table.csv", *wrong])
        assert ended.value.code == 2
    capsys.readouterr()
    assert main([str(tmp_path / "none.csv")]) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: ") and "none.csv` does not exist" in told and told.count("\n") == 1


def test_a_page_that_cannot_be_written_is_told_before_the_long_look(tmp_path, capsys):
    assert main(["none.csv", "--output_file", str(tmp_path / "no" / "page.html")]) == 1
    assert "which does not exist. Name a file in a folder that exists." in capsys.readouterr().err
    assert main(["none.csv", "--json", str(tmp_path)]) == 1
    assert "is a folder. Name a file" in capsys.readouterr().err


def test_help_needs_no_heavy_library():
    import subprocess
    import sys

    script = (
        "import sys; from data.doctor import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'sklearn', 'scipy', 'datasets', 'matplotlib', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]" and "--fail_on" in done.stdout


def test_columns_of_other_names_are_taken_by_flags(rows, tmp_path):
    renamed = io.StringIO()
    writer = csv.writer(renamed)
    writer.writerow(["words", "mood"])
    writer.writerows([row["text"] or "nothing to say", row["label"]] for row in rows["train"])
    (tmp_path / "words.csv").write_text(renamed.getvalue())
    command = [str(tmp_path / "words.csv"), "--text_column", "words", "--label_column", "mood"]
    assert main([*command, "--fail_on", "warning"]) == 0
