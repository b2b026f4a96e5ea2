"""Data sets on the Hub that polars, DuckDB or pandas wrote: the same cells and labels, whole and as a stream."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_here import datasets_online, picture, push
from local_hub import running_hub

from data import LabelMap, StreamedDataset, open_stream, read_table

ROWS = [[0, 1, 0], [1, 1, 0], [0, 0, 1], [1, 0, 0]]
READS = SimpleNamespace(modalities=("text", "image"), audio_sampling_rate=None, max_audio_seconds=None)
PICTURES = [picture(0), None, picture(2), picture(3)]
FORMS = {
    "views": {
        "text": pa.array(["a", "b", "c", None], pa.string_view()),
        "image": pa.array(PICTURES, pa.binary_view()),
        "label": pa.array(ROWS, pa.list_(pa.int64())),
    },
    "structs-of-views": {
        "text": pa.array(["a", "b", "c", None], pa.large_string()),
        "image": pa.array(
            [cell and {"bytes": cell, "path": "x.png"} for cell in PICTURES],
            pa.struct([("bytes", pa.binary_view()), ("path", pa.string_view())]),
        ),
        "label": pa.array(np.array(ROWS, float).tolist(), pa.list_(pa.float64(), 3)),
    },
    "dictionaries": {
        "text": pa.array(["a", "b", "c", None]).dictionary_encode(),
        "image": pa.array(PICTURES, pa.large_binary()),
        "label": pa.array([[bool(bit) for bit in row] for row in ROWS], pa.large_list(pa.bool_())),
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    with running_hub(folder / "hub") as hub, datasets_online(hub, folder / "home") as api:
        empty = {"text": ["a", "b", "c", "d"], "image": pa.array([np.nan] * 4), "label": pa.array(ROWS)}
        for name, columns in {**FORMS, "nan": empty}.items():
            (folder / name).mkdir()
            pq.write_table(pa.table(columns), folder / name / "train.parquet")
            push(api, f"alice/{name}", folder / name)
        yield api


@pytest.mark.parametrize("form", FORMS)
def test_a_data_set_of_any_arrow_types_is_read(api, form):
    table = read_table(f"alice/{form}")
    assert [table.cell(index, "text") for index in range(4)] == ["a", "b", "c", None]
    assert [table.cell(index, "image") for index in range(4)] == PICTURES
    labels = LabelMap.fit(table)
    assert (labels.names, labels.encode_table(table)) == (("label_0", "label_1", "label_2"), ROWS)


@pytest.mark.parametrize("form", FORMS)
def test_it_is_streamed_with_the_same_labels(api, form):
    stream = open_stream(f"alice/{form}")
    labels = stream.labels(names=("joy", "fear", "anger"))
    assert (labels.problem_type, labels.names) == ("multi_label_classification", ("joy", "fear", "anger"))
    options = {"buffer_size": 4, "seed": 0, "on_bad_cell": "error", "num_rows": 4}
    rows = list(StreamedDataset(stream, labels, READS, **options))
    assert sorted(row["label"] for row in rows) == sorted(ROWS)
    assert {row["text"] for row in rows} == {"a", "b", "c", None}
    assert sum(row["image"] is not None for row in rows) == 3
    with pytest.raises(ValueError, match=r"--label_names has 1 names, and `alice/.*` has 3 labels"):
        stream.labels(names=("joy",))


def test_a_column_of_nan_is_empty_there_too(api):
    assert read_table("alice/nan").presence[:, :2].tolist() == [[True, False]] * 4
    stream = open_stream("alice/nan")
    options = {"buffer_size": 4, "seed": 0, "on_bad_cell": "error", "num_rows": 4}
    rows = list(StreamedDataset(stream, stream.labels(), READS, **options))
    assert [row["image"] for row in rows] == [None] * 4
    assert sorted(row["text"] for row in rows) == list("abcd")
