"""Tiny models that every test may share. Widths are unequal and never 2, so that a mix-up cannot go unnoticed.

`initializer_range` is ten times the usual: at the usual one, a fresh tiny model hardly reacts to its inputs.
"""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

# Code that travels with a model is copied into a shared cache by the name of its folder: two test processes that save
# a model under the same name would overwrite each other's. To be set before transformers is imported.
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="mmfusion-tests-")

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from train_forks import Forks
from transformers import BertConfig, HubertConfig, ResNetConfig, ViTConfig, Wav2Vec2Config, set_seed

from configuration_mmfusion import MMFusionConfig
from modeling_mmfusion import MMFusionForSequenceClassification

atexit.register(shutil.rmtree, os.environ["HF_MODULES_CACHE"], ignore_errors=True)
torch.set_num_threads(1)


def text_config(**kwargs):
    return BertConfig(
        **{
            "vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "intermediate_size": 32, "max_position_embeddings": 32, "initializer_range": 0.2, **kwargs,
        }
    )  # fmt: skip


def vit_config(**kwargs):
    return ViTConfig(
        **{
            "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48,
            "image_size": 16, "patch_size": 8, "initializer_range": 0.2, **kwargs,
        }
    )  # fmt: skip


def resnet_config(**kwargs):
    return ResNetConfig(
        **{"embedding_size": 8, "hidden_sizes": [8, 20], "depths": [1, 1], "layer_type": "basic", **kwargs}
    )


def audio_config(config_class=Wav2Vec2Config, **kwargs):
    """A Wav2Vec2-like tower with a receptive field of 40 samples and a hop of 20."""
    return config_class(
        **{
            "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
            "conv_dim": [8, 10], "conv_kernel": [10, 7], "conv_stride": [5, 4], "conv_bias": True,
            "num_feat_extract_layers": 2, "feat_extract_norm": "layer", "do_stable_layer_norm": True,
            "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "mask_time_prob": 0.0,
            "layerdrop": 0.0, "initializer_range": 0.2, **kwargs,
        }
    )  # fmt: skip


def model_config(**kwargs):
    """A trimodal configuration; pass `vision_config=None` and the like to leave a tower out."""
    return MMFusionConfig(
        **{
            "text_config": text_config(), "vision_config": vit_config(), "audio_config": audio_config(),
            "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 40, "num_fusion_queries": 3,
            "initializer_range": 0.2, "num_labels": 3, "problem_type": "single_label_classification", **kwargs,
        }
    )  # fmt: skip


CONFIGS = {
    "bert-vit-layernorm": lambda: model_config(),
    "bert-resnet-layernorm": lambda: model_config(vision_config=resnet_config()),
    "bert-vit-groupnorm": lambda: model_config(
        audio_config=audio_config(feat_extract_norm="group", do_stable_layer_norm=False)
    ),
    "bert-vit-hubert": lambda: model_config(
        audio_config=audio_config(HubertConfig, feat_extract_norm="layer", do_stable_layer_norm=True)
    ),
}


def make_model(config=None, seed=0):
    """A classifier in eval mode whose weights are large enough for every input to matter."""
    set_seed(seed)
    return MMFusionForSequenceClassification(config if config is not None else model_config()).eval()


def make_inputs(rows=5, seed=0, mixed=True):
    """Ragged inputs of every modality; with `mixed`, rows lack modalities in every way that five rows allow."""
    generator = torch.Generator().manual_seed(seed)
    text_lengths = torch.randint(3, 9, (rows,), generator=generator)
    audio_lengths = torch.randint(150, 400, (rows,), generator=generator)
    modality_mask = torch.ones(rows, 3, dtype=torch.long)
    if mixed:
        patterns = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 0, 1], [1, 1, 0], [0, 1, 0]])
        modality_mask = patterns.repeat(-(-rows // 5), 1)[:rows]
    return {
        "input_ids": torch.randint(1, 64, (rows, 8), generator=generator),
        "attention_mask": (torch.arange(8) < text_lengths[:, None]).long(),
        "pixel_values": torch.randn(rows, 3, 16, 16, generator=generator),
        "input_values": torch.randn(rows, 400, generator=generator),
        "audio_attention_mask": (torch.arange(400) < audio_lengths[:, None]).long(),
        "modality_mask": modality_mask,
    }


TRAVELLING = sorted(path.name for path in Path(__file__).parent.parent.glob("*_mmfusion.py"))


def save_folder(model, path, **kwargs):
    """Save a model and return the folder, which `Auto*.from_pretrained(..., trust_remote_code=True)` loads."""
    model.save_pretrained(path, **kwargs)
    return path


@pytest.fixture
def model():
    return make_model()


@pytest.fixture
def inputs():
    return make_inputs()


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """A model folder as `train.py` leaves it, complete but for training; not to be written to."""
    from test_evaluation import make_table
    from test_hub_export import make_publishable

    table = make_table(tmp_path_factory.mktemp("rows"))
    return make_publishable(tmp_path_factory.mktemp("models") / "animals", table)


def fresh():
    """Forget what `accelerate` keeps, one state a process: the next training starts as in a process of its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(autouse=True)
def fresh_accelerator():
    fresh()


@pytest.fixture(scope="module")
def forks():
    """Starts trainings without the seconds that importing takes in each."""
    with Forks() as forks:
        yield forks
