"""Pretrained towers in the layouts as published: weights arrive bit by bit, or names say which do not."""

import json
import pickle

import pytest
import torch
from conftest import audio_config, text_config, vit_config
from transformers import (
    AutoConfig,
    AutoModel,
    CLIPConfig,
    CLIPModel,
    SiglipConfig,
    SiglipModel,
    ViTForImageClassification,
    ViTImageProcessor,
    Wav2Vec2Model,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from loading_mmfusion import load_tower
from modeling_mmfusion import MMFusionModel
from training.towers import load_pretrained

SMALL = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 64,
    "max_position_embeddings": 32, "image_size": 16, "patch_size": 8,
}  # fmt: skip
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


def made(kind, **settings):
    torch.manual_seed(0)
    return AutoModel.from_config(AutoConfig.for_model(kind, **{**SMALL, **settings}))


def write_bin(folder, config, state):
    folder.mkdir(exist_ok=True)
    config.save_pretrained(folder)
    torch.save(state, folder / "pytorch_model.bin")
    return str(folder)


def assert_same(tower, source: dict):
    own = {key: value for key, value in tower.state_dict().items() if "pooler" not in key}
    assert own and not [key for key, value in own.items() if not torch.equal(value, source[key])]


@pytest.mark.parametrize("saving", ["safetensors", "bin"])
@pytest.mark.parametrize(("kind", "settings"), [*TEXT.items(), *IMAGE.items(), *AUDIO.items()])
def test_the_weights_of_each_family_equal_those_of_the_source(tmp_path, kind, settings, saving):
    source = made(kind, **settings)
    if saving == "bin":
        name = write_bin(tmp_path / "tower", source.config, source.state_dict())
    else:
        name = str(tmp_path)
        source.save_pretrained(name)
    assert_same(load_tower(name), source.state_dict())


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_old_names_of_weight_norm_and_the_prefix_of_pretraining_are_read(tmp_path, norm):
    source = Wav2Vec2Model(audio_config(feat_extract_norm=norm, do_stable_layer_norm=norm == "layer"))
    old = {"quantizer.codevectors": torch.zeros(1, 4, 4)}
    for key, value in source.state_dict().items():
        key = key.replace("parametrizations.weight.original0", "weight_g")
        old["wav2vec2." + key.replace("parametrizations.weight.original1", "weight_v")] = value
    assert_same(load_tower(write_bin(tmp_path, source.config, old)), source.state_dict())


@pytest.mark.parametrize("prefix", ["bert.", "module.", "model.encoder.", "0.auto_model.", "text_model."])
def test_weights_under_any_prefix_are_mapped(tmp_path, prefix):
    source = AutoModel.from_config(text_config())
    state = {prefix + key: value for key, value in source.state_dict().items()} | {"cls.bias": torch.zeros(3)}
    assert_same(load_tower(write_bin(tmp_path, source.config, state)), source.state_dict())


def test_shards_are_put_together_and_a_missing_one_is_named(tmp_path):
    source = AutoModel.from_config(text_config())
    name = write_bin(tmp_path, source.config, {})
    (tmp_path / "pytorch_model.bin").unlink()
    places = {key: f"part-{number % 2}.bin" for number, key in enumerate(source.state_dict())}
    for part in set(places.values()):
        torch.save({k: v for k, v in source.state_dict().items() if places[k] == part}, tmp_path / part)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    assert_same(load_tower(name), source.state_dict())
    (tmp_path / "part-1.bin").unlink()
    with pytest.raises(ValueError, match=r"part-1\.bin"):
        load_tower(name)


@pytest.mark.parametrize("change", ["missing layer", "other size", "other model"])
def test_weights_that_do_not_arrive_are_named_unless_it_is_meant(tmp_path, change):
    source = AutoModel.from_config(text_config())
    state = source.state_dict()
    key = "encoder.layer.1.attention.self.query.weight"
    if change == "missing layer":
        state = {k: v for k, v in state.items() if "layer.1." not in k}
    elif change == "other size":
        state[key] = torch.zeros(3, 3)
    else:
        state = AutoModel.from_config(vit_config()).state_dict()
    name = write_bin(tmp_path, source.config, state)
    with pytest.raises(ValueError, match="layer.1.attention" if change != "other model" else "embeddings"):
        load_tower(name)
    with pytest.raises(ValueError, match="allow_missing_weights"):
        MMFusionModel.from_encoders(text=name, fusion_hidden_size=24, num_attention_heads=3)
    assert load_tower(name, allow_missing_weights=True)


class Harmful:
    def __reduce__(self):
        return (print, ("this code must not run",))


@pytest.mark.parametrize("content", ["pickle", "list", "truncated", "text"])
def test_a_bin_that_is_no_state_dict_is_refused_and_its_code_not_run(tmp_path, content, capsys):
    name, path = write_bin(tmp_path, text_config(), {"a": torch.zeros(99)}), tmp_path / "pytorch_model.bin"
    if content == "pickle":
        path.write_bytes(pickle.dumps(Harmful()))
    elif content == "list":
        torch.save([torch.zeros(3)], path)
    else:
        path.write_bytes(path.read_bytes()[:300] if content == "truncated" else b"version https://git-lfs")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin"):
        load_tower(name)
    assert "must not run" not in capsys.readouterr().out


def test_a_folder_without_weights_of_torch_says_which_files_are_read(tmp_path):
    text_config().save_pretrained(tmp_path)
    (tmp_path / "tf_model.h5").write_bytes(b"")
    with pytest.raises(OSError, match=r"model\.safetensors"):
        load_tower(str(tmp_path))


@pytest.mark.parametrize(("config_class", "model_class"), [(CLIPConfig, CLIPModel), (SiglipConfig, SiglipModel)])
def test_the_vision_tower_is_taken_out_of_a_whole_model(tmp_path, config_class, model_class):
    text = {k: v for k, v in SMALL.items() if k not in ("image_size", "patch_size")}
    source = model_class(config_class(text_config=text, vision_config=SMALL))
    source.save_pretrained(tmp_path)
    wanted = {key.removeprefix("vision_model."): value for key, value in source.vision_model.state_dict().items()}
    own = {key.removeprefix("vision_model."): v for key, v in load_tower(str(tmp_path), "image").state_dict().items()}
    assert own and not [key for key in own if not torch.equal(own[key], wanted[key])]


@pytest.mark.parametrize("prefix", ["", "model."])
def test_the_encoder_is_taken_out_of_whisper(tmp_path, prefix):
    config = WhisperConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, vocab_size=64, max_source_positions=20, num_mel_bins=8,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    source = WhisperForConditionalGeneration(config)
    state = {prefix + key: value for key, value in source.model.state_dict().items()}
    assert_same(load_tower(write_bin(tmp_path, config, state), "audio"), source.model.encoder.state_dict())


def test_a_missing_image_processor_follows_from_the_configuration(tmp_path):
    ViTForImageClassification(vit_config()).save_pretrained(tmp_path)
    part, _ = load_pretrained("image", str(tmp_path))
    assert (part.size["height"], part.size["width"]) == (16, 16)


def test_a_preprocessor_of_another_size_is_found_at_load(tmp_path):
    ViTForImageClassification(vit_config()).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="--image_model_name_or_path"):
        load_pretrained("image", str(tmp_path))
