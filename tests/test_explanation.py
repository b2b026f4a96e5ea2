"""Explanations: shares of the modalities, and what mattered inside them, on models whose reasons are known."""

import itertools
import json
import math
import threading

import numpy as np
import pytest
import torch
from conftest import CONFIGS, make_inputs, make_model, model_config
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    BertTokenizerFast,
    BitImageProcessorPil,
    ConvNextImageProcessorPil,
    PreTrainedTokenizerFast,
    ViTImageProcessorPil,
    Wav2Vec2FeatureExtractor,
)

import explanation_mmfusion as explanation
from fusion_mmfusion import FUSIONS
from pipeline_mmfusion import TASK, MMFusionPipeline
from processing_mmfusion import MMFusionProcessor

RATE = 16_000
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "cat", "##s", "sat", "不", "好"]
SUBSETS = [c for n in (1, 2, 3) for c in itertools.combinations(("text", "image", "audio"), n)]
KEYS = {
    "label", "score", "baseline", "function", "modalities", "subsets", "disagreement", "method", "text", "image",
    "audio", "completeness",
}  # fmt: skip


def make_pipeline(config=None, **options):
    model = make_model(config if config is not None else model_config(**options))
    is_layer_norm = model.config.audio_config.feat_extract_norm == "layer"
    processor = MMFusionProcessor(
        BertTokenizerFast(vocab={word: i for i, word in enumerate(WORDS)}),
        ViTImageProcessorPil(size={"height": 16, "width": 16}),
        Wav2Vec2FeatureExtractor(return_attention_mask=is_layer_norm),
        max_text_length=12,
        max_audio_seconds=0.1,
    )
    return MMFusionPipeline(model=model, processor=processor, task=TASK)


@pytest.fixture(scope="module")
def classify():
    return make_pipeline()


@pytest.fixture(scope="module")
def sample():
    noise = np.random.default_rng(0)
    return {
        "text": "a red cat",
        "image": Image.fromarray(noise.integers(0, 255, (20, 30, 3), dtype=np.uint8)),
        "audio": {"array": noise.uniform(-0.5, 0.5, 1200).astype(np.float32), "sampling_rate": RATE},
    }


def subsets_of(sample):
    return [{name: sample[name] for name in subset} for subset in SUBSETS]


def state_of(model):
    """All that an explanation might leave behind."""
    return (
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [parameter.grad is None for parameter in model.parameters()],
        [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        [model.config._attn_implementation, model.config.text_config._attn_implementation],
        [type(module) for module in model.modules()],
    )


# -- the modalities ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification", "regression"])
@pytest.mark.parametrize("name", CONFIGS)
def test_shapley_values_sum_up_to_what_the_modalities_change(name, problem, inputs):
    config = CONFIGS[name]()
    config.problem_type = problem
    model = make_model(config)
    with torch.no_grad():
        encoded = model.encode(**inputs)
        full, nothing = (
            explanation.scores_of(model(encoder_outputs=encoded, modality_mask=mask).logits, function)
            for function in [explanation.score_function(config)]
            for mask in (torch.ones(5, 3), torch.zeros(5, 3))
        )
    values = explanation.shapley_values(explanation.subset_scores(model, encoded))
    assert torch.allclose(values.sum(dim=1), (full - nothing).double(), atol=1e-5)
    absent = ~inputs["modality_mask"].bool()
    assert (values[absent] == 0).all() and (values[~absent] != 0).all()


def test_shapley_values_are_the_mean_over_all_orders_in_which_modalities_may_come():
    table = torch.rand(2, 8, 3, dtype=torch.float64)
    values = explanation.shapley_values(table)
    for column in range(3):
        gains = []
        for order in itertools.permutations(range(3)):
            before = tuple(i in order[: order.index(column)] for i in range(3))
            after = tuple(i in order[: order.index(column) + 1] for i in range(3))
            gains.append(table[:, explanation.SUBSETS.index(after)] - table[:, explanation.SUBSETS.index(before)])
        assert torch.allclose(values[:, column], torch.stack(gains).mean(dim=0))


def test_interchangeable_modalities_get_equal_shares():
    """A game that knows only how many modalities are present, and one that treats two of them alike."""
    size = torch.tensor([float(sum(subset)) for subset in explanation.SUBSETS])
    values = explanation.shapley_values((size**2)[None, :, None])
    assert values.flatten().tolist() == pytest.approx([3.0, 3.0, 3.0])
    alike = torch.tensor([float(text) + 2.0 * (image and audio) for text, image, audio in explanation.SUBSETS])
    assert explanation.shapley_values(alike[None, :, None]).flatten().tolist() == pytest.approx([1.0, 1.0, 1.0])


def test_each_row_of_a_mixed_batch_gets_the_answers_of_its_own_subsets(inputs):
    model = make_model()
    with torch.no_grad():
        table = explanation.subset_scores(model, model.encode(**inputs))
        for number, subset in enumerate(explanation.SUBSETS):
            mask = inputs["modality_mask"].bool() & torch.tensor(subset)
            expected = model(encoder_outputs=model.encode(**inputs), modality_mask=mask).logits.softmax(dim=-1)
            assert torch.allclose(table[:, number].float(), expected, atol=1e-5)


def test_many_rows_are_fused_in_portions_with_the_same_result(inputs, monkeypatch):
    model = make_model()
    with torch.no_grad():
        whole = explanation.subset_scores(model, model.encode(**inputs))
        monkeypatch.setattr(explanation, "MAX_FUSED_NUMBERS", 1)
        assert torch.allclose(explanation.subset_scores(model, model.encode(**inputs)), whole, atol=1e-6)


def test_the_towers_run_once(classify, sample, monkeypatch):
    calls = []
    for name in ("text_encoder", "vision_encoder", "audio_encoder"):
        tower = classify.model.base_model.get_submodule(name)
        forward = tower.forward
        monkeypatch.setattr(tower, "forward", lambda *_, f=forward, n=name, **given: calls.append(n) or f(**given))
    classify.explain(sample, method="attention")
    assert sorted(calls) == ["audio_encoder", "text_encoder", "vision_encoder"]


def test_subsets_say_what_the_pipeline_says_to_the_part_alone(classify, sample):
    about = classify.explain(sample, details=False)
    assert list(about["subsets"]) == ["+".join(subset) for subset in SUBSETS]
    for part, answer in zip(subsets_of(sample), about["subsets"].values(), strict=True):
        alone = {entry["label"]: entry["score"] for entry in classify(part)}
        assert {entry["label"]: entry["score"] for entry in answer} == pytest.approx(alone, abs=1e-5)
    best = about["subsets"]["text+image+audio"][0]
    assert (about["label"], about["score"]) == (best["label"], best["score"])
    assert sum(about["modalities"].values()) == pytest.approx(about["score"] - about["baseline"], abs=1e-5)
    assert all(len(answer) == 1 for answer in classify.explain(sample, details=False, top_k=1)["subsets"].values())


@pytest.mark.parametrize("alone", ["text", "image", "audio"])
def test_the_modality_that_alone_decides_is_named(alone, sample):
    """The fusion sees nothing of the other two: their tokens, and those that stand in for them, are all zero."""
    classify = make_pipeline()
    with torch.no_grad():
        for name, projector in classify.model.base_model.projectors.items():
            if name != alone:
                for parameter in projector.parameters():
                    parameter.zero_()
    about = classify.explain(sample, num_steps=4)
    shares = {name: abs(share) for name, share in about["modalities"].items()}
    assert max(shares, key=shares.get) == alone
    inside = {
        "text": lambda: [word["score"] for word in about["text"]["words"]],
        "image": lambda: np.ravel(about["image"]["scores"]).tolist(),
        "audio": lambda: [segment["score"] for segment in about["audio"]["segments"]],
    }
    for name, scores in inside.items():
        moved = max(abs(score) for score in scores())
        assert moved > 1e-4 if name == alone else moved == pytest.approx(0, abs=1e-7), name


# -- labels and problem types -----------------------------------------------------------------------------------------


def test_any_label_can_be_explained_by_name_and_by_number(classify, sample):
    labels = classify.model.config.id2label
    every = [classify.explain(sample, label=name, details=False) for name in labels.values()]
    assert every == [classify.explain(sample, label=number, details=False) for number in labels]
    assert sum(about["score"] for about in every) == pytest.approx(1)
    for name in ("text", "image", "audio"):  # probabilities sum up to 1, so what one gains the others lose
        assert sum(about["modalities"][name] for about in every) == pytest.approx(0, abs=1e-6)


def test_what_is_explained_follows_the_problem_type(sample):
    several = make_pipeline(problem_type="multi_label_classification").explain(sample, details=False)
    assert several["function"] == "sigmoid" and 0 <= several["score"] <= 1
    number = make_pipeline(problem_type="regression", num_labels=1).explain(sample, num_steps=16)
    assert number["function"] == "none" and number["disagreement"] is None
    assert number["score"] - number["baseline"] == pytest.approx(sum(number["modalities"].values()), abs=1e-5)


def test_modalities_that_point_to_different_labels_are_told_of(classify):
    model, rows = classify.model, {"text": [0.9, 0.1, 0.0], "image": [0.2, 0.7, 0.1], "audio": [0.8, 0.1, 0.1]}
    table = torch.full((8, 3), 1 / 3, dtype=torch.float64)
    for name, scores in rows.items():
        alone = tuple(name == other for other in rows)
        table[explanation.SUBSETS.index(alone)] = torch.tensor(scores, dtype=torch.float64)
    told = explanation.describe_modalities(model, table, [True] * 3, 0, None)["disagreement"]
    assert told == (
        'The modalities disagree: text alone says "LABEL_0" (90%), image alone says "LABEL_1" (70%), '
        'audio alone says "LABEL_0" (80%).'
    )
    for presence in ([True, False, True], [False, True, False]):
        assert explanation.describe_modalities(model, table, presence, 0, None)["disagreement"] is None


def test_a_multi_label_model_disagrees_only_about_the_explained_label():
    model = make_model(model_config(problem_type="multi_label_classification"))
    table = torch.full((8, 3), 0.5, dtype=torch.float64)
    table[explanation.SUBSETS.index((True, False, False))] = torch.tensor([0.9, 0.2, 0.1], dtype=torch.float64)
    table[explanation.SUBSETS.index((False, True, False))] = torch.tensor([0.7, 0.8, 0.1], dtype=torch.float64)
    told = [
        explanation.describe_modalities(model, table, [True, True, False], label, None)["disagreement"]
        for label in (0, 1, 2)
    ]
    assert told[0] is None and told[2] is None
    assert told[1] == 'The modalities disagree: text alone says "LABEL_1" (20%), image alone says "LABEL_1" (80%).'


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"label": "dog"}, "`label` is 'dog'; this model knows LABEL_0, LABEL_1, LABEL_2"),
        ({"label": 3}, "`label` is 3; this model knows"),
        ({"label": True}, "`label` is True; this model knows"),
        ({"method": "lime"}, "`method` is 'lime'; allowed are integrated_gradients, attention"),
        ({"num_steps": 0}, "`num_steps` is 0; allowed are whole numbers from 1"),
        ({"details": ["face"]}, r"`details` is \['face'\]; allowed are True, False and a list of text, image, audio"),
        ({"details": "text"}, "`details` is 'text'; allowed are True, False and a list"),
        ({"batch_size": 0}, "`batch_size` is 0; allowed are whole numbers from 1"),
        ({"top_k": 0}, "`top_k` is 0; allowed are whole numbers from 1"),
    ],
)
def test_impossible_options_are_refused(classify, sample, options, words):
    with pytest.raises(ValueError, match=words):
        classify.explain(sample, **options)


def test_bad_samples_get_the_pipeline_s_sentences(classify):
    with pytest.raises(ValueError, match="an empty sample: give at least one of text, image, audio"):
        classify.explain([{"text": "a"}, {}])
    assert classify.explain([]) == []


def test_damaged_weights_never_explain_anything(sample):
    classify = make_pipeline()
    with torch.no_grad():
        classify.model.classifier.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="the model answered with NaN or infinite scores"):
        classify.explain(sample)


# -- inside the modalities --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_integrated_gradients_sum_up_to_the_change_of_the_score_with_every_kind_of_tower(name, sample):
    classify = make_pipeline(CONFIGS[name]())
    generator = torch.Generator().manual_seed(0)
    for parameter in classify.model.base_model.audio_encoder.feature_extractor.parameters():
        if not parameter.any():  # a fresh HuBERT has no biases at all, and hears silence as a singular point
            parameter.data.normal_(std=0.2, generator=generator)
    about = classify.explain(sample, num_steps=64)
    check = about["completeness"]
    assert check["is_complete"] and check["warning"] is None and check["num_steps"] == 64
    shown = [word["score"] for word in about["text"]["words"]]
    shown += np.ravel(about["image"]["scores"]).tolist()
    shown += [segment["score"] for segment in about["audio"]["segments"]]
    assert sum(shown) == pytest.approx(check["sum"], abs=1e-5)
    assert check["error"] == pytest.approx(abs(check["sum"] - check["difference"]))


def test_more_steps_come_closer():
    noise, model = make_inputs(rows=1, mixed=False), make_model()
    with torch.no_grad():
        model.classifier.weight.mul_(4)  # steeper than a fresh head
        encoded = model.encode(**noise)
    few, some, many = (
        explanation.integrated_gradients(model, noise, encoded, 0, ["text", "image", "audio"], num_steps=steps)[1]
        for steps in (1, 8, 100)
    )
    assert many["error"] < some["error"] < few["error"] and many["is_complete"]


@pytest.mark.parametrize(
    ("total", "start", "end", "is_complete"),
    [(0.8, 0.1, 0.9, True), (0.76, 0.1, 0.9, True), (0.7, 0.1, 0.9, False), (0.01, 0.5, 0.5, True), (7, 0, 9, False)],
)
def test_sums_that_miss_the_change_of_the_score_are_told_of(total, start, end, is_complete):
    check = explanation._completeness(total, start, end, 4)
    assert check["is_complete"] == is_complete and (check["warning"] is None) == is_complete
    if not is_complete:
        assert f"sum up to {total:.3g}, the score moved by {end - start:.3g}" in check["warning"]
        assert "raise `num_steps` (now 4)" in check["warning"]


@pytest.mark.parametrize("part", subsets_of({"text": "a red cat", "image": None, "audio": None}), ids="+".join)
def test_only_what_is_present_and_asked_for_is_looked_into(classify, sample, part):
    about = classify.explain({name: sample[name] for name in part}, num_steps=2)
    assert about.keys() == KEYS
    assert {name for name in ("text", "image", "audio") if about[name] is not None} == set(part)
    assert {name for name, share in about["modalities"].items() if share is not None} == set(part)
    chosen = classify.explain(sample, num_steps=2, details=list(part))
    assert {name for name in ("text", "image", "audio") if chosen[name] is not None} == set(part)
    plain = classify.explain(sample, details=False)
    assert [plain[key] for key in ("method", "text", "image", "audio", "completeness")] == [None] * 5


def test_what_is_looked_into_alone_counts_against_the_others_as_they_are(classify, sample):
    """Text alone: the path ends at the sample and starts at the sample with [PAD] for its words."""
    about = classify.explain(sample, details=["text"], num_steps=64)
    inputs = classify._collate([classify.preprocess(sample)])
    neutral = dict(inputs, input_ids=inputs["input_ids"].where(inputs["input_ids"] < 5, 0))
    label = classify.model.config.label2id[about["label"]]
    with torch.no_grad():
        scores = [classify.model(**given).logits.softmax(-1)[0, label].item() for given in (inputs, neutral)]
    assert about["completeness"]["difference"] == pytest.approx(scores[0] - scores[1], abs=1e-5)
    assert about["completeness"]["is_complete"]


@pytest.mark.parametrize("loud", ["red", "cat", "sat"])
def test_the_word_whose_embedding_alone_moves_the_score_stands_out(loud, sample):
    classify = make_pipeline()
    embeddings = classify.model.get_input_embeddings()
    with torch.no_grad():
        quiet = [i for i, word in enumerate(WORDS) if word != loud]
        embeddings.weight[quiet] = embeddings.weight[0].clone()  # all others look like padding
    about = classify.explain({"text": "a red cat sat"}, num_steps=16)
    scores = {word["text"]: abs(word["score"]) for word in about["text"]["words"]}
    assert scores.pop(loud) > 1e-4 and max(scores.values()) == pytest.approx(0, abs=1e-7)


def test_the_corner_that_holds_the_picture_gets_the_heat(classify):
    grey = np.full((16, 16, 3), 127.5 / 255, dtype=np.float32)
    grey[:8, 8:] = np.random.default_rng(0).random((8, 8, 3))
    inputs = dict(classify.processor(images=[grey]))
    assert inputs["pixel_values"][..., :8, :8].abs().max() < 0.01
    with torch.no_grad():
        encoded = classify.model.encode(**inputs)
    scores, _ = explanation.integrated_gradients(classify.model, inputs, encoded, 0, ["image"], num_steps=8)
    grid = explanation.pooled_pixels(scores["image"].abs(), 8)
    assert grid.argmax() == 1 and grid.flatten()[[0, 2, 3]].max() < 0.05 * grid.max()


@pytest.mark.parametrize("name", ["bert-vit-layernorm", "bert-vit-groupnorm"])
def test_the_stretch_that_is_not_silent_gets_the_score(name, sample):
    classify = make_pipeline(CONFIGS[name]())
    sound = np.zeros(1600, dtype=np.float32)
    sound[800:1000] = np.random.default_rng(0).uniform(-0.5, 0.5, 200)
    about = classify.explain({"audio": {"array": sound, "sampling_rate": RATE}}, num_steps=32)
    loudest = max(about["audio"]["segments"], key=lambda segment: abs(segment["score"]))
    assert loudest["end"] >= 790 / RATE and loudest["start"] <= 1010 / RATE


@pytest.mark.parametrize("method", explanation.METHODS)
@pytest.mark.parametrize("name", ["bert-vit-layernorm", "bert-resnet-layernorm", "bert-vit-groupnorm"])
def test_both_methods_fill_the_same_places(name, method, sample):
    about = make_pipeline(CONFIGS[name]()).explain(sample, num_steps=2, method=method)
    assert about["method"] == method and (about["completeness"] is None) == (method == "attention")
    assert [word["text"] for word in about["text"]["words"]] == ["a", "red", "cat"]
    assert np.ndim(about["image"]["scores"]) == 2
    assert (about["image"]["box"], about["image"]["width"], about["image"]["height"]) == ([0, 0, 1, 1], 30, 20)
    segments = about["audio"]["segments"]
    assert segments[0]["start"] == 0 and segments[-1]["end"] == about["audio"]["seconds"] == 1200 / RATE
    assert all(a["end"] == b["start"] and a["start"] < a["end"] for a, b in itertools.pairwise(segments))
    json.dumps(about, allow_nan=False)


def test_attention_weights_are_those_of_the_fusion(classify, inputs):
    model = classify.model
    one = {name: value[1:2] for name, value in inputs.items()}  # has no text
    with torch.no_grad():
        encoded = model.encode(**one)
        weights = explanation.attention_weights(model, encoded)
        assert list(weights) == ["image", "audio"]
        eager = explanation.private_copy(model)
        eager.set_attn_implementation("eager")
        attentions = eager(**one, output_attentions=True).attentions
    means = torch.stack([layer.mean(dim=(0, 1, 2)) for layer in attentions]).mean(dim=0)
    assert means[0] + sum(part.sum() for part in weights.values()) == pytest.approx(1, abs=1e-5)
    assert all((part >= 0).all() for part in weights.values())
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("fusion_type", FUSIONS)
@pytest.mark.parametrize("missing", [(), ("text",), ("image", "audio")])
def test_attention_explains_every_fusion_that_has_it_and_is_refused_by_name_else(fusion_type, missing, sample):
    classify = make_pipeline(fusion_type=fusion_type)
    given = {name: cell for name, cell in sample.items() if name not in missing}
    if fusion_type not in ("cross_attention", "bottleneck", "pairwise"):
        assert classify.explain_methods == ("integrated_gradients",)
        with pytest.raises(ValueError, match=rf"`fusion_type` .*'{fusion_type}'.*'integrated_gradients'"):
            classify.explain(given, method="attention")
        assert classify.explain(given, method="attention", details=False)["method"] is None
        return
    assert classify.explain_methods == explanation.METHODS
    about = classify.explain(given, method="attention")
    scores = {
        "text": [word["score"] for word in about["text"]["words"]] if "text" in given else [],
        "image": np.ravel(about["image"]["scores"]).tolist() if "image" in given else [],
        "audio": [segment["score"] for segment in about["audio"]["segments"]] if "audio" in given else [],
    }
    assert all((len(scores[name]) > 0) == (name in given) for name in scores)
    values = [score for each in scores.values() for score in each]
    assert min(values) >= 0 and 0 < sum(values) <= 1 + 1e-5, "what is left was read of special tokens and of absence"


def test_the_shares_of_bottleneck_fusion_follow_what_the_vector_depends_on(inputs):
    """Where all blocks are the identity, what is read is the mean of each modality, and nothing by the bottleneck."""
    model = make_model(model_config(fusion_type="bottleneck"))
    one = {name: value[:1] for name, value in inputs.items()}
    encoded = model.encode(**one)
    weights = explanation.attention_weights(model, encoded)
    assert sum(part.sum() for part in weights.values()) == pytest.approx(1, abs=1e-5)  # nothing is absent
    fusion = model.base_model.fusion
    num_tokens, width = encoded.tokens.shape[1] + 3, len(fusion.bottleneck)
    size = num_tokens + 3 * width
    identity = torch.eye(size)[None, None]
    slots = torch.arange(3)
    mask = torch.cat([torch.zeros(1, 3, dtype=torch.bool), encoded.token_mask], dim=1)
    shares = fusion.token_shares((identity,) * 2, mask, torch.cat([slots, encoded.token_modality]))
    counts = [int(encoded.token_mask[0, encoded.token_modality == column].sum()) for column in range(3)]
    for column, count in enumerate(counts):
        of_modality = shares[0, 3:][(encoded.token_modality == column) & encoded.token_mask[0]]
        torch.testing.assert_close(of_modality, torch.full((count,), 1 / 3 / count))


# -- a good guest -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", explanation.METHODS)
def test_an_explanation_leaves_nothing_behind(method, sample):
    classify = make_pipeline()
    classify.model.base_model.vision_encoder.train()
    before = state_of(classify.model)
    classify.explain(sample, num_steps=2, method=method)
    after = state_of(classify.model)
    assert all(torch.equal(tensor, after[0][name]) for name, tensor in before[0].items())
    assert before[1:] == after[1:]


def test_a_private_copy_shares_its_weights_and_nothing_else(classify):
    theirs = explanation.private_copy(classify.model)
    for ours, copied in zip(classify.model.parameters(), theirs.parameters(), strict=True):
        assert ours.data_ptr() == copied.data_ptr() and not copied.requires_grad
    theirs.set_attn_implementation("eager")
    assert classify.model.config._attn_implementation == "sdpa"


def test_an_explanation_may_be_asked_for_where_gradients_are_off(classify, sample):
    expected = classify.explain(sample, num_steps=2)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert classify.explain(sample, num_steps=2)["completeness"] == expected["completeness"]


def test_threads_side_by_side_get_the_answers_they_get_alone(classify, sample):
    parts = [part for part in subsets_of(sample) if len(part) > 1]
    expected = [classify.explain(part, num_steps=4) for part in parts]
    plain = [classify(part) for part in parts]
    answers, said = [None] * len(parts), [None] * len(parts)

    def work(i):
        answers[i] = classify.explain(parts[i], num_steps=4)
        said[i] = classify(parts[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == expected and said == plain


def test_a_list_is_explained_like_its_samples(classify, sample):
    samples = [
        *subsets_of(sample),
        {"text": "cat", "audio": {"array": sample["audio"]["array"][:500], "sampling_rate": RATE}},
    ]
    together = classify.explain(samples, num_steps=4, batch_size=3)
    for one, about in zip(samples, together, strict=True):
        alone = classify.explain(one, num_steps=4)
        assert about["modalities"] == pytest.approx(alone["modalities"], abs=1e-5)
        for number in ("sum", "difference"):
            assert about["completeness"][number] == pytest.approx(alone["completeness"][number], abs=1e-5)
        if about["audio"] is not None:
            assert len(about["audio"]["segments"]) == len(alone["audio"]["segments"])


def test_a_ready_batch_gives_tensors_for_a_table(classify, sample):
    samples = subsets_of(sample)
    batch = classify._collate([classify.preprocess(one) for one in samples])
    table = classify.explain_batch(batch)
    assert table["scores"].shape == (7, 3) and table["contributions"].shape == (7, 3)
    for row, about in enumerate(classify.explain(samples, details=False)):
        assert classify.model.config.id2label[int(table["labels"][row])] == about["label"]
        shares = [math.nan if share is None else share for share in about["modalities"].values()]
        assert table["contributions"][row].tolist() == pytest.approx(shares, nan_ok=True, abs=1e-5)
    assert set(classify.explain_batch(batch, "LABEL_2")["labels"].tolist()) == {2}


def test_a_model_in_bfloat16_explains_too(sample):
    classify = make_pipeline()
    classify.model.to(torch.bfloat16)
    about = classify.explain(sample, num_steps=8)
    assert sum(about["modalities"].values()) == pytest.approx(about["score"] - about["baseline"], abs=1e-5)
    assert math.isfinite(about["completeness"]["sum"])


# -- words ------------------------------------------------------------------------------------------------------------


def words_of(tokenizer, text, max_text_length=12):
    processor = MMFusionProcessor(tokenizer=tokenizer, max_text_length=max_text_length)
    words = explanation.find_words(processor, text)
    assert words.word_of_token.count(None) + len([w for w in words.word_of_token if w is not None]) == len(
        processor(text=text)["input_ids"][0]
    )
    return [words.text[start:end] for start, end in words.spans]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  red   cats\tsat ", ["red", "cats", "sat"]),
        ("Red, CATS!", ["Red", ",", "CATS", "!"]),
        ("不好 red", ["不", "好", "red"]),
        ("[SEP] red", ["[", "SEP", "]", "red"]),  # a stranger's five characters
        ("zebra", ["zebra"]),  # unknown, and still a word
        ("😀 cat", ["😀", "cat"]),
        ("\ud83d\ude00 cat", ["😀", "cat"]),  # the same, as JSON may bring it
        ("a " * 40, ["a"] * 10),  # cut: only what the model read
    ],
)
def test_words_are_found_in_the_user_s_own_string(classify, text, expected):
    assert words_of(classify.processor.tokenizer, text) == expected


def test_subwords_are_one_word_and_special_tokens_none(classify):
    words = explanation.find_words(classify.processor, "a cats")
    assert words.word_of_token == [None, 0, 1, 1, None]
    scores = torch.tensor([9.0, 1.0, 2.0, 3.0, 9.0])
    assert explanation.describe_text(words, scores) == {
        "words": [
            {"text": "a", "start": 0, "end": 1, "score": 1.0},
            {"text": "cats", "start": 2, "end": 6, "score": 5.0},
        ]
    }


def test_a_tokenizer_for_which_a_text_is_one_word_is_cut_at_white_space():
    pieces = {"<pad>": 0, "<unk>": 1, "▁red": 2, "▁cat": 3, "s": 4, "▁": 5, "sat": 6}
    tokenizer = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=1))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
    tokenizer.decoder = decoders.Metaspace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")
    assert words_of(fast, " red cats sat ") == ["red", "cats", "sat", ""]
    processor = MMFusionProcessor(tokenizer=fast)
    words = explanation.find_words(processor, " red cats sat ")
    told = explanation.describe_text(words, torch.ones(len(words.word_of_token)))["words"]
    assert [(word["text"], word["score"]) for word in told] == [("red", 1), ("cats", 2), ("sat", 2)]


def test_a_tokenizer_without_offsets_gets_a_sentence(classify, monkeypatch):
    monkeypatch.setattr(type(classify.processor.tokenizer), "is_fast", property(lambda self: False))
    with pytest.raises(ValueError, match="keeps no offsets: leave text out of `details`"):
        classify.explain({"text": "a red cat"})
    assert classify.explain({"text": "a red cat"}, details=["image", "audio"])["text"] is None


# -- pictures ---------------------------------------------------------------------------------------------------------


def cropper(edge, size):
    return BitImageProcessorPil(size={"shortest_edge": edge}, crop_size={"height": size, "width": size})


@pytest.mark.parametrize(
    ("image_processor", "size", "expected"),
    [
        (ViTImageProcessorPil(size={"height": 16, "width": 24}), (300, 100), [0, 0, 1, 1]),
        (ViTImageProcessorPil(do_resize=False), (16, 16), [0, 0, 1, 1]),
        (cropper(32, 32), (200, 100), [0.25, 0, 0.75, 1]),
        (cropper(32, 24), (100, 100), [0.125, 0.125, 0.875, 0.875]),
        (cropper(16, 32), (100, 100), [-0.5, -0.5, 1.5, 1.5]),
        (ConvNextImageProcessorPil(size={"shortest_edge": 28}), (64, 128), [0.0625, 0.28125, 0.9375, 0.71875]),
        (ConvNextImageProcessorPil(size={"shortest_edge": 384}), (64, 128), [0, 0, 1, 1]),
    ],
)
def test_the_box_is_the_part_of_the_picture_that_the_model_saw(image_processor, size, expected):
    """Held against the pixels: a ramp from left to right and one from top to bottom, as the processor cuts them."""
    width, height = size
    ramp = np.zeros((height, width, 3), dtype=np.uint8)
    ramp[..., 0] = ((np.arange(width) + 0.5) / width * 255)[None]
    ramp[..., 1] = ((np.arange(height) + 0.5) / height * 255)[:, None]
    ramp[..., 2] = 255
    pixels = np.asarray(
        image_processor(Image.fromarray(ramp), do_normalize=False, return_tensors="np")["pixel_values"][0]
    )
    rows, columns = pixels.shape[1:]
    box = explanation.picture_box(image_processor, width, height, (rows, columns))
    assert box == pytest.approx(expected, abs=0.02)
    left, top, right, bottom = box
    middle_row, middle_column = rows // 2, columns // 2
    is_inside = pixels[2] > 0.99
    across = left + (np.arange(columns) + 0.5) / columns * (right - left)
    down = top + (np.arange(rows) + 0.5) / rows * (bottom - top)
    assert np.abs(pixels[0] - across)[middle_row][is_inside[middle_row]].max() < 0.05
    assert np.abs(pixels[1] - down[:, None])[:, middle_column][is_inside[:, middle_column]].max() < 0.05


def test_an_unknown_rule_for_sizes_gives_no_box():
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    assert explanation.picture_box(processor, 100, 50, (32, 32)) is None
    processor.size = {"max_height": 16, "max_width": 16}
    assert explanation.picture_box(processor, 100, 50, (16, 16)) is None


def test_pooling_keeps_the_sum_and_the_place():
    pixels = torch.zeros(20, 33)
    pixels[19, 0], pixels[0, 32] = 2.0, 3.0
    for patch_size, shape in ((None, (16, 16)), (5, (4, 6)), ((10, 11), (2, 3)), (64, (16, 16))):
        grid = explanation.pooled_pixels(pixels, patch_size)
        assert grid.shape == shape and grid[-1, 0] == 2.0 and grid[0, -1] == 3.0 and grid.sum() == 5.0


def test_picture_tokens_find_their_place():
    patches = torch.arange(8.0)
    assert explanation.token_grid(torch.cat([torch.tensor([99.0]), patches]), (16, 32), 8).tolist() == [
        [0, 1, 2, 3], [4, 5, 6, 7]
    ]  # fmt: skip
    assert explanation.token_grid(patches, (16, 32), None).shape == (2, 4)
    assert explanation.token_grid(patches, (32, 16), None).shape == (4, 2)
    assert explanation.token_grid(torch.arange(9.0), (17, 17), None).shape == (3, 3)


# -- sounds -----------------------------------------------------------------------------------------------------------


def test_a_long_sound_has_fewer_and_longer_segments(classify):
    config = classify.model.config.audio_config  # a frame every 20 samples
    about = explanation.describe_audio(config, torch.ones(999), 20_020, RATE)
    assert len(about["segments"]) == 200 and sum(s["score"] for s in about["segments"]) == 999
    assert about["segments"][1]["end"] - about["segments"][1]["start"] == pytest.approx(100 / RATE)
    short = explanation.describe_audio(config, torch.ones(1), 400, RATE)
    assert short == {"segments": [{"start": 0.0, "end": 400 / RATE, "score": 1.0}], "seconds": 400 / RATE}
