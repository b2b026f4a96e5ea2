"""The repository is held to `docs/architecture.md`: who may import whom, and what a file that travels may do."""

import ast
import functools
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TRAVELLING = tuple(sorted(path.stem for path in ROOT.glob("*_mmfusion.py")))
ENTRIES = ("configuration_mmfusion", "modeling_mmfusion", "processing_mmfusion")  # whose classes are saved
# Which travelling file may import which: guarded, so that it works flat and inside the Hub's cache.
GUARDED = {
    "configuration_mmfusion": ["compat_mmfusion", "saving_mmfusion"],
    "loading_mmfusion": ["towers_mmfusion"],
    "modeling_mmfusion": [
        "checks_mmfusion", "compat_mmfusion", "configuration_mmfusion", "fusion_mmfusion", "loading_mmfusion",
        "objectives_mmfusion", "saving_mmfusion", "towers_mmfusion",
    ],
    "fusion_mmfusion": ["compat_mmfusion", "configuration_mmfusion"],
    "towers_mmfusion": ["configuration_mmfusion"],
    "processing_mmfusion": [
        "cells_mmfusion", "collating_mmfusion", "compat_mmfusion", "decoding_mmfusion", "saving_mmfusion",
    ],
    "collating_mmfusion": ["cells_mmfusion"],
    "decoding_mmfusion": ["containers_mmfusion"],
    "explanation_mmfusion": ["towers_mmfusion"],
    "pipeline_mmfusion": ["cells_mmfusion", "explanation_mmfusion"],
}  # fmt: skip
VERBS = ("train", "evaluation", "predict", "push_to_hub", "app", "tune", "search")
ROOMS = ("cli", "data", "metrics", "training", "tuning", "searching", "hub", "space", "benchmarks")
# `transformers.dynamic_module_utils.check_imports` demands whatever is imported outside `try`, even in a function.
TRAVELLING_MAY_NEED = {"transformers", "torch", "numpy", "huggingface_hub"}
# What a search, whose trainings are processes, takes of `training/`: what is said about a run, nothing that trains.
ABOUT_A_TRAINING = {f"training.{name}" for name in ("arguments", "flags", "identity", "interruption")}
# What the Space, which has a model already, takes of `searching/`; none of these files imports `metrics/`, which a
# Space does not get.
WHAT_FINDS = {f"searching.{name}" for name in ("identity", "nearest", "store")}
HEAVY = {
    "torch", "transformers", "evaluate", "datasets", "accelerate", "sklearn", "scipy", "gradio", "matplotlib",
    "captum", "optuna", "faiss", "fastapi", "uvicorn", "starlette",
}  # fmt: skip
TRAINEES = {ROOT / "benchmarks/trainee.py", ROOT / "benchmarks/towers.py"}  # trainings, step by step
MAX_LINES = 450
# Files that travel stay whole: each is copied to the Hub by its name, and one file is read in one sitting.
MAX_LINES_OF = {
    "modeling_mmfusion.py": 880, "explanation_mmfusion.py": 765, "towers_mmfusion.py": 470,
    "pipeline_mmfusion.py": 550, "decoding_mmfusion.py": 610, "processing_mmfusion.py": 545,
}  # fmt: skip


def python_files(*folders: str) -> list[Path]:
    """Python files of the root (without folders) or of the folders, at any depth."""
    found = [path for folder in folders for path in (ROOT / folder).rglob("*.py")] if folders else ROOT.glob("*.py")
    return sorted(path for path in found if "__pycache__" not in path.parts)


SOURCES = [*python_files(), *python_files(*ROOMS)]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@functools.cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), name_of(path))


def imported_by(node: ast.AST) -> Iterator[str]:
    """Dotted modules that one import statement names; a relative one keeps its dots."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield "." * node.level + (node.module or "")


def imports(path: Path) -> set[str]:
    """Everything a file imports, at any depth."""
    return {module for node in ast.walk(parse(path)) for module in imported_by(node)}


def imports_of_ours(path: Path) -> set[str]:
    """First parts of those imports that are files or folders of this repository."""
    ours = {file.stem for file in ROOT.glob("*.py")} | {*ROOMS, "tests"}
    return {first for module in imports(path) if (first := module.lstrip(".").split(".")[0]) in ours}


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def statements(node: ast.AST, *, into_functions: bool, into_guards: bool) -> Iterator[ast.AST]:
    """Statements below a node, without the bodies of functions or of `try … except ImportError` where not wanted."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not into_functions:
            continue
        if isinstance(child, ast.Try) and not into_guards and catches_import_error(child):
            continue
        if is_type_checking(child) and not into_functions:
            continue
        yield child
        yield from statements(child, into_functions=into_functions, into_guards=into_guards)


def catches_import_error(node: ast.Try) -> bool:
    return any(handler.type is not None and "ImportError" in ast.unparse(handler.type) for handler in node.handlers)


# -- who may import whom ----------------------------------------------------------------------------------------------


def test_travelling_files_import_each_other_only_where_it_is_said():
    for name in TRAVELLING:
        at_import = {
            module.lstrip(".")
            for node in statements(parse(ROOT / f"{name}.py"), into_functions=False, into_guards=True)
            for module in imported_by(node)
        }
        assert at_import & {*TRAVELLING} == {*GUARDED.get(name, ())}, name


@pytest.mark.parametrize(("name", "imported"), GUARDED.items())
def test_an_import_between_travelling_files_is_guarded_as_the_hub_needs_it(name, imported):
    tries = [node for node in ast.walk(parse(ROOT / f"{name}.py")) if isinstance(node, ast.Try)]
    (guard,) = (node for node in tries if isinstance(node.body[0], ast.ImportFrom) and node.body[0].level)
    assert [ast.unparse(line).split(" import")[0] for line in guard.body] == [f"from .{module}" for module in imported]
    raising, *flat = guard.handlers[0].body
    assert ast.unparse(raising) == "if __package__:\n    raise"
    assert [ast.unparse(line).split(" import")[0] for line in flat] == [f"from {module}" for module in imported]


@pytest.mark.parametrize("folder", ["data", "metrics"])
def test_data_and_metrics_import_no_model_no_verb_and_nothing_of_the_commands(folder):
    models = set(TRAVELLING) - {"decoding_mmfusion"}
    forbidden = {*models, *VERBS, "cli", "training", "hub", "space", "benchmarks", "tests"}
    for path in python_files(folder):
        assert not imports_of_ours(path) & forbidden, name_of(path)


def test_data_takes_the_two_decoding_functions_and_metrics_take_nothing():
    taken = set()
    for path in python_files("data"):
        for node in ast.walk(parse(path)):
            if "decoding_mmfusion" in imported_by(node):
                assert isinstance(node, ast.ImportFrom), name_of(path)
                taken |= {alias.name for alias in node.names}
    assert taken == {"decode_image", "decode_audio"}
    for path in python_files("metrics"):
        assert not imports_of_ours(path) & {"processing_mmfusion", "decoding_mmfusion"}, name_of(path)


def test_data_does_not_know_the_metrics():
    for path in python_files("data"):
        assert "metrics" not in imports_of_ours(path), name_of(path)


def test_verbs_and_benchmarks_reach_the_model_as_a_user_does():
    """Only `train.py` may take the classes from the files; all others go through `Auto*` and the pipeline.

    What an empty cell is, the Space asks where the pipeline does.
    """
    paths = [ROOT / f"{verb}.py" for verb in VERBS if verb != "train"]
    paths += python_files("benchmarks", "cli", "hub", "searching", "space")
    for path in set(paths) - TRAINEES:
        models = set(TRAVELLING) - ({"cells_mmfusion"} if path.parent.name == "space" else set())
        assert not imports_of_ours(path) & models, name_of(path)


def test_verbs_never_import_each_other():
    for path in SOURCES:
        assert not imports_of_ours(path) & set(VERBS), name_of(path)


def test_training_is_the_room_of_train_alone():
    for path in SOURCES:
        if path == ROOT / "tune.py" or path.parent.name == "tuning":
            taken = {module for module in imports(path) if module.split(".")[0] == "training"}
            assert taken <= ABOUT_A_TRAINING, name_of(path)
        elif path.name != "train.py" and path.parent.name != "training" and path not in TRAINEES:
            assert "training" not in imports_of_ours(path), name_of(path)


def test_tuning_is_the_room_of_tune_alone():
    for path in SOURCES:
        if path.name != "tune.py" and path.parent.name != "tuning":
            assert "tuning" not in imports_of_ours(path), name_of(path)


def test_searching_is_the_room_of_search_and_the_space_takes_what_finds_and_nothing_that_makes_an_index():
    for path in SOURCES:
        if path.parent.name == "space":
            taken = {module for module in imports(path) if module.split(".")[0] == "searching"}
            assert taken <= WHAT_FINDS, name_of(path)
        elif path.name != "search.py" and path.parent.name != "searching":
            assert "searching" not in imports_of_ours(path), name_of(path)
    for name in WHAT_FINDS:
        assert "metrics" not in imports_of_ours(ROOT / f"{name.replace('.', '/')}.py"), name


def test_the_hub_is_the_room_of_the_push_and_the_space_that_of_the_app():
    for path in SOURCES:
        if path.name != "push_to_hub.py" and path.parent.name != "hub" and path != ROOT / "training/publishing.py":
            assert "hub" not in imports_of_ours(path), name_of(path)
        if path.name != "app.py" and path.parent.name not in ("space", "benchmarks"):
            assert "space" not in imports_of_ours(path), name_of(path)


def test_no_source_imports_the_tests():
    for path in SOURCES:
        assert "tests" not in imports_of_ours(path) and "conftest" not in imports(path), name_of(path)


# -- files that travel ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRAVELLING)
def test_a_travelling_file_needs_nothing_but_the_common_libraries(name):
    needed = {
        module.split(".")[0]
        for node in statements(parse(ROOT / f"{name}.py"), into_functions=True, into_guards=False)
        for module in imported_by(node)
        if not module.startswith(".")
    }
    assert needed <= TRAVELLING_MAY_NEED | sys.stdlib_module_names


@pytest.mark.parametrize("name", TRAVELLING)
def test_no_line_of_prose_in_a_travelling_file_reads_like_a_relative_import(name):
    """The Hub's scan is a regular expression over the text: such a line makes it look for a file that is not there."""
    text = (ROOT / f"{name}.py").read_text(encoding="utf-8")
    found = re.findall(r"^\s*(?:from\s+\.(\S*)\s+import|import\s+\.(\S+))", text, flags=re.MULTILINE)
    expected = [module for module in TRAVELLING if module != name] if name in ENTRIES else GUARDED.get(name, ())
    assert sorted(found) == [(module, "") for module in expected]


@pytest.mark.parametrize("name", ENTRIES)
def test_transformers_itself_finds_every_travelling_file_from_any_class_that_is_saved(name):
    """So it copies all of them into its cache of remote code, and from there to wherever the object is saved.

    The file itself must name them: in older versions, what an imported file imports is not copied from a folder.
    """
    from transformers.dynamic_module_utils import get_relative_imports

    assert {*get_relative_imports(ROOT / f"{name}.py"), name} == {*TRAVELLING}


# -- every file -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_file_says_in_its_first_line_what_it_is(path):
    docstring = ast.get_docstring(parse(path))
    assert docstring and len(docstring.splitlines()[0]) > 20


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_file_can_be_read_in_one_sitting(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES_OF.get(path.name, MAX_LINES)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_nothing_is_swallowed(path):
    """No bare `except`, and no broad one whose whole answer is to go on."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.ExceptHandler):
            broad = node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
            silent = all(isinstance(statement, ast.Pass | ast.Continue) for statement in node.body)
            assert node.type is not None and not (broad and silent), f"{name_of(path)}:{node.lineno}"


def imported_at_start(path: Path, seen: set[Path]) -> set[str]:
    """First parts of the libraries that importing a file loads, through our own files too."""
    seen.add(path)
    libraries = set()
    for node in statements(parse(path), into_functions=False, into_guards=True):
        for module in imported_by(node):
            file = ROOT / module.replace(".", "/")
            ours = [path for path in (file.with_suffix(".py"), file / "__init__.py") if path.exists()]
            if not ours:
                libraries.add(module.split(".")[0])
            for path_of_ours in set(ours) - seen:
                libraries |= imported_at_start(path_of_ours, seen)
    return libraries


@pytest.mark.parametrize("path", [*(ROOT / f"{verb}.py" for verb in VERBS), *python_files("benchmarks")], ids=name_of)
def test_help_waits_for_no_heavy_import(path):
    assert not imported_at_start(path, set()) & HEAVY
