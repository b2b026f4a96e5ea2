"""Several label columns at once: from the table to the head, the loss, the metrics, the pipeline and the card."""

import csv
import json
import random
import re

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from conftest import make_inputs, make_model, model_config
from huggingface_hub.errors import StrictDataclassClassValidationError
from PIL import Image
from transformers import AutoModelForSequenceClassification, set_seed

import app
import evaluation
import predict
import train
from configuration_mmfusion import MMFusionConfig
from data import Columns, TaskMap, labels_of, read_table
from hub.card import render_model_card
from hub.export import export_model
from metrics.subsets import Predictions, deciding_metric, measure_subsets
from metrics.tasks import judged
from objectives_mmfusion import row_losses
from training.arguments import parse_args
from training.continuing import load_classifier

NAN = float("nan")
TASKS = [
    {"name": "mood", "problem_type": "single_label_classification", "labels": ["bad", "good", "so so"], "weight": 2.0},
    {"name": "tags", "problem_type": "multi_label_classification", "labels": ["food", "room"]},
    {"name": "stars", "problem_type": "regression", "labels": ["stars"], "weight": 0.5},
]
# A class number, two labels, a number; each row lacks some of them, the last one all.
LABELS = torch.tensor(
    [[0, 1, 0, 2.5], [NAN, 1, 1, 3.0], [2, NAN, NAN, NAN], [1, 0, 0, NAN], [NAN, NAN, NAN, NAN]]
)  # fmt: skip
PROBLEMS = [task["problem_type"] for task in TASKS]
SUBSETS = ["text", "image", "text+image"]


def tasks_config(tasks=TASKS, **kwargs):
    settings = model_config(**kwargs).to_dict()
    settings |= {"tasks": [dict(task) for task in tasks], "problem_type": None}
    return MMFusionConfig(**{k: v for k, v in settings.items() if k not in ("id2label", "label2id")})


# -- configuration ----------------------------------------------------------------------------------------------------


def test_outputs_stand_side_by_side_in_the_order_of_the_tasks_also_after_saving(tmp_path):
    tasks = list(reversed(TASKS))
    tasks_config(tasks).save_pretrained(tmp_path)
    config = MMFusionConfig.from_pretrained(tmp_path)
    assert list(config.id2label.values()) == ["stars", "tags: food", "tags: room", *(
        f"mood: {label}" for label in ("bad", "good", "so so"))]  # fmt: skip
    assert [task.name for task in config.each_task()] == ["stars", "tags", "mood"]
    assert [(task.outputs, task.labels) for task in config.each_task()] == [
        (slice(0, 1), slice(0, 1)), (slice(1, 3), slice(1, 3)), (slice(3, 6), slice(3, 4)),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (TASKS[:1], "at least two, each with a `name` of its own"),
        ([TASKS[0], TASKS[0]], "at least two, each with a `name` of its own"),
        ([TASKS[0], {**TASKS[1], "problem_type": "ranking"}], "'tags' in `tasks` must have a `problem_type`"),
        ([TASKS[1], {**TASKS[0], "labels": ["bad"]}], "of one class or another, at least two"),
        ([TASKS[0], {**TASKS[1], "weight": 0}], "'tags' must have a `weight` above 0"),
    ],
)
def test_tasks_that_make_no_sense_are_refused(tasks, message):
    with pytest.raises(ValueError, match=message):
        tasks_config(tasks)


def test_what_was_fitted_to_a_task_is_checked_as_that_of_a_model():
    with pytest.raises(StrictDataclassClassValidationError, match="`thresholds` must hold 2 probabilities"):
        tasks_config([TASKS[0], {**TASKS[1], "thresholds": [0.5]}])


def test_a_task_that_is_not_there_is_refused_by_name():
    with pytest.raises(ValueError, match="no task 'mod'; its tasks are mood, tags, stars"):
        tasks_config().task("mod")
    with pytest.raises(ValueError, match="no task 'mood'; it has one task"):
        model_config().task("mood")


# -- loss -------------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_weighted_sum_of_those_of_the_tasks():
    config, logits = tasks_config(), torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    losses, has_label = row_losses(logits, LABELS, config)
    mood, tags, stars = (task.config for task in config.each_task())
    classes = torch.tensor([0, -100, 2, 1, -100])
    expected = (
        2.0 * row_losses(logits[:, :3], classes, mood)[0]
        + row_losses(logits[:, 3:5], LABELS[:, 1:3], tags)[0]
        + 0.5 * row_losses(logits[:, 5:], LABELS[:, 3:], stars)[0]
    )
    assert torch.allclose(losses, expected)
    assert has_label.tolist() == [True, True, True, True, False]
    assert losses[4] == 0 and (losses[:4] > 0).all()


def test_labels_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"`labels` must be of shape \(5, 4\), the columns of all tasks side by side"):
        row_losses(torch.zeros(5, 6), torch.zeros(5, 6), tasks_config())


@pytest.mark.parametrize("balance", ["none", "unimodal"])
def test_a_row_without_a_label_gives_no_gradient_to_that_task(balance):
    model, labels = make_model(tasks_config(balance=balance)).train(), LABELS.clone()
    labels[:, 1:3] = NAN  # nobody has tags
    set_seed(0)
    model(**make_inputs(), labels=labels).loss.backward()
    heads = [model.classifier, *(model.unimodal.heads.values() if balance == "unimodal" else ())]
    for head in heads:
        touched = head.weight.grad.abs().sum(dim=1) > 0
        assert touched.tolist() == [True, True, True, False, False, True]


# -- the model of one task --------------------------------------------------------------------------------------------


def test_the_model_of_a_task_says_what_the_whole_says_of_it_and_shares_its_weights():
    config = tasks_config(balance="unimodal")
    config.tasks[0]["temperatures"] = {"text+image+audio": 2.0}
    model, inputs = make_model(config), make_inputs()
    with torch.no_grad():
        whole, alone = model(**inputs), model.for_task("mood")(**inputs)
        model.classifier.weight[0] *= 3
        moved = model.for_task("mood")(**inputs)
    assert torch.allclose(whole.logits[:, :3], alone.logits, atol=1e-6)
    assert torch.allclose(whole.unimodal_logits[..., :3], alone.unimodal_logits, atol=1e-6)
    assert not torch.allclose(moved.logits, alone.logits)
    assert model.config.tasks is not None and model.classifier.out_features == 6  # it is as it was


def test_a_temperature_is_for_the_outputs_of_its_task_alone():
    model, inputs = make_model(tasks_config()), make_inputs()
    with torch.no_grad():
        before = model(**inputs).logits
        model.config.tasks[1]["temperatures"] = {"text+image+audio": 2.0}
        after = model(**inputs).logits
    expected = torch.ones(5, 6)
    expected[0, 3:5] = 2.0  # the only row that has all three
    assert torch.allclose(before / after, expected)


# -- labels -----------------------------------------------------------------------------------------------------------

ROWS = [
    {"text": "a", "mood": "good", "tags": "food;room", "stars": "4.5"},
    {"text": "b", "mood": "", "tags": "", "stars": "1"},
    {"text": "c", "mood": "bad", "tags": "room", "stars": ""},
]
NAMES = ("mood", "tags", "stars")


def written(path, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return path


def table_of(path, rows, names=NAMES):
    return read_table(written(path, rows), columns=Columns(label={name: name for name in names}))


def test_rows_become_numbers_with_gaps_where_a_label_is_missing(tmp_path):
    table = table_of(tmp_path / "a.csv", ROWS)
    labels = TaskMap.fit(table, PROBLEMS, ";", (1.0, 2.0, 3.0))
    assert [task["labels"] for task in labels.tasks] == [["bad", "good"], ["food", "room"], ["stars"]]
    assert [task["weight"] for task in labels.tasks] == [1.0, 2.0, 3.0]
    # Of several labels an empty text says that none of them holds.
    expected = [[1, 1, 1, 4.5], [NAN, 0, 0, 1], [0, 0, 1, NAN]]
    np.testing.assert_array_equal(labels.encode_table(table), expected)


def test_problems_are_guessed_column_by_column(tmp_path):
    table = table_of(tmp_path / "a.csv", ROWS)
    maps = TaskMap.fit(table).maps
    assert [one.problem_type for one in maps.values()] == [PROBLEMS[0], PROBLEMS[0], PROBLEMS[2]]


def test_a_row_without_any_label_is_told_with_its_place(tmp_path):
    rows = [*ROWS, {"text": "d", "mood": " ", "tags": "", "stars": ""}]
    table = table_of(tmp_path / "a.csv", rows, ("mood", "stars"))
    with pytest.raises(ValueError, match=r"a\.csv:row 4: the row has no label in any of `mood`, `stars`\. Fill one"):
        TaskMap.fit(table).encode_table(table)


def test_wrong_labels_of_all_tasks_are_told_at_once(tmp_path):
    labels = TaskMap.fit(table_of(tmp_path / "a.csv", ROWS), PROBLEMS, ";")
    wrong = table_of(tmp_path / "b.csv", [{**ROWS[0], "mood": "angry", "stars": "many"}])
    with pytest.raises(
        ValueError, match=r"column `mood`: the label 'angry' is not known(.|\n)*column `stars`: 'many'"
    ):
        labels.encode_table(wrong)


def test_a_column_without_labels_is_refused(tmp_path):
    table = table_of(tmp_path / "a.csv", [{**row, "stars": ""} for row in ROWS])
    with pytest.raises(ValueError, match="the column `stars` holds no label at all"):
        TaskMap.fit(table, PROBLEMS, ";")
    labels = TaskMap.fit(table_of(tmp_path / "b.csv", ROWS), PROBLEMS, ";")
    with pytest.raises(ValueError, match="no label of the task `stars` among the 3 rows"):
        labels.refuse_unlabelled(table)


def test_labels_come_back_from_a_models_configuration():
    labels = labels_of(tasks_config(), ";")
    assert [(name, one.names) for name, one in labels.maps.items()] == [(t["name"], tuple(t["labels"])) for t in TASKS]
    assert labels.weights == (2.0, 1.0, 0.5) and labels.maps["tags"].delimiter == ";"
    assert labels_of(model_config()).tasks is None


# -- metrics ----------------------------------------------------------------------------------------------------------


def test_each_task_is_measured_as_if_it_were_alone_on_the_rows_that_have_its_label():
    config, rng = tasks_config(), np.random.default_rng(0)
    labels = LABELS.numpy()[:4].astype(float)
    logits = {"text+image+audio": rng.normal(size=(4, 6))}
    result = measure_subsets(config, Predictions(logits, labels, np.ones((4, 3), bool)))
    assert {name: one["num_rows"] for name, one in result["tasks"].items()} == {"mood": 3, "tags": 3, "stars": 2}
    rows = [0, 2, 3]
    alone = Predictions({"text+image+audio": logits["text+image+audio"][rows, :3]}, labels[rows, 0].astype(int),
        np.ones((3, 3), bool))  # fmt: skip
    assert result["tasks"]["mood"] == measure_subsets(config.task("mood").config, alone)


def test_the_score_is_the_mean_of_the_tasks_by_their_weights():
    every = {"mood": {"accuracy": 0.5}, "tags": {"micro_f1": 0.8}, "stars": {"mae": 0.4}}
    result = {"tasks": {n: {"metrics": {"text": {**m, "num_rows_with_input": 3}}} for n, m in every.items()}}
    found = judged(tasks_config(), result, "text")
    assert found["score"] == pytest.approx((2.0 * 0.5 + 0.8 - 0.5 * 0.4) / 3.5)
    assert [*found["validation"]] == ["score", "mood: accuracy", "tags: micro_f1", "stars: mae"]
    assert deciding_metric(found["validation"]) == ("score", True)


# -- flags ------------------------------------------------------------------------------------------------------------

TYPED = ["--train_file", "a.csv", "--output_dir", "outputs/none", "--label_column"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["a", "b", "--problem_type", *PROBLEMS], "--problem_type names 3 for 2 --label_column: one for all, or each"),
        (["a", "b", "--task_weights", "1"], "give each of several --label_column a number above 0"),
        (["a", "b", "--task_weights", "1", "0"], "give each of several --label_column a number above 0"),
        (["a", "--task_weights", "1"], r"a number above 0 \(here are 1\)"),
        (["a", "a"], "name each column once"),
        (["a", "b", "--label_delimiter", ";"], "say with --problem_type which are multi-label"),
        (["a", "b", "--teacher", "x"], "--teacher is for one --label_column, not for several at once"),
        (["a", "b", "--balance", "ogm_ge"], "--balance ogm_ge is for one --label_column"),
        (["a", "b", "--class_weights", "balanced"], "--class_weights is for one --label_column"),
        (["a", "b", "--contrastive_by_class"], "--contrastive_by_class is for one --label_column"),
    ],
)
def test_flags_that_do_not_fit_several_label_columns_are_refused(flags, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse_args([*TYPED, *flags], "", "")
    assert message.replace("\\", "") in capsys.readouterr().err


def test_one_label_column_is_typed_and_kept_as_ever():
    args = parse_args([*TYPED, "stars", "--problem_type", "regression"], "", "")
    assert (args.label_column, args.problem_type, args.task_weights) == ("stars", "regression", None)


# -- from a table to a card -------------------------------------------------------------------------------------------


def make_rows(folder, count, seed):
    """Texts and pictures that tell mood, tags and stars; each label is missing somewhere."""
    rng = random.Random(seed)
    for number in range(count):
        mood, tags = rng.choice(["bad", "good", "so so"]), [t for t in ("food", "room") if rng.random() < 0.5]
        shade = {"bad": 20, "so so": 120, "good": 230}[mood]
        Image.new("RGB", (16, 16), (shade, number % 50, 0)).save(folder / f"{seed}-{number}.png")
        yield {
            "text": " ".join([mood, *tags]),
            "image": f"{seed}-{number}.png" if number % 4 else "",
            "mood": mood if number % 5 else "",
            "tags": ";".join(tags),
            "stars": f"{shade / 50:.2f}" if number % 3 else "",
        }


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    files = [written(folder / f"{n}.csv", list(make_rows(folder, n, seed))) for seed, n in enumerate((48, 24))]
    return [
        "--train_file", str(files[0]), "--validation_file", str(files[1]), "--label_column", *NAMES,
        "--problem_type", *PROBLEMS, "--label_delimiter", ";", "--task_weights", "1", "1", "0.2", "--image_size", "16",
        "--fusion_hidden_size", "16", "--max_text_length", "8", "--num_train_epochs", "2", "--balance", "unimodal",
    ]  # fmt: skip


def fresh():
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(scope="module")
def trained(flags, tmp_path_factory):
    fresh()
    folder = tmp_path_factory.mktemp("models") / "several"
    assert train.main([*flags, "--output_dir", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def pipeline(trained):
    from cli.loading import load_pipeline

    return load_pipeline(str(trained), device="cpu")


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_training_measures_and_calibrates_each_task(trained):
    metrics, config = read_json(trained / "metrics.json"), read_json(trained / "config.json")
    assert {name: one["num_rows"] for name, one in metrics["tasks"].items()} == {"mood": 19, "tags": 24, "stars": 16}
    for one in metrics["tasks"].values():
        assert list(one["metrics"]) == SUBSETS and one["complete_rows"]["num_rows"] < one["num_rows"]
    mood, tags, stars = config["tasks"]
    assert set(mood["temperatures"]) == set(tags["temperatures"]) == set(SUBSETS) and "temperatures" not in stars
    assert set(mood["unimodal_temperatures"]) == {"text", "image"}
    assert len(tags["thresholds"]) == 2 and [task["weight"] for task in config["tasks"]] == [1.0, 1.0, 0.2]
    epochs = metrics["training"]["epochs"]
    assert len(epochs) == 2 and all("mood: accuracy" in epoch["validation"] for epoch in epochs)


def test_the_model_loads_as_a_stranger_loads_it(trained):
    model = AutoModelForSequenceClassification.from_pretrained(trained, trust_remote_code=True)
    labels = ["mood: bad", "mood: good", "mood: so so", "tags: food", "tags: room", "stars"]
    assert list(model.config.id2label.values()) == labels
    assert model.for_task("tags").config.num_labels == 2


def test_the_pipeline_answers_every_task_or_one(pipeline):
    sample = {"text": "good food"}
    every = pipeline(sample)
    assert list(every) == list(NAMES) and len(every["mood"]) == 3 and every["stars"][0]["label"] == "stars"
    many = pipeline([sample, {"text": "bad"}], batch_size=2)
    assert many[0]["mood"][0]["score"] == pytest.approx(every["mood"][0]["score"], abs=1e-6)
    for name in NAMES:
        one = pipeline(sample, task_name=name)
        assert [e["label"] for e in one] == [e["label"] for e in every[name]]
        assert [e["score"] for e in one] == pytest.approx([e["score"] for e in every[name]], abs=1e-5)


def test_opinions_are_those_of_the_task(pipeline):
    image = Image.new("RGB", (16, 16), (230, 0, 0))
    answer = pipeline({"text": "good", "image": image}, task_name="mood", opinions=True)
    assert set(answer["opinions"]) == {"text", "image"} and len(answer["opinions"]["text"]) == 3
    with pytest.raises(ValueError, match="`opinions` needs probabilities, and in the task `stars` the answers are"):
        pipeline({"text": "good"}, opinions=True)
    with pytest.raises(ValueError, match="this model has no task 'moods'; its tasks are mood, tags, stars"):
        pipeline({"text": "good"}, task_name="moods")


def test_a_pipeline_may_be_made_for_one_task(trained):
    from transformers import pipeline as make_pipeline

    one = make_pipeline("multimodal-classification", model=str(trained), trust_remote_code=True, task_name="tags")
    assert {entry["label"] for entry in one({"text": "food"})} == {"food", "room"}
    assert (one.task_name, one.task_names) == ("tags", NAMES)


def test_an_explanation_is_of_a_label_of_a_task(pipeline):
    sample = {"text": "good food"}
    of_label = pipeline.explain(sample, label="mood: good", details=False)
    assert of_label["label"] == "good" and of_label["function"] == "softmax"
    assert of_label == pipeline.explain(sample, label=1, details=False)
    best = pipeline.explain(sample, label="tags", details=False)
    assert best["label"] in ("food", "room") and best["function"] == "sigmoid"
    every = pipeline.explain(sample, details=False)
    assert list(every) == list(NAMES) and every["tags"] == best
    assert pipeline.explain([sample, sample], details=False)[1]["stars"]["label"] == "stars"
    with pytest.raises(ValueError, match="`label` is 'good'; this model knows mood: bad, mood: good"):
        pipeline.explain(sample, label="good")
    with pytest.raises(ValueError, match="this model has the tasks mood, tags, stars: ask for one of them"):
        pipeline.explain_batch({})


def test_a_table_gets_the_columns_of_every_task(trained, flags, tmp_path):
    out = tmp_path / "scored.jsonl"
    call = [str(trained), "--data_file", flags[3], "--output_file", str(out), "--device", "cpu"]
    assert predict.main(call) == 0
    row = json.loads(out.read_text().splitlines()[0])
    assert row["mood_prediction"] in ("bad", "good", "so so") and isinstance(row["tags_prediction"], list)
    assert isinstance(row["stars_prediction"], float) and row["mood_probability_so so"] <= row["mood_score"]
    assert predict.main([*call, "--overwrite", "--task_name", "mood", "--opinions"]) == 0
    row = json.loads(out.read_text().splitlines()[1])
    assert row["prediction"] in ("bad", "good", "so so") and "opinion_text" in row and "stars_prediction" not in row
    assert predict.main([*call, "--overwrite", "--explain"]) == 0
    assert "stars_contribution_text" in json.loads(out.read_text().splitlines()[0])


@pytest.mark.parametrize(
    ("flags_of_predict", "message"),
    [
        (
            ["--reject_below", "0.5"],
            "needs probabilities, and the task `stars` of .* predicts numbers; leave it out",
        ),
        (["--explain", "--label", "good"], "`--label` is one of a task: say with --task_name of which"),
    ],
)
def test_a_table_is_not_asked_what_one_task_cannot_say(trained, flags, tmp_path, flags_of_predict, message, capsys):
    call = [str(trained), "--data_file", flags[3], "--output_file", str(tmp_path / "a.csv"), "--device", "cpu"]
    assert predict.main([*call, *flags_of_predict]) == 1
    assert re.search(message, capsys.readouterr().err)


def evaluated(trained, table, *more):
    args = [str(trained), "--data_file", str(table), "--label_delimiter", ";", "--device", "cpu", *more]
    return evaluation.run(evaluation.parse_args(args))


def test_an_evaluation_measures_what_the_training_did(trained, flags, capsys):
    fresh()
    result = evaluated(trained, flags[3], "--target_accuracy", "0.2")
    trained_as = read_json(trained / "metrics.json")["tasks"]
    for name, metric in (("mood", "accuracy"), ("tags", "mean_average_precision"), ("stars", "mae")):
        for subset in SUBSETS:
            there, then = result["tasks"][name]["metrics"][subset][metric], trained_as[name]["metrics"][subset][metric]
            assert there == pytest.approx(then, abs=1e-5)
    printed = capsys.readouterr().out
    assert all(f"== {name} ==" in printed for name in NAMES)
    assert "reject_below" in result["tasks"]["mood"] and "reject_below" not in result["tasks"]["stars"]


def test_an_evaluation_takes_the_tasks_that_the_table_has(trained, flags, tmp_path, capsys):
    fresh()
    rows = [{"text": "good", "feeling": "good"}, {"text": "bad", "feeling": "bad"}, {"text": "room", "feeling": ""}]
    table = written(tmp_path / "a.csv", rows)
    result = evaluated(trained, table, "--label_column", "feeling", "none", "none")
    assert result["tasks"]["mood"]["num_rows"] == 2 and list(result["tasks"]) == ["mood"]
    assert "note: not measured, for the table has no labels of it: tags, stars" in capsys.readouterr().err
    with pytest.raises(ValueError, match="give a column for each, in this order, or `none` where the table has none"):
        evaluated(trained, table, "--label_column", "feeling")
    with pytest.raises(ValueError, match="has a label column for none of the tasks mood, tags, stars"):
        evaluated(trained, table)


def test_an_evaluation_of_one_task_takes_one_label_column():
    args = evaluation.parse_args(["model", "--data_file", "a.csv", "--label_column", "a", "b"])
    with pytest.raises(ValueError, match="`model` has one task: give one `--label_column`, not a, b"):
        evaluation.label_columns(args, labels_of(model_config()))


def test_a_training_goes_on_with_the_head_of_the_same_tasks(trained, flags):
    labels = labels_of(MMFusionConfig.from_pretrained(trained), ";")
    old = AutoModelForSequenceClassification.from_pretrained(trained, trust_remote_code=True)
    options = {"dropout": 0.1, "choices": {"balance": "unimodal"}}
    same = load_classifier(str(trained), None, labels, **options)
    assert torch.equal(same.classifier.weight, old.classifier.weight)
    assert all("temperatures" not in task and "thresholds" not in task for task in same.config.tasks)
    fewer = TaskMap(dict(list(labels.maps.items())[:2]), (1.0, 1.0))
    anew = load_classifier(str(trained), None, fewer, dropout=0.1, choices={"balance": "none"})
    assert anew.classifier.out_features == 5 and [task["name"] for task in anew.config.tasks] == ["mood", "tags"]
    alone = load_classifier(str(trained), None, labels.maps["mood"], dropout=0.1, choices={"balance": "none"})
    assert alone.config.tasks is None and list(alone.config.id2label.values()) == ["bad", "good", "so so"]


def test_the_card_shows_every_task(trained, tmp_path):
    (tmp_path / "export").mkdir()
    export_model(trained, tmp_path / "export", repo_id="user/several")
    card = (tmp_path / "export" / "README.md").read_text(encoding="utf-8")
    for name in NAMES:
        assert f"### {name}\n" in card
    assert "does 3 tasks at once: for mood it says which one of 3 labels fits best; for tags" in card
    assert 'task_name="mood")' in card and "accuracy (mood, text+image)" in card and "- multi-task" in card
    pictures = {path.name for path in (tmp_path / "export").glob("*.png")}
    assert {
        "task1_subsets.png",
        "task1_confusion_matrix.png",
        "task2_reliability.png",
        "task3_subsets.png",
    } <= pictures
    assert all(f"({name})" in card for name in pictures)


def test_a_card_needs_the_results_of_every_task(trained, tmp_path):
    for name in ("config.json", "training_config.json", "processor_config.json", "metrics.json"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    for path in trained.glob("*.py"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    metrics = read_json(trained / "metrics.json")
    del metrics["tasks"]["tags"]
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(ValueError, match="does not hold `tasks` with results of mood, tags, stars"):
        render_model_card(tmp_path)


def test_the_app_serves_one_task(trained, pipeline):
    from space.model_info import model_info
    from space.options import Options

    served = app.for_one_task(pipeline, None)
    info = model_info(served, Options(), str(trained))
    assert (info["task"], info["tasks"]) == ("mood", list(NAMES)) and info["labels"] == ["bad", "good", "so so"]
    assert info["metrics"]["num_rows"] == 19
    served = app.for_one_task(pipeline, "stars")
    assert model_info(served, Options(), str(trained))["problem_type"] == "regression"
    with pytest.raises(ValueError, match="this model has no task 'x'"):
        app.for_one_task(pipeline, "x")


def test_a_task_without_labels_among_the_validation_rows_ends_the_training(flags, tmp_path, capsys):
    fresh()
    rows = [{"text": "good", "image": "", "mood": "good", "tags": "", "stars": ""}]
    changed = [str(written(tmp_path / "v.csv", rows)) if flag == flags[3] else flag for flag in flags]
    assert train.main([*changed, "--image_column", "none", "--output_dir", str(tmp_path / "m")]) == 1
    assert "no label of the task `stars` among the 1 rows" in capsys.readouterr().err
