"""The batch tab's engine, with real files, a real model behind a real service, and uploads that mean harm."""

import asyncio
import csv
import io
import os
import re
import shutil
import stat
import struct
import subprocess
import sys
import threading
import time
import zipfile

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image
from test_evaluation import LABELS, ROOT, make_folder

from cli.loading import load_pipeline
from hub.space import _reached
from space.archives import MIB, ArchiveLimits, open_upload
from space.batch import BatchLimits, ModelFacts, run_batch
from space.errors import BadInput, Refusal
from space.options import Options
from space.service import Service

FACTS = ModelFacts(("text", "image", "audio"), LABELS, "single_label_classification")
RANKED = [{"label": "bee", "score": 0.5}, {"label": "ant", "score": 0.3}, {"label": "cat", "score": 0.2}]
HEADER = "id,text,image,audio\n"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def ask(tmp_path):
    """Run a batch on an upload of this content with a callable that answers at once; give the result."""

    def run(content, name="rows.csv", predict=lambda rows: [RANKED] * len(rows), model=FACTS, **options):
        upload = write(tmp_path / "in" / name, content)
        return run_batch(upload, tmp_path / "work", predict, model, **options)

    return run


@pytest.fixture(scope="module")
def predict(tmp_path_factory):
    """The service's batch function, on a tiny model, as the page hands it over."""
    pipeline = load_pipeline(str(make_folder(tmp_path_factory.mktemp("model"))), device="cpu")
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    service = Service(pipeline, Options(max_batch_size=4, max_text_chars=100))
    asyncio.run_coroutine_threadsafe(service.__aenter__(), loop).result(60)
    yield lambda rows: asyncio.run_coroutine_threadsafe(service.ask_all(rows), loop).result(60)
    asyncio.run_coroutine_threadsafe(service.__aexit__(None, None, None), loop).result(60)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def picture():
    file = io.BytesIO()
    Image.new("RGB", (20, 20), "red").save(file, "PNG")
    return file.getvalue()


def sound():
    file = io.BytesIO()
    soundfile.write(file, np.sin(np.arange(800) / 5).astype(np.float32), 16_000, format="WAV")
    return file.getvalue()


def zipped(entries, compression=zipfile.ZIP_DEFLATED):
    """Give a zip of name (or ZipInfo) -> content."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in entries.items() if isinstance(entries, dict) else entries:
            archive.writestr(name, content)
    return file.getvalue()


def column(result, name):
    place = result.columns.index(name)
    return [row[place] for row in result.rows]


def leftovers(tmp_path):
    return sorted(path.name.partition("-")[0] for path in (tmp_path / "work").iterdir())


# -- a batch ----------------------------------------------------------------------------------------------------------


def test_a_zip_with_media_is_answered_row_by_row_and_bad_cells_are_told_in_their_rows(ask, predict, tmp_path):
    rows = [
        "1,a small animal,a.png,a.wav", "2,a loud animal,,", "3,,a.png,", "4,,,a.wav", "5,,,",
        "6,x,broken.png,", "7,x,,broken.wav", "8,x,nowhere.png,", "9,x,http://127.0.0.1:9/a.png,", "10,x,../a.png,",
        "11,x,/etc/passwd,", f"12,{'x' * 101},,", "13,a red animal,sub/b.png,",
    ]  # fmt: skip
    entries = {
        "data/rows.csv": HEADER + "\n".join(rows), "data/a.png": picture(), "data/a.wav": sound(),
        "data/broken.png": picture()[:60], "data/broken.wav": b"RIFF", "data/sub/b.png": picture(),
        "__MACOSX/data/._rows.csv": b"\x00", "data/.DS_Store": b"\x00",
    }  # fmt: skip
    told = []
    result = ask(zipped(entries), "all.zip", predict, progress=lambda done, total: told.append((done, total)),
                 limits=BatchLimits(chunk_rows=5))  # fmt: skip
    assert told == [(0, 13), (5, 13), (10, 13), (13, 13)] and result.is_complete
    assert (result.num_done, result.num_failed) == (13, 8)
    errors = dict(zip(map(int, column(result, "id")), column(result, "error"), strict=True))
    good = {1, 2, 3, 4, 13}
    assert {row for row, error in errors.items() if error is None} == good
    for row, sentence in {
        5: "nothing to answer", 6: "`image`: .* cannot be decoded", 7: "`audio`: .* cannot be read as sound",
        8: "'nowhere.png' is not in the upload", 9: "127.0.0.1:9/a.png' is a URL or leads out of the upload",
        10: "'../a.png' is a URL or leads out", 11: "'/etc/passwd' is a URL or leads out",
        12: "has 101 characters, the limit is 100",
    }.items():  # fmt: skip
        assert re.search(sentence, errors[row]), errors[row]
    assert not any(str(tmp_path) in (error or "") for error in errors.values())
    for row, label, score in zip(
        column(result, "id"), column(result, "prediction"), column(result, "score"), strict=True
    ):
        assert (label in LABELS and 0 < score <= 1) if int(row) in good else (label, score) == (None, None)
    assert leftovers(tmp_path) == ["result"]


def test_both_files_hold_all_rows_and_the_display_only_the_first(ask):
    result = ask("id,text\n" + "".join(f"{i},t{i}\n" for i in range(50)), limits=BatchLimits(max_shown_rows=20))
    assert len(result.rows) == 20 and result.num_done == 50
    names = ["id", "text", "prediction", "score", "probability_ant", "probability_bee", "probability_cat", "error"]
    assert result.columns == names
    table = pq.read_table(result.parquet_file)
    assert table.column_names == names and table["text"].to_pylist() == [f"t{i}" for i in range(50)]
    with result.csv_file.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 50 and rows[0]["prediction"] == "bee" and float(rows[0]["probability_ant"]) == 0.3


def test_each_answer_stands_in_the_row_that_it_was_asked_for(ask):
    def by_text(rows):
        return [[{"label": label, "score": float(label == row["text"])} for label in LABELS] for row in rows]

    texts = [LABELS[index * 7 % 3] for index in range(40)]
    result = ask("text\n" + "\n".join(texts), predict=by_text)
    assert column(result, "prediction") == texts


def test_formulas_are_disarmed_in_the_csv_and_kept_in_parquet(ask):
    result = ask("note,text\n\"=cmd|'/c calc'!A0\",a\n＝1+1,b\n-0.5,c\n")
    with result.csv_file.open(newline="") as file:
        assert [row["note"] for row in csv.DictReader(file)] == ["'=cmd|'/c calc'!A0", "'＝1+1", "-0.5"]
    assert pq.read_table(result.parquet_file)["note"].to_pylist()[1] == "＝1+1"


def test_columns_of_other_names_are_found_when_named(ask):
    result = ask("words,other\nhello,1\n", text_column="words", image_column=" ", audio_column=None)
    assert column(result, "prediction") == ["bee"]


def test_a_tab_separated_table_alone_is_fine(ask):
    assert ask("text\tnote\na,b\t1\n", "rows.tsv").rows[0][:2] == ["a,b", "1"]


@pytest.mark.parametrize(
    ("problem", "labels", "ranked", "expected"),
    [
        ("regression", ["age"], [{"label": "age", "score": 3.5}], {"prediction": 3.5}),
        ("regression", ["x", "y"], [{"label": "y", "score": 2.0}, {"label": "x", "score": 1.0}],
         {"prediction_x": 1.0, "prediction_y": 2.0}),
        ("multi_label_classification", ["a", "b"], [{"label": "b", "score": 0.9}, {"label": "a", "score": 0.1}],
         {"prediction": ["b"], "probability_a": 0.1, "probability_b": 0.9}),
    ],
)  # fmt: skip
def test_other_problem_types_have_their_own_columns(ask, problem, labels, ranked, expected):
    model = ModelFacts(("text",), labels, problem)
    refused = Refusal("timeout", "no answer")
    result = ask("text\na\nb\n", predict=lambda rows: [ranked, refused], model=model)
    assert dict(zip(result.columns, result.rows[0], strict=True)) == {"text": "a", **expected, "error": None}
    assert result.rows[1] == ["b", *[None] * len(expected), "no answer"]


def test_with_empty_a_row_is_answered_without_its_bad_cells(ask, predict):
    entries = {"rows.csv": HEADER + "1,a small animal,bad.png,bad.wav\n2,,bad.png,\n", "bad.png": "x", "bad.wav": "x"}
    result = ask(zipped(entries), "a.zip", predict, on_bad_cell="empty")
    assert column(result, "prediction")[0] in LABELS and column(result, "prediction")[1] is None
    error = column(result, "error")[0]
    assert "`image`: the 1 bytes" in error and "`audio`: the 1 bytes" in error and result.num_failed == 1


def test_with_error_the_first_bad_cell_ends_the_batch_and_nothing_is_left(ask, predict, tmp_path):
    content = zipped({"rows.csv": HEADER + "1,a,,\n2,a,bad.png,\n", "bad.png": "x"})
    with pytest.raises(BadInput, match=r"row 2: `image`: .* cannot be read") as refused:
        ask(content, "a.zip", predict, on_bad_cell="error")
    assert refused.value.code == "image_unreadable" and leftovers(tmp_path) == []
    with pytest.raises(ValueError, match="`on_bad_cell` is 'drop'; allowed are report, empty, error"):
        ask(content, "a.zip", predict, on_bad_cell="drop")


def test_a_cancelled_batch_gives_what_is_done(ask):
    cancelled = threading.Event()
    result = ask("text\n" + "a\n" * 100, cancelled=cancelled, limits=BatchLimits(chunk_rows=10),
                 progress=lambda done, total: done == 30 and cancelled.set())  # fmt: skip
    assert (result.num_done, result.is_complete) == (30, False)
    assert pq.read_table(result.parquet_file).num_rows == 30
    result = ask("text\na\n", cancelled=cancelled)
    assert result.num_done == 0 and pq.read_table(result.parquet_file).column_names == result.columns


def test_a_batch_waits_for_a_full_server_but_not_for_ever(ask):
    calls = []

    def full_at_first(rows):
        calls.append(rows)
        if len(calls) < 3:
            raise Refusal("overloaded", "full")
        return [RANKED] * len(rows)

    limits = BatchLimits(patience_seconds=0.5)
    assert ask("text\na\n", predict=full_at_first, limits=limits).num_failed == 0 and len(calls) == 3

    def always_full(rows):
        raise Refusal("overloaded", "full")

    with pytest.raises(Refusal, match="full"):
        ask("text\na\n", predict=always_full, limits=limits)


def test_results_are_kept_for_a_while_and_then_removed(ask, tmp_path):
    first, second = ask("text\na\n"), ask("text\na\n")
    assert first.csv_file.exists()
    an_hour_ago = time.time() - 4000
    os.utime(first.csv_file.parent, (an_hour_ago, an_hour_ago))
    ask("text\na\n")
    assert not first.csv_file.exists() and second.csv_file.exists()


# -- tables that are refused before anything is opened ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "code", "sentence"),
    [
        ("words,label\na,1\n", "bad_table", r"^`rows.csv` has no column for text, image or audio: it has `words`"),
        ("text\n" + "a\n" * 10_000, "too_many_rows", r"`rows.csv` has more than 1,000 rows, the limit: divide it"),
        ("text" + "\n" * 1_002, "too_many_rows", r"has more than 1,000 rows"),
        ("text,error\na,b\n", "bad_table", r"already has the column\(s\) `error`"),
        (",".join(map(str, range(201))) + "\n", "bad_table", r"has 201 columns, the limit is 200"),
        ("", "bad_table", r"is an empty file"),
        ("text\n", "bad_table", r"has no rows below its header"),
        ("text,a\nb\n", "bad_table", r"line 2: 1 cells where the header has 2"),
        ("text\nhé\n".encode("latin-1"), "bad_table", r"is not UTF-8 text"),
        (picture(), "bad_table", r"is not UTF-8 text"),
        (zipped({"a.csv": "text\na"}), "bad_table", r"is a zip or a workbook"),
        (b"text\n" + b"a" * (8 * MIB), "body_too_large", r"`rows.csv` has 8,388,613 bytes, the limit of a table"),
    ],
)
def test_a_table_that_cannot_be_used_gets_a_sentence(ask, tmp_path, content, code, sentence):
    def never(rows):
        raise AssertionError("the model was asked")

    with pytest.raises(BadInput, match=sentence) as refused:
        ask(content, predict=never)
    assert refused.value.code == code and str(tmp_path) not in str(refused.value)
    assert leftovers(tmp_path) == []


def test_a_table_may_have_as_many_rows_as_the_limit_says(ask):
    assert ask("text,id\n" + "a,1\n\n" * 20, limits=BatchLimits(max_rows=20)).num_done == 20


def test_named_columns_have_to_be_there_and_to_be_read(ask):
    with pytest.raises(BadInput, match=r"`rows.csv` has no column `words` \(asked for as the text column\)"):
        ask("text\na\n", text_column="words")
    with pytest.raises(BadInput, match="`a` is named as image, but the model reads only text"):
        ask("text,a\na,b\n", image_column="a", model=ModelFacts(("text",), LABELS, FACTS.problem_type))


# -- zips that mean harm ----------------------------------------------------------------------------------------------

TABLE = {"rows.csv": "text\na\n"}


def info(name, mode=stat.S_IFREG | 0o644, **attributes):
    entry = zipfile.ZipInfo(name)
    entry.external_attr = mode << 16
    for attribute, value in attributes.items():
        setattr(entry, attribute, value)
    return entry


@pytest.mark.parametrize(
    ("entries", "code", "sentence"),
    [
        ({**TABLE, "../evil.png": "x"}, "bad_archive", r"'../evil.png', which leads out of the zip"),
        ({**TABLE, "a/../../evil.png": "x"}, "bad_archive", r"leads out of the zip"),
        ({**TABLE, "..\\evil.png": "x"}, "bad_archive", r"leads out of the zip"),
        ({**TABLE, "/tmp/evil.png": "x"}, "bad_archive", r"leads out of the zip"),
        ({**TABLE, "C:\\evil.png": "x"}, "bad_archive", r"leads out of the zip"),
        ([*TABLE.items(), (info("a.png", stat.S_IFLNK | 0o777), "/etc/passwd")], "bad_archive", "a link or a device"),
        ([*TABLE.items(), (info("a.png", stat.S_IFCHR | 0o666), "")], "bad_archive", "a link or a device"),
        ({**TABLE, "a\nb.png": "x"}, "bad_archive", "cannot be the name of a file"),
        ({**TABLE, "a" * 300: "x"}, "bad_archive", "cannot be the name of a file"),
        ({**TABLE, "a/" * 20 + "b": "x"}, "bad_archive", "cannot be the name of a file"),
        ({**TABLE, "a": "x", "a/b": "y"}, "bad_archive", "holds 'a' twice"),
        ({**TABLE, "more.csv": "text\nb\n"}, "bad_archive", r"holds 2 tables \(`more.csv`, `rows.csv`\): leave one"),
        ({"a/rows.csv": "text\na", "b/rows.csv": "text\na"}, "bad_archive", r"holds 2 tables"),
        ({"a.png": picture()}, "bad_archive", r"holds no table: put one .csv or .tsv"),
        ({"xl/a.xml": "", "rows.xlsx": ""}, "bad_archive", r"`rows.xlsx` is not read: save it as CSV"),
        ({"inner.zip": zipped(TABLE)}, "bad_archive", r"holds no table"),
        ({**TABLE, "bomb.png": b"\0" * (20 * MIB)}, "body_too_large", r"'bomb.png', which unpacks to far more"),
        ({**TABLE, "big.png": os.urandom(33 * MIB)}, "body_too_large", r"with more than 33,554,432 bytes"),
        ({**TABLE, **{f"{i}.png": "" for i in range(4_000)}}, "body_too_large", r"has 4,001 entries, the limit is"),
    ],
)  # fmt: skip
def test_a_zip_that_means_harm_gets_a_sentence_and_leaves_nothing(ask, tmp_path, entries, code, sentence):
    packing = zipfile.ZIP_STORED if sentence.startswith("with more") else zipfile.ZIP_DEFLATED
    with pytest.raises(BadInput, match=sentence) as refused:
        ask(zipped(entries, packing), "a.zip")
    assert refused.value.code == code and str(tmp_path) not in str(refused.value)
    assert leftovers(tmp_path) == []
    assert not list(tmp_path.rglob("evil*"))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_comes_twice_is_refused(ask):
    with pytest.raises(BadInput, match=r"holds 'a.png' twice"):
        ask(zipped([*TABLE.items(), ("a.png", "x"), ("a.png", "y")]), "a.zip")


def test_many_small_bombs_are_stopped_by_their_sum(tmp_path):
    upload = write(tmp_path / "a.zip", zipped({**TABLE, **{f"{i}.png": b"\0" * 9 * MIB for i in range(4)}}))
    (tmp_path / "out").mkdir()
    with pytest.raises(BadInput, match="more than 20,971,520 bytes when unpacked, the limit"):
        open_upload(upload, tmp_path / "out", ArchiveLimits(max_total_bytes=20 * MIB))


def test_a_directory_that_would_fill_the_memory_is_never_read(tmp_path, monkeypatch):
    upload = write(tmp_path / "a.zip", zipped({**TABLE, **{f"{i}": "" for i in range(9_000)}}))
    monkeypatch.setattr(zipfile, "ZipFile", None)
    with pytest.raises(BadInput, match="has 9,001 entries, the limit is 4,000"):
        open_upload(upload, tmp_path)


def test_a_size_that_lies_does_not_help(tmp_path):
    """The directory says 10 bytes where 20 MiB are packed."""
    content = bytearray(zipped({**TABLE, "bomb.png": b"\0" * (20 * MIB)}))
    place = content.rindex(b"PK\x01\x02")
    struct.pack_into("<I", content, place + 24, 10)
    (tmp_path / "out").mkdir()
    with pytest.raises(BadInput, match=r"is damaged|unpacks to far more"):
        open_upload(write(tmp_path / "a.zip", bytes(content)), tmp_path / "out")
    assert sum(path.stat().st_size for path in (tmp_path / "out").rglob("*")) < 11 * MIB


@pytest.mark.skipif(shutil.which("zip") is None, reason="needs the program `zip`")
def test_an_encrypted_zip_is_told_as_such_by_a_real_packer(tmp_path):
    write(tmp_path / "rows.csv", "text\na\n")
    subprocess.run(["zip", "-q", "-P", "secret", "a.zip", "rows.csv"], cwd=tmp_path, check=True)
    with pytest.raises(BadInput, match=r"'rows.csv', which is encrypted: pack without a password"):
        open_upload(tmp_path / "a.zip", tmp_path)


def test_an_encrypted_zip_is_told_as_such(tmp_path):
    content = bytearray(zipped(TABLE))
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(BadInput, match=r"'rows.csv', which is encrypted: pack without a password"):
        open_upload(write(tmp_path / "a.zip", bytes(content)), tmp_path)


def test_packing_that_takes_much_memory_to_unpack_is_refused(tmp_path):
    upload = write(tmp_path / "a.zip", zipped(TABLE, zipfile.ZIP_LZMA))
    with pytest.raises(BadInput, match="packed in a rare way"):
        open_upload(upload, tmp_path)


@pytest.mark.parametrize("name", ["a.zip", "a.png", "a.parquet"])
def test_a_file_that_is_not_what_its_name_says_is_told_as_such(tmp_path, name):
    with pytest.raises(BadInput, match=r"is no zip, whatever its name says|is no table: give a .csv or .tsv"):
        open_upload(write(tmp_path / name, picture()), tmp_path)


def test_damage_anywhere_in_a_zip_is_a_sentence_or_harmless(tmp_path):
    """Every single byte of a small zip, turned over."""
    good = zipped({"rows.csv": "text,image\na,b.png\n", "b.png": b"picture" * 3})
    sentences = set()
    for place in range(4, len(good)):
        damaged = bytearray(good)
        damaged[place] ^= 0xFF
        folder = tmp_path / str(place)
        folder.mkdir()
        try:
            open_upload(write(tmp_path / "a.zip", bytes(damaged)), folder)
        except BadInput as refused:
            sentences.add(str(refused).partition("(")[0])
    assert "`a.zip` is damaged " in sentences


def test_names_of_a_mac_and_of_a_windows_packer_are_read(tmp_path):
    entry = zipfile.ZipInfo("图.png")
    entry.flag_bits = 0
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("rows.csv", "image\n图.png\n")
        archive.writestr("图.png", picture())
        archive.writestr("sub\\b.png", picture())
    content = file.getvalue()
    name = "图.png".encode()
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # take the mark of UTF-8 away
        place = next(m.start() for m in re.finditer(signature, content) if name in content[m.start() : m.start() + 60])
        content = content[: place + offset] + b"\0\0" + content[place + offset + 2 :]
    (tmp_path / "out").mkdir()
    open_upload(write(tmp_path / "a.zip", content), tmp_path / "out")
    assert (tmp_path / "out" / "图.png").exists() and (tmp_path / "out" / "sub" / "b.png").exists()


# -- memory -----------------------------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_rows(ask):
    """Ten times the rows, and hardly more is held: chunks go to the files."""
    import tracemalloc

    def peak(num_rows):
        content = "text\n" + "".join(f"{'x' * 500}{i}\n" for i in range(num_rows))
        tracemalloc.start()
        ask(content, limits=BatchLimits(max_rows=10_000))
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(100)
    small, large = peak(200), peak(2_000)
    assert large - small < 4 * 1_800 * 500


# -- on a Space -------------------------------------------------------------------------------------------------------


def test_batches_and_feedback_need_no_more_than_what_a_space_receives(tmp_path):
    """A Space has the files that its app's imports reach, and none of those that travel with the model."""
    reached = set()
    for name in ("batch", "feedback"):
        _reached(ROOT / "space" / f"{name}.py", reached)
    for path in reached:
        target = tmp_path / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    assert not (tmp_path / "training").exists()
    assert [path.name for path in tmp_path.glob("*_mmfusion.py")] == ["cells_mmfusion.py"], (
        "the others come with the model"
    )
    write(tmp_path / "rows.csv", "text\na\nb\n")
    script = (
        "from space.batch import ModelFacts, run_batch\nfrom space.feedback import FeedbackStore\n"
        f"ranked, labels = {RANKED!r}, {LABELS!r}\n"
        f"model = ModelFacts(('text',), labels, '{FACTS.problem_type}')\n"
        "result = run_batch('rows.csv', 'work', lambda rows: [ranked] * len(rows), model)\n"
        f"store = FeedbackStore('store', labels=labels, problem_type='{FACTS.problem_type}', model='m')\n"
        "store.add({'text': 'a'}, ranked, 'right', consent=True)\n"
        "import space.feedback_hub, sys\nprint(result.num_done, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout == "2 False\n", done.stderr
