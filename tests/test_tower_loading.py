"""Towers as they are published: files, names and parts of other models, and what is refused."""

import io
import json
import os
import pickle

import pytest
import torch
from conftest import audio_config, text_config, vit_config
from transformers import (
    AutoConfig,
    AutoModel,
    BertForMaskedLM,
    BertModel,
    CLIPConfig,
    CLIPModel,
    SiglipConfig,
    SiglipModel,
    ViTForImageClassification,
    Wav2Vec2ForCTC,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from loading_mmfusion import load_tower
from modeling_mmfusion import MMFusionModel
from training.preprocessors import check_reading, load_tokenizer, make_feature_extractor, make_image_processor
from training.towers import load_pretrained

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
PICTURES = {**SMALL, "image_size": 16, "patch_size": 8}
WHISPER = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_source_positions": 50,
    "num_mel_bins": 80, "vocab_size": 64, "pad_token_id": 0, "decoder_start_token_id": 1, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
# Name -> (published model, modality, the part of it that is the tower).
PUBLISHED = {
    "bert with a head": (lambda: BertForMaskedLM(text_config()), "text", lambda m: m.bert),
    "vit with a head": (lambda: ViTForImageClassification(vit_config()), "image", lambda m: m.vit),
    "wav2vec2 with a head": (lambda: Wav2Vec2ForCTC(audio_config()), "audio", lambda m: m.wav2vec2),
    "vision of clip": (
        lambda: CLIPModel(CLIPConfig(text_config={**SMALL, "vocab_size": 64}, vision_config=PICTURES)),
        "image", lambda m: m.vision_model,
    ),
    "vision of siglip": (
        lambda: SiglipModel(
            SiglipConfig(text_config={**SMALL, "vocab_size": 64, "projection_size": 16}, vision_config=PICTURES)
        ),
        "image", lambda m: m.vision_model,
    ),
    "encoder of whisper": (
        lambda: WhisperForConditionalGeneration(WhisperConfig(**WHISPER)), "audio", lambda m: m.model.encoder,
    ),
}  # fmt: skip
FIELDS = {**PICTURES, "vocab_size": 64, "max_position_embeddings": 32}
TEXT = {
    "bert": {}, "roberta": {}, "xlm-roberta": {}, "mpnet": {}, "electra": {"embedding_size": 16},
    "distilbert": {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32}, "deberta-v2": {}, "albert":
    {"embedding_size": 8}, "modernbert": {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1,
    "sep_token_id": 2},
}  # fmt: skip
IMAGE = {
    "vit": {},
    "deit": {},
    "dinov2": {},
    "beit": {},
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    "swin": {"embed_dim": 8, "depths": [1], "num_attention_heads": [2], "window_size": 2, "patch_size": 4},
    "efficientnet": {"width_coefficient": 0.1, "depth_coefficient": 0.1, "hidden_dim": 32},
}
SOUND = {
    "conv_dim": [8, 10], "conv_kernel": [10, 7], "conv_stride": [5, 4], "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
AUDIO = {
    "wav2vec2": SOUND, "hubert": SOUND, "wavlm": SOUND,
    "data2vec-audio": {**SOUND, "conv_pos_kernel_size": 3},
    "audio-spectrogram-transformer": {"max_length": 32, "num_mel_bins": 16, "patch_size": 8},
}  # fmt: skip


def make_family(kind, **settings):
    torch.manual_seed(0)
    return AutoModel.from_config(AutoConfig.for_model(kind, **{**FIELDS, **settings}))


PREFIXES = ("", "module.", "0.auto_model.", "model.backbone.")


def save_bin(folder, config, state):
    folder.mkdir(exist_ok=True)
    config.save_pretrained(folder)
    torch.save(state, folder / "pytorch_model.bin")
    return folder


def assert_whole(tower, source):
    expected = source.state_dict()
    assert tower.state_dict().keys() <= expected.keys()
    for name, value in tower.state_dict().items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("form", ["safetensors", "bin", "sharded bin"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_weights_of_a_tower_are_those_of_its_source(name, form, tmp_path):
    make, modality, part = PUBLISHED[name]
    model = make()
    if form == "safetensors":
        model.save_pretrained(tmp_path)
    else:
        save_bin(tmp_path, model.config, state := model.state_dict())
    if form == "sharded bin":
        (tmp_path / "pytorch_model.bin").unlink()
        names = list(state)
        shards = {f"pytorch_model-0000{i + 1}-of-00002.bin": names[i::2] for i in range(2)}
        for file, keys in shards.items():
            torch.save({key: state[key] for key in keys}, tmp_path / file)
        index = {"metadata": {}, "weight_map": {key: file for file, keys in shards.items() for key in keys}}
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert_whole(load_tower(tmp_path, modality), part(model))


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize(("kind", "settings"), [*TEXT.items(), *IMAGE.items(), *AUDIO.items()])
def test_the_weights_of_each_family_are_those_of_its_source(kind, settings, form, tmp_path):
    source = make_family(kind, **settings)
    if form == "bin":
        save_bin(tmp_path, source.config, source.state_dict())
    else:
        source.save_pretrained(tmp_path)
    assert_whole(load_tower(tmp_path), source)


def test_a_shard_that_is_missing_is_named(tmp_path):
    source = BertModel(text_config())
    places = {key: f"part-{number % 2}.bin" for number, key in enumerate(source.state_dict())}
    source.config.save_pretrained(tmp_path)
    torch.save({k: v for k, v in source.state_dict().items() if places[k] == "part-0.bin"}, tmp_path / "part-0.bin")
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    with pytest.raises((OSError, ValueError), match=r"part-1\.bin"):
        load_tower(tmp_path, "text")


@pytest.mark.parametrize("prefix", PREFIXES)
def test_weights_under_a_prefix_are_found(prefix, tmp_path):
    model = BertModel(text_config())
    state = {prefix + key: value for key, value in model.state_dict().items()}
    assert_whole(load_tower(save_bin(tmp_path, model.config, state), "text"), model)


def test_old_names_of_weights_arrive(tmp_path):
    model = Wav2Vec2ForCTC(audio_config())
    state = {
        key.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): value
        for key, value in model.state_dict().items()
    }
    assert any(key.endswith("weight_g") for key in state)
    assert_whole(load_tower(save_bin(tmp_path, model.config, state), "audio"), model.wav2vec2)


LACKING = {
    "a layer": (lambda s: {k: v for k, v in s.items() if "layer.1." not in k}, "encoder.layer.1."),
    "another size": (lambda s: {k: v[:10] if "word_emb" in k else v for k, v in s.items()}, "word_embeddings"),
    "another architecture": (lambda s: ViTForImageClassification(vit_config()).state_dict(), "embeddings"),
}


@pytest.mark.parametrize("name", LACKING)
def test_weights_that_do_not_arrive_are_named_unless_it_is_meant(name, tmp_path):
    change, named = LACKING[name]
    model = BertModel(text_config())
    save_bin(tmp_path, model.config, change(model.state_dict()))
    with pytest.raises(ValueError, match=named):
        load_tower(tmp_path, "text")
    with pytest.raises(ValueError, match=named):
        MMFusionModel.from_encoders(text=str(tmp_path))
    assert load_tower(tmp_path, "text", allow_missing_weights=True).config.model_type == "bert"


class Planted:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def no_state_dict(kind, planted) -> bytes:
    file = io.BytesIO()
    if kind == "plain pickle":
        return pickle.dumps(BertModel(text_config()).state_dict())
    content = {"planted code": Planted(planted), "list": [1, 2], "tensor": torch.ones(3), "half": torch.ones(9)}
    torch.save(content.get(kind), file)
    data = file.getvalue()
    return {"half": data[: len(data) // 2], "empty": b"", "noise": b"noise" * 50}.get(kind, data)


@pytest.mark.parametrize("kind", ["planted code", "list", "tensor", "half", "empty", "noise", "plain pickle"])
def test_a_bin_that_is_no_state_dict_is_refused_and_never_run(kind, tmp_path):
    BertModel(text_config()).config.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(no_state_dict(kind, tmp_path / "planted"))
    with pytest.raises(ValueError, match="safetensors") as refused:
        load_tower(tmp_path, "text")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "planted").exists()


def test_weights_of_another_framework_are_named_as_missing(tmp_path):
    text_config().save_pretrained(tmp_path)
    (tmp_path / "tf_model.h5").write_bytes(b"\x89HDF")
    with pytest.raises(OSError, match=r"pytorch_model\.bin"):
        load_tower(tmp_path, "text")


def test_a_tower_reads_a_row_before_anything_is_trained():
    tower = ViTForImageClassification(vit_config()).vit.train()
    check_reading("--flag", "image", make_image_processor(tower.config), tower)
    assert tower.training
    with pytest.raises(ValueError, match="--flag"):
        check_reading("--flag", "image", make_image_processor(vit_config(image_size=32)), tower)
    with torch.no_grad():
        tower.layernorm.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        check_reading("--flag", "image", make_image_processor(tower.config), tower)


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_a_feature_extractor_is_made_from_the_configuration(norm):
    config = audio_config(feat_extract_norm=norm, do_stable_layer_norm=norm == "layer")
    extractor = make_feature_extractor(config)
    assert extractor.sampling_rate == 16_000 and extractor.return_attention_mask is (norm == "layer")


SENTENCEPIECE = {
    "deberta-v2": ("spm.model", {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3}),
    "xlm-roberta": ("sentencepiece.bpe.model", {}),
    "camembert": ("sentencepiece.bpe.model", {}),
}


@pytest.mark.parametrize("model_type", SENTENCEPIECE)
def test_a_tokenizer_may_be_a_sentencepiece_model_alone(model_type, tmp_path):
    import sentencepiece

    file, options = SENTENCEPIECE[model_type]
    model, texts = io.BytesIO(), ["a red cat runs and the small dog sleeps", "loud green cat", "not four but three"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts * 20), model_writer=model, vocab_size=30, minloglevel=2, **options
    )
    (tmp_path / file).write_bytes(model.getvalue())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    tokenizer = load_tokenizer(str(tmp_path))
    ids = tokenizer("the red cat")["input_ids"]
    assert len(ids) > 3 and tokenizer.unk_token_id not in ids


def test_what_a_sentencepiece_model_needs_is_named_with_its_pip_line(tmp_path, monkeypatch):
    (tmp_path / "spm.model").write_bytes(b"")
    monkeypatch.setattr("training.preprocessors._is_installed", lambda module: False)
    with pytest.raises(ImportError, match="pip install sentencepiece protobuf"):
        load_tokenizer(str(tmp_path))


def test_a_preprocessor_of_another_size_is_found_at_load(tmp_path):
    ViTForImageClassification(vit_config()).save_pretrained(tmp_path)
    make_image_processor(vit_config(image_size=32)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="--image_model_name_or_path"):
        load_pretrained("image", str(tmp_path))
