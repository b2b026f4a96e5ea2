"""The configuration: what it refuses, what it warns of, and that a file of it says all and nothing else."""

import ast
import json
import logging
import re
from pathlib import Path

import pytest
import torch
from conftest import audio_config, make_model, model_config, resnet_config, text_config, vit_config
from huggingface_hub.errors import StrictDataclassError
from transformers import BertConfig, EncodecConfig, ResNetConfig, Wav2Vec2Config

from configuration_mmfusion import FORMAT_VERSION, FUSION_TYPES, TOWER_CONFIGS, MMFusionConfig
from modeling_mmfusion import MMFusionForSequenceClassification

ROOT = Path(__file__).parent.parent


# -- round trip -------------------------------------------------------------------------------------------------------


def test_a_saved_configuration_comes_back_equal(tmp_path):
    config = model_config(
        vision_config=resnet_config(), hidden_act="relu", hidden_dropout_prob=0.3, modality_dropout=0.0,
        num_labels=2, id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1}, problem_type="regression",
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    loaded = MMFusionConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    towers = (loaded.text_config, loaded.vision_config, loaded.audio_config)
    assert tuple(map(type, towers)) == (BertConfig, ResNetConfig, Wav2Vec2Config)
    assert loaded.id2label == {0: "no", 1: "yes"}


@pytest.mark.parametrize("left_out", TOWER_CONFIGS.values())
def test_a_tower_that_is_left_out_stays_out(left_out, tmp_path):
    model_config(**{left_out: None}).save_pretrained(tmp_path)
    loaded = MMFusionConfig.from_pretrained(tmp_path)
    assert getattr(loaded, left_out) is None
    assert loaded.modalities == tuple(name for name, field in TOWER_CONFIGS.items() if field != left_out)


def test_towers_can_be_given_as_dictionaries():
    config = MMFusionConfig(text_config={"model_type": "distilbert", "dim": 16, "n_heads": 2})
    assert config.text_config.model_type == "distilbert" and config.text_config.hidden_size == 16
    assert config.modalities == ("text",)


def test_where_a_tower_came_from_is_not_saved(tmp_path):
    towers = {"text_config": text_config(), "vision_config": vit_config(), "audio_config": audio_config()}
    for tower in towers.values():
        tower._name_or_path = "/home/somebody/secret"
    model_config(**towers).save_pretrained(tmp_path)
    assert "somebody" not in (tmp_path / "config.json").read_text()


def test_towers_and_model_share_their_configurations():
    """So that resizing embeddings or choosing the attention is seen on both sides."""
    model = make_model()
    assert model.config.text_config is model.mmfusion.text_encoder.config
    assert model.config.vision_config is model.mmfusion.vision_encoder.config
    assert model.config.audio_config is model.mmfusion.audio_encoder.config
    assert model.config.get_text_config() is model.config.text_config
    assert model.get_encoder(modality="audio") is model.mmfusion.audio_encoder


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize("at", [None, "text_config"])
def test_a_kernel_that_a_file_names_is_never_asked_for(key, at, tmp_path):
    make_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (config if at is None else config[at])[key] = "evil/kernel"
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = MMFusionForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.config._attn_implementation == loaded.config.text_config._attn_implementation == "sdpa"
    eager = MMFusionForSequenceClassification.from_pretrained(tmp_path, attn_implementation="eager")
    assert eager.config._attn_implementation == eager.config.text_config._attn_implementation == "eager"


# -- what is refused --------------------------------------------------------------------------------------------------

SIZES = ("num_fusion_queries", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
SENTENCES = {
    "no tower": (
        dict.fromkeys(TOWER_CONFIGS.values()),
        "at least one of `text_config`, `vision_config`, `audio_config` must be given, got none of them",
    ),
    "fusion type": ({"fusion_type": "sum"}, f"`fusion_type` must be one of {', '.join(FUSION_TYPES)}, got 'sum'"),
    "heads": ({"hidden_size": 30}, "`hidden_size` must be a multiple of `num_attention_heads` (4), got 30"),
    "audio tower": (
        {"audio_config": text_config()},
        "`audio_config` must be of a Wav2Vec2-like encoder of raw waveforms (wav2vec2, hubert, wavlm …), "
        "got model_type 'bert'",
    ),
    "audio tower of codes": ({"audio_config": EncodecConfig()}, "got model_type 'encodec'"),
    "layer norm": ({"layer_norm_eps": 0.0}, "`layer_norm_eps` must be greater than 0, got 0.0"),
    "initialisation": ({"initializer_range": -0.1}, "`initializer_range` must be at least 0, got -0.1"),
    **{
        f"{name} {value}": ({name: value}, f"`{name}` must be at least 1, got {value}")
        for name in SIZES
        for value in (0, -4)
    },
    **{
        f"{name} {value}": ({name: value}, f"`{name}` must be in [0, 1), got {value}")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "modality_dropout")
        for value in (-0.1, 1.0, float("nan"))
    },
}  # fmt: skip


@pytest.mark.parametrize("case", SENTENCES)
def test_an_architecture_that_cannot_be_is_refused_with_a_sentence(case):
    changes, sentence = SENTENCES[case]
    with pytest.raises(StrictDataclassError, match=re.escape(sentence)) as failure:
        model_config(**changes)
    assert isinstance(failure.value.__cause__, ValueError)


@pytest.mark.parametrize(
    "changes", [{"text_config": []}, {"hidden_size": "32"}, {"hidden_size": 32.0}, {"modality_dropout": "half"}]
)
def test_values_of_another_type_are_refused_by_name(changes):
    with pytest.raises(StrictDataclassError, match=f"'{next(iter(changes))}'"):
        model_config(**changes)


def test_a_tower_of_an_unknown_kind_is_refused_by_name():
    with pytest.raises(ValueError, match="nonesuch"):
        MMFusionConfig(text_config={"model_type": "nonesuch"})


def test_an_unknown_activation_is_refused_with_those_that_exist():
    with pytest.raises(ValueError, match=r"`hidden_act` must be one of gelu, .*, got 'nonesuch'"):
        make_model(model_config(hidden_act="nonesuch"))


def test_a_change_that_cannot_be_is_refused_before_it_is_saved(tmp_path):
    config = model_config()
    config.hidden_size = 30
    with pytest.raises(StrictDataclassError, match="`hidden_size` must be a multiple"):
        config.save_pretrained(tmp_path)
    assert not (tmp_path / "config.json").exists()


# -- misspelt names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [("hiden_size", "hidden_size"), ("modality_droput", "modality_dropout"), ("num_label", "num_labels"),
     ("vison_config", "vision_config")],
)  # fmt: skip
def test_a_misspelt_keyword_is_warned_of(misspelt, meant, caplog):
    with caplog.at_level(logging.WARNING):
        model_config(**{misspelt: None})
    assert f"MMFusionConfig does not know `{misspelt}`: did you mean `{meant}`?" in caplog.text


def test_known_and_foreign_keywords_are_not_warned_of(caplog, tmp_path):
    with caplog.at_level(logging.WARNING):
        config = model_config(id2label={0: "a", 1: "b", 2: "c"}, custom_pipelines={}, architectures=["X"])
        config.save_pretrained(tmp_path)
        MMFusionConfig.from_pretrained(tmp_path)
    assert "does not know" not in caplog.text


def test_the_configuration_file_imports_no_torch():
    tree = ast.parse((ROOT / "configuration_mmfusion.py").read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level}
    ours = {"copy", "difflib", "compat_mmfusion", "saving_mmfusion", "transformers", "typing"}
    assert {name.split(".")[0] for name in imported} == ours


def test_half_precision_is_saved_as_a_name(tmp_path):
    make_model().to(torch.bfloat16).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_model_saved_by_a_later_version_says_what_to_do(tmp_path):
    model_config().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text())
    assert saved["mmfusion_version"] == FORMAT_VERSION
    path.write_text(json.dumps(saved | {"mmfusion_version": FORMAT_VERSION + 1}))
    with pytest.raises(ValueError, match=rf"`mmfusion_version`.* {FORMAT_VERSION + 1},"):
        MMFusionConfig.from_pretrained(tmp_path)


def test_a_model_saved_before_versions_were_counted_loads_and_is_saved_with_one(tmp_path):
    model_config().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text())
    del saved["mmfusion_version"]
    path.write_text(json.dumps(saved))
    assert MMFusionConfig.from_pretrained(tmp_path).mmfusion_version == FORMAT_VERSION
