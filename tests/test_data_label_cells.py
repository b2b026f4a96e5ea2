"""Labels as tools write them: read as what they mean, or refused with the row and the value."""

import json
from decimal import Decimal

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from data import LabelMap, TaskMap, label_notes, read_table
from data.label_cells import plain_name, text_as_list
from data.table import Columns

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
ROWS = [[0, 1, 0], [1, 1, 0], [0, 0, 1], [0, 0, 0]]
ENCODED = [[float(bit) for bit in row] for row in ROWS]
NUMBERED = ("label_0", "label_1", "label_2")


@pytest.fixture
def table_of(tmp_path, monkeypatch):
    """Make a table with these labels: an Arrow array or a list as Parquet, text as CSV, records as JSON lines."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def make(labels, name="a", suffix=None):
        suffix = suffix or (".csv" if isinstance(labels, list) and all(type(x) is str for x in labels) else ".parquet")
        frame = {"text": [f"row {index}" for index in range(len(labels))], "label": labels}
        path = tmp_path / f"{name}{suffix}"
        if suffix == ".csv":
            pd.DataFrame(frame).to_csv(path, index=False)
        elif suffix == ".jsonl":
            records = [dict(zip(frame, row, strict=True)) for row in zip(*frame.values(), strict=True)]
            path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
        elif isinstance(labels, (pd.Series, np.ndarray)):
            pd.DataFrame(frame).to_parquet(path)
        else:
            pq.write_table(pa.table(frame), path)
        return read_table(path)

    return make


VECTORS = {
    "ints": ROWS,
    "floats": ENCODED,
    "booleans": [[bool(bit) for bit in row] for row in ROWS],
    "int8 of fixed size": pa.array(ROWS, pa.list_(pa.int8(), 3)),
    "float16": pa.array([np.float16(row).tolist() for row in ROWS], pa.list_(pa.float32())),
    "large lists": pa.array(ROWS, pa.large_list(pa.int64())),
    "list views": pa.array(ROWS, pa.list_view(pa.int64())),
    "decimals": [[Decimal(bit) for bit in row] for row in ROWS],
    "arrays of NumPy": pd.Series([np.array(row, np.uint8) for row in ROWS]),
    "tensors as lists": [torch.tensor(row).tolist() for row in ROWS],
    "texts in lists": [[str(bit) for bit in row] for row in ROWS],
    "as Python writes them": [str(row) for row in ROWS],
    "as NumPy prints them": [str(np.array(row)) for row in ROWS],
    "floats as NumPy prints them": [str(np.array(row, float)) for row in ROWS],
    "booleans as NumPy prints them": [str(np.array(row, bool)) for row in ROWS],
    "repr of arrays": [repr(np.array(row, np.int8)) for row in ROWS],
    "repr of tensors": [repr(torch.tensor(row)) for row in ROWS],
    "tuples": [str(tuple(row)) for row in ROWS],
    "JSON booleans": [json.dumps([bool(bit) for bit in row]) for row in ROWS],
}


@pytest.mark.parametrize("form", VECTORS)
def test_vectors_of_0_and_1_are_one_label_for_each_place(table_of, form):
    table = table_of(VECTORS[form])
    labels = LabelMap.fit(table)
    assert (labels.problem_type, labels.names) == (MULTI, NUMBERED)
    assert labels.encode_table(table) == ENCODED
    assert "vectors of 0 and 1" in labels.describe()


@pytest.mark.parametrize("delimiter", [";", ",", "|", " "])
def test_vectors_may_be_divided_by_a_delimiter(table_of, delimiter):
    table = table_of([delimiter.join(map(str, row)) for row in ROWS])
    assert LabelMap.fit(table, delimiter=delimiter).encode_table(table) == ENCODED
    with pytest.raises(ValueError, match=rf"`label`: every cell is a vector .*--label_delimiter '\{delimiter}'"):
        LabelMap.fit(table)


def test_vectors_in_json_lines_are_read_alike(table_of):
    assert LabelMap.fit(table_of(ROWS, suffix=".jsonl")).names == NUMBERED


def test_the_places_of_vectors_can_be_named(table_of):
    table = table_of(ROWS)
    labels = LabelMap.fit(table, names=("joy", "fear", "anger"))
    assert labels.id2label == {0: "joy", 1: "fear", 2: "anger"}
    with pytest.raises(ValueError, match=r"`names` has 2 .joy, fear.*hold 3 numbers"):
        LabelMap.fit(table, names=("joy", "fear"))
    with pytest.raises(ValueError, match=r"`names` .joy.*holds the names themselves"):
        LabelMap.fit(table_of(["a", "b"]), names=("joy",))


def test_one_hot_vectors_are_classes_where_that_is_asked_for(table_of):
    table = table_of([[0, 1, 0], [1, 0, 0], [0, 0, 1]])
    assert "single_label_classification" in LabelMap.fit(table).describe()
    labels = LabelMap.fit(table, problem_type=SINGLE)
    assert (labels.names, labels.encode_table(table)) == (NUMBERED, [1, 0, 2])
    with pytest.raises(ValueError, match=r"row 2, column `label`: the vector .*holds 2 ones"):
        LabelMap.fit(table_of(ROWS), problem_type=SINGLE)


def test_two_places_are_a_vector_where_all_rows_have_two(table_of):
    table = table_of([[0, 1], [1, 0], [0, 1]])
    assert LabelMap.fit(table).encode_table(table) == [[0, 1], [1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        ([[0], [1], [0, 1], []], ("0", "1")),
        ([[0, 1], [2], [1, 2]], ("0", "1", "2")),
        ([[3, 17, 4], [1, 0, 5], [0, 1, 2]], ("0", "1", "2", "3", "4", "5", "17")),
        ([["a", "b"], ["b"]], ("a", "b")),
    ],
)
def test_lists_of_classes_stay_lists_of_classes(table_of, cells, names):
    assert LabelMap.fit(table_of(cells)).names == names


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([[0, 1, 0], [1, 0], [1, 1, 0]], r"row 2, column `label`: the vector \[1, 0\] is of length 2, where 3 is"),
        (
            [[0, 1, 0], [1, 0, 0], [1, 2, 0]],
            r"row 3, column `label`: the vector \[1, 2, 0\] holds 2; allowed are 0 and",
        ),
        ([[0.0, 1.0, 0.0], [1.0, 0.5, 1.0], [1.0, 0.0, 0.0]], r"row 2, .*holds 0\.5; allowed are 0 and 1"),
        ([[0, 1, 1], None, [1, 0, 0]], r"row 2, column `label`: the labels are missing"),
        ([[0, 1, 1], [], [1, 0, 0]], r"row 2, column `label`: the vector \[\] is of length 0"),
        ([[0, 1, None], [1, 0, 0], [1, 1, 0]], r"row 1, column `label`: the vector .* holds None"),
        ([[0.25, 0.75], [0.5, 0.5]], r"row 1, column `label`: \[0\.25, 0\.75\] holds 0\.25, which is not a label"),
        ([[-1, 1, -1], [1, 1, -1], [-1, 1, 1]], r"row 1, column `label`: the vector .* holds -1; allowed are 0 and 1"),
        ([[2, 0, 0], [1, 1, 1], [0, 0, 3]], r"row 1, .* holds 2; allowed are 0 and 1"),
        (["['a', 'b']", "['a', 'b", "[]"], r"row 2, column `label`: \"\['a', 'b\" begins as a list"),
        ([[1, 1, 0]] * 4, r"every row has label_0, label_1 in the column `label`.*nothing to tell apart"),
        ([[0, 0, 0]] * 4, r"every row has none of the labels"),
        ([["a", "b"]] * 3, r"every row has a, b in the column `label`"),
    ],
)
def test_vectors_that_are_none_get_a_sentence_with_the_row(table_of, cells, message):
    with pytest.raises(ValueError, match=message):
        LabelMap.fit(table_of(cells))


def test_the_doctor_finds_a_label_that_every_row_has(table_of):
    from data import diagnose

    tables = {"train": table_of(ROWS), "validation": table_of([[1, 1, 0], [0, 1, 0]], name="b")}
    findings = [finding for finding in diagnose(tables, progress=False).findings if finding.code == "constant.label"]
    assert len(findings) == 1 and "label_1" in findings[0].what and "validation" in findings[0].what


def test_a_label_that_all_rows_have_or_none_is_told(table_of):
    told = LabelMap.fit(table_of([[1, 0, 0], [1, 1, 0]])).describe()
    assert "every row has label_0" in told and "no row has label_2" in told


def test_a_table_that_a_model_is_measured_on_is_told_of(table_of):
    labels = LabelMap.fit(table_of(ROWS))
    vectors, constant = label_notes(table_of([[1, 1, 1]] * 3, name="b"), labels)
    assert "read in this order: label_0, label_1, label_2" in vectors
    assert constant.startswith("warning:") and "label_0, label_1, label_2" in constant
    assert label_notes(table_of([["a"], ["b"]], name="c"), LabelMap(MULTI, ("a", "b"))) == []


def test_another_table_is_read_by_the_labels_of_the_model(table_of):
    labels = LabelMap(MULTI, ("joy", "fear", "anger"))
    as_lists = table_of(["['joy']", "['joy', 'fear']", '["anger"]', "[]"])
    assert labels.encode_table(as_lists) == [[1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert labels.encode([0, 1, 0]) == labels.encode("[0 1 0]") == [0, 1, 0]
    with pytest.raises(ValueError, match=r"\[0, 1\] is of length 2, where 3 is expected"):
        labels.encode([0, 1])
    of_numbers = LabelMap(MULTI, ("0", "1", "2"))
    assert of_numbers.encode([0, 1]) == [1, 1, 0] and of_numbers.encode([0, 1, 0]) == [0, 1, 0]


LISTS = {
    "Python": "['joy', 'fear']",
    "JSON": '["joy","fear"]',
    "tuple": "('joy', 'fear')",
    "set": "{'joy', 'fear'}",
    "NumPy": "['joy' 'fear']",
    "NumPy over lines": "['joy'\n 'fear']",
    "array": "array(['joy', 'fear'], dtype=object)",
    "list": "list(['joy', 'fear'])",
    "mixed quotes": "['joy', \"fear\"]",
    "spaces": "  [ 'joy' ,'fear' ] ",
}


@pytest.mark.parametrize("form", LISTS)
def test_lists_of_names_written_as_text_are_lists(table_of, form):
    table = table_of([LISTS[form], "['joy']", "[]"])
    labels = LabelMap.fit(table)
    assert (labels.problem_type, labels.names) == (MULTI, ("fear", "joy"))
    assert labels.encode_table(table) == [[1, 1], [0, 1], [0, 0]]


@pytest.mark.parametrize(
    "text", ["[REMOVED]", "(1)", "{x}", "[a] or [b]", "f(x)", "[", "", "[__import__('os')]", "{'a': 1}"]
)
def test_other_texts_with_brackets_are_not_lists(text):
    assert text_as_list(text) is None


@pytest.mark.parametrize("cell", ["[joy;fear]", "'joy';'fear'", '"joy" ; "fear"', "(joy; fear)", "{joy;fear}"])
def test_brackets_and_quotes_do_not_belong_to_a_label(table_of, cell):
    table = table_of([cell, "joy"])
    assert LabelMap.fit(table, delimiter=";").encode_table(table) == [[1, 1], [0, 1]]


def test_lists_without_quotes_ask_for_their_delimiter(table_of):
    table = table_of(["[joy, fear]", "[joy]", "[fear]"])
    with pytest.raises(ValueError, match=r"list in brackets, such as '\[joy, fear\]'\. Give `--label_delimiter ','`"):
        LabelMap.fit(table)
    assert LabelMap.fit(table, delimiter=",").names == ("fear", "joy")
    assert LabelMap.fit(table, problem_type=SINGLE).names == ("[fear]", "[joy, fear]", "[joy]")


@pytest.mark.parametrize(
    "other", ["cafe\u0301", "café ", "\u00a0café", "café\u200b", "\ufeffcafé", " café\t", "café\u3000", "café\u200e"]
)
def test_one_label_in_several_writings_is_one_label(table_of, other):
    table = table_of(["café", other, "thé"])
    labels = LabelMap.fit(table)
    assert (labels.names, labels.encode_table(table)) == (("café", "thé"), [0, 0, 1])


@pytest.mark.parametrize("other", ["New\u00a0York", "New  York", "New\u2009York", "New\tYork"])
def test_white_space_inside_of_a_label_is_one_space(other):
    assert plain_name(other) == "New York"


@pytest.mark.parametrize("other", ["New\u200b York", "N\u00adew York", "New\u2060 York"])
def test_labels_that_look_alike_are_refused_with_both_spelt_out(table_of, other):
    with pytest.raises(ValueError) as raised:
        LabelMap.fit(table_of(["New York", other, "Rome"]))
    assert ascii(other) in str(raised.value) and "'New York'" in str(raised.value)


def test_a_model_with_labels_in_two_letters_still_knows_them():
    assert LabelMap(SINGLE, ("cafe\u0301", "the")).encode("café") == 0


@pytest.mark.parametrize(
    ("cells", "numbers"),
    [
        (["3,5", "4,25", "5"], [3.5, 4.25, 5]),
        (["0,123", "12,5", "-7,25"], [0.123, 12.5, -7.25]),
        (["1.234,5", "12,75", "1.000.000,1"], [1234.5, 12.75, 1000000.1]),
        (["1,234.5", "12.75", "2,000,000.1"], [1234.5, 12.75, 2000000.1]),
        (["1 234,5", "12,75", "3\u202f000,1"], [1234.5, 12.75, 3000.1]),
        (["1'234.5", "12.75", "10’000.1"], [1234.5, 12.75, 10000.1]),
        ([" 3,5 ", "+4,5", ",5"], [3.5, 4.5, 0.5]),
        (["1,5e3", "2,25E-1", "3"], [1500, 0.225, 3]),
        (["3.5", "4.25", "1e1"], [3.5, 4.25, 10]),
    ],
)
def test_numbers_of_any_country_are_numbers(table_of, cells, numbers):
    table = table_of(cells)
    labels = LabelMap.fit(table)
    assert (labels.problem_type, labels.encode_table(table)) == (REGRESSION, numbers)


@pytest.mark.parametrize("problem_type", [None, REGRESSION])
def test_a_comma_of_two_meanings_is_refused(table_of, problem_type):
    table = table_of(["1,234", "2,500", "300"])
    with pytest.raises(ValueError, match=r"`label`: '(1,234' may be 1\.234 or 1,234|2,500' may be 2\.5 or 2,500)"):
        LabelMap.fit(table, problem_type=problem_type)
    assert len(LabelMap.fit(table, problem_type=SINGLE).names) == 3


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["3,5", "3.5"], r"row 1, column `label`: '3,5' is not a number"),
        (["3,5", "vier"], r"row 1, column `label`: '3,5' is not a number"),
        (["2024-01-01", "3"], r"row 1, column `label`: '2024-01-01' is not a number"),
        (["50 %", "3"], r"row 1, column `label`: '50 %' is not a number"),
        (["1_000", "3"], r"row 1, column `label`: '1_000' is not a number"),
        ([True, False], r"row 1, column `label`: True is not a number"),
    ],
)
def test_what_is_not_a_number_is_refused_with_its_row(table_of, cells, message):
    with pytest.raises(ValueError, match=message):
        LabelMap.fit(table_of(cells), problem_type=REGRESSION)


@pytest.mark.parametrize(
    "cells",
    [[True, False, True], ["True", "False", "True"], ["TRUE", "FALSE", "TRUE"], ["true", "False", "TRUE"]],
)
def test_booleans_are_the_same_two_classes_in_every_format(table_of, cells):
    table = table_of(cells)
    labels = LabelMap.fit(table)
    assert (labels.names, labels.encode_table(table)) == (("False", "True"), [1, 0, 1])
    assert [labels.encode(value) for value in (True, "true", "FALSE", False)] == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["1.0", "2.0", "10.0"], ("1", "2", "10")),
        (["1", "1.0", "2"], ("1", "2")),
        (pa.array([1.0, 2.0, 10.0]), ("1", "2", "10")),
        (pa.array([1, 2, 10], pa.int8()), ("1", "2", "10")),
        (pa.array(["1", "2"], pa.string_view()), ("1", "2")),
        (pa.array(["a", "b", "a"]).dictionary_encode(), ("a", "b")),
        (pa.array([1, 2], pa.decimal128(9, 0)), ("1", "2")),
    ],
)
def test_whole_numbers_are_classes_whatever_their_type(table_of, labels, names):
    table = table_of(labels)
    fitted = LabelMap.fit(table)
    assert (fitted.problem_type, fitted.names) == (SINGLE, names)
    assert fitted.encode_table(table)[0] == 0


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_nan_is_a_missing_label_in_every_format(table_of, suffix):
    cells = pd.Series([1.0, np.nan, 2.0]) if suffix == ".parquet" else [1.0, float("nan"), 2.0]
    with pytest.raises(ValueError, match=r"row 2, column `label`: the label is missing"):
        LabelMap.fit(table_of(cells, suffix=suffix))


def test_vectors_for_declared_classes_are_read_as_vectors(tmp_path, table_of):
    classes = datasets.List(datasets.ClassLabel(names=["joy", "fear", "anger"]))
    features = datasets.Features({"text": datasets.Value("string"), "label": classes})
    rows = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [[0, 1, 0], [0, 2], []]}, features)
    rows.to_parquet(tmp_path / "c.parquet")
    assert read_table(tmp_path / "c.parquet").labels() == [["fear"], ["joy", "anger"], []]


def test_vectors_may_be_one_of_several_tasks(tmp_path, table_of):
    pq.write_table(
        pa.table({"text": list("abcd"), "mood": ["x", "y", "x", "y"], "tags": ROWS}), tmp_path / "t.parquet"
    )
    table = read_table(tmp_path / "t.parquet", columns=Columns(label={"mood": "mood", "tags": "tags"}))
    labels = TaskMap.fit(table)
    assert labels.maps["tags"].names == ("tags_0", "tags_1", "tags_2")
    assert [row[1:] for row in labels.encode_table(table)] == ENCODED
    assert any("tags_0" in note for note in label_notes(table, labels))


def test_what_predict_writes_into_a_csv_is_read_again(table_of):
    from cli.scored import without_formula

    table = table_of([without_formula(row) for row in ROWS], name="scored")
    assert LabelMap.fit(table, delimiter=";").encode_table(table) == ENCODED
