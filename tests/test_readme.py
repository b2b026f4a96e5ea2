"""What README, docs and Makefile tell a reader to do can be done, and what they point to is there."""

import importlib
import itertools
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "data/README.md", ROOT / "CONTRIBUTING.md"]
# Every command of a page; what an experiment was run with is history, and stays as it was typed.
INSTRUCTIONS = [page for page in PAGES if page.name != "experiments.md"]


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


def commands_of_pages() -> list[str]:
    found = [command for page in INSTRUCTIONS for command in commands(expanded(shell(page.read_text("utf-8"))))]
    return list(dict.fromkeys([*found, *commands(MAKEFILE)]))


@pytest.mark.parametrize("command", commands_of_pages())
def test_a_command_of_the_pages_has_flags_that_exist(command, monkeypatch, tmp_path):
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_link_leads_to_a_file_and_a_heading(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if "://" in target:
            continue
        name, _, heading = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.+)$", file.read_text("utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}, target


def test_the_index_of_the_docs_lists_every_page():
    index = (ROOT / "docs/README.md").read_text("utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in index, page.name


def test_the_readme_is_read_in_one_sitting():
    assert len((ROOT / "README.md").read_bytes()) <= 9_000
