"""Temperatures and thresholds go with the head and the weights they were fitted to, however these are changed."""

import json
import logging

import pytest
import torch
from conftest import make_inputs, make_model, model_config
from torch import nn
from transformers import Trainer, TrainingArguments

from configuration_mmfusion import FITTED_FIELDS, MMFusionConfig
from modeling_mmfusion import MMFusionForSequenceClassification

NAMES = {0: "ant", 1: "bee", 2: "cat"}
OTHER = {0: "dog", 1: "eel", 2: "fox"}
FITTED = {"temperatures": {"text": 2.0, "text+image+audio": 4.0}, "unimodal_temperatures": {"text": 2.0}}
LABELS = torch.tensor([0, 1, 2, 0, 1])
TASKS = [
    {"name": "mood", "problem_type": "single_label_classification", "labels": ["a", "b"],
     "temperatures": {"text": 3.0}},
    {"name": "topics", "problem_type": "multi_label_classification", "labels": ["x", "y"], "thresholds": [0.2, 0.3]},
]  # fmt: skip


def fitted_config(**kwargs):
    label2id = {name: number for number, name in NAMES.items()}
    return model_config(**{"id2label": NAMES, "label2id": label2id, **FITTED, **kwargs})


def is_fitted(config):
    return any(getattr(config, name) is not None for name in FITTED_FIELDS)


@pytest.fixture
def model():
    return make_model(fitted_config())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("fitted")
    make_model(fitted_config(class_weights=[1.0, 2.0, 3.0], ordinal=True)).save_pretrained(path)
    return path


@pytest.fixture
def said(caplog):
    """Lines that were logged of what is forgotten or dropped."""
    logging.getLogger("transformers").propagate = True
    with caplog.at_level(logging.WARNING):
        yield lambda: [r.getMessage() for r in caplog.records if r.getMessage().split(": ")[0].endswith(
            ("are forgotten", "are dropped"))]  # fmt: skip


# -- other labels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kwargs",
    [{"num_labels": 5}, {"id2label": OTHER}, {"problem_type": "multi_label_classification", "ordinal": False},
     {"num_labels": 1, "problem_type": "regression"}, {"num_labels": 5, "problem_type": "multi_label_classification"}],
    ids=str,
)  # fmt: skip
def test_a_model_loaded_for_other_labels_has_nothing_that_was_fitted_to_the_old_ones(kwargs, folder, said):
    model = MMFusionForSequenceClassification.from_pretrained(folder, ignore_mismatched_sizes=True, **kwargs)
    config = model.config
    assert not is_fitted(config) and config.class_weights is None and not config.ordinal
    (line,) = said()
    assert "`temperatures`" in line and "`class_weights`" in line
    assert model(**make_inputs()).logits.shape == (5, kwargs.get("num_labels", 3))


@pytest.mark.parametrize("kwargs", [{}, {"id2label": NAMES}, {"num_labels": 3}, {"output_attentions": False}], ids=str)
def test_a_model_loaded_for_the_same_labels_keeps_it(kwargs, folder, said):
    config = MMFusionForSequenceClassification.from_pretrained(folder, **kwargs).config
    assert config.temperatures == FITTED["temperatures"] and config.class_weights == [1.0, 2.0, 3.0]
    assert said() == []


def test_what_is_given_for_the_new_labels_is_taken(folder):
    config = MMFusionConfig.from_pretrained(folder, num_labels=2, class_weights=[1.0, 4.0])
    assert config.class_weights == [1.0, 4.0] and config.num_labels == 2 and not is_fitted(config)


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_labels", 5), ("id2label", OTHER), ("id2label", {0: "ant", 1: "cat", 2: "bee"}),
     ("problem_type", "multi_label_classification")],
)  # fmt: skip
def test_a_configuration_that_is_changed_forgets_at_once(field, value, said):
    config = fitted_config(class_weights=[1.0, 2.0, 3.0])
    setattr(config, field, value)
    assert not is_fitted(config) and "`temperatures`" in said()[0]
    assert (config.class_weights is None) == (field == "num_labels")


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_labels", 3), ("id2label", dict(NAMES)), ("problem_type", "single_label_classification"),
     ("modality_dropout", 0.2)],
)  # fmt: skip
def test_a_configuration_that_stays_the_same_forgets_nothing(field, value, said):
    config = fitted_config()
    setattr(config, field, value)
    assert config.temperatures == FITTED["temperatures"] and said() == []


def test_a_configuration_comes_back_from_its_file_and_its_copies_as_it_was(tmp_path):
    config = fitted_config(problem_type="multi_label_classification", thresholds=[0.1, 0.2, 0.3])
    config.save_pretrained(tmp_path)
    for again in (MMFusionConfig.from_pretrained(tmp_path), MMFusionConfig(**config.to_dict())):
        assert {name: getattr(again, name) for name in FITTED_FIELDS} == {**FITTED, "thresholds": [0.1, 0.2, 0.3]}


def test_a_model_of_several_tasks_loaded_for_one_has_no_tasks(tmp_path, said):
    make_model(model_config(tasks=json.loads(json.dumps(TASKS)), num_labels=4)).save_pretrained(tmp_path)
    kept = MMFusionConfig.from_pretrained(tmp_path)
    assert kept.tasks == TASKS and said() == []
    model = MMFusionForSequenceClassification.from_pretrained(tmp_path, num_labels=3, ignore_mismatched_sizes=True)
    assert model.config.tasks is None and model.config.num_labels == 3 and "`tasks`" in said()[0]
    kept.id2label = {0: "one", 1: "two"}
    assert kept.tasks is None


# -- another head, other weights --------------------------------------------------------------------------------------


def test_another_classifier_forgets(model, said):
    model.classifier = nn.Linear(32, 3)
    assert not is_fitted(model.config) and "`classifier` was replaced" in said()[0]


def test_the_same_classifier_in_another_form_does_not(model):
    class Quantized(nn.Linear):
        pass

    model.classifier = model.classifier
    model.classifier = Quantized(32, 3)
    assert model.config.temperatures == FITTED["temperatures"]


def step(model, inputs):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()(**inputs, labels=LABELS).loss.backward()
    optimizer.step()


def test_a_trained_model_answers_as_its_weights_say(model, said):
    inputs = make_inputs()
    step(model, inputs)
    model.eval()
    assert not is_fitted(model.config) and len(said()) == 1
    plain = make_model(fitted_config(temperatures=None, unimodal_temperatures=None))
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model(**inputs).logits, plain(**inputs).logits)


def test_a_trained_model_is_saved_without_what_was_fitted_before(model, tmp_path):
    step(model, make_inputs())
    model.save_pretrained(tmp_path)  # still in training mode
    assert not is_fitted(MMFusionConfig.from_pretrained(tmp_path))


def test_a_model_in_use_keeps_it_whatever_its_mode_was(model, tmp_path, said):
    inputs = make_inputs()
    before = model(**inputs, labels=LABELS).logits
    model.train()(**inputs)
    assert torch.equal(model.eval()(**inputs).logits, before) and said() == []
    model.save_pretrained(tmp_path)
    assert MMFusionConfig.from_pretrained(tmp_path).temperatures == FITTED["temperatures"]


def test_a_compiled_training_forgets_and_stays_one_graph():
    model = make_model(fitted_config(audio_config=None))  # Wav2Vec2 itself breaks the graph
    inputs = {name: value for name, value in make_inputs(mixed=False).items() if "audio" not in name}
    inputs.pop("input_values")
    compiled = torch.compile(model.train(), backend="eager", fullgraph=True)
    compiled(**inputs, labels=LABELS).loss.backward()
    compiled.eval()
    assert not is_fitted(model.config)


def test_trainer_forgets(model, tmp_path, said):
    inputs = make_inputs()
    rows = [{**{name: value[i] for name, value in inputs.items()}, "labels": LABELS[i]} for i in range(5)]
    arguments = TrainingArguments(str(tmp_path), max_steps=2, save_steps=1, report_to="none", use_cpu=True)
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    assert not is_fitted(MMFusionConfig.from_pretrained(tmp_path / "checkpoint-1"))
    trainer.evaluate()
    trainer.save_model()
    assert not is_fitted(model.config) and not is_fitted(MMFusionConfig.from_pretrained(tmp_path))
    assert len(said()) == 1


def test_one_task_of_a_model_keeps_what_was_fitted_to_it():
    model = make_model(model_config(tasks=json.loads(json.dumps(TASKS)), num_labels=4))
    assert model.for_task("mood").config.temperatures == {"text": 3.0}
    assert model.config.tasks == TASKS
