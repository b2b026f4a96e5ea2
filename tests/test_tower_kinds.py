"""Families of encoders as towers: each works, or is refused in a sentence; spectrograms go the whole way."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import set_seed

from benchmarks.tiny_towers import ADAPTER, SAMPLING_RATE, preprocessor, tiny_config
from benchmarks.towers import chosen, describe, examine
from configuration_mmfusion import MMFusionConfig
from modeling_mmfusion import MMFusionForSequenceClassification
from pipeline_mmfusion import MMFusionPipeline
from processing_mmfusion import MMFusionProcessor
from towers_mmfusion import build_tower, run_image_tower, tower_width, why_not
from training.setup import describe_checkpointing

# One of each way in which a tower is run: masked, by length, a feature map, tuples from embeddings, measured width, a
# masked autoencoder, an adapter, a spectrogram of one length and one of any.
FEW = {"mobilebert", "swin", "mobilenet_v2", "vit_mae", "wav2vec2 (adapter)", "data2vec-audio", "whisper"}
CLAIMS = ("trains", "cached", "checkpointing", "alone")
SPECTROGRAMS = ("whisper", "audio-spectrogram-transformer", "wav2vec2-bert")
ABLE = ("yes", "left as it is")


@pytest.mark.parametrize(
    ("modality", "family", "fields"),
    [
        pytest.param(modality, family, fields, id=name, marks=() if name in FEW else pytest.mark.slow)
        for modality, name, family, fields in chosen(None)
    ],
)
def test_a_family_works_as_a_tower_or_is_refused_in_a_sentence(modality, family, fields, tmp_path):
    result = examine(modality, family, tmp_path / "tower", **fields)
    if result["refused"]:
        assert result["refused"].startswith(f"--{modality}_model_name_or_path DIR: a `{family}`") or (
            "pip install" in result["refused"]
        )
    else:
        assert all(result[claim] in ABLE for claim in CLAIMS), describe(result)


@pytest.mark.parametrize(
    ("modality", "family"),
    [("image", "videomae"), ("image", "siglip2_vision_model"), ("image", "pixtral"), ("image", "bert"),
     ("audio", "encodec"), ("audio", "moonshine"), ("text", "t5"), ("text", "whisper"), ("text", "canine")],
)  # fmt: skip
def test_what_cannot_be_a_tower_is_known_before_anything_is_loaded(modality, family):
    assert why_not(tiny_config(family), modality)


@pytest.mark.parametrize(
    ("modality", "family"),
    [("image", "beit"), ("image", "data2vec-vision"), ("image", "clip_vision_model"), ("audio", "data2vec-audio"),
     ("audio", "whisper"), ("text", "mobilebert"), ("image", "efficientnet")],
)  # fmt: skip
def test_what_can_be_a_tower_is_not_refused(modality, family):
    assert why_not(tiny_config(family), modality) is None


@pytest.mark.parametrize("family", ["efficientnet", "mobilenet_v1", "mobilenet_v2", "mobilevit", "resnet", "hgnet_v2"])
def test_the_width_of_a_picture_tower_is_that_of_its_tokens(family):
    tower = build_tower(tiny_config(family)).eval()
    with torch.no_grad():
        hidden, mask = run_image_tower(tower, torch.randn(2, 3, 64, 64))
    assert hidden.shape[1] == tower_width(tower.config) and mask.shape == (2, hidden[0, 0].numel())


def test_a_masked_autoencoder_sees_all_patches_in_their_order_and_says_the_same_each_time():
    model = classifier(vision_config=tiny_config("vit_mae"))
    pixels = torch.randn(2, 3, 32, 32)
    hidden = [model.mmfusion.run_towers(pixel_values=pixels)[0]["image"][0] for _ in range(2)]
    assert torch.equal(*hidden) and hidden[0].shape[1] == 1 + (32 // 8) ** 2
    moved = pixels.clone()
    moved[:, :, :8, :8] += 1.0  # the first patch: of all tokens its own changes most
    change = (model.mmfusion.run_towers(pixel_values=moved)[0]["image"][0] - hidden[0]).norm(dim=-1)[0, 1:]
    assert change.argmax() == 0


def test_checkpointing_does_not_ask_embeddings_that_return_tuples_for_a_gradient():
    model = classifier(vision_config=tiny_config("swin")).train()
    model.activation_checkpointing_enable()
    model(pixel_values=torch.randn(2, 3, 32, 32), labels=torch.tensor([0, 1])).loss.backward()
    assert all(p.grad is not None for p in model.mmfusion.vision_encoder.parameters())


@pytest.mark.parametrize(("family", "num_sentences"), [("resnet", 1), ("vit", 0)])
def test_a_tower_that_cannot_be_checkpointed_is_named(family, num_sentences):
    model = classifier(vision_config=tiny_config(family))
    model.activation_checkpointing_enable()
    towers = SimpleNamespace(encoders={"image": model.mmfusion.vision_encoder})
    said = describe_checkpointing(SimpleNamespace(activation_checkpointing=True), model, towers)
    assert len(said) == num_sentences and all("the image tower (ResNetModel)" in sentence for sentence in said)


# -- spectrograms -----------------------------------------------------------------------------------------------------


def classifier(**configs):
    """A classifier whose weights are large enough for every input to matter."""
    set_seed(0)
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 40, "num_labels": 3}
    model = MMFusionForSequenceClassification(MMFusionConfig(**configs, **sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.2)
    return model


def clips(*lengths):
    random = np.random.default_rng(0)
    return [random.normal(0, 0.1, length).astype(np.float32) for length in lengths]


@pytest.fixture(scope="module", params=[*SPECTROGRAMS, "wav2vec2-bert with adapter"])
def heard(request):
    """(Model, processor, batch) of a tower of spectrograms; the last row has no sound."""
    family, _, adapter = request.param.partition(" with ")
    config = tiny_config(family, **(ADAPTER if adapter else {}))
    processor = MMFusionProcessor(feature_extractor=preprocessor("audio", config), max_audio_seconds=1.0)
    batch = processor(audio=[*clips(3_000, 8_000, 15_000, 450), None], sampling_rate=SAMPLING_RATE)
    return classifier(audio_config=config), processor, batch


def test_a_spectrogram_alone_is_what_it_is_in_a_batch(heard):
    model, processor, batch = heard
    assert (
        {"input_features", "audio_attention_mask", "modality_mask"} == set(batch) == set(processor.model_input_names)
    )
    with torch.no_grad():
        together = model(**batch).logits
        for row, clip in enumerate(clips(3_000, 8_000, 15_000, 450)):
            alone = model(**processor(audio=clip, sampling_rate=SAMPLING_RATE)).logits
            assert torch.allclose(alone[0], together[row], atol=1e-5)


def test_what_lies_under_the_mask_of_a_spectrogram_reaches_neither_output_nor_gradient(heard):
    model, _, batch = heard
    features, under = batch["input_features"].clone(), ~batch["audio_attention_mask"].bool()
    by_time = features.transpose(1, 2) if model.config.audio_config.model_type == "whisper" else features
    by_time[under] = float("nan")
    with torch.no_grad():
        assert torch.allclose(model(**{**batch, "input_features": features}).logits, model(**batch).logits, atol=1e-6)


@pytest.mark.parametrize("family", ["whisper", "audio-spectrogram-transformer"])
def test_a_tower_of_one_length_says_what_the_library_says_of_the_same_clip(family):
    config = tiny_config(family)
    extractor = preprocessor("audio", config)
    processor = MMFusionProcessor(feature_extractor=extractor)
    model, sounds = classifier(audio_config=config), clips(3_000, 15_000)
    expected = extractor(sounds, sampling_rate=SAMPLING_RATE, return_tensors="pt")
    with torch.no_grad():
        expected = model.mmfusion.audio_encoder(next(iter(expected.values()))).last_hidden_state
        hidden, mask = model.mmfusion.run_towers(**processor(audio=sounds, sampling_rate=SAMPLING_RATE))[0]["audio"]
    assert torch.allclose(hidden, expected, atol=1e-4)
    assert mask[0].sum() < mask[1].sum() <= mask.shape[1]


def test_seconds_beyond_the_extractors_spectrogram_are_not_promised():
    assert MMFusionProcessor(feature_extractor=preprocessor("audio", tiny_config("whisper"))).max_audio_seconds == 1.0


def test_the_other_kind_of_sound_is_refused_by_name(heard):
    model, _, _ = heard
    with pytest.raises(ValueError, match=r"`input_values` was given, but the audio tower .* reads `input_features`"):
        model(input_values=torch.randn(1, 400))
    with pytest.raises(ValueError, match=r"`input_features` must be of shape \(B, "):
        model(input_features=torch.randn(1, 400))


@pytest.mark.parametrize("method", ["integrated_gradients", "attention"])
def test_an_explanation_of_a_spectrogram_covers_the_clip(heard, method):
    if method == "integrated_gradients":
        pytest.importorskip("captum")
    model, processor, _ = heard
    classify = MMFusionPipeline(model=model, processor=processor)
    (clip,) = clips(8_000)
    about = classify.explain({"audio": {"array": clip, "sampling_rate": SAMPLING_RATE}}, method=method, num_steps=8)
    segments = about["audio"]["segments"]
    assert about["audio"]["seconds"] == pytest.approx(0.5, abs=0.04)
    assert segments[0]["start"] == 0.0 and segments[-1]["end"] == about["audio"]["seconds"]
    assert all(a["end"] == b["start"] for a, b in itertools.pairwise(segments))
    assert all(math.isfinite(segment["score"]) for segment in segments)
