"""Tables of every format, as a user brings them, and what bad ones get. Real files, nothing stands in for anything."""

import json
import pickle
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_here import datasets_online, push, push_tables, write_rows
from local_hub import running_hub

from data import Columns, find_hub_set, read_table

SHARED_DATA = Path(__file__).parents[1].parent / "shared" / "data"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def cells(table, kind):
    return [table.cell(index, kind) for index in range(len(table))]


# --- CSV and TSV


def test_csv_cells_are_text_exactly_as_written(tmp_path):
    path = write(tmp_path / "a.csv", 'text,label\nNA,007\nnull,1e5\nnan,"a ""b"", c"\n"two\nlines",2024-01-01\n')
    table = read_table(path)
    assert cells(table, "text") == ["NA", "null", "nan", "two\nlines"]
    assert table.labels() == ["007", "1e5", 'a "b", c', "2024-01-01"]


def test_blank_cells_are_absent_and_counted_in_presence(tmp_path):
    table = read_table(write(tmp_path / "a.csv", "text,image,label\n,a.png,x\n  ,b.png,y\nhello,,x\n"))
    assert table.modalities == ("text", "image")
    assert cells(table, "text") == [None, None, "hello"]
    assert cells(table, "image") == ["a.png", "b.png", None]
    assert table.presence.tolist() == [[False, True, False], [False, True, False], [True, False, False]]


def test_bom_and_windows_line_ends_are_fine(tmp_path):
    table = read_table(write(tmp_path / "a.csv", b"\xef\xbb\xbftext,label\r\nh\xc3\xa9,1\r\n\r\n"))
    assert (cells(table, "text"), table.labels()) == (["hé"], ["1"])


def test_tsv_is_divided_by_tabs(tmp_path):
    assert cells(read_table(write(tmp_path / "a.tsv", "text\tlabel\na,b\t1\n")), "text") == ["a,b"]


def test_in_a_table_of_one_column_a_blank_line_is_an_empty_cell(tmp_path):
    assert cells(read_table(write(tmp_path / "a.csv", "text\na\n\nb\n")), "text") == ["a", None, "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label\na,1\nb,2,3\n", r"a\.csv`, line 3: 3 cells where the header has 2 columns"),
        ("text,label\na,1\nb\n", r"line 3: 1 cells where the header has 2 columns"),
        ('text,label\na,"1\nb,2\nc,3\n', r"line 4: unexpected end of data. A quoted cell is not closed"),
        ("text,label\n" + "x" * 200_000 + ",1\n", r"line 2: field larger than field limit"),
        ("text,label,label\na,1,2\n", r"more than one column named `label`. Rename"),
        ("text,label\n", r"a\.csv` has no rows below its header"),
        ("", r"a\.csv` is an empty file: it has no rows"),
        ("\n\n", r"holds only blank lines: it has no rows"),
        ("text,label\nhé,1\n".encode("latin-1"), r"a\.csv` is not UTF-8 text.*0xe9.*iconv -f CP1252"),
        ("words,label\na,1\n", r"no column for text, image or audio: it has `words`, `label`"),
    ],
)
def test_a_bad_csv_gets_a_sentence(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_table(write(tmp_path / "a.csv", content))


def test_bytes_that_are_not_utf8_below_the_header_are_noticed_too(tmp_path):
    content = b"text,label\n" + b"a,1\n" * 50_000 + b"h\xe9,1\n"
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        read_table(write(tmp_path / "a.csv", content))


# --- Columns


def test_columns_are_named_by_the_user(tmp_path):
    path = write(tmp_path / "a.csv", "utterance,text,face,mood\nhi,label,a.png,joy\n")
    table = read_table(path, columns=Columns(text="utterance", image="face", label="mood"))
    assert table.columns == {"text": "utterance", "image": "face", "label": "mood"}
    assert (table.cell(0, "text"), table.cell(0, "image"), table.labels()) == ("hi", "a.png", ["joy"])
    assert table.place(0, "image") == f"{path}:row 1, column `face`"


def test_columns_may_swap_the_default_names(tmp_path):
    table = read_table(write(tmp_path / "a.csv", "text,label\na,b\n"), columns=Columns(text="label", label="text"))
    assert (table.cell(0, "text"), table.labels()) == ("b", ["a"])


def test_none_leaves_a_column_out(tmp_path):
    table = read_table(write(tmp_path / "a.csv", "text,image,label\na,b.png,c\n"), columns=Columns(image="none"))
    assert table.modalities == ("text",)


def test_a_missing_column_lists_those_that_exist(tmp_path):
    path = write(tmp_path / "a.csv", "text,label\na,b\n")
    with pytest.raises(ValueError, match=r"no column `face` .as.* the image column.*`text`, `label`"):
        read_table(path, columns=Columns(image="face"))
    with pytest.raises(ValueError, match=r"`text` of .* is named as text and as image"):
        read_table(path, columns=Columns(text="text", image="text"))


# --- JSON lines


def test_json_values_keep_their_types(tmp_path):
    rows = [{"text": "2024-01-01", "label": ["a", "b"]}, {"text": None, "label": []}, {"label": None, "text": "007"}]
    table = read_table(write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)) + "\n\n"))
    assert cells(table, "text") == ["2024-01-01", None, "007"]
    assert table.labels() == [["a", "b"], [], None]
    assert cells(read_table(write(tmp_path / "a.json", json.dumps(rows))), "text") == ["2024-01-01", None, "007"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}\n{"text": \n', r"a\.jsonl`, line 2: not valid JSON"),
        ('{"text": "a"}\n{"text": ' + "[" * 200_000, r"a\.jsonl`, line 2: lists or objects are nested too deeply"),
        ('{"text": "a"}\n["b"]\n', r"line 2: \['b'\] is not an object"),
        ('{"text": "a", "text": "b"}\n', "more than one column named `text`"),
        ('{"text": "a", "label": 1}\n{"text": "b", "label": "x"}\n', "`label`: row 1 holds a number and row 2 a str"),
        ('{"text": "\\ud800"}\n', "column `text` cannot be read as one type .*Unicode"),
        ('{"text": 5}\n', r"column `text` holds .*int64.*cannot be read as text"),
        ("\n\n", "has no rows"),
    ],
)
def test_bad_json_gets_a_sentence(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_table(write(tmp_path / "a.jsonl", content))


# --- Parquet


def parquet(path, columns, **schema):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns, **schema), path)
    return path


def test_parquet_holds_media_as_structs_bytes_or_paths(tmp_path):
    image = [{"bytes": b"1", "path": "x"}, {"bytes": None, "path": "b.png"}, {"bytes": None, "path": None}, None]
    path = parquet(tmp_path / "a.parquet", {"text": ["a", None, " ", "d"], "image": image, "audio": [b"1", None] * 2})
    table = read_table(path)
    assert cells(table, "image") == [b"1", "b.png", None, None]
    assert cells(table, "audio") == [b"1", None, b"1", None]
    assert table.media(1, "image") == tmp_path / "b.png"
    assert table.presence.tolist() == [[1, 1, 1], [0, 1, 0], [0, 0, 1], [1, 0, 0]]


def test_parquet_of_datasets_needs_no_audio_decoder_and_keeps_label_names(tmp_path):
    struct = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    features = datasets.Features({"audio": struct, "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = datasets.Dataset.from_dict({"audio": [{"bytes": b"1", "path": None}] * 3, "label": [1, 0, -1]}, features)
    rows.cast_column("audio", datasets.Audio(16_000, decode=False)).to_parquet(tmp_path / "a.parquet")
    table = read_table(tmp_path / "a.parquet")
    assert (cells(table, "audio"), table.labels()) == ([b"1"] * 3, ["yes", "no", None])


def test_categoricals_and_null_columns_of_pandas_are_read(tmp_path):
    frame = pd.DataFrame({"text": ["a", "b", "a"], "image": [None] * 3, "label": pd.Categorical(["x", "y", "x"])})
    frame["text"] = frame["text"].astype("category")
    frame.to_parquet(tmp_path / "a.parquet")
    table = read_table(tmp_path / "a.parquet")
    assert (cells(table, "text"), table.labels()) == (["a", "b", "a"], ["x", "y", "x"])
    assert cells(table, "image") == [None] * 3


def test_a_file_that_was_written_again_is_read_again(tmp_path):
    for text in ("old", "new"):
        assert cells(read_table(parquet(tmp_path / "a.parquet", {"text": [text]})), "text") == [text]


def test_a_glob_of_shards_counts_rows_in_each_file(tmp_path):
    parquet(tmp_path / "one" / "p-0.parquet", {"image": ["a.png", "b.png"]})
    parquet(tmp_path / "two" / "p-1.parquet", {"image": ["c.png"]})
    table = read_table(f"{tmp_path}/*/p-*.parquet")
    assert table.place(2, "image") == f"{tmp_path}/two/p-1.parquet:row 1, column `image`"
    assert [table.media(index, "image") for index in (1, 2)] == [tmp_path / "one/b.png", tmp_path / "two/c.png"]


def test_bad_parquet_gets_a_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"a\.parquet` is not a readable Parquet file"):
        read_table(write(tmp_path / "a.parquet", b"not parquet"))
    with pytest.raises(ValueError, match="has no rows"):
        read_table(parquet(tmp_path / "b.parquet", {"text": pa.array([], pa.string())}))
    with pytest.raises(ValueError, match=r"column `image` holds List.*paths, bytes or \{bytes, path\}"):
        read_table(parquet(tmp_path / "c.parquet", {"image": [[1, 2], [3]]}))
    parquet(tmp_path / "d.parquet", {"words": ["a"]})
    with pytest.raises(ValueError, match=r"`.*c\.parquet`|other columns than"):
        read_table(f"{tmp_path}/[cd].parquet")


def test_media_in_the_table_stay_on_disk(tmp_path):
    path = parquet(tmp_path / "a.parquet", {"image": [np.random.default_rng(i).bytes(100_000) for i in range(20)]})
    table = read_table(path)
    assert table.cell(3, "image") == np.random.default_rng(3).bytes(100_000)
    assert len(pickle.dumps(table)) < 20_000
    assert pickle.loads(pickle.dumps(table)).cell(3, "image") == table.cell(3, "image")


# --- Folders, the Hub, and what is not there


def test_a_folder_is_read_by_its_metadata(tmp_path):
    rows = [{"image_file_name": "i/a.png", "audio_file_name": None, "text": "a", "label": 1}]
    write(tmp_path / "set" / "metadata.jsonl", json.dumps(rows[0]))
    table = read_table(tmp_path / "set")
    assert table.modalities == ("text", "image", "audio")
    assert table.media(0, "image") == tmp_path / "set/i/a.png"
    assert table.media(0, "audio") is None


def test_file_name_is_what_its_ending_says(tmp_path):
    write(tmp_path / "p" / "train" / "metadata.csv", "file_name,label\na.PNG,1\nb.jpg,2\n")
    assert read_table(tmp_path / "p", split="train").modalities == ("image",)
    assert read_table(write(tmp_path / "s" / "metadata.csv", "file_name\na.flac\n").parent).modalities == ("audio",)
    write(tmp_path / "x" / "metadata.csv", "file_name\na.flac\nb.png\n")
    with pytest.raises(ValueError, match=r"`file_name` holds files ending in \.flac, \.png"):
        read_table(tmp_path / "x")


def test_a_folder_without_metadata_and_a_wrong_split_get_a_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"needs exactly one of metadata\.csv.*it has none of them"):
        read_table(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"test` does not exist: a folder's `split`"):
        read_table(tmp_path, split="test")
    with pytest.raises(ValueError, match="`split`='train' has no meaning"):
        read_table(write(tmp_path / "a.csv", "text\na\n"), split="train")


@pytest.mark.parametrize("name", ["gone.csv", "gone.parquet", "./gone/folder", "gone-*.parquet", "notes.txt"])
def test_a_missing_file_gets_a_sentence(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "notes.txt", "x")
    with pytest.raises((FileNotFoundError, ValueError), match=r"does not exist|No file matches|which is no table"):
        read_table(name)


def test_a_hub_name_offline_gets_a_sentence(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        FileNotFoundError, match=r"`owner/no-such-set` is neither a file or folder here nor a data set"
    ):
        read_table("owner/no-such-set")


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A Hub with `alice/rows`, and `alice/hidden`, which is private."""
    folder = tmp_path_factory.mktemp("hub")
    with running_hub(folder / "hub") as hub, datasets_online(hub, folder / "home") as api:
        push_tables(api, "alice/rows", folder / "rows", train=write_rows(folder / "t", 6))
        push(api, "alice/hidden", folder / "rows", private=True)
        yield hub


@pytest.fixture
def stranger(hub, tmp_path):
    """Nobody is logged in, and nothing is cached."""
    with datasets_online(hub, tmp_path / "home", token=None) as api:
        yield api
        hub.clear_failures()


def test_what_is_not_there_or_not_for_you_gets_a_sentence(stranger):
    for name in ("alice/nothing", "alice/hidden"):
        with pytest.raises(FileNotFoundError, match=rf"`{name}` is no data set on the Hub, or it is private"):
            read_table(name)
    with pytest.raises(FileNotFoundError, match=r"`alice/rows` has no such revision\. Give a commit, a tag"):
        read_table("alice/rows", revision="v9")
    with pytest.raises(ValueError, match=r"The data set `alice/rows`: .*'other' not found. Available: \['default'\]"):
        read_table("alice/rows", config_name="other")
    with pytest.raises(ValueError, match="`alice/rows` has the splits train and no `test`"):
        read_table("alice/rows", split="test")
    with pytest.raises(ValueError, match="`a/b/c` is no name of a data set on the Hub"):
        find_hub_set("a/b/c")


def test_a_private_data_set_is_read_by_its_owner(hub, tmp_path):
    with datasets_online(hub, tmp_path / "home", token="hf_alice_read"):
        assert len(read_table("alice/hidden")) == 6


@pytest.mark.parametrize("place", [r"^/api/datasets/alice/rows$", r"README\.md$", r"\.parquet$"])
def test_a_hub_that_fails_gets_a_sentence(hub, stranger, place):
    hub.fail("GET", place, status=500, times=50)
    with pytest.raises(OSError, match=r"The data set `alice/rows` cannot be had from the Hub now \(.*500 Internal"):
        read_table("alice/rows")
    hub.clear_failures()
    assert len(read_table("alice/rows")) == 6


def test_a_download_that_was_cut_is_resumed(hub, stranger):
    hub.fail("GET", r"\.parquet$", cut_after_bytes=700)
    assert len(read_table("alice/rows")) == 6


@pytest.mark.slow
def test_a_download_that_is_always_cut_is_never_loaded(hub, stranger):
    hub.fail("GET", r"\.parquet$", cut_after_bytes=700, times=50)
    with pytest.raises(OSError, match=r"cannot be had from the Hub now \(.*peer closed connection.*try again"):
        read_table("alice/rows")
    hub.clear_failures()
    assert len(read_table("alice/rows")) == 6


def test_a_hub_that_cannot_be_reached_gets_a_sentence(tmp_path):
    nobody = SimpleNamespace(url="http://127.0.0.1:9")
    with (
        datasets_online(nobody, tmp_path / "home", token=None),
        pytest.raises(OSError, match=r"`alice/rows` cannot be had from the Hub now \(ConnectError.*Check the net"),
    ):
        read_table("alice/rows")


def test_an_old_copy_in_the_cache_does_not_stand_in_for_the_newest_commit(hub, stranger, tmp_path):
    with datasets_online(hub, tmp_path / "home") as api:
        push_tables(api, "alice/moves", tmp_path / "old", train=write_rows(tmp_path / "t", 4))
        assert len(read_table("alice/moves")) == 4
        push_tables(api, "alice/moves", tmp_path / "new", train=write_rows(tmp_path / "t", 6))
        hub.fail("GET", r"README\.md$", status=500, times=50)
        with pytest.raises(FileNotFoundError, match=r"`alice/moves` cannot be had at `\w{40}`: only its commit"):
            read_table("alice/moves")


def test_offline_what_is_cached_is_read_and_says_its_commit(hub, stranger, monkeypatch):
    online_table = read_table("alice/rows")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert read_table("alice/rows").origin == online_table.origin
    with pytest.raises(FileNotFoundError, match=r"`alice/rows` cannot be had at `v9`: only its commit `\w{40}` is in"):
        read_table("alice/rows", revision="v9")
    with pytest.raises(FileNotFoundError, match=r"`alice/other` cannot be had.*Unset HF_HUB_OFFLINE"):
        read_table("alice/other")


def test_a_data_set_that_is_found_is_not_mistaken_for_a_folder(hub, stranger, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "alice" / "rows" / "metadata.csv", "text,label\nlocal,x\n")
    assert len(read_table("alice/rows")) == 1
    assert len(read_table(find_hub_set("alice/rows"))) == 6


# --- Paths


def test_paths_must_stay_in_the_folder_of_the_table(tmp_path):
    write(tmp_path / "secret.png", "x")
    inside = write(tmp_path / "set" / "in.png", "x")
    (tmp_path / "set" / "link.png").symlink_to(tmp_path / "secret.png")
    rows = f"image\n../secret.png\n{tmp_path}/secret.png\nlink.png\n{inside}\n sub/../in.png \n"
    path = write(tmp_path / "set" / "a.csv", rows)
    table = read_table(path)
    for index in range(3):
        with pytest.raises(ValueError, match=r"leads to .*secret\.png`, outside of .*--allow_outside_paths"):
            table.media(index, "image")
    assert [table.media(index, "image") for index in (3, 4)] == [inside, inside]
    assert read_table(path, allow_outside=True).media(2, "image") == tmp_path / "secret.png"


@pytest.mark.parametrize("cell", ["http://127.0.0.1:1/a.png", "file://host/etc/passwd", "HTTPS://x/y", "zip://a::b"])
def test_urls_are_never_fetched(tmp_path, cell):
    table = read_table(write(tmp_path / "a.csv", f"image\n{cell}\n"), allow_outside=True)
    with pytest.raises(ValueError, match="is a URL; URLs are never fetched"):
        table.media(0, "image")


def test_what_cannot_be_a_path_gets_a_sentence(tmp_path):
    table = read_table(write(tmp_path / "a.csv", "image\na\x00b\n"))
    with pytest.raises(ValueError, match="is not a path"):
        table.media(0, "image")


# --- Selecting


def test_selected_rows_keep_their_numbers_and_cells(tmp_path):
    path = write(tmp_path / "a.csv", "text,image,label\n" + "".join(f"t{i},{i}.png,{i}\n" for i in range(6)))
    table = read_table(path).select([5, 3, 1]).select([2, 0])
    assert [table.place(index) for index in range(2)] == [f"{path}:row 2", f"{path}:row 6"]
    assert (cells(table, "text"), table.labels()) == (["t1", "t5"], ["1", "5"])
    assert table.dataset["label"][:] == ["1", "5"]
    emptied = table.with_empty_cells([(1, "text")])
    assert (cells(emptied, "text"), cells(table, "text")) == (["t1", None], ["t1", "t5"])
    only_text = table.keep_modalities(["text"])
    assert (only_text.modalities, only_text.presence.sum()) == (("text",), 2)


def test_a_table_without_labels_says_so(tmp_path):
    table = read_table(write(tmp_path / "a.csv", "text,mood\na,b\n"))
    assert not table.has_labels
    with pytest.raises(ValueError, match=r"has no label column\. It has `text`, `mood`"):
        table.labels()


# --- Real sets


@pytest.mark.skipif(not (SHARED_DATA / "digits").is_dir(), reason="the digits set is not beside the repository")
def test_the_digits_set_is_read():
    table = read_table(SHARED_DATA / "digits" / "validation.parquet")
    assert (len(table), table.modalities, len(set(table.labels()))) == (2000, ("text", "image", "audio"), 10)
    assert table.cell(7, "image")[:4] == b"\x89PNG" and table.cell(7, "audio")[:4] == b"fLaC"


@pytest.mark.skipif(not (SHARED_DATA / "emotion7").is_dir(), reason="the emotion7 set is not beside the repository")
def test_the_emotion7_set_is_read_with_its_own_column_names():
    names = Columns("utterance", "face", "speech", "emotion")
    table = read_table(SHARED_DATA / "emotion7" / "validation.csv", columns=names)
    assert (len(table), len(set(table.labels()))) == (1050, 7)
    assert all(table.media(index, "image").is_file() for index in np.flatnonzero(table.presence[:, 1])[:50])
    assert ((table.presence.mean(0) > 0.8) & (table.presence.mean(0) < 0.9)).all()
