"""The model card: true to the files it is made from, safe whatever the names in them, and its code runs."""

import html
import itertools
import json
import re

import numpy as np
import pytest
import soundfile
import yaml
from conftest import make_model, model_config
from huggingface_hub import ModelCard, metadata_load
from PIL import Image
from test_evaluation import LABELS, make_processor

from compat_mmfusion import REQUIRES
from hub.card import render_model_card
from hub.facts import read_facts
from hub.markdown import escaped
from hub.metadata import is_hub_id
from metrics.subsets import modality_subsets, subset_name
from training.folder import save_model_folder

HOSTILE = ["a|b", "<script>alert(1)</script>", "`x` ``` y", "two\nlines\n---\n", "yes", "no", ": x", "[a](http://b.c)",
           "**bold** _it_ $x$", "www.a.bc", "# h", "\u202eevil", "&amp;", "{{ 7*7 }}", "- item", "'\"\\"]  # fmt: skip
METRICS = {
    "single_label_classification": ("accuracy", "macro_f1", "expected_calibration_error"),
    "multi_label_classification": ("micro_f1", "macro_f1", "mean_average_precision"),
    "regression": ("mae", "pearson_r"),
}


def results(problem, modalities, num_rows=1234, seed=0):
    """A table as `evaluate_subsets` gives it; every value is another one."""
    generator = np.random.default_rng(seed)
    return {
        subset_name(subset): {
            **{name: float(generator.uniform(0.2, 0.9)) for name in METRICS[problem]},
            "num_rows_with_input": num_rows - 7 * place,
        }
        for place, subset in enumerate(modality_subsets(modalities))
    }


@pytest.fixture
def make(tmp_path):
    """Write the JSON files of a model folder; keywords change what stands in them."""

    def make_folder(
        problem="single_label_classification", modalities=("text", "image", "audio"), labels=LABELS, **changes
    ):
        towers = {"text": "text_config", "image": "vision_config", "audio": "audio_config"}
        left_out = {field: None for name, field in towers.items() if name not in modalities}
        names = dict(enumerate(labels))
        config = model_config(problem_type=problem, num_labels=len(names), id2label=names, **left_out)
        config.architectures = ["MMFusionForSequenceClassification"]
        config.auto_map = {"AutoConfig": "configuration_mmfusion.MMFusionConfig"}
        folder = tmp_path / "animals"
        config.save_pretrained(folder)
        metrics = {
            "metrics": results(problem, modalities), "num_rows": 1234,
            "complete_rows": {"num_rows": 871, "metrics": results(problem, modalities, 871, seed=1)},
            "training": {"epochs": [{}] * 9, "best_epoch": 6, "interrupted": False, "num_skipped_steps": 0},
        }  # fmt: skip
        training = {
            "command": "python train.py --train_file rows.csv --seed 17", "arguments": {"seed": 17}, "device": "cpu",
            "data": {
                "train": {"name": "rows.csv", "num_rows": 45678}, "validation": {"name": "v.csv", "num_rows": 1234},
            },
            "base_models": {}, "num_processes": 2, "versions": {"torch": "2.13.0+cpu"},
        }  # fmt: skip
        files = {
            "metrics": metrics | changes.get("metrics", {}),
            "training_config": training | changes.get("training", {}),
        }
        for name, content in files.items():
            (folder / f"{name}.json").write_text(json.dumps(content))
        processor = {"max_text_length": 96, "max_audio_seconds": 7.5, "feature_extractor": {"sampling_rate": 22050},
                     "image_processor": {"size": {"height": 48, "width": 40}}}  # fmt: skip
        (folder / "processor_config.json").write_text(json.dumps(processor | changes.get("processor", {})))
        return folder

    return make_folder


def head_of(card, tmp_path):
    """The metadata, read in the ways that clients read it."""
    (tmp_path / "README.md").write_text(card, encoding="utf-8")
    head = metadata_load(tmp_path / "README.md")
    assert head == yaml.safe_load(card.split("\n---\n")[0].removeprefix("---\n"))
    return head


# -- true to the files ------------------------------------------------------------------------------------------------

NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")


def numbers_of(value):
    """Every number in the content of a JSON file: its own, and those inside of text such as a version."""
    if isinstance(value, dict):
        yield from itertools.chain.from_iterable(map(numbers_of, [*value, *value.values()]))
    elif isinstance(value, list):
        yield from itertools.chain.from_iterable(map(numbers_of, value))
    elif isinstance(value, str):
        yield from (float(found) for found in re.findall(r"\d+(?:\.\d+)?", value))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)


def is_shown(text, is_percentage, number):
    """Whether a number of a file, rounded as much as the card's, is that of the card."""
    decimals = len(text.partition(".")[2]) if "e" not in text else 12
    scaled = 100 * number if is_percentage else number
    return abs(round(scaled, decimals) - float(text)) < 1e-9 or f"{number:.4g}" == text


@pytest.mark.parametrize("problem", METRICS)
def test_no_number_stands_in_a_card_that_the_files_do_not_hold(make, problem):
    details = {"confusion_matrix": [[300, 11, 3], [5, 400, 9], [2, 6, 498]]} if problem.startswith("single") else {}
    details |= {"absolute_error_quantiles": {"0.5": 0.123, "0.9": 4.56}} if problem == "regression" else {}
    folder = make(problem, metrics=details)
    card = render_model_card(folder, repo_id="user/animals", revision="f00d", space_id="user/show")
    held = list(numbers_of([*REQUIRES, *(json.loads(path.read_text()) for path in folder.glob("*.json"))]))
    held += [float(len(LABELS)), 9.0]  # how many labels `id2label` and epochs `metrics.json` list
    found = [
        (match[0].replace(",", ""), card[match.end() : match.end() + 1] == "%") for match in NUMBER.finditer(card)
    ]
    assert len(found) > 60
    strangers = [text for text, percent in found if not any(is_shown(text, percent, number) for number in held)]
    assert strangers == []


def test_every_subset_and_both_kinds_of_rows_are_in_the_tables(make):
    card = render_model_card(make())
    lines = [line for line in card.splitlines() if line.startswith("| ")]
    for subset in modality_subsets(("text", "image", "audio")):
        assert sum(line.startswith(f"| {' + '.join(subset)} | ") for line in lines) == (3 if len(subset) == 1 else 2)
    values = results("single_label_classification", ("text", "image", "audio"))["text+audio"]
    assert f"| text + audio | 1,206 | {values['accuracy']:.1%} | {values['macro_f1']:.1%} | " in card
    assert "On the rows that have every modality (871)" in card


def test_tables_of_the_same_rows_are_shown_once(make):
    same = {"num_rows": 1234, "metrics": results("single_label_classification", ("text", "image", "audio"))}
    assert "On the rows that have every modality" not in render_model_card(make(metrics={"complete_rows": same}))


def test_warnings_confusions_and_pictures_stand_in_words(make):
    worse = results("regression", ("text", "image"))
    worse["text"]["mae"], worse["text+image"]["mae"] = 0.1, 0.2
    changes = {"metrics": worse, "complete_rows": {"num_rows": 3, "metrics": worse}}
    card = render_model_card(make("regression", ("text", "image"), metrics=changes), pictures=["subsets.png"])
    assert "> **Note:** the full fusion, `text+image`, is worse than `text` alone: MAE 0.2 against 0.1" in card
    assert "![Bar chart of the table above: MAE of every subset of the modalities.](subsets.png)" in card
    matrix = [[5, 4, 0], [1, 5, 0], [0, 9, 5]]
    card = render_model_card(make(metrics={"confusion_matrix": matrix}))
    assert "Most often mistaken: cat taken for bee (9 rows), ant taken for bee (4 rows).\n" in card


def test_what_is_loaded_and_what_code_runs_is_named(make):
    folder = make()
    card = render_model_card(folder, repo_id="user/animals", revision="0123abcd", space_id="user/show")
    assert card.count('revision="0123abcd"') == 3 and card.count('"user/animals"') == 3
    assert "`configuration_mmfusion.py`" in card and "https://huggingface.co/spaces/user/show" in card
    assert "\n# animals\n" in card
    local = render_model_card(folder)
    assert '"path/to/animals"' in local and "revision=" in local and "huggingface.co/spaces" not in local


def test_command_data_seed_and_versions_are_those_of_the_run(make):
    card = render_model_card(make(training={"base_models": {"text": "bert-base-uncased", "image": "my_vit"}}))
    assert "```bash\npython train.py --train_file rows.csv --seed 17\n```" in card
    assert "Trained on: rows.csv, 45,678 rows" in card and "| torch | 2.13.0+cpu |" in card and "| seed | 17 |" in card
    assert "Towers that were pretrained: bert-base-uncased (text) and my\\_vit (image)." in card
    assert "best of 9 epochs, number 6" in card


def test_without_a_recorded_command_the_arguments_that_have_a_value_are_shown(make):
    arguments = {"seed": 3, "train_file": "my rows.csv", "image_column": None, "check_cells": False, "hub_token": "x"}
    card = render_model_card(make(training={"command": None, "arguments": arguments}))
    assert "--no-check_cells \\\n    --seed 3 \\\n    --train_file 'my rows.csv'\n```" in card
    assert "image_column" not in card and "token" not in card.split("```bash")[1].split("```")[0]


def test_limits_are_those_that_the_processor_has(make):
    card = render_model_card(make())
    assert "Text beyond 96 tokens is cut off." in card and "(height 48, width 40)" in card
    assert "Sound beyond 7.5 seconds is cut off. It is heard at 22,050 Hz." in card
    assert "expected calibration error, all rows" in card
    sound = render_model_card(make(modalities=("audio",)))
    assert "tokens" not in sound and "Pictures" not in sound.split("## Limits")[1]


def test_an_older_folder_has_a_card_that_is_silent_about_what_it_lacks(make):
    folder = make()
    (folder / "training_config.json").write_text("{}")
    (folder / "processor_config.json").unlink()
    metrics = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps({key: metrics[key] for key in ("metrics", "num_rows")}))
    card = render_model_card(folder)
    assert "The training data was not recorded." in card and "None" not in card.split("## Training")[1]
    assert "Sound beyond" not in card


# -- metadata ---------------------------------------------------------------------------------------------------------


def test_metadata_says_what_the_hub_searches_for(make, tmp_path):
    training = {
        "license": "apache-2.0",
        "base_models": {"text": "bert-base-uncased", "image": "google/vit-base-patch16-224", "audio": "my_wav2vec2"},
        "data": {
            "train": {"name": "user/data", "num_rows": 5, "hub_id": "user/data", "revision": "ab12"},
            "validation": {"name": "user/data", "num_rows": 2, "hub_id": "user/data", "revision": "ab12"},
        },
    }
    card = render_model_card(make(training=training), repo_id="user/animals")
    head = head_of(card, tmp_path)
    assert head["library_name"] == "transformers" and head["pipeline_tag"] == "text-classification"
    assert {"multimodal", "text", "image", "audio", "mmfusion", "custom_code"} <= set(head["tags"])
    assert head["base_model"] == ["bert-base-uncased", "google/vit-base-patch16-224"]
    assert head["base_model_relation"] == "finetune" and head["license"] == "apache-2.0"
    assert head["datasets"] == ["user/data"]
    assert "[user/data](https://huggingface.co/datasets/user/data) at commit `ab12`, 5 rows" in card


def test_nothing_is_claimed_that_was_not_stated(make, tmp_path):
    card = render_model_card(make())
    head = head_of(card, tmp_path)
    assert not {"license", "base_model", "base_model_relation", "datasets", "language"} & set(head)
    assert "No licence was stated" in card


@pytest.mark.parametrize(
    ("modalities", "tag"),
    [
        (("text", "audio"), "text-classification"),
        (("image", "audio"), "image-classification"),
        (("audio",), "audio-classification"),
    ],
)
def test_the_pipeline_tag_is_that_of_the_first_tower(make, tmp_path, modalities, tag):
    head = head_of(render_model_card(make(modalities=modalities)), tmp_path)
    assert head["pipeline_tag"] == tag and set(head["tags"]) & {"text", "image", "audio"} == set(modalities)


@pytest.mark.parametrize("problem", METRICS)
def test_the_model_index_holds_every_defined_result_of_every_subset(make, tmp_path, problem):
    folder = make(problem, metrics={"metrics": (values := results(problem, ("text", "image", "audio")))})
    values["image"][METRICS[problem][-1]] = None
    (folder / "metrics.json").write_text(json.dumps({"metrics": values, "num_rows": 1234}))
    (tmp_path / "README.md").write_text(render_model_card(folder, repo_id="user/animals"), encoding="utf-8")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.model_name == "user/animals"
    read = {(r.metric_args["modalities"], r.metric_name): r.metric_value for r in card.data.eval_results}
    assert len(read) == len(card.data.eval_results) == 7 * len(METRICS[problem]) - 1
    assert set(read.values()) == {v for row in values.values() for k, v in row.items() if "rows" not in k} - {None}
    assert card.data.eval_results[0].metric_args == {"modalities": "text+image+audio"}
    assert {r.dataset_name for r in card.data.eval_results} == {"v.csv"}


def test_a_base_model_is_linked_only_when_its_name_is_surely_one_of_the_hub():
    for name in ("bert-base-uncased", "facebook/wav2vec2-base", "distilbert-base-cased", "a/b.c-d_e"):
        assert is_hub_id(name)
    for name in ("my_bert", "bert-mine", "./bert", "a/b/c", "models\\bert", "/root/bert", "../bert", "a/b c", ""):
        assert not is_hub_id(name)


# -- strangers' names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_stays_a_name(make, tmp_path, name):
    data = {"train": {"name": name, "num_rows": 5}, "validation": {"name": name, "num_rows": 5}}
    training = {"data": data, "base_models": {"text": name}, "license": name, "command": f"python train.py {name}",
                "versions": {name: name}, "device": name}  # fmt: skip
    plain_lines = render_model_card(make(labels=["x", "y"])).splitlines()
    card = render_model_card(make(labels=[name, "y"], training=training))
    head = head_of(card, tmp_path)
    one_line = " ".join(name.split())
    assert (head["license"], head["model-index"][0]["results"][0]["dataset"]["name"]) == (one_line, one_line)
    body = re.sub(r"(`{3,})[^\n]*\n.*?\n\1\n", "", ModelCard(card).text, flags=re.DOTALL)  # without blocks of code
    assert not re.search(r"<\w|(?<!\\)\]\(http://|(?<!\\)\$|https?://(?!huggingface)|\bwww\.|\u202e", body)
    columns = {len(re.findall(r"(?<!\\)\|", line)) for line in body.splitlines() if line.startswith("| ")}
    assert columns <= {len(re.findall(r"\|", line)) for line in plain_lines if line.startswith("| ")}
    headings = [line for line in plain_lines if line.startswith("## ")]
    assert [line for line in body.splitlines() if line.startswith("## ")] == headings


def test_escaped_text_reads_as_it_was_written():
    """Take the backslashes and entities away, as Markdown does: what is left are the very letters."""
    for name in HOSTILE:
        shown = html.unescape(re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", escaped(name)))
        assert shown == " ".join(name.replace("\u202e", "").split())
    assert len(escaped("x" * 500)) == 80


# -- what cannot be rendered ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "training_config.json", "metrics.json"])
def test_a_missing_or_broken_file_is_named(make, name):
    folder = make()
    (folder / name).write_text('{"half": ')
    with pytest.raises(ValueError, match=f"`.*{name}` is not valid JSON"):
        render_model_card(folder)
    (folder / name).write_text("[1]")
    with pytest.raises(ValueError, match=f"`.*{name}` holds a list, not an object"):
        render_model_card(folder)
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"`.*{name}` is not there: a card needs it"):
        render_model_card(folder)


def test_files_of_something_else_are_refused(make):
    folder = make()
    with pytest.raises(ValueError, match=r"metrics.json` has no `mae` of `text`: a regression model is judged by it"):
        render_model_card(
            make("regression", metrics={"metrics": results("single_label_classification", ("text", "image", "audio"))})
        )
    with pytest.raises(
        ValueError, match=r"does not hold `num_rows` and `metrics` of the subsets text, audio, text\+audio"
    ):
        render_model_card(make(modalities=("text", "audio"), metrics={"metrics": {"text": {}}}))
    with pytest.raises(ValueError, match=r"`confusion_matrix` is not of the 3 labels"):
        render_model_card(make(metrics={"confusion_matrix": [[1]]}))
    bad = results("single_label_classification", ("text", "image", "audio"))
    bad["text"]["macro_f1"] = "<b>"
    with pytest.raises(ValueError, match=r"`macro_f1` of `text` is '<b>', not a number"):
        render_model_card(make(metrics={"metrics": bad}))
    with pytest.raises(ValueError, match=r"training_config.json`: `data.train` is 5, not an object"):
        render_model_card(make(training={"data": {"train": 5}}))
    folder = make()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"id2label": {"a": "b"}}))
    with pytest.raises(ValueError, match=r"`id2label` is no object of numbers and names"):
        render_model_card(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match=r"config.json` is not of an MMFusion model"):
        render_model_card(folder)


def test_names_that_are_none_are_refused(make):
    folder = make()
    with pytest.raises(ValueError, match=r"`repo_id` is 'a b': give a Hub id such as `user/name`"):
        render_model_card(folder, repo_id="a b")
    with pytest.raises(ValueError, match=r"`space_id` is 'x/y/z'"):
        render_model_card(folder, space_id="x/y/z")
    with pytest.raises(ValueError, match=r"`revision` is 'a\"b': give a commit, a tag or a branch"):
        render_model_card(folder, revision='a"b')
    with pytest.raises(ValueError, match=r"`pictures` names 'me.png'; allowed are subsets.png"):
        render_model_card(folder, pictures=["me.png"])


# -- the code in it ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", METRICS)
def test_the_code_in_a_card_runs_as_it_stands_there(problem, tmp_path, monkeypatch, capsys):
    labels = ["size"] if problem == "regression" else LABELS
    modalities = ("text", "image") if problem == "regression" else ("text", "image", "audio")
    left_out = {"audio_config": None} if problem == "regression" else {}
    names = dict(enumerate(labels))
    config = model_config(problem_type=problem, num_labels=len(names), id2label=names, **left_out)
    metrics = {"metrics": results(problem, modalities), "num_rows": 1234}
    folder = tmp_path / "path" / "to" / f"animals_{problem}"
    processor = make_processor()
    if problem == "regression":
        processor.feature_extractor = None
    save_model_folder(folder, make_model(config), processor, training_config={}, metrics=metrics)
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.full((20, 20, 3), 90, dtype=np.uint8)).save("photo.jpg")
    soundfile.write("clip.wav", np.random.default_rng(0).normal(0, 0.1, 1600), 16_000)
    blocks = re.findall(r"```python\n(.*?)\n```", render_model_card(folder), flags=re.DOTALL)
    assert len(blocks) == 3
    names = {}
    for block in blocks:
        exec(block, names)
    assert capsys.readouterr().out.count(f"'{labels[0]}':") == 2  # scores of two rows
    assert names["logits"].shape == (1, len(labels))  # and of one modality alone
    assert [entry["label"] for entry in names["classify"]({"text": "a"}, top_k=1)]


def test_the_facts_of_a_real_folder_are_read(tmp_path):
    metrics = {"metrics": results("single_label_classification", ("text", "image", "audio")), "num_rows": 9}
    model = make_model(model_config(id2label=dict(enumerate(LABELS))))
    save_model_folder(tmp_path / "m", model, make_processor(), training_config={}, metrics=metrics)
    facts = read_facts(tmp_path / "m")
    assert facts.labels == tuple(LABELS) and facts.modalities == ("text", "image", "audio") and facts.name == "m"
    card = render_model_card(tmp_path / "m")
    for path in (tmp_path / "m").glob("*.py"):  # those that are only imported, too
        assert f"`{path.name}`" in card


def test_the_card_names_the_versions_that_the_code_checks(make):
    card = str(render_model_card(make()))
    for requirement in REQUIRES:
        assert f"`{requirement}`" in card
    assert "`import mmfusion`" in card  # and how to load without the code of the repository
