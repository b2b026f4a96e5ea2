"""The Space that shows a pushed model: the files that `app.py` needs and no more.

Which files these are is read from the imports, starting at `app.py`, and which packages from the same imports, so that
neither list can be forgotten when the app grows. Nothing of the model is in the files: the Space's variables say which
model it shows, and its secrets, which are set over the API and never written to a file, what may read it.
"""

import ast
import functools
import importlib.metadata
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hub.push import Account

ROOT = Path(__file__).parents[1]
TRAVELLING = "*_mmfusion.py"  # they come with the model, from the Hub; the app itself imports at most their cells
# Files of an earlier push that this one may remove.
REPLACES = ("*.py", "README.md", "requirements.txt", "space/*")
HARDWARE = "cpu-basic"


def export_space(folder: Path, *, model_id: str, title: str, hardware: str = HARDWARE):
    """Fill an empty folder with the files of a Space.

    Args:
        folder: An empty folder.
        model_id: The model that it shows first, for the page that describes it; the variables decide at run time.
        title: Of the page.
        hardware: What the Hub suggests to those who copy the Space.
    """
    for path in files_of_app():
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    (folder / "requirements.txt").write_text("".join(f"{line}\n" for line in requirements()), encoding="utf-8")
    (folder / "README.md").write_text(space_card(model_id, title, hardware), encoding="utf-8")


def space_card(model_id: str, title: str, hardware: str) -> str:
    """The README of the Space: the settings that the Hub reads, and words for people."""
    from huggingface_hub import SpaceCardData, constants
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    settings = SpaceCardData(
        title=title,
        emoji="🔎",
        colorFrom="indigo",
        colorTo="green",
        sdk="gradio",
        sdk_version=pins()["gradio"],
        python_version=f"{sys.version_info.major}.{sys.version_info.minor}",
        app_file="app.py",
        models=[model_id],
        suggested_hardware=hardware,
        short_description="Text, picture and sound, any of them: what is it?",
        tags=["multimodal", "mmfusion"],
    )
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")), undefined=StrictUndefined,
        keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip
    return templates.get_template("space_card.md").render(
        metadata=settings.to_yaml(), title=title, model=model_id, endpoint=constants.ENDPOINT
    )


def secrets_from_environment(names: Sequence[str]) -> dict[str, str]:
    """Values of the secrets that the Space shall get; they come from the environment, so that no command shows them.

    Raises:
        ValueError: A name is not set in the environment.
    """
    for name in names:
        if not os.environ.get(name):
            raise ValueError(
                f"`--space_secret {name}`: the environment has no `{name}`; set it to the value that the Space shall "
                "get. Nothing was pushed."
            )
    return {name: os.environ[name] for name in names}


def model_on_hub(account: "Account", model_id: str, revision: str | None) -> tuple[str, bool]:
    """The commit that the Space shall show (None: the newest), and whether the model is private.

    Raises:
        OSError: There is no such model, or it cannot be read.
    """
    from hub.push import one_sentence, patiently

    with one_sentence(f"the model `{model_id}` cannot be shown"):
        info = patiently(lambda: account.api.model_info(model_id, revision=revision))
    return info.sha, bool(info.private)


def configure(account: "Account", space_id: str, model_id: str, revision: str, secrets: dict[str, str]) -> None:
    """Tell a Space over the API which model it shows, at which commit, and what it needs to read it."""
    from hub.push import patiently

    for name, value in {"MMFUSION_MODEL": model_id, "MMFUSION_REVISION": revision}.items():
        patiently(functools.partial(account.api.add_space_variable, space_id, name, value))
    for name, value in secrets.items():
        patiently(functools.partial(account.api.add_space_secret, space_id, name, value))


# -- what the app needs -----------------------------------------------------------------------------------------------


def files_of_app() -> list[Path]:
    """`app.py` and all of our files that it imports, however far, with what the `static` folders beside them hold."""
    found = _reached(ROOT / "app.py", set())
    static = {path for folder in {path.parent for path in found} for path in folder.glob("static/**/*")}
    return sorted(found | {path for path in static if path.is_file()})


def _reached(path: Path, seen: set[Path]) -> set[Path]:
    seen.add(path)
    for module in _imports(path):
        for file in _files_of(module):
            if file not in seen:
                _reached(file, seen)
    return seen


def _files_of(module: str) -> Iterator[Path]:
    """Files of ours that importing a module runs: those of the packages above it, too."""
    parts = module.split(".")
    for length in range(1, len(parts) + 1):
        place = ROOT.joinpath(*parts[:length])
        yield from (file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file())


def _imports(path: Path) -> Iterator[str]:
    """Modules that a file imports at any depth, but for type checkers; `from a import b` may mean the module `a.b`."""
    for node in _running(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _running(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")):
            yield child
            yield from _running(child)


def requirements() -> list[str]:
    """Pins of `requirements.txt` for the packages that the app and the files that travel with the model import."""
    files = [*files_of_app(), *ROOT.glob(TRAVELLING)]
    imported = {module.split(".")[0] for path in files if path.suffix == ".py" for module in _imports(path)}
    distributions = importlib.metadata.packages_distributions()
    needed = {_plain(name) for module in imported for name in distributions.get(module, ())}
    return [f"{name}=={version}" for name, version in pins().items() if _plain(name) in needed]


def pins() -> dict[str, str]:
    """Package -> version, as `requirements.txt` of this repository pins them."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
