"""The look at every cell: real broken files, and what each policy makes of them."""

import io
import zlib

import numpy as np
import pytest
import soundfile
from PIL import Image

import data.checking
from data import BadCellsError, Columns, check_table, read_table


def png(path, size=(8, 8)):
    Image.new("RGB", size, "red").save(path)


def wav(path, samples, rate=8_000, **kwargs):
    soundfile.write(path, np.asarray(samples, dtype=np.float32), rate, **kwargs)


def huge_png():
    """A valid header that announces 100 megapixels, as a bomb does."""
    picture = io.BytesIO()
    Image.new("L", (1, 1)).save(picture, "PNG")
    head = b"IHDR" + (10_000).to_bytes(4, "big") * 2 + b"\x08\x00\x00\x00\x00"
    return picture.getvalue()[:12] + head + zlib.crc32(head).to_bytes(4, "big") + picture.getvalue()[33:]


@pytest.fixture
def folder(tmp_path):
    tone = np.sin(np.arange(4_000) / 5)
    png(tmp_path / "good.png")
    wav(tmp_path / "good.wav", tone)
    picture = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(picture, "PNG")
    (tmp_path / "cut.png").write_bytes(picture.getvalue()[:1_000])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "huge.png").write_bytes(huge_png())
    (tmp_path / "noise.wav").write_bytes(b"RIFF but not really")
    wav(tmp_path / "none.wav", [])
    wav(tmp_path / "short.wav", tone[:80])
    wav(tmp_path / "nan.wav", [*tone, np.nan], subtype="FLOAT")
    return tmp_path


def table_of(folder, *rows, **kwargs):
    (folder / "t.csv").write_text("\n".join(["text,face,voice", *rows]) + "\n")
    return read_table(folder / "t.csv", columns=Columns(image="face", audio="voice"), **kwargs)


def check(table, **kwargs):
    return check_table(table, sampling_rate=16_000, progress=False, **kwargs)


def test_a_sound_table_passes_unchanged(folder):
    table = table_of(folder, "a,good.png,good.wav", ",good.png,", "b,,")
    checked, report = check(table)
    assert checked is table
    assert report.problems == [] and report.num_cells == {"text": 2, "image": 2, "audio": 1}
    assert "3 rows checked (2 text, 2 image, 1 audio; 2 pictures and sounds opened)" in report.describe()


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (",gone.png,", r"column `face`: the file `.*gone\.png` does not exist"),
        (",cut.png,", r"column `face`: .*cut\.png` cannot be decoded"),
        (",text.png,", r"column `face`: .*text\.png` cannot be read as a picture"),
        (",empty.png,", r"column `face`: .*empty\.png` cannot be read as a picture"),
        (",huge.png,", r"column `face`: .*huge\.png` has 10000 x 10000 = 100000000 pixels, the limit is 50000000"),
        (",.,", r"column `face`: the file .* is not a regular file"),
        (",../x.png,", r"column `face`: '\.\./x\.png' leads to .* outside of"),
        (",http://127.0.0.1:1/x.png,", r"column `face`: .* is a URL; URLs are never fetched"),
        (",,noise.wav", r"column `voice`: .*noise\.wav` cannot be read as sound"),
        (",,none.wav", r"column `voice`: the clip lasts 0 s"),
        (",,short.wav", r"column `voice`: the clip lasts 0\.01 s .*at least 0\.025 s"),
        (",,nan.wav", r"column `voice`: the clip holds NaN"),
        (",,good.png", r"column `voice`: .*good\.png` is a picture"),
        (", ,", r"the row has no modality \(`text`, `face`, `voice` are all empty\)"),
    ],
)
def test_every_fault_is_told_with_its_row_and_column(folder, row, reason):
    table = table_of(folder, "a,good.png,good.wav", row)
    with pytest.raises(BadCellsError, match=r"t\.csv:row 2(, |: )" + reason) as raised:
        check(table)
    assert len(raised.value.problems) == 1
    assert "1 problems in" in str(raised.value) and "`drop` leaves out their rows" in str(raised.value)


def bad_table(folder):
    return table_of(folder, "a,gone.png,good.wav", "b,good.png,short.wav", ",cut.png,", ",,", "e,gone.png,nan.wav")


def test_all_problems_are_told_at_once_and_the_list_is_bounded(folder):
    with pytest.raises(BadCellsError) as raised:
        check(bad_table(folder), max_reported=2)
    lines = str(raised.value).splitlines()
    assert [problem.index for problem in raised.value.problems] == [0, 1, 2, 3, 4, 4]
    assert (len(lines), lines[2]) == (4, "… and 4 more")
    assert lines[3].startswith("6 problems in") and "--on_bad_cell" in lines[3]


def test_drop_leaves_out_the_rows(folder):
    table = table_of(folder, "a,good.png,good.wav", "b,gone.png,", ",,", "d,,")
    checked, report = check(table, on_bad_cell="drop")
    assert checked.rows.tolist() == [0, 3]
    assert (report.num_dropped, report.num_emptied, len(report.problems)) == (2, 0, 2)
    assert "2 problems, on_bad_cell=drop: 0 cells taken as empty, 2 rows left out" in report.describe()


def test_empty_empties_the_cells_and_leaves_out_what_holds_nothing(folder):
    table = table_of(folder, "a,gone.png,good.wav", ",cut.png,", "c,good.png,nan.wav")
    checked, report = check(table, on_bad_cell="empty")
    assert checked.rows.tolist() == [0, 2]
    assert checked.presence.tolist() == [[True, False, True], [True, True, False]]
    assert (checked.cell(0, "image"), checked.cell(1, "image")) == (None, "good.png")
    assert (report.num_dropped, report.num_emptied) == (1, 3)
    assert check(checked)[1].problems == []


def test_a_column_without_a_filled_cell_is_an_error_unless_allowed(folder):
    table = table_of(folder, "a,good.png,", "b,, ")
    with pytest.raises(
        ValueError, match=r"every cell of the column `voice` is empty.*name `none` as the audio column"
    ):
        check(table)
    assert len(check(table, allow_empty_columns=True)[0]) == 2
    assert len(check(table.keep_modalities(["text", "image"]))[0]) == 2
    broken = table_of(folder, "a,good.png,none.wav", "b,good.png,")
    with pytest.raises(ValueError, match=r"row 1, column `voice`: the clip lasts 0 s(.|\n)*every cell of .* `voice`"):
        check(broken, on_bad_cell="empty")


def test_nothing_left_is_an_error(folder):
    with pytest.raises(BadCellsError, match=r"row 1, column `face`(.|\n)*No row of .* is left after the check"):
        check(table_of(folder, "a,gone.png,good.wav"), on_bad_cell="drop")


def test_an_unknown_policy_is_refused(folder):
    with pytest.raises(ValueError, match="`on_bad_cell` is 'skip'; allowed are error, drop, empty"):
        check(table_of(folder, "a,good.png,good.wav"), on_bad_cell="skip")


def test_each_distinct_file_is_opened_once(folder, monkeypatch):
    opened = []
    real = data.checking.open_media
    monkeypatch.setattr(data.checking, "open_media", lambda *args: (opened.append(args[0]), real(*args))[1])
    _, report = check(table_of(folder, *["a,good.png,good.wav"] * 200))
    assert (len(opened), report.num_opened) == (2, 2)


def test_the_bar_goes_to_stderr_and_can_be_turned_off(folder, capsys):
    table = table_of(folder, "a,good.png,good.wav")
    check_table(table, sampling_rate=16_000)
    captured = capsys.readouterr()
    assert captured.out == "" and "Checking" in captured.err and "2/2" in captured.err
    check(table)
    assert capsys.readouterr().err == ""
