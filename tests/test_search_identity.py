"""The fingerprint of a model: all that changes its vectors is in it, and nothing that does not."""

import json

import pytest
import torch
from conftest import make_model, model_config, resnet_config
from test_pipeline import TASK, WORDS, make_processor
from tokenizers import normalizers, pre_tokenizers, processors
from transformers import BertTokenizerFast

from pipeline_mmfusion import MMFusionPipeline
from searching import store
from searching.identity import fingerprint


def make():
    model = make_model(model_config(id2label={0: "a", 1: "b", 2: "c"}))
    return model, make_processor(model.config)


@pytest.fixture(scope="module")
def first():
    return fingerprint(*make())


def _set(target, name, value):
    setattr(target, name, value)


def _plus_one(parameter):
    with torch.no_grad():
        parameter.flatten()[0] += 1


def _tokenizer(processor, **options):
    processor.tokenizer = BertTokenizerFast(vocab={word: i for i, word in enumerate(WORDS)}, **options)


def _word(processor):
    words = {word: i for i, word in enumerate([*WORDS[:-1], "dog"])}
    processor.tokenizer = BertTokenizerFast(vocab=words)


def backend(processor):
    return processor.tokenizer.backend_tokenizer


CHANGES = {
    "a weight of a tower": lambda m, p: _plus_one(m.base_model.text_encoder.embeddings.word_embeddings.weight),
    "a weight of the fusion": lambda m, p: _plus_one(m.base_model.fusion.queries),
    "the absent embedding": lambda m, p: _plus_one(m.base_model.projectors["audio"].absent_embedding),
    "strategy": lambda m, p: _set(m.config, "fusion_type", "gate"),
    "heads": lambda m, p: _set(m.config, "num_attention_heads", 8),
    "attention of the fusion": lambda m, p: _set(m.config, "balanced_attention", False),
    "activation of the fusion": lambda m, p: _set(m.config, "hidden_act", "relu"),
    "epsilon": lambda m, p: _set(m.config, "layer_norm_eps", 1e-3),
    "activation of a tower": lambda m, p: _set(m.config.text_config, "hidden_act", "relu"),
    "heads of a tower": lambda m, p: _set(m.config.vision_config, "num_attention_heads", 4),
    "epsilon of a tower": lambda m, p: _set(m.config.vision_config, "layer_norm_eps", 1e-3),
    "norm of the audio tower": lambda m, p: _set(m.config.audio_config, "feat_extract_norm", "group"),
    "stride": lambda m, p: _set(m.config.audio_config, "conv_stride", [5, 2]),
    "mean": lambda m, p: _set(p.image_processor, "image_mean", [0.4, 0.5, 0.5]),
    "deviation": lambda m, p: _set(p.image_processor, "image_std", [0.4, 0.5, 0.5]),
    "no normalisation": lambda m, p: _set(p.image_processor, "do_normalize", False),
    "no scaling": lambda m, p: _set(p.image_processor, "do_rescale", False),
    "factor": lambda m, p: _set(p.image_processor, "rescale_factor", 1 / 127.5),
    "resampling": lambda m, p: _set(p.image_processor, "resample", 3),
    "size": lambda m, p: _set(p.image_processor, "size", {"height": 16, "width": 24}),
    "rate": lambda m, p: _set(p.feature_extractor, "sampling_rate", 8_000),
    "normalisation of sound": lambda m, p: _set(p.feature_extractor, "do_normalize", False),
    "mask of sound": lambda m, p: _set(p.feature_extractor, "return_attention_mask", False),
    "tokens": lambda m, p: _set(p, "max_text_length", 13),
    "seconds": lambda m, p: _set(p, "max_audio_seconds", 0.2),
    "a word": lambda m, p: _word(p),
    "lower case": lambda m, p: _tokenizer(p, do_lower_case=False),
    "accents": lambda m, p: _tokenizer(p, strip_accents=False),
    "Chinese": lambda m, p: _tokenizer(p, tokenize_chinese_chars=False),
    "normalizer": lambda m, p: _set(backend(p), "normalizer", normalizers.NFC()),
    "splitting": lambda m, p: _set(backend(p), "pre_tokenizer", pre_tokenizers.WhitespaceSplit()),
    "template": lambda m, p: _set(
        backend(p), "post_processor", processors.TemplateProcessing("[CLS] $A", special_tokens=[("[CLS]", 2)])
    ),
    "side of cutting": lambda m, p: _set(p.tokenizer, "truncation_side", "left"),
    "side of padding": lambda m, p: _set(p.tokenizer, "padding_side", "left"),
    "an added token": lambda m, p: p.tokenizer.add_tokens(["purple"]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_vectors_changes_the_fingerprint(name, first):
    model, processor = make()
    CHANGES[name](model, processor)
    assert fingerprint(model, processor) != first


SAME = {
    "nothing": lambda m, p: None,
    "temperatures": lambda m, p: _set(m.config, "temperatures", {"text": 2.0}),
    "thresholds": lambda m, p: _set(m.config, "thresholds", [0.1, 0.2, 0.3]),
    "weights of classes": lambda m, p: _set(m.config, "class_weights", [1.0, 2.0, 3.0]),
    "names of labels": lambda m, p: _set(m.config, "id2label", {0: "x", 1: "y", 2: "z"}),
    "the head": lambda m, p: _plus_one(m.classifier.weight),
    "problem": lambda m, p: _set(m.config, "problem_type", "multi_label_classification"),
    "dropout": lambda m, p: _set(m.config, "hidden_dropout_prob", 0.3),
    "dropout of a tower": lambda m, p: _set(m.config.text_config, "attention_probs_dropout_prob", 0.3),
    "dropout of modalities": lambda m, p: _set(m.config, "modality_dropout", 0.1),
    "SpecAugment": lambda m, p: _set(m.config.audio_config, "mask_time_prob", 0.3),
    "contrast": lambda m, p: _set(m.config, "contrastive_weight", 0.3),
    "folder": lambda m, p: _set(m.config, "_name_or_path", "elsewhere"),
    "folder of the tokenizer": lambda m, p: p.tokenizer.init_kwargs.update(name_or_path="elsewhere"),
    "version": lambda m, p: _set(m.config, "transformers_version", "4.57.0"),
    "attention": lambda m, p: m.set_attn_implementation("eager"),
    "mode": lambda m, p: m.train(),
    "gradients": lambda m, p: m.requires_grad_(False),
    "a call before": lambda m, p: p(text=["a red cat", "cat"]),
    "code": lambda m, p: _set(m.config, "auto_map", {"AutoModel": "user/name--modeling_mmfusion.MMFusionModel"}),
}


@pytest.mark.parametrize("name", SAME)
def test_what_changes_no_vector_changes_nothing(name, first):
    model, processor = make()
    SAME[name](model, processor)
    assert fingerprint(model, processor) == first


def test_a_model_that_was_saved_and_loaded_is_the_same(first, tmp_path):
    model, processor = make()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert fingerprint(loaded, type(processor).from_pretrained(tmp_path)) == first


def test_one_task_has_the_vectors_of_all():
    tasks = [
        {"name": name, "problem_type": "single_label_classification", "labels": ["a", "b"]}
        for name in ("mood", "topic")
    ]
    model = make_model(model_config(num_labels=4, id2label=None, problem_type=None, tasks=tasks))
    classify = MMFusionPipeline(model=model, processor=make_processor(model.config), task=TASK)
    assert fingerprint(classify.for_task("mood").model, classify.processor) == fingerprint(model, classify.processor)


def test_towers_of_another_kind_and_missing_ones_have_fingerprints():
    found = set()
    for options in ({}, {"vision_config": resnet_config()}, {"text_config": None}, {"audio_config": None}):
        model = make_model(model_config(**options))
        found.add(fingerprint(model, make_processor(model.config)))
    assert len(found) == 4


def test_an_index_with_the_narrow_fingerprint_is_to_be_built_again(tmp_path):
    manifest = {"kind": store.KIND, "format": 1, "model": {"fingerprint": "0" * 64}, "views": ["fused"], "files": {}}
    (tmp_path / store.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"format 1.*again"):
        store.open_index(tmp_path)
