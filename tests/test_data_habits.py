"""Tables, folders and paths as people bring them: read, or told what they are and what to do."""

import base64
import gzip
import io
import json
import os
import shlex
import sqlite3
import subprocess
import unicodedata
import zipfile

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data import LabelMap, check_table, read_table
from data.arrow_types import plain_table, plain_type


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def png():
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "PNG")
    return file.getvalue()


def cells(table, kind):
    return [table.cell(index, kind) for index in range(len(table))]


# --- Types of Arrow

TEXTS = ["one", None, "", "vier"]
COLUMNS = {
    "string_view": pa.array(TEXTS, pa.string_view()),
    "large_string": pa.array(TEXTS, pa.large_string()),
    "dictionary": pa.array(TEXTS).dictionary_encode(),
    "dictionary of views": pa.DictionaryArray.from_arrays(
        pa.array([0, None, 1, 2], pa.int8()), pa.array(["one", "", "vier"], pa.large_string())
    ),
    "json": pa.ExtensionArray.from_storage(pa.json_(), pa.array(TEXTS)),
}


@pytest.mark.parametrize("kind", COLUMNS)
@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".feather"])
def test_text_of_any_arrow_type_is_text(tmp_path, kind, suffix):
    path, table = tmp_path / f"a{suffix}", pa.table({"text": COLUMNS[kind]})
    write = {".parquet": pq.write_table, ".arrow": write_stream, ".feather": pyarrow.feather.write_feather}[suffix]
    write(table, path)
    assert cells(read_table(path), "text") == ["one", None, None, "vier"]


def write_stream(table, path):
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)


@pytest.mark.parametrize(
    "kind", [pa.binary(), pa.binary_view(), pa.large_binary(), pa.binary(4), "dictionary", "struct", "struct of views"]
)
def test_bytes_of_any_arrow_type_are_bytes(tmp_path, kind):
    values = [b"abcd", None, b"efgh"]
    if str(kind).startswith("struct"):
        view = "views" in kind
        fields = [
            ("bytes", pa.binary_view() if view else pa.binary()),
            ("path", pa.string_view() if view else pa.string()),
        ]
        column = pa.array([value and {"bytes": value, "path": None} for value in values], pa.struct(fields))
    else:
        column = pa.array(values).dictionary_encode() if kind == "dictionary" else pa.array(values, kind)
    pq.write_table(pa.table({"image": column}), tmp_path / "a.parquet")
    assert cells(read_table(tmp_path / "a.parquet"), "image") == values


@pytest.mark.parametrize(
    ("column", "values"),
    [
        (pa.RunEndEncodedArray.from_arrays(pa.array([2, 3], pa.int32()), pa.array(["x", "y"])), ["x", "x", "y"]),
        (pa.array([["x"], ["x", "y"], []], pa.list_(pa.string_view())), [["x"], ["x", "y"], []]),
        (pa.array([["x"], ["x", "y"], []], pa.list_view(pa.string())), [["x"], ["x", "y"], []]),
        (
            pa.ListArray.from_arrays([0, 1, 3, 3], pa.array(["x", "x", "y"]).dictionary_encode()),
            [["x"], ["x", "y"], []],
        ),
        (pa.array([[1, 2], [3, 4], [5, 6]], pa.list_(pa.int8(), 2)), [[1, 2], [3, 4], [5, 6]]),
        (pa.array([1.5, 2.5, None], pa.float16()), [1.5, 2.5, None]),
        (pa.nulls(3), [None] * 3),
    ],
)
def test_labels_of_any_arrow_type_are_read(tmp_path, column, values):
    write_stream(pa.table({"text": list("abc"), "label": column}), tmp_path / "a.arrow")
    assert read_table(tmp_path / "a.arrow").labels() == values


def test_columns_of_plain_types_are_not_copied():
    table = pa.table({"a": ["x"], "b": pa.array(["x"], pa.string_view()), "c": pa.array([b"x" * 16], pa.uuid())})
    plain = plain_table(table)
    assert plain.schema.types == [pa.string(), pa.large_string(), pa.large_binary()]
    assert plain["a"].chunk(0).buffers()[2].address == table["a"].chunk(0).buffers()[2].address
    assert plain_type(pa.timestamp("us")) == pa.timestamp("us")


def test_one_column_of_an_odd_type_does_not_hinder_the_others(tmp_path):
    odd = pa.array([[1], [2]], pa.list_view(pa.int64()))
    pq.write_table(pa.table({"text": ["a", "b"], "odd": odd}), tmp_path / "a.parquet")
    assert cells(read_table(tmp_path / "a.parquet"), "text") == ["a", "b"]


# --- Empty cells


@pytest.mark.parametrize("kind", ["text", "image", "audio"])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".feather"])
def test_a_column_of_nan_is_a_column_of_empty_cells(tmp_path, kind, suffix):
    frame = pd.DataFrame({"text": ["a", "b"], "image": ["c.png", "d.png"], "label": ["x", "y"], kind: [np.nan] * 2})
    path = tmp_path / f"a{suffix}"
    if suffix == ".csv":
        frame.to_csv(path, index=False)
    elif suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, frame.to_dict("records"))))
    else:
        frame.to_parquet(path) if suffix == ".parquet" else frame.to_feather(path)
    table = read_table(path)
    assert cells(table, kind) == [None, None] and not table.presence[:, table.modalities.index(kind)].all()


@pytest.mark.parametrize("empty", [float("nan"), None, "", "  "])
def test_an_empty_cell_of_json_is_empty(tmp_path, empty):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, [{"text": empty, "image": "a.png"}, {"text": "b", "image": empty}])))
    assert (cells(read_table(path), "text"), cells(read_table(path), "image")) == ([None, "b"], ["a.png", None])


@pytest.mark.parametrize("empty", [pd.NA, pd.NaT, np.nan, None])
def test_an_empty_cell_of_pandas_is_empty(tmp_path, empty):
    pd.DataFrame({"text": ["a", empty], "label": ["x", "y"]}).to_parquet(tmp_path / "a.parquet")
    assert cells(read_table(tmp_path / "a.parquet"), "text") == ["a", None]


def test_a_number_among_nan_is_told_with_its_row(tmp_path):
    pd.DataFrame({"text": ["a", "b"], "image": [np.nan, 0.5]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"column `image` holds .*0\.5 in row 2.*cannot be read as image"):
        read_table(tmp_path / "a.parquet")


# --- CSV of spreadsheets

ROWS = [("text", "label"), ("schön, ja", "gut"), ("übel; “so”", "schlecht")]


def write_csv(path, rows=ROWS, delimiter=",", encoding="utf-8", end="\r\n", before="", after=""):
    quoted = [delimiter.join(f'"{cell}"' if delimiter in cell else cell for cell in row) for row in rows]
    path.write_bytes((before + end.join(quoted) + end + after).encode(encoding))
    return path


FORMS = {
    "semicolons": {"delimiter": ";"},
    "tabs": {"delimiter": "\t"},
    "bars": {"delimiter": "|"},
    "sep line": {"delimiter": ";", "before": "sep=;\r\n"},
    "sep line of an odd mark": {"delimiter": "^", "before": '"sep=^"\r\n'},
    "BOM": {"encoding": "utf-8-sig"},
    "two BOMs": {"encoding": "utf-8-sig", "before": "\ufeff"},
    "three BOMs": {"encoding": "utf-8-sig", "before": "\ufeff\ufeff"},
    "UTF-16": {"encoding": "utf-16"},
    "UTF-16 with tabs": {"encoding": "utf-16", "delimiter": "\t"},
    "UTF-16 LE without a BOM": {"encoding": "utf-16-le"},
    "UTF-16 BE without a BOM": {"encoding": "utf-16-be"},
    "UTF-16 with two BOMs": {"encoding": "utf-16", "before": "\ufeff"},
    "UTF-16 BE with a BOM": {"encoding": "utf-16-be", "before": "\ufeff"},
    "UTF-32": {"encoding": "utf-32"},
    "CR": {"end": "\r"},
    "LF": {"end": "\n"},
    "empty rows at the end": {"after": ",\r\n,\r\n"},
    "blank lines at the end": {"after": "\r\n\r\n"},
    "blank lines in front": {"before": "\r\n\r\n"},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_csv_of_any_program_is_read(tmp_path, form):
    table = read_table(write_csv(tmp_path / "a.csv", **FORMS[form]))
    assert cells(table, "text") == [ROWS[1][0], ROWS[2][0]]
    assert table.labels() == ["gut", "schlecht"]


@pytest.mark.parametrize("form", ["semicolons", "UTF-16 with tabs"])
def test_what_divides_the_cells_is_told(tmp_path, form, capsys):
    read_table(write_csv(tmp_path / "a.csv", **FORMS[form]))
    assert FORMS[form]["delimiter"] == {"semicolons": ";", "tabs": "\t"}[capsys.readouterr().err.split()[-1]]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("text,label,,\na,x,,\nb,y,,\n", ["a", "b"]),
        ("text,label\na,x,,\nb,y\n", ["a", "b"]),
        (" text ,\u00a0label\ufeff\na,x\nb,y\n", ["a", "b"]),
        (",text,label\n0,a,x\n1,b,y\n", ["a", "b"]),
        (",,text,label\n0,0,a,x\n1,1,b,y\n", ["a", "b"]),
        ('text,label\n"a\n;;c",x\nb,y\n', ["a\n;;c", "b"]),
        ("text;label;score\na, so;x;3,5\nb;y;4,5\n", ["a, so", "b"]),
        ("text,label\na;b,x\nc;d,y\n", ["a;b", "c;d"]),
        ("text,label\n,x\n,\nb,y\n,\n", [None, None, "b"]),
    ],
)
def test_what_spreadsheets_leave_behind_is_left_out(tmp_path, content, text):
    path = tmp_path / "a.csv"
    path.write_text(content, encoding="utf-8")
    assert cells(read_table(path), "text") == text


@pytest.mark.parametrize(
    ("words", "encoding", "page"),
    [
        ("schön übel “so” Straße", "cp1252", "CP1252"),
        ("naïve café déjà vu", "latin-1", "CP1252"),
        ("Привет, как дела сегодня", "cp1251", "CP1251"),
        ("今天天气很好我们去公园", "gbk", "GB18030"),
        ("これはテストです。ありがとう", "cp932", "CP932"),
        ("안녕하세요 오늘 날씨가 좋습니다", "cp949", "CP949"),
    ],
)
def test_the_advice_for_a_code_page_keeps_all_letters(tmp_path, monkeypatch, words, encoding, page):
    monkeypatch.chdir(tmp_path)
    os.mkdir("my tables")
    path = write_csv(
        tmp_path / "my tables" / "a.csv", [("text", "label"), (words, "x"), ("b", "y")], encoding=encoding
    )
    with pytest.raises(ValueError, match=page) as raised:
        read_table(path)
    command = str(raised.value).split("`")[3 if "CSV UTF-8" not in str(raised.value) else 5]
    assert command.startswith("iconv ") and str(path) in shlex.split(command)
    subprocess.run(command, shell=True, check=True)
    assert cells(read_table(path.with_name("utf8_a.csv")), "text") == [words, "b"]


def test_utf16_that_breaks_off_is_told(tmp_path):
    (tmp_path / "a.csv").write_bytes(("text,label\n" + "a,x\n" * 20).encode("utf-16") + b"\x00\xd8\x61")
    with pytest.raises(ValueError, match=r"a\.csv` begins as UTF-16"):
        read_table(tmp_path / "a.csv")


def test_json_of_another_encoding_is_read(tmp_path):
    (tmp_path / "a.jsonl").write_bytes('{"text": "schön"}\r\n{"text": "übel"}\r\n'.encode("utf-16"))
    assert cells(read_table(tmp_path / "a.jsonl"), "text") == ["schön", "übel"]


# --- Files of another kind


def packed(path):
    path.write_bytes(gzip.compress(b"text,label\na,x\n"))


def zipped(path, name="a.csv"):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, "x")


def database(path):
    with sqlite3.connect(path) as connection:
        connection.execute("create table t (a)")


OTHERS = {
    "a.csv.gz": (packed, r"gzip.*`gunzip -k .*a\.csv\.gz`"),
    "b.csv": (packed, "gzip"),
    "c.zip": (zipped, r"zip archive.*`unzip .*c\.zip -d .*c`"),
    "d.xlsx": (lambda path: zipped(path, "xl/workbook.xml"), "Excel.*CSV UTF-8"),
    "e.csv": (lambda path: zipped(path, "xl/workbook.xml"), "Excel.*CSV UTF-8"),
    "f.xls": (lambda path: path.write_bytes(b"\xd0\xcf\x11\xe0" + bytes(600)), "old Excel"),
    "g.csv": (lambda path: pq.write_table(pa.table({"text": ["a"]}), path), r"Parquet file\. Rename it .*`\.parquet`"),
    "h.csv": (lambda path: pyarrow.feather.write_feather(pa.table({"text": ["a"]}), path), r"Arrow file\. Rename"),
    "i.db": (database, "SQLite"),
    "j.h5": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100)), "HDF5.*Parquet"),
    "k.pkl": (lambda path: pd.DataFrame({"text": ["a"]}).to_pickle(path), "pickle, which is never read.*to_parquet"),
    "l.csv": (lambda path: path.write_text("<!DOCTYPE html><html><body>Log in"), "HTML"),
    "m.parquet": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "`git lfs pull`"),
    "n.npy": (lambda path: np.save(path, np.zeros(3)), "NumPy"),
    "o.pdf": (lambda path: path.write_bytes(b"%PDF-1.7\n"), "PDF"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_file_of_another_kind_is_called_what_it_is(tmp_path, name):
    write, message = OTHERS[name]
    write(tmp_path / name)
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / name)


# --- Folders


def test_what_datasets_saved_is_read(tmp_path, png):
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["no", "yes"]),
        }
    )
    rows = {"text": ["a", "b"], "image": [{"bytes": png, "path": None}, None], "label": [1, 0]}
    saved = datasets.Dataset.from_dict(rows, features)
    saved.save_to_disk(tmp_path / "one")
    splits = datasets.DatasetDict(train=saved, test=saved.select([1]))
    splits.save_to_disk(tmp_path / "several")
    for table in (read_table(tmp_path / "one"), read_table(tmp_path / "several")):
        assert (cells(table, "image"), table.labels()) == ([png, None], ["yes", "no"])
    assert len(read_table(tmp_path / "several" / "test")) == len(read_table(tmp_path / "several", split="test")) == 1
    datasets.DatasetDict(a=saved, b=saved).save_to_disk(tmp_path / "unnamed")
    with pytest.raises(ValueError, match=r"unnamed` has the splits a, b"):
        read_table(tmp_path / "unnamed")


def make_classes(folder, png, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png)
    return folder


def test_folders_of_classes_are_read(tmp_path, png):
    folder = make_classes(
        tmp_path / "my [set]", png, "dog/1.png", "dog/2.PNG", "cat/1.png", "cat/notes.txt", ".git/a.png"
    )
    table = read_table(folder)
    assert (table.modalities, table.labels()) == (("image",), ["cat", "dog", "dog"])
    assert check_table(table, progress=False)[1].num_opened == 3


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train/dog/1.png", "train/cat/1.png", "test/dog/2.png"], r"class folders one level further down.*/train`"),
        (["1.png", "2.png"], r"Add a `metadata\.csv` with the columns `file_name`.*`label`"),
        (["dog/1.png", "cat/1.wav"], "pictures and sounds"),
        (["a.parquet", "b.parquet"], r"by a glob: `.*/\*\.parquet`"),
        (["rows.csv"], r"Name the table file itself, such as `.*rows\.csv`"),
        (["train/1.png", "test/1.png"], r"Add a `metadata\.csv`"),
    ],
)
def test_other_folders_get_advice_that_fits(tmp_path, png, names, message):
    with pytest.raises(ValueError, match=message):
        read_table(make_classes(tmp_path / "set", png, *names))


@pytest.mark.parametrize("name", ["a [1]", "a*b", "what?", "100%25 #1", "it's", "ü", "~", "{a,b}", "a::b"])
def test_the_name_of_a_folder_may_hold_any_letter(tmp_path, png, name):
    folder = make_classes(tmp_path / name, png, "images/1.png")
    pq.write_table(pa.table({"image": ["images/1.png"]}), folder / "p-0.parquet")
    (folder / "t.csv").write_text("image\nimages/1.png\n")
    for source in (folder / "p-0.parquet", folder / "p-*.parquet", folder / "t.csv"):
        assert read_table(source).media(0, "image") == folder / "images/1.png"


# --- Paths

NFC, NFD = unicodedata.normalize("NFC", "ü1.png"), unicodedata.normalize("NFD", "ü1.png")


@pytest.mark.parametrize(
    ("file", "cell"),
    [
        ("images/1.png", r"images\1.png"),
        ("images/1.png", r".\images\1.png"),
        ("images/1.png", "./images//1.png"),
        ("images/1.png", "images/1.PNG"),
        ("Images/Dog.JPG", "images/dog.jpg"),
        ("Images/Dog.JPG", r"images\dog.jpg"),
        ("images/my file.png", "images/my%20file.png"),
        ("images/a%20b.png", "images/a%20b.png"),
        ("images/a[1]#?*.png", "images/a[1]#?*.png"),
        (f"images/{NFD}", f"images/{NFC}"),
        (f"images/{NFC}", f"images/{NFD}"),
        (f"{NFD}/{NFC}", f"{NFC}\\{NFD}"),
        (r"images\1.png", r"images\1.png"),
        ("images/1.png", "file://{root}/images/1.png"),
        ("images/1.png", "FILE://localhost{root}/images/1.png"),
        ("images/my file.png", "file://{root}/images/my%20file.png"),
        ("images/1.png", "file:{root}/images/1.png"),
        (f"images/{NFD}", "{root}/images/" + NFC),
        ("images/1.png", "{root}/Images/1.png"),
    ],
)
def test_a_path_of_another_system_is_found(tmp_path, png, file, cell):
    root = make_classes(tmp_path / "set", png, file)
    pq.write_table(pa.table({"image": [cell.replace("{root}", str(root))]}), root / "t.parquet")
    assert read_table(root / "t.parquet").media(0, "image") == root / file


def test_of_two_files_that_fit_none_is_taken(tmp_path, png):
    root = make_classes(tmp_path / "set", png, "Dog.png", "dog.PNG")
    (root / "t.csv").write_text("image\ndog.png\nDog.png\n")
    table = read_table(root / "t.csv")
    assert not table.media(0, "image").exists() and table.media(1, "image") == root / "Dog.png"


def test_a_file_that_comes_later_is_found_then(tmp_path, png):
    root = make_classes(tmp_path / "set", png, "a.png")
    (root / "t.csv").write_text("image\nb.PNG\n")
    table = read_table(root / "t.csv")
    assert not table.media(0, "image").exists()
    os.utime(make_classes(root, png, "b.png"), ns=(1, 1))  # whatever the clock of the file system says
    assert table.media(0, "image") == root / "b.png"


@pytest.mark.parametrize(
    "cell",
    [r"..\secret.png", "%2e%2e/secret.png", r"images\..\..\secret.png", "file://{out}/secret.png", "link/SECRET.png",
     "{out}/secret.png", r"link\secret.png"],
)  # fmt: skip
def test_no_spelling_leads_out_of_the_folder(tmp_path, png, cell):
    root = make_classes(tmp_path / "set", png, "images/1.png")
    make_classes(tmp_path, png, "secret.png")
    (root / "link").symlink_to(tmp_path)
    (root / "t.csv").write_text(f"image\n{cell.replace('{out}', str(tmp_path))}\n")
    with pytest.raises(ValueError, match=r"leads to .*secret\.png`, outside of .*--allow_outside_paths"):
        read_table(root / "t.csv").media(0, "image")


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (r"C:\Users\me\images\1.png", "Windows machine.*relative to the folder of the table"),
        (r"\\server\share\1.png", "Windows machine"),
        ("file:///C:/Users/me/1.png", "Windows machine"),
        ("file://server/share/1.png", "URLs are never fetched"),
        ("s3://bucket/1.png", "URLs are never fetched"),
        ("~/images/1.png", "home folder"),
        ("nan", "word for an empty cell. Leave the cell empty"),
        ("None", "word for an empty cell"),
        ("<NA>", "word for an empty cell"),
        ("{base64}", "base64 text .* where a path is expected.*Parquet"),
        ("{lines}", "base64 text"),
        ("data:image/png;base64,{base64}", "data: URI, base64 text where a path is expected"),
        ("{jpeg}", "base64 text"),
        ("b'\\x89PNG\\r\\n'", "cell of Python written as text"),
        ("{'bytes': b'\\x89PNG', 'path': None}", "cell of Python written as text"),
        ("<PIL.PngImagePlugin.PngImageFile image mode=RGB size=8x8>", "what Python prints"),
        ("[[255 255 255]\n [0 0 0]]", "what Python prints"),
    ],
)
def test_what_is_not_a_path_of_this_machine_is_called_what_it_is(tmp_path, cell, message):
    content = np.random.default_rng(0).bytes(300)
    base64_png, jpeg = (
        base64.b64encode(b"\x89PNG\r\n\x1a\n" + content),
        base64.b64encode(b"\xff\xd8\xff\xe0" + content),
    )
    lines = base64.encodebytes(b"\x89PNG\r\n\x1a\n" + content)
    for name, value in (("{base64}", base64_png), ("{jpeg}", jpeg), ("{lines}", lines)):
        cell = cell.replace(name, value.decode())
    pq.write_table(pa.table({"image": [cell], "label": ["x"]}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=message) as raised:
        read_table(tmp_path / "t.parquet").media(0, "image")
    assert len(str(raised.value)) < 600


def test_the_home_folder_is_looked_up_where_paths_may_lead_outside(tmp_path, png, monkeypatch):
    monkeypatch.setenv("HOME", str(make_classes(tmp_path / "home", png, "1.png")))
    (tmp_path / "t.csv").write_text("image\n~/1.png\n")
    assert read_table(tmp_path / "t.csv", allow_outside=True).media(0, "image") == tmp_path / "home/1.png"


def test_labels_of_a_spreadsheet_with_decimal_commas_are_numbers(tmp_path):
    path = write_csv(tmp_path / "a.csv", [("text", "label"), ("a", "3,5"), ("b", "4,25")], delimiter=";")
    labels = LabelMap.fit(read_table(path))
    assert (labels.problem_type, labels.encode_table(read_table(path))) == ("regression", [3.5, 4.25])
