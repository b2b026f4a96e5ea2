"""Parquet shards at an address: as Spark, Dask and Ray leave them, on the Hub, in memory, behind `file://`."""

import io

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import config
from hub_here import datasets_online, picture, push
from local_hub import running_hub

from data import FusionDataset, LabelMap, check_table, read_table
from data.remote import fetch_shards


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    yield tmp_path / "cache"
    fsspec.filesystem("memory").rm("/bucket", recursive=True) if fsspec.filesystem("memory").exists(
        "/bucket"
    ) else None


def shard(first, num_rows, **columns):
    numbers = range(first, first + num_rows)
    table = {
        "text": [f"words of row {number}" for number in numbers],
        "image": [None if number % 2 else picture(number) for number in numbers],
        "label": [["bad", "good"][number % 2] for number in numbers],
    }
    types = {"text": pa.string(), "image": pa.binary(), "label": pa.string()}
    file = io.BytesIO()
    pq.write_table(pa.table({**table, **columns}, schema=pa.schema(types.items())), file)
    return file.getvalue()


def put(name, content):
    fsspec.filesystem("memory").pipe(f"/bucket/{name}", content)


def texts(table):
    return [table.cell(index, "text") for index in range(len(table))]


SPARK = {"part-00000.snappy.parquet": (0, 3), "part-00001.snappy.parquet": (3, 0), "part-00002.snappy.parquet": (3, 4)}


def test_shards_of_spark_are_one_table_and_an_empty_one_among_them_does_no_harm():
    for name, rows in SPARK.items():
        put(f"table/{name}", shard(*rows))
    put("table/_SUCCESS", b"")
    table = read_table("memory://bucket/table/*.parquet")
    assert texts(table) == [f"words of row {number}" for number in range(7)]
    assert table.presence[:, 1].tolist() == [True, False, True, False, True, False, True]
    assert table.place(4) == "memory:///bucket/table/part-00002.snappy.parquet:row 2"
    assert check_table(table, sampling_rate=None, max_audio_seconds=None)[0] is table
    assert table.cell(0, "image") == picture(0)


def test_rows_are_mapped_from_disk_and_not_held_in_memory():
    put("a.parquet", shard(0, 5))
    source = read_table("memory://bucket/a.parquet").source
    assert source.cache_files, "an Arrow file that is mapped into memory"


def test_a_shard_is_fetched_once_and_again_when_it_has_changed(cache):
    put("a.parquet", shard(0, 3))
    first = fetch_shards("memory://bucket/*.parquet")
    assert fetch_shards("memory://bucket/*.parquet") == first
    put("a.parquet", shard(10, 3))
    assert texts(read_table("memory://bucket/*.parquet")) == [f"words of row {number}" for number in (10, 11, 12)]
    assert len(list(cache.glob("shards/*.parquet"))) == 2
    assert len(list(cache.glob("shards/*"))) == 4, "and their locks; nothing half fetched"


def test_a_file_address_is_a_path_here(tmp_path):
    (tmp_path / "a.parquet").write_bytes(shard(0, 2))
    (tmp_path / "b.parquet").write_bytes(shard(2, 2))
    table = read_table(f"file://{tmp_path}/*.parquet")
    assert texts(table) == texts(read_table(f"{tmp_path}/*.parquet")) and len(table) == 4
    assert table.root == tmp_path.resolve()


def test_shards_on_the_hub_come_from_one_commit_which_is_recorded(tmp_path):
    folder = tmp_path / "rows" / "data"
    folder.mkdir(parents=True)
    for number in range(2):
        (folder / f"train-{number}.parquet").write_bytes(shard(2 * number, 2))
    with running_hub(tmp_path / "hub") as hub, datasets_online(hub, tmp_path / "home") as api:
        commit = push(api, "alice/shards", tmp_path / "rows")
        table = read_table("hf://datasets/alice/shards/data/*.parquet")
        assert texts(table) == [f"words of row {number}" for number in range(4)]
        assert table.origin == {"hub_id": "alice/shards", "revision": commit}
        assert table.place(3) == f"hf://datasets/alice/shards@{commit}/data/train-1.parquet:row 2"
        (folder / "train-1.parquet").write_bytes(shard(20, 2))
        push(api, "alice/shards", tmp_path / "rows")
        assert texts(read_table("hf://datasets/alice/shards/data/*.parquet"))[2:] == [
            f"words of row {n}" for n in (20, 21)
        ]
        assert texts(read_table(f"hf://datasets/alice/shards@{commit}/data/*.parquet")) == texts(table)
        with pytest.raises(FileNotFoundError, match="hf://datasets/alice/nothing"):
            read_table("hf://datasets/alice/nothing/*.parquet")


@pytest.mark.parametrize("path", ["faces/1.png", "/etc/hostname", "../secret.png"])
@pytest.mark.parametrize("allow_outside", [False, True])
def test_a_cell_of_a_table_from_elsewhere_leads_to_no_file_here(path, allow_outside):
    table = pa.table({"text": ["a"], "image": [path], "label": ["bad"]})
    file = io.BytesIO()
    pq.write_table(table, file)
    put("paths.parquet", file.getvalue())
    table = read_table("memory://bucket/paths.parquet", allow_outside=allow_outside)
    with pytest.raises(
        ValueError, match=r"is a path, and the table does not lie here\. Write the table with its media"
    ):
        table.media(0, "image")


def test_what_is_read_can_be_trained_on():
    put("a.parquet", shard(0, 4))
    table = read_table("memory://bucket/*.parquet")

    class Processor:
        modalities, audio_sampling_rate, max_audio_seconds = ("text", "image"), None, None

    rows = FusionDataset(table, LabelMap.fit(table), Processor())
    assert rows[2]["image"].size == (12, 12) and rows[1]["image"] is None and rows[1]["label"] == 1


@pytest.mark.parametrize(
    ("address", "kind", "message"),
    [
        ("nosuch://bucket/*.parquet", ValueError, "`nosuch://` is no kind of storage that fsspec knows"),
        (
            "s3://bucket/*.parquet",
            ImportError,
            r"s3:// needs the package `s3fs`, which is not installed: pip install s3fs",
        ),
        ("gs://bucket/*.parquet", ImportError, "pip install gcsfs"),
        ("sftp://host/a.parquet", ImportError, "pip install paramiko"),
        ("sftp://me:secret@host/a.parquet", ValueError, "holds a password or a query"),
        ("https://host/a.parquet?token=secret", ValueError, "holds a password or a query"),
        ("memory://bucket/*.parquet", FileNotFoundError, "No file matches `memory://bucket/"),
        ("memory://bucket/none.parquet", FileNotFoundError, r"none\.parquet` does not lead to a file"),
        ("http://127.0.0.1:9/a.parquet", OSError, r"a\.parquet` does not lead to a file"),
    ],
)
def test_an_address_that_cannot_be_read_says_why_and_tells_no_secret(address, kind, message):
    with pytest.raises(kind, match=message) as caught:
        read_table(address)
    assert "secret" not in str(caught.value)


def test_only_parquet_that_is_whole_is_read_from_elsewhere(cache):
    put("rows.csv", b"text,label\na,b\n")
    with pytest.raises(ValueError, match=r"leads to `/bucket/rows.csv`: from elsewhere only .parquet files are read"):
        read_table("memory://bucket/*")
    put("torn.parquet", shard(0, 3)[:-20])
    with pytest.raises(OSError, match=r"torn.parquet` cannot be read now \(ArrowInvalid"):
        read_table("memory://bucket/torn.parquet")
    assert not list(cache.glob("shards/*.parquet"))


def test_shards_with_other_columns_are_named_by_their_addresses():
    put("a.parquet", shard(0, 1))
    file = io.BytesIO()
    pq.write_table(pa.table({"text": ["a"]}), file)
    put("b.parquet", file.getvalue())
    with pytest.raises(
        ValueError, match=r"`memory:///bucket/b.parquet` has other columns than `memory:///bucket/a\.parq"
    ):
        read_table("memory://bucket/*.parquet")


def test_a_folder_of_shards_is_told_to_be_named_by_a_glob(tmp_path):
    (tmp_path / "part-0.parquet").write_bytes(shard(0, 2))
    with pytest.raises(ValueError, match=r"as Spark and Dask write them, all by a glob: `.*/\*\.parquet`"):
        read_table(tmp_path)


def test_what_chooses_within_a_data_set_has_no_meaning_for_shards():
    with pytest.raises(ValueError, match="`revision`='main' has no meaning for `memory://bucket"):
        read_table("memory://bucket/*.parquet", revision="main")
