"""Rows as data sets, tables and tools give them: what is empty, packed or misspelt; pipeline and processor."""

import collections
import decimal
import importlib.util
import types

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from datasets import Audio, Dataset, Image
from PIL import Image as Pillow
from test_pipeline import assert_same, make_pipeline
from torch.utils.data import IterableDataset
from transformers.pipelines.pt_utils import KeyDataset

from cells_mmfusion import is_empty, sample_of_row

RATE = 16_000
TONE = np.sin(np.arange(2400) / 9).astype(np.float32) * 0.5  # 0.15 s


@pytest.fixture(scope="module")
def classify():
    return make_pipeline()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with the same picture and sound for all, and their contents."""
    folder = tmp_path_factory.mktemp("media")
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    Pillow.fromarray(pixels).save(folder / "cat.png")
    soundfile.write(folder / "cat.wav", TONE, RATE, subtype="FLOAT")
    return types.SimpleNamespace(
        image=str(folder / "cat.png"), audio=str(folder / "cat.wav"), pixels=pixels,
        image_bytes=(folder / "cat.png").read_bytes(), audio_bytes=(folder / "cat.wav").read_bytes(),
    )  # fmt: skip


# -- empty cells ------------------------------------------------------------------------------------------------------

EMPTY = {
    "None": None, "NaN": float("nan"), "numpy NaN": np.float32("nan"), "numpy half NaN": np.float16("nan"),
    "0-d NaN": np.array(np.nan), "torch NaN": torch.tensor(float("nan")), "pandas.NA": pd.NA, "NaT": pd.NaT,
    "numpy NaT": np.datetime64("NaT"), "Decimal NaN": decimal.Decimal("NaN"), "empty string": "", "blanks": " \r\n\t",
    "numpy string": np.str_(""), "no-break space": "\u00a0",
}  # fmt: skip
EMPTY_MEDIA = {
    "nothing packed": {"bytes": None, "path": None}, "an empty path packed": {"bytes": None, "path": ""},
    "NaN packed": {"bytes": float("nan"), "path": pd.NA}, "no array": {"array": None, "sampling_rate": RATE},
    "an empty list": [], "a list of None": [None], "a path alone": {"path": None},
}  # fmt: skip
FILLED = {
    "text": "a", "zero": 0, "false": False, "zeros": np.zeros(3), "empty bytes": b"",
    "array of NaN": np.full(3, np.nan),
    "infinity": float("inf"), "packed": {"bytes": b"x", "path": None}, "date": pd.Timestamp(0), "the word": "nan",
}  # fmt: skip


@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_cell_is_empty(name):
    assert is_empty(EMPTY[name]) is True


@pytest.mark.parametrize("name", FILLED)
def test_a_filled_cell_is_not_empty(name):
    assert is_empty(FILLED[name]) is False


@pytest.mark.parametrize("name", EMPTY)
def test_the_pipeline_takes_an_empty_cell_of_any_modality_as_absent(classify, files, name):
    given = {"text": "a red cat", "image": files.image, "audio": files.audio}
    for modality in given:
        rest = {key: cell for key, cell in given.items() if key != modality}
        assert sample_of_row({**rest, modality: EMPTY[name]}) == rest
    alone = classify({"image": files.image})
    assert_same([classify({"text": EMPTY[name], "image": files.image, "audio": EMPTY[name]})], [alone])


@pytest.mark.parametrize("name", EMPTY_MEDIA)
def test_packed_media_may_be_empty(name):
    for modality in ("image", "audio"):
        assert sample_of_row({"text": "a", modality: EMPTY_MEDIA[name]}) == {"text": "a"}


@pytest.mark.parametrize("name", EMPTY)
def test_the_processor_knows_the_same_empty_cells(classify, name):
    picture, sound = np.zeros((8, 8, 3), np.uint8), {"array": TONE, "sampling_rate": RATE}
    inputs = classify.processor(
        text=["a", EMPTY[name], "a"], images=[picture, picture, EMPTY[name]], audio=[EMPTY[name], sound, sound]
    )
    assert inputs["modality_mask"].tolist() == [[1, 1, 0], [0, 1, 1], [1, 0, 1]]


# -- packed cells -----------------------------------------------------------------------------------------------------

PICTURES = {
    "path": lambda f: f.image,
    "bytes": lambda f: f.image_bytes,
    "bytes and path": lambda f: {"bytes": f.image_bytes, "path": "gone.png"},
    "path alone": lambda f: {"bytes": None, "path": f.image},
    "NaN and path": lambda f: {"bytes": float("nan"), "path": f.image},
    "bytearray": lambda f: {"bytes": bytearray(f.image_bytes)},
    "PIL": lambda f: Pillow.open(f.image),
    "array": lambda f: f.pixels,
    "tensor, channels first": lambda f: torch.from_numpy(f.pixels).permute(2, 0, 1),
    "float array": lambda f: f.pixels / 255.0,
    "nested lists": lambda f: f.pixels.tolist(),
    "list of one": lambda f: [Pillow.open(f.image)],
    "list of one packed": lambda f: [{"bytes": f.image_bytes, "path": None}],
}


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("key", ["image", "images"])
def test_a_picture_is_read_as_tools_pack_it(classify, files, name, key):
    assert_same([classify({key: PICTURES[name](files), "label": 3})], [classify({"image": files.image})])


class Decoder:
    """The interface of torchcodec's `AudioDecoder`; what is asked for is noted."""

    def __init__(self):
        self.asked = []

    def get_samples_played_in_range(self, start_seconds, stop_seconds):
        self.asked.append(stop_seconds)
        data = torch.from_numpy(TONE)[None, : round(stop_seconds * RATE)]  # (channels, samples)
        return types.SimpleNamespace(data=data, sample_rate=RATE)


SOUNDS = {
    "path": lambda f: f.audio,
    "bytes": lambda f: f.audio_bytes,
    "bytes and path": lambda f: {"bytes": f.audio_bytes, "path": "gone.wav"},
    "path alone": lambda f: {"bytes": None, "path": f.audio},
    "array": lambda f: {"array": TONE, "sampling_rate": RATE},
    "array and path": lambda f: {"path": "gone.wav", "array": TONE, "sampling_rate": RATE},
    "array as a list": lambda f: {"array": TONE.tolist(), "sampling_rate": RATE},
    "tensors": lambda f: {"array": torch.from_numpy(TONE), "sampling_rate": torch.tensor(RATE)},
    "numpy rate": lambda f: {"array": TONE[None], "sampling_rate": np.int64(RATE)},
    "no array but bytes": lambda f: {"array": None, "sampling_rate": None, "bytes": f.audio_bytes},
    "decoder": lambda f: Decoder(),
    "samples of a decoder": lambda f: Decoder().get_samples_played_in_range(0.0, 9.0),
    "raw": lambda f: {"raw": TONE, "sampling_rate": RATE},
    "list of one": lambda f: [{"array": TONE, "sampling_rate": RATE}],
}


def test_the_rate_of_a_bare_array_may_stand_beside_it(classify, files):
    expected = [classify({"audio": files.audio})]
    for array in (TONE, TONE.tolist(), torch.from_numpy(TONE)):
        assert_same([classify({"audio": array, "sampling_rate": RATE})], expected)
    with pytest.raises(ValueError, match="sampling_rate"):
        classify({"audio": TONE, "sampling_rate": None})


@pytest.mark.parametrize("name", SOUNDS)
def test_a_sound_is_read_as_tools_pack_it(classify, files, name):
    assert_same([classify({"audio": SOUNDS[name](files), "id": "a-7"})], [classify({"audio": files.audio})])


def test_of_a_decoder_no_more_is_asked_for_than_is_heard(classify):
    decoder = Decoder()
    classify({"audio": decoder})
    assert decoder.asked == [classify.processor.max_audio_seconds]


@pytest.mark.skipif(importlib.util.find_spec("torchcodec") is None, reason="torchcodec is not installed")
def test_a_decoder_of_torchcodec_is_read(classify, files):
    from torchcodec.decoders import AudioDecoder

    assert_same([classify({"audio": AudioDecoder(files.audio)})], [classify({"audio": files.audio})])


# -- many rows --------------------------------------------------------------------------------------------------------

Row = collections.namedtuple("Row", ["text", "image", "label"])


class Stream(IterableDataset):
    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


class Rows:
    """A data set of no library: rows with numbers."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, number):
        return self.rows[number]


MANY = {
    "list": lambda rows: rows,
    "tuple": tuple,
    "iterator": iter,
    "generator": lambda rows: (row for row in rows),
    "map": lambda rows: map(dict, rows),
    "dict values": lambda rows: dict(enumerate(rows)).values(),
    "deque": collections.deque,
    "named tuples": lambda rows: [Row(row["text"], row["image"], 1) for row in rows],
    "mapping views": lambda rows: [types.MappingProxyType(row) for row in rows],
    "Dataset": Dataset.from_list,
    "Dataset, pictures decoded": lambda rows: Dataset.from_list(rows).cast_column("image", Image()),
    "Dataset, pictures undecoded": lambda rows: Dataset.from_list(rows).cast_column("image", Image(decode=False)),
    "Dataset, numpy": lambda rows: Dataset.from_list(rows).with_format("numpy"),
    "Dataset, torch, pictures": lambda rows: (
        Dataset.from_list(rows).cast_column("image", Image()).with_format("torch")
    ),
    "Dataset with a transform": lambda rows: Dataset.from_list(rows).with_transform(lambda batch: batch),
    "Dataset, renamed": lambda rows: Dataset.from_list(rows).rename_column("image", "images"),
    "streamed Dataset": lambda rows: Dataset.from_list(rows).to_iterable_dataset(),
    "streamed Dataset, pictures": lambda rows: (
        Dataset.from_list(rows).cast_column("image", Image()).to_iterable_dataset()
    ),
    "KeyDataset": lambda rows: KeyDataset([{"row": row} for row in rows], "row"),
    "IterableDataset": Stream,
    "rows with numbers": Rows,
    "DataFrame": pd.DataFrame,
    "DataFrame of pandas' types": lambda rows: pd.DataFrame(rows).convert_dtypes(),
    "records": lambda rows: pd.DataFrame(rows).to_dict("records"),
    "rows of a DataFrame": lambda rows: [row for _, row in pd.DataFrame(rows).iterrows()],
    "tuples of a DataFrame": lambda rows: pd.DataFrame(rows).itertuples(),
    "Series of dicts": lambda rows: list(pd.Series(rows)),
    "table of pyarrow": lambda rows: Dataset.from_list(rows).data.table,
}


@pytest.mark.parametrize("name", MANY)
@pytest.mark.parametrize("batch_size", [1, 2])
def test_many_rows_come_as_people_have_them(classify, files, name, batch_size):
    rows = [
        {"text": "a red cat", "image": files.image, "label": 1, "id": "x"},
        {"text": None, "image": files.image, "label": 0, "id": "y"},
        {"text": "cat", "image": None, "label": 1, "id": "z"},
    ]
    expected = [classify({"text": row["text"], "image": row["image"]}) for row in rows]
    assert_same(list(classify(MANY[name](rows), batch_size=batch_size)), expected)


@pytest.mark.parametrize("name", ["Dataset, pictures undecoded", "DataFrame", "generator", "KeyDataset"])
def test_explanations_take_the_same_rows(classify, files, name):
    rows = [{"text": "a cat", "image": files.image, "label": 1}, {"text": None, "image": files.image, "label": 0}]
    given = MANY[name](rows)
    assert classify.explain(given, details=False) == classify.explain(rows, details=False)


@pytest.mark.parametrize("kind", [Audio(), Audio(sampling_rate=RATE), Audio(decode=False)])
@pytest.mark.parametrize("is_stream", [False, True])
def test_sounds_of_a_data_set_need_no_other_decoder(classify, files, kind, is_stream):
    rows = Dataset.from_dict({"audio": [files.audio, None], "text": [None, "cat"]}).cast_column("audio", kind)
    rows = rows.to_iterable_dataset() if is_stream else rows
    assert_same(list(classify(rows, batch_size=2)), [classify({"audio": files.audio}), classify({"text": "cat"})])


def test_data_sets_of_no_rows_give_no_answers(classify):
    for given in ([], (), iter(()), Dataset.from_dict({"text": []}), pd.DataFrame({"text": []}), Rows([])):
        assert list(classify(given)) == []


def test_a_data_set_stays_lazy(classify):
    taken = []

    class Noted(Rows):
        def __getitem__(self, number):
            taken.append(number)
            return super().__getitem__(number)

    next(iter(classify(Noted([{"text": "cat"}] * 9), batch_size=2)))
    assert len(taken) < 9


# -- keys -------------------------------------------------------------------------------------------------------------

MISSPELT = [
    "imgae", "img", "Image", "IMAGES", "imagee", "imags", "picture", "photo", "immage", " image",
]  # fmt: skip


@pytest.mark.parametrize("key", MISSPELT)
def test_a_misspelt_picture_does_not_vanish(classify, files, key):
    for row in ({"text": "a", key: files.image}, {"text": "a", "image": None, key: files.image}, {key: files.image}):
        for given in (row, [row]):
            with pytest.raises(ValueError, match=repr(key)):
                classify(given)


@pytest.mark.parametrize("key", ["txt", "texts", "Text", "tetx", "TEXT", "textt"])
def test_a_misspelt_text_does_not_vanish(classify, files, key):
    with pytest.raises(ValueError, match=repr(key)):
        classify({"image": files.image, key: "cat"})


@pytest.mark.parametrize("key", ["audios", "aduio", "Audio", "audo", "sound", "wav"])
def test_a_misspelt_sound_does_not_vanish(classify, files, key):
    with pytest.raises(ValueError, match=repr(key)):
        classify({"text": "cat", key: files.audio})


@pytest.mark.parametrize(
    "extra",
    [
        {"label": 3}, {"labels": [0, 1]}, {"id": "a"}, {"image_id": 7}, {"audio_id": 7}, {"context": "x"}, {0: 1},
        {"split": "train"}, {"__index_level_0__": 4}, {"caption": "x"}, {"speaker": "x"}, {"img": None},
        {"txt": float("nan")}, {"text2": "beside the text"}, {None: 1},
    ],
    ids=str,
)  # fmt: skip
def test_keys_that_mean_no_modality_are_ignored(classify, extra):
    assert_same([classify({"text": "cat", **extra})], [classify({"text": "cat"})])


@pytest.mark.parametrize(
    "row", [{"sentence": "a", "label": 1}, {"pixel_values": [1]}, {0: "a"}, {"train": [], "test": []}]
)
def test_a_row_without_any_known_key_is_told_with_those_it_has(classify, row):
    with pytest.raises(ValueError, match="text, image, audio") as caught:
        classify(row)
    assert all(repr(key) in str(caught.value) for key in row)


def test_both_names_of_the_picture_are_one_too_many(classify, files):
    with pytest.raises(ValueError, match='"images"'):
        classify({"image": files.image, "images": files.image})
    assert classify({"image": None, "images": files.image}) == classify({"image": files.image})


@pytest.mark.parametrize("key", ["image", "audio"])
def test_a_list_of_several_is_told(classify, files, key):
    with pytest.raises(ValueError, match=f'"{key}" is a list of 2'):
        classify({key: [getattr(files, key)] * 2})


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"image": {"bytes": b"", "path": None}}, "0 bytes"),
        ({"image": {"url": "x"}}, "image"),
        ({"audio": {"array": [0.1] * 900}}, "sampling_rate"),
        ({"audio": {"sampling_rate": RATE}}, "array"),
        ({"audio": TONE}, "audio"),
        ({"audio": {"array": TONE, "sampling_rate": float("inf")}}, "sampling_rate"),
        ({"audio": {"array": TONE, "sampling_rate": float("nan")}}, "sampling_rate"),
        ({"text": ["a"]}, "text"),
        ({"text": 3.5}, "text"),
        ({"image": 3.5}, "image"),
        ({"image": np.zeros((2, 3, 4, 5))}, "shape"),
    ],
)
def test_packed_cells_that_hold_nothing_usable_are_told(classify, row, words):
    with pytest.raises(ValueError, match=words):
        classify(row)


@pytest.mark.parametrize("given", ["a red cat", b"cat", 3, None, [["a"]], ["a"], [3], np.zeros((2, 3))], ids=str)
def test_what_is_no_row_is_told(classify, given):
    with pytest.raises(ValueError, match="a sample is a dict"):
        list(classify(given))


# -- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["topk", "top_K", "labels", "images", "max_length", "threshold", "return_all_scores"])
def test_no_keyword_of_the_pipeline_disappears(classify, name):
    for call in (classify, classify.explain):
        with pytest.raises(TypeError, match=name):
            call({"text": "cat"}, **{name: 1})


def test_a_sample_in_keywords_is_told_how_to_be_given(classify):
    with pytest.raises(TypeError, match="one dict"):
        classify(image="a.png", text="cat")


def test_a_positional_option_is_refused(classify):
    with pytest.raises(TypeError):
        classify({"text": "cat"}, 2)
