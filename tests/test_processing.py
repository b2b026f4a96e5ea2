"""The processor that turns rows into a batch."""

import copy
import inspect
import itertools
import json
import pickle

import numpy as np
import pytest
import soxr
import torch
from conftest import TRAVELLING
from media_cells import RATE, image_bytes, pitch, sound_bytes, tone
from PIL import Image
from tokenizers.processors import TemplateProcessing
from transformers import AutoImageProcessor, BertTokenizerFast, ViTImageProcessorPil, Wav2Vec2FeatureExtractor

import processing_mmfusion
from processing_mmfusion import MODALITIES, MMFusionProcessor

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "cat", "[", "]", "sep", "é"]


def make_processor(return_attention_mask=True, **options):
    parts = {
        "tokenizer": BertTokenizerFast(vocab={word: i for i, word in enumerate(WORDS)}),
        "image_processor": ViTImageProcessorPil(size={"height": 20, "width": 24}),
        "feature_extractor": Wav2Vec2FeatureExtractor(return_attention_mask=return_attention_mask),
        "max_text_length": 9,
        "max_audio_seconds": 0.5,
    }
    return MMFusionProcessor(**parts | options)


@pytest.fixture(scope="module")
def processor():
    return make_processor()


@pytest.fixture(autouse=True)
def unregistered(monkeypatch):
    """Whoever saves a model folder registers the class for the whole process; here it is saved without its code."""
    monkeypatch.setattr(MMFusionProcessor, "_auto_class", None)


@pytest.fixture
def picture():
    pixels = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


# --- the processor: a batch with empty cells


def test_the_batch_has_the_model_s_inputs_and_says_what_is_there(processor, picture):
    batch = processor(
        text=["a red cat", None, "   ", ""],
        images=[None, picture, picture, None],
        audio=[tone(0.2), None, {"array": tone(0.1, 8000), "sampling_rate": 8000}, None],
        sampling_rate=RATE,
    )
    assert set(batch) == set(processor.model_input_names)
    assert batch["modality_mask"].tolist() == [[1, 0, 1], [0, 1, 0], [0, 1, 1], [0, 0, 0]]
    assert batch["modality_mask"].dtype == torch.int64
    assert batch["input_ids"].tolist() == [[2, 5, 6, 7, 3]] + [[0] * 5] * 3
    assert batch["attention_mask"].tolist() == [[1] * 5] + [[0] * 5] * 3
    assert batch["pixel_values"].shape == (4, 3, 20, 24) and batch["pixel_values"].dtype == torch.float32
    assert not batch["pixel_values"][[0, 3]].any() and batch["pixel_values"][1].any()
    assert batch["input_values"].shape == (4, 3200) and batch["input_values"].dtype == torch.float32
    assert batch["audio_attention_mask"].sum(1).tolist() == [3200, 0, 1600, 0]
    assert not batch["input_values"][[1, 3]].any() and not batch["input_values"][2, 1600:].any()


def test_single_cells_are_a_batch_of_one(processor, picture):
    single = processor(text="a cat", images=picture, audio=tone(), sampling_rate=RATE)
    listed = processor(text=["a cat"], images=[picture], audio=[tone()], sampling_rate=RATE)
    assert all(torch.equal(single[name], listed[name]) for name in processor.model_input_names)
    assert single["modality_mask"].tolist() == [[1, 1, 1]]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_modality_that_no_row_has_is_left_out(processor, picture, size):
    given = {"text": ["a"], "images": [picture], "audio": [{"array": tone(), "sampling_rate": RATE}]}
    names = {"text": "input_ids", "images": "pixel_values", "audio": "input_values"}
    for subset in itertools.combinations(given, size):
        batch = processor(**{name: given[name] if name in subset else [None] for name in given})
        assert batch["modality_mask"].tolist() == [[int(name in subset) for name in given]]
        assert {name for name in given if names[name] in batch} == set(subset)


def test_rows_without_any_modality_are_allowed_here(processor):
    batch = processor(text=[None, " "], images=[None, None])
    assert list(batch) == ["modality_mask"] and batch["modality_mask"].tolist() == [[0] * 3] * 2


@pytest.mark.parametrize("return_attention_mask", [True, False])
def test_a_row_alone_equals_the_row_in_a_batch(return_attention_mask, picture):
    processor = make_processor(return_attention_mask)
    clips = [tone(seconds) + 0.1 for seconds in (0.05, 0.4, 0.2)]
    texts = ["a", "a red cat", None]
    batch = processor(text=texts, images=[picture, None, picture], audio=clips, sampling_rate=RATE)
    for row, clip in enumerate(clips):
        alone = processor(text=texts[row], images=[None if row == 1 else picture], audio=clip, sampling_rate=RATE)
        length = alone["input_values"].shape[1]
        assert torch.allclose(batch["input_values"][row, :length], alone["input_values"][0], atol=1e-6)
        assert torch.equal(batch["audio_attention_mask"][row, :length], alone["audio_attention_mask"][0])
        assert not batch["input_values"][row, length:].any()
        if "pixel_values" in alone:
            assert torch.equal(batch["pixel_values"][row], alone["pixel_values"][0])


def test_group_norm_towers_get_clips_of_one_length_and_a_mask_of_the_real_samples():
    batch = make_processor(return_attention_mask=False)(audio=[tone(0.1), tone(0.7)], sampling_rate=RATE)
    assert batch["input_values"].shape == (2, 8000)
    assert batch["audio_attention_mask"].sum(1).tolist() == [1600, 8000]


@pytest.mark.parametrize("return_attention_mask", [True, False])
def test_a_clip_is_normalised_over_its_own_samples(return_attention_mask):
    clip = tone(0.1) + 0.25
    batch = make_processor(return_attention_mask)(audio=[clip, tone(0.4)], sampling_rate=RATE)
    own = batch["input_values"][0, :1600]
    assert own.mean().abs() < 1e-4 and own.std() == pytest.approx(1, abs=1e-2)
    assert not batch["input_values"][0, 1600:].any()


def test_long_sounds_and_texts_are_cut(processor):
    batch = processor(text="a red cat " * 50, audio=tone(3.0, 44_100), sampling_rate=44_100)
    assert batch["input_ids"].shape == (1, 9) and batch["input_ids"][0, -1] == 3
    assert batch["input_values"].shape == (1, 8000)


def test_special_tokens_in_a_text_are_plain_text(processor):
    ids = processor(text="a [SEP] cat [PAD]")["input_ids"][0].tolist()
    assert ids.count(3) == 1 and ids[:6] == [2, 5, 8, 10, 9, 7]


def test_what_the_tokenizer_was_saved_with_does_not_undo_our_choices():
    vocab = {word: i for i, word in enumerate(WORDS)}
    tokenizer = BertTokenizerFast(vocab=vocab, split_special_tokens=False, max_length=3, truncation=False)
    ids = make_processor(tokenizer=tokenizer)(text="a [SEP] cat cat cat cat")["input_ids"][0].tolist()
    assert len(ids) == 9 and ids.count(3) == 1


def test_a_text_without_a_token_gets_padding_where_the_tokenizer_adds_none_itself():
    processor = make_processor()
    processor.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    alone = processor(text="\u200b")
    assert alone["input_ids"].tolist() == [[0]] and alone["attention_mask"].tolist() == [[0]]
    assert processor(text=["\u200b", "a cat"])["attention_mask"].tolist() == [[0, 0], [1, 1]]


def test_lone_surrogates_are_replaced_and_pairs_joined(processor):
    assert processor(text="a \ud800 cat")["input_ids"].tolist() == [[2, 5, 7, 3]]
    assert processing_mmfusion._text("a\ud800", 0) == "a\ufffd"
    assert processing_mmfusion._text("\ud83d\ude00", 0) == "😀"
    assert processor(text=["é", "👩‍👩‍👧 \u200b", "a\0"])["modality_mask"][:, 0].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.full((30, 40, 3), 255, np.uint8), 1),
        (np.full((3, 30, 40), 255, np.uint8), 1),
        (np.full((3, 3, 3), 255, np.uint8), 1),
        (np.full((30, 40), 255, np.uint8), 1),
        (np.full((30, 40, 1), 1.0, np.float32), 1),
        (np.full((1, 30, 40), 65_535, np.uint16), 1),
        (np.full((30, 40), True), 1),
        (np.zeros((30, 40, 4), np.uint8), 1),  # clear, on white
        (np.zeros((30, 40, 3), np.int64), -1),
        (torch.ones(3, 30, 40), 1),
    ],
)
def test_arrays_are_pictures_with_channels_first_or_last(processor, array, expected):
    pixels = processor(images=array)["pixel_values"]
    assert pixels.shape == (1, 3, 20, 24)
    assert torch.allclose(pixels, torch.full_like(pixels, expected), atol=0.01)


def test_the_channel_order_can_be_said_where_it_is_ambiguous(processor):
    array = np.zeros((3, 30, 3), np.uint8)
    array[0] = 255  # read with channels first: red everywhere; last: a white row on top
    first = processor(images=[array], input_data_format="channels_first")["pixel_values"][0]
    assert (first[0] > 0.9).all() and (first[1:] < -0.9).all()
    assert torch.equal(*(processor(images=[array])["pixel_values"][0, i] for i in (0, 1)))


def test_pil_modes_go_through_the_same_conversion_as_files(processor):
    deep = Image.fromarray(np.full((30, 40), 65_535, np.uint16))
    clear = Image.new("RGBA", (9, 9), (0, 0, 0, 0))
    assert processor(images=[deep, clear])["pixel_values"].min() > 0.99


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.full((4, 4, 3), 300, np.int32), r"range over 300..300, allowed is 0..255"),
        (np.full((4, 4, 3), 1.5), r"range over 1.5..1.5, allowed is 0..1"),
        (np.full((4, 4, 3), np.nan), "allowed is 0..1"),
        (np.zeros((5, 4, 2), np.uint8), "1, 3 or 4 channels"),
        (np.zeros((0, 4, 3), np.uint8), r"shape \(0, 4, 3\)"),
        (np.zeros(4, np.uint8), r"shape \(4,\)"),
        (np.full((4, 4), "a"), "pixels of type"),
    ],
)
def test_impossible_arrays_are_refused_with_the_index(processor, picture, array, words):
    with pytest.raises(ValueError, match=rf"`images`\[1\]: .*{words}"):
        processor(images=[picture, array])


@pytest.mark.parametrize("cell", ["/etc/passwd", "http://x/a.png", b"\x89PNG"])
def test_paths_urls_and_bytes_are_refused_with_the_index(processor, cell):
    with pytest.raises(TypeError, match=r"`images`\[1\] is a \w+; files are opened by `processor.decode_image`"):
        processor(images=[None, cell])
    with pytest.raises(TypeError, match=r"`audio`\[0\] is a \w+; files are opened by `processor.decode_audio`"):
        processor(audio=cell, sampling_rate=RATE)


def test_text_of_another_type_is_refused_with_the_index(processor):
    for cell in (b"a", 7, ["a"], 0.5):
        with pytest.raises(TypeError, match=r"`text`\[2\] is a \w+; allowed is a string"):
            processor(text=["a", None, cell])


def test_bad_sounds_are_refused_with_the_index(processor):
    for bad, words in ((tone(0.01), "lasts 0.01 s"), (np.full(900, np.nan), "NaN"), ([], "lasts 0 s")):
        with pytest.raises(ValueError, match=rf"`audio`\[1\]: the clip .*{words}"):
            processor(audio=[tone(), bad], sampling_rate=RATE)


def test_a_bare_array_needs_its_rate(processor):
    with pytest.raises(ValueError, match=r"`audio`\[1\] is a bare array: pass its `sampling_rate=`"):
        processor(audio=[{"array": tone(), "sampling_rate": RATE}, tone()])


def test_other_rates_are_resampled_stereo_mixed_and_lists_of_floats_read(processor):
    stereo = np.stack([tone(0.3, 44_100)] * 2)
    batch = processor(audio=[tone(0.3, 44_100), stereo, stereo.T, tone(0.3, 44_100).tolist()], sampling_rate=44_100)
    assert torch.allclose(batch["input_values"], batch["input_values"][:1].expand(4, -1), atol=1e-5)
    assert pitch(batch["input_values"][0].numpy()) == pytest.approx(440, abs=5)
    assert processor(audio=tone(0.1).tolist(), sampling_rate=RATE)["input_values"].shape == (1, 1600)
    expected = soxr.resample(tone(0.3, 44_100), 44_100, RATE)
    expected = (expected - expected.mean()) / expected.std()
    assert np.allclose(batch["input_values"][0], expected, atol=1e-3)


def test_lists_of_unequal_length_are_refused_with_the_counts(processor, picture):
    with pytest.raises(ValueError, match="`text` 3, `images` 2; give each one cell a row"):
        processor(text=["a", "a", "a"], images=[picture, None])
    with pytest.raises(ValueError, match="no rows: `text` is an empty list"):
        processor(text=[])


def test_nothing_at_all_is_refused_naming_the_three(processor):
    with pytest.raises(ValueError, match="at least one of `text`, `images` and `audio`"):
        processor()


def test_a_modality_that_the_model_lacks_is_refused(processor, picture):
    deaf = make_processor(feature_extractor=None)
    with pytest.raises(ValueError, match="`audio` was given, but this model reads only text, image"):
        deaf(audio=tone(), sampling_rate=RATE)
    with pytest.raises(ValueError, match="reads only text, image"):
        deaf.decode_audio(b"")
    assert deaf(text="a", audio=[None])["modality_mask"].tolist() == [[1, 0, 0]]


def test_pictures_may_be_nested_but_only_one_to_a_row(processor, picture):
    nested = processor(images=[[picture], [], (picture,)])
    flat = processor(images=[picture, None, picture])
    assert all(torch.equal(nested[name], flat[name]) for name in flat)
    with pytest.raises(ValueError, match=r"`images`\[1\] is a list of 2; a row has one picture"):
        processor(images=[[picture], [picture, picture]])


def test_pictures_of_different_sizes_need_a_resize(processor, picture):
    with pytest.raises(ValueError, match="`images` come out in different sizes"):
        processor(images=[picture, picture.resize((9, 9))], do_resize=False)


def test_the_processor_s_own_decoders_use_its_rate_and_limits(processor):
    assert processor.decode_audio(sound_bytes(tone(2.0, 44_100), 44_100)).shape == (8000,)
    assert processor.decode_image(image_bytes(Image.new("L", (3, 3)))).mode == "RGB"


# --- the processor: keyword arguments


def test_keyword_arguments_reach_the_parts_nested_or_flat(processor, picture):
    flat = processor(text="a", images=picture, padding="max_length", max_length=7, do_normalize=False)
    nested = processor(
        text="a",
        images=picture,
        text_kwargs={"padding": "max_length", "max_length": 7},
        images_kwargs={"do_normalize": False},
        common_kwargs={"return_tensors": "np"},
    )
    assert flat["input_ids"].tolist() == nested["input_ids"].tolist() and flat["input_ids"].shape == (1, 7)
    assert isinstance(nested["pixel_values"], np.ndarray) and nested["pixel_values"].min() >= 0
    assert np.array_equal(flat["pixel_values"].numpy(), nested["pixel_values"])


def test_a_flat_max_length_is_the_text_s_and_never_cuts_the_sound(processor):
    batch = processor(text="a", audio=tone(), sampling_rate=RATE, max_length=4, padding="max_length")
    assert batch["input_ids"].shape == (1, 4) and batch["input_values"].shape == (1, 8000)
    padded = processor(audio=tone(0.1), sampling_rate=RATE, audio_kwargs={"pad_to_multiple_of": 1000})
    assert padded["input_values"].shape == (1, 2000) and padded["audio_attention_mask"].sum() == 1600


def test_a_keyword_argument_given_twice_is_refused(processor):
    with pytest.raises(ValueError, match="padding was passed two times"):
        processor(text="a", padding=True, text_kwargs={"padding": False})


@pytest.mark.parametrize("tensors", ["pt", "np", None])
def test_return_tensors_is_honoured(processor, picture, tensors):
    batch = processor(
        text=["a", None], images=[None, picture], audio=[tone(), None], sampling_rate=RATE, return_tensors=tensors
    )
    expected = {"pt": torch.Tensor, "np": np.ndarray, None: (list, np.ndarray)}[tensors]
    assert all(isinstance(value, expected) for value in batch.values())


def test_call_arguments_are_none_by_default_as_upstream_demands():
    signature = inspect.signature(MMFusionProcessor.__call__).parameters
    assert all(p.default is None for name, p in signature.items() if name not in ("self", "kwargs"))


# --- the processor: making, saving, loading


PARTS = ("tokenizer", "image_processor", "feature_extractor")


@pytest.mark.parametrize("present", [c for n in (1, 2, 3) for c in itertools.combinations(PARTS, n)], ids="+".join)
def test_every_subset_of_parts_survives_saving_and_loading(present, tmp_path, picture):
    processor = make_processor(**{name: None for name in PARTS if name not in present}, max_text_length=6)
    processor.save_pretrained(tmp_path)
    loaded = MMFusionProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    assert loaded.modalities == tuple(m for m, name in zip(MODALITIES, PARTS, strict=True) if name in present)
    assert loaded.max_text_length == 6 and loaded.max_audio_seconds == 0.5
    assert loaded.model_input_names == processor.model_input_names
    given = {"text": "a red cat", "images": picture, "audio": {"array": tone(), "sampling_rate": RATE}}
    given = {name: cell for (name, cell), part in zip(given.items(), PARTS, strict=True) if part in present}
    before, after = processor(**given), loaded(**given)
    assert set(before) == set(after) == set(loaded.model_input_names)
    assert all(torch.equal(before[name], after[name]) for name in before)
    repr(loaded)


def test_a_part_can_be_replaced_while_loading(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    other = ViTImageProcessorPil(size={"height": 5, "width": 5})
    assert MMFusionProcessor.from_pretrained(tmp_path, image_processor=other).image_processor is other
    assert MMFusionProcessor.from_pretrained(tmp_path, max_text_length=4).max_text_length == 4


def test_the_image_processor_is_always_loaded_with_the_pil_backend(processor, tmp_path, monkeypatch):
    processor.save_pretrained(tmp_path)
    backends, load = [], AutoImageProcessor.from_pretrained
    monkeypatch.setattr(
        AutoImageProcessor, "from_pretrained", lambda *a, **kw: backends.append(kw["backend"]) or load(*a, **kw)
    )
    MMFusionProcessor.from_pretrained(tmp_path)
    assert backends == ["pil"]


def test_nothing_is_stored_twice(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert [n for n in names if n not in TRAVELLING] == [
        "processor_config.json", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert "tokenizer" not in json.loads((tmp_path / "processor_config.json").read_text())


def test_a_copy_for_a_worker_process_works_alike(processor):
    for copied in (pickle.loads(pickle.dumps(processor)), copy.deepcopy(processor)):
        assert torch.equal(copied(text="a cat")["input_ids"], processor(text="a cat")["input_ids"])


def test_batch_decode_is_the_tokenizer_s(processor):
    assert processor.batch_decode([[5, 7]]) == ["a cat"]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (
            {name: None for name in PARTS},
            ValueError,
            "at least one of `tokenizer`, `image_processor` and `feature_extractor` is needed",
        ),
        ({"max_text_length": 0}, ValueError, "`max_text_length` is 0"),
        ({"max_audio_seconds": 0.01}, ValueError, "`max_audio_seconds` is 0.01, at least 0.025"),
        ({"max_audio_seconds": float("nan")}, ValueError, "`max_audio_seconds` is nan"),
        ({"tokenizer": ViTImageProcessorPil()}, TypeError, "ViTImageProcessorPil for argument tokenizer"),
    ],
)
def test_a_processor_that_cannot_work_is_refused(options, error, words):
    with pytest.raises(error, match=words):
        make_processor(**options)


def test_a_feature_extractor_of_other_spectrograms_is_refused():
    from transformers import ClapFeatureExtractor

    with pytest.raises(ValueError, match="`feature_extractor` is a ClapFeatureExtractor"):
        make_processor(feature_extractor=ClapFeatureExtractor())
