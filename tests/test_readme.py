"""What the README and the Makefile tell a reader to do can be done."""

import importlib
import itertools
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def shell(text: str) -> str:
    """The shell blocks of a document, each command on one line."""
    return re.sub(r"\\\n\s*", " ", "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)))


def expanded(lines: str) -> str:
    """The lines with the words that they give a name, as in `COMMON="--a b"`, in place of it: `$COMMON`."""
    for name, words in re.findall(r'^([A-Z]\w*)="([^"]*)"$', lines, re.MULTILINE):
        lines = re.sub(rf"\${name}\b", " ".join(words.split()).replace("\\", ""), lines)
    return lines


def commands(lines: str) -> list[str]:
    """Every `python SCRIPT …`, on one line each, without comments."""
    verbs = "train|tune|evaluation|predict|search|push_to_hub|app"
    found = [
        re.search(rf"(?:python|\$\(PY\)) ((?:{verbs}|benchmarks/\w+)\.py .*)", line) for line in lines.splitlines()
    ]
    return [re.sub(r"\s#.*", "", match[1]) for match in found if match]


MAKEFILE = re.sub(r"\\\n\s*", " ", (ROOT / "Makefile").read_text(encoding="utf-8"))


@pytest.mark.parametrize("command", [*commands(expanded(shell(README))), *commands(MAKEFILE)])
def test_a_command_of_the_readme_has_flags_that_exist(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # no output folder of a run stands in the way
    assert parsed(command)


def parsed(command: str):
    """What a script makes of a command's flags, with `value` in place of variables of the shell."""
    script, *arguments = shlex.split(re.sub(r"\$\$?\([^)]*\)|\$\w+|\$@", "value", command).replace(") |", "|"))
    arguments = list(itertools.takewhile(lambda word: word not in ("|", ">"), arguments))
    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    texts = {"description": "", "epilog": ""} if script == "train.py" else {}
    read = module.parse_options if script == "app.py" else module.parse_args
    return read([word for word in arguments if word != "…"], **texts)


def test_the_files_that_the_readme_lists_are_there():
    tree = re.search(r"## What is where\n\n```\n(.*?)```", README, re.DOTALL)[1]
    names = re.findall(r"\b[\w/]+(?:\.py|\.md)|\b(?:data|metrics|training|cli|benchmarks|tests|docs)/", tree)
    places = [ROOT, ROOT / "docs", ROOT / "benchmarks"]
    assert len(names) > 10
    for name in names:
        assert any((place / name).exists() for place in places), name
