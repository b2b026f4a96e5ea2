"""Labels as tables hold them, what they are taken for, and what bad ones get; and the split that needs them."""

import math

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import LabelMap, count_shared_rows, read_table, stratified_split

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


@pytest.fixture
def table_of(tmp_path, monkeypatch):
    """Makes a table with these labels: text ones as CSV, others as Parquet, which keeps types."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def make(labels, name="a"):
        texts = [f"row {index}" for index in range(len(labels))]
        if all(isinstance(label, str) for label in labels):
            path = tmp_path / f"{name}.csv"
            path.write_text("text,label\n" + "".join(f'{t},"{y}"\n' for t, y in zip(texts, labels, strict=True)))
        else:
            path = tmp_path / f"{name}.parquet"
            pq.write_table(pa.table({"text": texts, "label": labels}), path)
        return read_table(path)

    return make


@pytest.mark.parametrize(
    ("cells", "problem_type", "names"),
    [
        (["joy", " anger ", "joy", "fear"], SINGLE, ("anger", "fear", "joy")),
        (["10", "9", "2", "9"], SINGLE, ("2", "9", "10")),
        (["007", "7"], SINGLE, ("007", "7")),
        ([10, 9, -2], SINGLE, ("-2", "9", "10")),
        ([1.0, 0.0, 1.0], SINGLE, ("0", "1")),
        ([True, False], SINGLE, ("False", "True")),
        (["NA", "null"], SINGLE, ("NA", "null")),
        (["1", "2", "many"], SINGLE, ("1", "2", "many")),
        ([0.5, 1.0], REGRESSION, ("label",)),
        (["0.5", "1e1"], REGRESSION, ("label",)),
        ([["a", "b"], [], ["c"]], MULTI, ("a", "b", "c")),
        ([[2, 10], [1]], MULTI, ("1", "2", "10")),
    ],
)
def test_the_problem_is_guessed_as_documented(table_of, cells, problem_type, names):
    labels = LabelMap.fit(table_of(cells))
    assert (labels.problem_type, labels.names) == (problem_type, names)


def test_the_problem_can_be_said(table_of):
    whole = table_of(["3", "4", "5"])
    assert LabelMap.fit(whole, problem_type=REGRESSION).encode_table(whole) == [3.0, 4.0, 5.0]
    assert LabelMap.fit(table_of(["1.5", "2.5"]), problem_type=SINGLE).names == ("1.5", "2.5")
    with pytest.raises(ValueError, match=r"`problem_type` is 'ranking'; allowed are single_label_classification"):
        LabelMap.fit(whole, problem_type="ranking")


def test_class_names_of_datasets_keep_their_order(tmp_path, table_of):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["z", "a"])})
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features)
    rows.to_parquet(tmp_path / "c.parquet")
    table = read_table(tmp_path / "c.parquet")
    labels = LabelMap.fit(table)
    assert (labels.names, labels.encode_table(table)) == (("z", "a"), [1, 0])


def test_texts_are_divided_into_several_labels(table_of):
    table = table_of(["sad; loud", "loud", "", " ;sad"])
    labels = LabelMap.fit(table, delimiter=";")
    assert (labels.problem_type, labels.names) == (MULTI, ("loud", "sad"))
    assert labels.encode_table(table) == [[1.0, 1.0], [1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]
    with pytest.raises(ValueError, match=r"`delimiter` is ';', but the problem is single_label_classification"):
        LabelMap.fit(table, problem_type=SINGLE, delimiter=";")


def test_lists_of_numbers_are_several_targets(table_of):
    table = table_of([[0.5, 1.0], [2.0, 3.0]])
    labels = LabelMap.fit(table, problem_type=REGRESSION)
    assert (labels.names, labels.encode_table(table)) == (("label_0", "label_1"), [[0.5, 1.0], [2.0, 3.0]])
    with pytest.raises(ValueError, match=r"hold \[1, 2\] numbers"):
        LabelMap.fit(table_of([[0.5], [2.0, 3.0]]), problem_type=REGRESSION)
    with pytest.raises(ValueError, match=r"row 1, column `label`: 0.5 holds 1 numbers where 2 are expected"):
        labels.encode_table(table_of([0.5, 1.5]))


def test_a_config_gives_the_labels_back(table_of):
    labels = LabelMap.fit(table_of(["b", "a", "c"]))
    assert labels.id2label == {0: "a", 1: "b", 2: "c"} and labels.label2id["c"] == 2 and labels.num_labels == 3
    from_json = {"id2label": {str(k): v for k, v in labels.id2label.items()}, "problem_type": SINGLE}
    assert LabelMap.from_config(from_json) == labels
    assert LabelMap.from_config({"id2label": {0: "score"}, "problem_type": None}).problem_type == REGRESSION
    with pytest.raises(ValueError, match="no `id2label`"):
        LabelMap.from_config({})
    with pytest.raises(ValueError, match=r"the numbers \[0, 2\]; they must count from 0"):
        LabelMap.from_config({"id2label": {0: "a", 2: "b"}})
    with pytest.raises(ValueError, match="label names a stand more than once"):
        LabelMap.from_config({"id2label": {0: "a", 1: "a"}})


def test_a_class_that_became_a_float_is_still_known(table_of):
    labels = LabelMap.fit(table_of([0, 1, 2]))
    assert [labels.encode(value) for value in (1, 1.0, "1", "1.0", " 2 ")] == [1, 1, 1, 1, 2]


def test_unknown_labels_are_all_named_with_their_rows(table_of):
    labels = LabelMap.fit(table_of(["a", "b"]))
    table = table_of(["a", "c", "b", "D"], name="validation")
    with pytest.raises(ValueError) as raised:
        labels.encode_table(table.select([0, 1, 3]))
    first, second = str(raised.value).splitlines()
    assert first.endswith("validation.csv:row 2, column `label`: the label 'c' is not known. Allowed are a, b.")
    assert "validation.csv:row 4, column `label`: the label 'D' is not known" in second


@pytest.mark.parametrize(
    ("cells", "options", "message"),
    [
        (["a", "", "b"], {}, r"a\.csv:row 2, column `label`: the label is missing"),
        ([1, None, 2], {}, r"a\.parquet:row 2, column `label`: the label is missing"),
        ([0.5, math.nan], {"problem_type": REGRESSION}, "row 2, column `label`: the value is missing"),
        ([0.5, math.inf], {}, "row 2, column `label`: inf is not a finite number"),
        (["0.5", "-inf"], {}, "row 2, column `label`: '-inf' is not a finite number"),
        (["0.5", "3,5"], {"problem_type": REGRESSION}, "row 2, column `label`: '3,5' is not a number"),
        (["0.5", " "], {"problem_type": REGRESSION}, "row 2, column `label`: the value is missing"),
        ([["a"], None], {}, "row 2, column `label`: the labels are missing"),
        ([["a"], ["b"]], {"problem_type": SINGLE}, "is a list, where one label is expected"),
        (["a", "a "], {}, "column `label` holds only the label a. A model needs at least 2"),
        (["", ""], {"delimiter": ","}, "column `label` holds no label at all"),
        ([b"a", b"b"], {}, "row 1, column `label`: b'a' is no label"),
    ],
)
def test_bad_labels_get_a_sentence_with_the_row(table_of, cells, options, message):
    with pytest.raises(ValueError, match=message):
        LabelMap.fit(table_of(cells), **options)


def test_describe_says_what_is_predicted(table_of):
    assert LabelMap.fit(table_of(["b", "a"])).describe() == "single label classification: one of 2 labels (a, b)"
    assert LabelMap.fit(table_of(["0.5", "1.5"])).describe() == "regression: label"
    assert "100 labels" in (many := LabelMap.fit(table_of([f"c{i}" for i in range(100)])).describe())
    assert many.endswith("and 70 more)")


# --- Splitting


def test_a_split_keeps_shares_rows_and_its_seed(table_of):
    table = table_of(["a"] * 60 + ["b"] * 30 + ["c"] * 10)
    labels = LabelMap.fit(table)
    train, validation = stratified_split(table, labels, validation_fraction=0.2, seed=3)
    assert [validation.labels().count(name) for name in "abc"] == [12, 6, 2]
    assert sorted([*train.rows, *validation.rows]) == list(range(100))
    again = stratified_split(table, labels, validation_fraction=0.2, seed=3)[1]
    other = stratified_split(table, labels, validation_fraction=0.2, seed=4)[1]
    assert again.rows.tolist() == validation.rows.tolist() != other.rows.tolist()


@pytest.mark.parametrize("cells", [["0.5", "1.5"] * 10, [["a"], ["a", "b"]] * 10])
def test_numbers_and_several_labels_are_only_shuffled(table_of, cells):
    table = table_of(cells)
    train, validation = stratified_split(table, LabelMap.fit(table), validation_fraction=0.25, seed=0)
    assert (len(train), len(validation)) == (15, 5)


def test_a_split_that_cannot_be_gets_a_sentence(table_of):
    table = table_of(["a"] * 10 + ["b"] * 9 + ["c"])
    with pytest.raises(ValueError, match=r"seen once: `c` .*a\.csv:row 20.*at least 2 rows.*give a validation file"):
        stratified_split(table, LabelMap.fit(table), validation_fraction=0.2, seed=0)
    table = table_of(["a", "a", "b", "b"])
    with pytest.raises(ValueError, match=r"has 4 rows: 0.1 of them are 0, and each part needs at least 2"):
        stratified_split(table, LabelMap.fit(table), validation_fraction=0.1, seed=0)
    with pytest.raises(ValueError, match=r"`validation_fraction` is 1\.5; allowed is a share between 0 and 1"):
        stratified_split(table, LabelMap.fit(table), validation_fraction=1.5, seed=0)


def test_rows_that_stand_in_both_tables_are_counted(tmp_path):
    (tmp_path / "a.csv").write_text("text,image,label\nhi,1.png,x\nhi,2.png,x\n,3.png,y\n")
    (tmp_path / "b.csv").write_text(f"image,label,text\n2.png,y,hi\n{tmp_path}/3.png,y,\n1.png,x,ho\n")
    assert count_shared_rows(read_table(tmp_path / "a.csv"), read_table(tmp_path / "b.csv")) == 2
