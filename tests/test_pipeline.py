"""The pipeline in this process, and a saved folder in a fresh one that knows nothing of the repository."""

import io
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import CONFIGS, TRAVELLING, make_model, model_config
from PIL import Image
from transformers import BertTokenizerFast, ViTImageProcessorPil, Wav2Vec2FeatureExtractor, pipeline
from transformers.dynamic_module_utils import get_imports

from pipeline_mmfusion import TASK, MMFusionPipeline
from processing_mmfusion import MMFusionProcessor
from training.folder import save_model_folder

ROOT = Path(__file__).parents[1]
RATE = 16_000
SIZE = {"height": 16, "width": 16}
LABELS = {0: "low", 1: "middle", 2: "high"}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "cat"]
SUBSETS = [c for n in (1, 2, 3) for c in itertools.combinations(("text", "image", "audio"), n)]


def make_processor(config):
    is_layer_norm = config.audio_config is not None and config.audio_config.feat_extract_norm == "layer"
    tokenizer = BertTokenizerFast(vocab={word: i for i, word in enumerate(WORDS)})
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=is_layer_norm)
    return MMFusionProcessor(
        tokenizer=None if config.text_config is None else tokenizer,
        image_processor=None if config.vision_config is None else ViTImageProcessorPil(size=SIZE),
        feature_extractor=None if config.audio_config is None else extractor,
        max_text_length=12,
        max_audio_seconds=0.1,
    )


def make_pipeline(**options):
    model = make_model(model_config(**{"id2label": LABELS, "num_labels": 3, **options}))
    return MMFusionPipeline(model=model, processor=make_processor(model.config), task=TASK)


@pytest.fixture(scope="module")
def classify():
    return make_pipeline()


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """One sample as a user has it: a string, the path of a picture, the bytes of a stereo recording at 44.1 kHz."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("cells") / "cat.png"
    Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(path)
    sound = io.BytesIO()
    soundfile.write(sound, rng.uniform(-0.5, 0.5, (3000, 2)), 44_100, format="WAV")
    return {"text": "a red cat", "image": str(path), "audio": sound.getvalue()}


def subsets_of(sample):
    return [{name: sample[name] for name in subset} for subset in SUBSETS]


def assert_same(first, second):
    """Equal labels and scores, whatever the order of near ties."""
    for a, b in zip(first, second, strict=True):
        assert {e["label"]: e["score"] for e in a} == pytest.approx({e["label"]: e["score"] for e in b}, abs=1e-5)


# --- what goes in


def test_any_subset_of_modalities_is_ranked(classify, sample):
    answers = [classify(part) for part in subsets_of(sample)]
    for answer in answers:
        scores = [entry["score"] for entry in answer]
        assert {entry["label"] for entry in answer} == set(LABELS.values())
        assert scores == sorted(scores, reverse=True) and sum(scores) == pytest.approx(1)
    assert len({json.dumps(answer) for answer in answers}) == len(answers), "every modality must matter"


def test_absent_is_a_missing_key_none_or_blank_text(classify, sample):
    alone = classify({"image": sample["image"]})
    for text in (None, "", " \n"):
        assert_same([alone], [classify({"text": text, "image": sample["image"], "audio": None})])


def test_a_cell_may_be_a_path_bytes_or_decoded(classify, sample, tmp_path):
    path = Path(sample["image"])
    images = [path, str(path), path.read_bytes(), Image.open(path)]
    assert_same([classify({"image": path})] * 4, [classify({"image": image}) for image in images])
    (tmp_path / "x.wav").write_bytes(sample["audio"])
    array, rate = soundfile.read(io.BytesIO(sample["audio"]), dtype="int16")
    sounds = [tmp_path / "x.wav", sample["audio"], *({"array": a, "sampling_rate": rate} for a in (array, array.T))]
    assert_same([classify({"audio": sounds[0]})] * 4, [classify({"audio": sound}) for sound in sounds])


@pytest.mark.parametrize("name", ["bert-vit-layernorm", "bert-vit-groupnorm"])
@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_batches_of_mixed_subsets_answer_like_single_samples(name, batch_size, sample):
    model = make_model(CONFIGS[name]())
    classify = MMFusionPipeline(model=model, processor=make_processor(model.config), task=TASK)
    short = {"array": np.linspace(-0.5, 0.5, 500), "sampling_rate": RATE}
    samples = [*subsets_of(sample), {"audio": short}, {"text": "cat", "audio": short}]
    assert_same([classify(one) for one in samples], classify(samples, batch_size=batch_size))


def test_generators_stay_lazy_and_data_sets_work(classify, sample):
    taken = []

    def stream():
        for part in subsets_of(sample):
            taken.append(part)
            yield part

    answers = classify(stream(), batch_size=2)
    first = next(iter(answers))
    assert len(taken) < len(SUBSETS)
    expected = classify(subsets_of(sample))
    assert_same([first], expected[:1])
    assert_same(list(classify((part for part in subsets_of(sample)), batch_size=2)), expected)
    assert_same(classify(tuple(subsets_of(sample))), expected)
    assert classify([]) == []


def test_a_worker_may_open_the_cells(classify, sample, monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    samples = subsets_of(sample)
    assert_same(classify(samples, batch_size=4, num_workers=1), classify(samples))


def test_a_text_longer_than_the_model_reads_is_cut(classify):
    assert_same([classify({"text": "a red cat " * 500})], [classify({"text": "a red cat " * 4})])


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({}, "an empty sample: give at least one of text, image, audio"),
        ({"text": " ", "image": None}, "an empty sample"),
        ({"text": "a", "picture": "x.png"}, "unknown key in a sample: 'picture'"),
        ({"text": 3}, '"text" is of type int; allowed is a string'),
        ({"image": "https://x/a.png"}, "is a URL, and nothing is ever fetched"),
        ({"audio": "hf://x/a.wav"}, "is a URL, and nothing is ever fetched"),
        ({"image": b"nothing"}, "cannot be read as a picture"),
        ({"audio": b"nothing"}, "cannot be read as sound"),
        ({"audio": {"array": [0.0] * 160, "sampling_rate": RATE}}, "lasts 0.01 s"),
        ({"audio": np.zeros(900)}, "`audio` is of type ndarray; allowed is a path, bytes or"),
        ("a red cat", r'a sample is a dict such as \{"text": …, "image": …, "audio": …\}, got str'),
    ],
)
def test_bad_samples_get_a_sentence_alone_and_in_a_list(classify, bad, words):
    for inputs in (bad, [{"text": "a"}, bad]):
        with pytest.raises(ValueError, match=words):
            classify(inputs, batch_size=2)


def test_a_missing_file_gets_a_sentence(classify):
    with pytest.raises(FileNotFoundError, match=r"`nowhere\.png` does not exist"):
        classify({"image": "nowhere.png"})


def test_a_modality_without_a_tower_is_refused(sample):
    deaf = make_pipeline(audio_config=None)
    with pytest.raises(ValueError, match='"audio" was given, but this model reads only text, image; leave it out'):
        deaf(sample)
    assert len(deaf({"text": "a", "audio": None})) == 3
    listener = make_pipeline(text_config=None, vision_config=None)
    with pytest.raises(ValueError, match="an empty sample: give at least one of audio"):
        listener({})


# --- what comes out


def logits_of(classify, inputs):
    return {entry["label"]: entry["score"] for entry in classify(inputs, function_to_apply="none")}


def test_top_k_limits_the_labels(classify, sample):
    full = classify(sample)
    assert len(full) == 3 and classify(sample, top_k=None) == full
    assert_same([full[:2], full[:1]], [classify(sample, top_k=2), classify([sample], top_k=1)[0]])
    assert len(classify(sample, top_k=9)) == 3


def test_scores_follow_the_problem_type(sample):
    for problem, expected in (
        ("single_label_classification", lambda x: torch.softmax(x, 0)),
        ("multi_label_classification", torch.sigmoid),
        ("regression", torch.clone),
    ):
        classify = make_pipeline(problem_type=problem)
        logits = logits_of(classify, sample)
        scores = {entry["label"]: entry["score"] for entry in classify(sample)}
        wanted = expected(torch.tensor([logits[label] for label in LABELS.values()])).tolist()
        assert [scores[label] for label in LABELS.values()] == pytest.approx(wanted, abs=1e-6)
    assert sum(e["score"] for e in classify(sample, function_to_apply="softmax")) == pytest.approx(1)


def test_one_label_without_a_problem_type_is_a_raw_value(sample):
    classify = make_pipeline(num_labels=1, id2label={0: "age"}, problem_type=None)
    assert classify(sample) == classify(sample, function_to_apply="none")
    assert classify(sample)[0]["label"] == "age"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top_k": 0}, "`top_k` is 0; allowed are whole numbers from 1"),
        ({"top_k": "2"}, "`top_k` is '2'"),
        ({"function_to_apply": "relu"}, "`function_to_apply` is 'relu'; allowed are softmax, sigmoid, none"),
    ],
)
def test_impossible_options_are_refused(classify, sample, options, words):
    with pytest.raises(ValueError, match=words):
        classify(sample, **options)


def test_a_misspelt_option_is_refused(classify, sample):
    with pytest.raises(TypeError, match="topk"):
        classify(sample, topk=2)


def test_nan_scores_never_reach_the_user(sample):
    classify = make_pipeline()
    with torch.no_grad():
        for parameter in classify.model.parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(ValueError, match="the model answered with NaN or infinite scores"):
        classify(sample)


def test_a_model_in_bfloat16_answers_too(sample):
    classify, half = make_pipeline(), make_pipeline()
    half.model.to(torch.bfloat16)
    scores = [{entry["label"]: entry["score"] for entry in pipe(sample)} for pipe in (classify, half)]
    assert scores[1] == pytest.approx(scores[0], abs=0.1)


# --- a folder, a stranger


STRANGER = """
import importlib.util, json, sys, torch
folder, cells = sys.argv[1], json.load(open(sys.argv[2]))
for name in ("configuration", "modeling", "processing", "decoding", "pipeline", "explanation"):
    assert importlib.util.find_spec(name + "_mmfusion") is None, "the repository is on the path"
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoProcessor, pipeline

classify = pipeline(model=folder, trust_remote_code=True)
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
base, loading = AutoModel.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)

whole = cells[-1]
inputs = processor(
    text=whole["text"], images=processor.decode_image(whole["image"]), audio=processor.decode_audio(whole["audio"]),
    sampling_rate=processor.audio_sampling_rate,
)
with torch.no_grad():
    logits = model(**inputs).logits[0].tolist()
    pooled = base(**inputs).pooler_output[0].tolist()
print(json.dumps({
    "single": [classify(cell) for cell in cells], "batched": classify(cells, batch_size=3), "task": classify.task,
    "classes": [type(x).__name__ for x in (classify, config, processor, model, base)],
    "inputs": {name: value.tolist() for name, value in inputs.items()}, "logits": logits, "pooled": pooled,
    "missing": sorted(loading["missing_keys"]), "labels": config.id2label,
    "explained": [classify.explain(cell, num_steps=4) for cell in cells],
}))
"""

# The same without Captum: an entry of None makes every import of it fail.
STRANGER_WITHOUT_CAPTUM = """
import json, sys
sys.modules["captum"] = sys.modules["captum.attr"] = None
from transformers import pipeline

classify, sample = pipeline(model=sys.argv[1], trust_remote_code=True), json.load(open(sys.argv[2]))[-1]
assert classify(sample)
looked = classify.explain(sample, method="attention")
plain = classify.explain(sample, details=False)
try:
    classify.explain(sample)
except ImportError as error:
    print(json.dumps({"error": str(error), "words": looked["text"]["words"], "modalities": plain["modalities"]}))
"""


@pytest.fixture(scope="module")
def folder(classify, tmp_path_factory):
    """A model folder as `train.py` leaves one: model, processor and the travelling files."""
    path, registered = tmp_path_factory.mktemp("folder") / "stranger", MMFusionProcessor._auto_class
    try:
        save_model_folder(path, classify.model, classify.processor, training_config={}, metrics={})
    finally:
        MMFusionProcessor._auto_class = registered
    assert set(TRAVELLING) == {file.name for file in path.glob("*.py")}
    return path


@pytest.fixture(scope="module")
def stranger(folder, sample, tmp_path_factory):
    """What one fresh interpreter, in another directory, answers with nothing but the folder."""
    work = tmp_path_factory.mktemp("elsewhere")
    (work / "x.wav").write_bytes(sample["audio"])
    cells = subsets_of(sample | {"audio": str(work / "x.wav")})
    (work / "cells.json").write_text(json.dumps(cells))
    return run_stranger(STRANGER, folder, work)


def run_stranger(code, folder, work):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HOME": str(work / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(folder), str(work / "cells.json")],
        cwd=work, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_saved_folder_loads_by_all_auto_classes_in_a_fresh_interpreter(stranger):
    parts = ("Pipeline", "Config", "Processor", "ForSequenceClassification", "Model")
    assert stranger["classes"] == [f"MMFusion{part}" for part in parts]
    assert stranger["task"] == TASK and stranger["missing"] == []
    assert stranger["labels"] == {str(key): label for key, label in LABELS.items()}


def test_a_stranger_s_pipeline_answers_like_ours_for_every_subset(stranger, classify, sample):
    ours = [classify(part) for part in subsets_of(sample)]
    assert_same(stranger["single"], ours)
    assert_same(stranger["batched"], ours)


def test_a_stranger_s_processor_and_models_compute_the_same_numbers(stranger, classify, sample):
    processor, model = classify.processor, classify.model
    inputs = processor(
        text=sample["text"],
        images=processor.decode_image(sample["image"]),
        audio=processor.decode_audio(sample["audio"]),
        sampling_rate=processor.audio_sampling_rate,
    )
    assert set(stranger["inputs"]) == set(inputs) == set(processor.model_input_names)
    for name, value in inputs.items():
        assert torch.allclose(torch.tensor(stranger["inputs"][name], dtype=value.dtype), value, atol=1e-6)
    with torch.no_grad():
        assert model(**inputs).logits[0].tolist() == pytest.approx(stranger["logits"], abs=1e-5)
        assert model.base_model(**inputs).pooler_output[0].tolist() == pytest.approx(stranger["pooled"], abs=1e-5)


def test_a_stranger_s_explanations_are_ours(stranger, classify, sample):
    for theirs, part in zip(stranger["explained"], subsets_of(sample), strict=True):
        ours = json.loads(json.dumps(classify.explain(part, num_steps=4)))
        assert theirs.keys() == ours.keys() and theirs["label"] == ours["label"]
        for kind in ("modalities", "completeness"):
            assert theirs[kind] == pytest.approx(ours[kind], abs=1e-5)


def test_a_model_loads_and_explains_without_captum_and_says_what_is_missing(folder, sample, tmp_path):
    (tmp_path / "x.wav").write_bytes(sample["audio"])
    (tmp_path / "cells.json").write_text(json.dumps([sample | {"audio": str(tmp_path / "x.wav")}]))
    answer = run_stranger(STRANGER_WITHOUT_CAPTUM, folder, tmp_path)
    assert "pip install captum" in answer["error"]
    assert [word["text"] for word in answer["words"]] == ["a", "red", "cat"]
    assert None not in answer["modalities"].values()


@pytest.mark.parametrize(
    "name",
    [
        "processing_mmfusion.py",
        "decoding_mmfusion.py",
        "containers_mmfusion.py",
        "pipeline_mmfusion.py",
        "explanation_mmfusion.py",
    ],
)
def test_loading_demands_nothing_but_transformers_numpy_and_torch(name):
    demanded = {imported.split(".")[0] for imported in get_imports(ROOT / name)} - set(sys.stdlib_module_names)
    assert demanded <= {"transformers", "numpy", "torch"}


def test_without_trust_nothing_of_the_folder_is_run(folder):
    with pytest.raises(ValueError, match="trust_remote_code"):
        pipeline(model=str(folder), trust_remote_code=False)
