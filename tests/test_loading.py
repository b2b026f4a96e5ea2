"""Saving and loading: bit for bit, sharded or not, from towers, with an adapter, and in a stranger's interpreter."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from conftest import (
    CONFIGS,
    TRAVELLING,
    audio_config,
    make_inputs,
    make_model,
    model_config,
    resnet_config,
    save_folder,
    text_config,
    vit_config,
)
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    BertModel,
    ConvNextConfig,
    Dinov2Config,
    DistilBertConfig,
    HubertConfig,
    RobertaConfig,
    ViTModel,
    WavLMConfig,
    set_seed,
)

from configuration_mmfusion import MMFusionConfig
from modeling_mmfusion import TOWERS, MMFusionForSequenceClassification, MMFusionModel

FUSION = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 40, "num_fusion_queries": 3}
INPUTS_OF = {
    "text": ("input_ids", "attention_mask"),
    "image": ("pixel_values",),
    "audio": ("input_values", "audio_attention_mask"),
}


@torch.no_grad()
def logits(model, inputs):
    return model(**inputs).logits


def load(path, **kwargs):
    """A classifier whose file holds its weights, all of them and nothing else."""
    model, info = MMFusionForSequenceClassification.from_pretrained(path, output_loading_info=True, **kwargs)
    assert not any(info.values()), info
    return model


# -- save and load ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_shard_size", ["50KB", "5GB"])
@pytest.mark.parametrize("name", CONFIGS)
def test_saving_and_loading_changes_nothing(name, max_shard_size, tmp_path):
    model, inputs = make_model(CONFIGS[name]()), make_inputs()
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (max_shard_size == "50KB")
    loaded = load(tmp_path)
    assert not loaded.training
    assert torch.equal(logits(loaded, inputs), logits(model, inputs))
    state = model.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in loaded.state_dict().items())


def test_a_folder_of_pickled_weights_is_refused(tmp_path):
    model = make_model()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"model\.safetensors"):
        MMFusionForSequenceClassification.from_pretrained(tmp_path, use_safetensors=True)


def test_truncated_weights_are_an_error(tmp_path):
    make_model().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    with pytest.raises(SafetensorError, match="incomplete metadata"):
        MMFusionForSequenceClassification.from_pretrained(tmp_path)


def test_a_missing_tensor_is_reported_and_gets_a_fresh_value_not_memory(tmp_path):
    """The library only warns: a loader that must not serve such a folder reads `output_loading_info`."""
    make_model().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    missing = {"mmfusion.fusion.queries", "mmfusion.projectors.audio.absent_embedding", "classifier.weight"}
    kept = {key: tensor for key, tensor in weights.items() if key not in missing}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    model, info = MMFusionForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == missing
    for key in missing:
        fresh = model.get_parameter(key).detach()
        assert 0.1 < fresh.std() < 0.3, key  # `initializer_range` of the tiny models is 0.2
    parameters = dict(model.named_parameters())
    assert all(torch.equal(parameters[key], kept[key]) for key in kept.keys() & parameters.keys())


def test_weights_of_another_shape_are_an_error(tmp_path):
    make_model().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["classifier.weight"] = torch.zeros(7, 32)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        MMFusionForSequenceClassification.from_pretrained(tmp_path)


# -- from pretrained towers -------------------------------------------------------------------------------------------


def text_sizes(*names):
    return {name: getattr(text_config(), name) for name in names}


def roberta_config():
    sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    return RobertaConfig(**text_sizes(*sizes, "max_position_embeddings", "initializer_range"), pad_token_id=1)


TOWER_CONFIGS = {
    "bert": ("text", text_config),
    "distilbert": (
        "text",
        lambda: DistilBertConfig(
            vocab_size=64, dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=32
        ),
    ),
    "roberta": ("text", roberta_config),
    "vit": ("image", vit_config),
    "resnet": ("image", resnet_config),
    "dinov2": (
        "image",
        lambda: Dinov2Config(
            hidden_size=24, num_hidden_layers=2, num_attention_heads=3, mlp_ratio=2, image_size=16, patch_size=8
        ),
    ),
    "convnext": ("image", lambda: ConvNextConfig(num_stages=2, hidden_sizes=[8, 20], depths=[1, 1])),
    "wav2vec2-group": ("audio", lambda: audio_config(feat_extract_norm="group", do_stable_layer_norm=False)),
    "wav2vec2-layer": ("audio", audio_config),
    "hubert": ("audio", lambda: audio_config(HubertConfig)),
    "wavlm": ("audio", lambda: audio_config(WavLMConfig)),
}  # fmt: skip


def save_tower(name, path):
    """A tower as a stranger would have saved it, with whatever pooler its class makes."""
    modality, config = TOWER_CONFIGS[name]
    set_seed(1)
    tower = AutoModel.from_config(config()).eval()
    tower.save_pretrained(path)
    return modality, tower


@pytest.mark.parametrize("name", TOWER_CONFIGS)
def test_a_model_from_an_encoder_keeps_its_weights_runs_and_comes_back(name, tmp_path):
    modality, tower = save_tower(name, tmp_path / "tower")
    model = MMFusionForSequenceClassification.from_encoders(
        **{modality: str(tmp_path / "tower")}, **FUSION, num_labels=4
    )
    assert model.training and model.config.modalities == (modality,)
    attention = "eager" if name in ("resnet", "convnext", "wavlm") else "sdpa"
    assert getattr(model.mmfusion, TOWERS[modality]).config._attn_implementation == attention
    weights, original = getattr(model.mmfusion, TOWERS[modality]).state_dict(), tower.state_dict()
    assert all(torch.equal(tensor, original[key]) for key, tensor in weights.items())
    assert all(key.startswith("pooler.") for key in original.keys() - weights.keys())

    inputs = {argument: value for argument, value in make_inputs().items() if argument in INPUTS_OF[modality]}
    expected = logits(model.eval(), inputs)
    assert expected.shape == (5, 4) and expected.isfinite().all()
    model.save_pretrained(tmp_path / "model")
    assert torch.equal(logits(load(tmp_path / "model"), inputs), expected)
    assert str(tmp_path) not in (tmp_path / "model" / "config.json").read_text()


def test_three_encoders_become_one_model(tmp_path):
    sources = {}
    for name in ("distilbert", "resnet", "wavlm"):
        modality, _ = save_tower(name, tmp_path / name)
        sources[modality] = str(tmp_path / name)
    model = MMFusionForSequenceClassification.from_encoders(**sources, **FUSION, num_labels=3).eval()
    expected = logits(model, make_inputs())
    assert expected.isfinite().all()
    model.save_pretrained(tmp_path / "model")
    assert torch.equal(logits(load(tmp_path / "model"), make_inputs()), expected)


@pytest.mark.parametrize("kind", ["a string", "a path"])
def test_an_encoder_in_half_precision_is_loaded_in_float32(kind, tmp_path):
    AutoModel.from_config(text_config()).to(torch.float16).save_pretrained(tmp_path)
    model = MMFusionModel.from_encoders(text=str(tmp_path) if kind == "a string" else tmp_path, **FUSION)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_encoders_can_be_given_as_models_and_lose_a_pooler_that_nothing_would_train(tmp_path):
    text, image = BertModel(text_config()), ViTModel(vit_config())
    model = MMFusionForSequenceClassification.from_encoders(text=text, image=image, **FUSION).eval()
    assert model.mmfusion.text_encoder is text and model.config.text_config is text.config
    assert not [key for key in model.state_dict() if "pooler" in key]
    model.save_pretrained(tmp_path)
    inputs = {argument: make_inputs()[argument] for argument in INPUTS_OF["text"] + INPUTS_OF["image"]}
    assert torch.equal(logits(load(tmp_path), inputs), logits(model, inputs))


def test_towers_brought_by_hand_keep_an_attention_that_reads_their_masks():
    """Composing a configuration unsets the attention of the towers in it; without one, a tower ignores its mask."""
    text = BertModel(text_config(), add_pooling_layer=False)
    model = MMFusionForSequenceClassification(MMFusionConfig(text_config=text.config, **FUSION), {"text": text}).eval()
    assert text.config._attn_implementation == "sdpa"
    inputs = {argument: make_inputs()[argument] for argument in INPUTS_OF["text"]}
    longer = {argument: torch.nn.functional.pad(value, (0, 9)) for argument, value in inputs.items()}
    torch.testing.assert_close(logits(model, longer), logits(model, inputs))


def test_keywords_for_loading_reach_every_tower(tmp_path):
    save_tower("bert", tmp_path / "text" / "inner")
    keywords = {"subfolder": "inner", "attn_implementation": "eager"}
    model = MMFusionModel.from_encoders(text=str(tmp_path / "text"), encoder_kwargs=keywords, **FUSION)
    assert model.config.modalities == ("text",)
    assert model.text_encoder.config._attn_implementation == "eager"
    assert model.config._attn_implementation == "sdpa"


def test_an_encoder_of_bin_weights_is_loaded(tmp_path):
    tower = AutoModel.from_config(text_config())
    tower.config.save_pretrained(tmp_path)
    torch.save(tower.state_dict(), tmp_path / "pytorch_model.bin")
    state = MMFusionModel.from_encoders(text=str(tmp_path), **FUSION).text_encoder.state_dict()
    assert all(torch.equal(value, tower.state_dict()[name]) for name, value in state.items())


def test_no_encoder_at_all_is_refused():
    with pytest.raises(ValueError, match="needs at least one of `text`, `image`, `audio`, got none of them"):
        MMFusionModel.from_encoders(**FUSION)


# -- adapters ---------------------------------------------------------------------------------------------------------


def test_an_adapter_on_a_tower_trains_saves_and_comes_back(tmp_path):
    peft = pytest.importorskip("peft", reason="peft is in requirements-dev.txt")
    make_model().save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(
        r=4, target_modules=r".*text_encoder\..*\.(query|value)", modules_to_save=["classifier"], task_type="SEQ_CLS"
    )
    model = peft.get_peft_model(load(tmp_path / "base"), config).train()
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained and all("text_encoder" in name or "classifier" in name for name in trained)
    inputs = make_inputs()
    before = logits(model.eval(), inputs)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.05)
    for _ in range(2):  # LoRA's second matrix starts at zero: the first one moves from the second step on
        model.train()(**inputs, labels=torch.tensor([0, 1, 2, 0, 1])).loss.backward()
        optimizer.step()
    expected = logits(model.eval(), inputs)
    assert (expected - before).abs().max() > 1e-3
    model.save_pretrained(tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(load(tmp_path / "base"), tmp_path / "adapter").eval()
    assert torch.equal(logits(loaded, inputs), expected)


# -- a stranger's interpreter -----------------------------------------------------------------------------------------

STRANGER = """
    import importlib.util, sys

    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

    folder, inputs_file, again = sys.argv[1:]
    for name in ("configuration_mmfusion", "modeling_mmfusion", "conftest"):
        assert importlib.util.find_spec(name) is None, f"{name} is on the path"
    try:
        AutoConfig.from_pretrained(folder)
    except ValueError as refused:
        assert "trust_remote_code" in str(refused), refused
    else:
        raise AssertionError("ran the folder's code without trust")

    inputs = torch.load(inputs_file)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    base = AutoModel.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
    assert config.modalities == ("text", "image", "audio") and config.id2label == {0: "a", 1: "b", 2: "c"}
    keep = torch.tensor([[1, 0, 1]]).expand(5, -1)
    with torch.no_grad():
        encoded = base.encode(**inputs)
        outputs = {
            "logits": model(**inputs).logits,
            "fused": base(encoder_outputs=encoded, modality_mask=keep).pooler_output,
            "text": base.get_text_features(inputs["input_ids"], inputs["attention_mask"]),
        }
    torch.save(outputs, inputs_file)
    model.save_pretrained(again)  # a copy of the copy is complete
    model = AutoModelForSequenceClassification.from_pretrained(again, trust_remote_code=True)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, outputs["logits"])
"""


def test_a_stranger_loads_a_folder_with_nothing_of_this_repository_on_the_path(tmp_path):
    model = make_model(model_config(id2label={0: "a", 1: "b", 2: "c"}, label2id={"a": 0, "b": 1, "c": 2}))
    folder, inputs, away = save_folder(model, tmp_path / "model"), make_inputs(), tmp_path / "away"
    copied = {"config.json", "model.safetensors", *TRAVELLING}
    assert {path.name for path in folder.iterdir()} == copied
    away.mkdir()
    (away / "stranger.py").write_text(textwrap.dedent(STRANGER))
    torch.save(inputs, away / "tensors.pt")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "stranger.py", str(folder), "tensors.pt", str(tmp_path / "again")],
        cwd=away, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "again").iterdir()} == copied
    outputs = torch.load(away / "tensors.pt")
    keep = torch.tensor([[1, 0, 1]]).expand(5, -1)
    with torch.no_grad():
        assert torch.equal(outputs["logits"], model(**inputs).logits)
        encoded = model.encode(**inputs)
        assert torch.equal(outputs["fused"], model.mmfusion(encoder_outputs=encoded, modality_mask=keep).pooler_output)
        text = model.mmfusion.get_text_features(inputs["input_ids"], inputs["attention_mask"])
        assert torch.equal(outputs["text"], text)
