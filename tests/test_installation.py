"""What `pip install .` brings: the travelling files and the module that registers them, and a range of versions."""

import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import TRAVELLING

from compat_mmfusion import REQUIRES

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.10", "3.13")

USER = """
import json, sys
import mmfusion
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoProcessor, pipeline

for auto in (AutoConfig, AutoProcessor, AutoModel, AutoModelForSequenceClassification):
    auto.from_pretrained(sys.argv[1])
answer = pipeline(model=sys.argv[1])({"text": "a small animal"})
remote = [name for name in sys.modules if name.startswith("transformers_modules.")]
print(json.dumps({"answer": answer, "remote": remote, "file": mmfusion.__file__}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this repository, built as pip builds it."""
    folder, source = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("source")
    for path in (*ROOT.glob("*.py"), ROOT / "pyproject.toml", ROOT / "README.md", ROOT / "LICENSE"):
        (source / path.name).write_bytes(path.read_bytes())
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, source]
    subprocess.run(pip, check=True)
    return next(folder.glob("*.whl"))


def test_nothing_else_of_the_repository_is_installed(wheel):
    names = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == {"mmfusion.py", *TRAVELLING}


@pytest.mark.slow
def test_an_installed_wheel_loads_a_model_without_remote_code(wheel, published, tmp_path):
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--target", target, wheel]
    subprocess.run(pip, check=True)
    env = os.environ | {"PYTHONPATH": str(target), "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", USER, published], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["file"] == str(target / "mmfusion.py")
    assert said["remote"] == [] and len(said["answer"]) == 3


def test_the_package_states_the_range_that_the_code_checks():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    python = re.search(r'requires-python = "(.*)"', text)[1]
    stated = {f"python{python}", *re.findall(r'^    "(.*?)",$', text, re.MULTILINE)}
    for requirement in REQUIRES:
        assert any(known.split(",")[0] == requirement for known in stated), requirement


@pytest.mark.parametrize(
    ("name", "found", "remedy"),
    [
        ("transformers", "4.56.2", "pip install --upgrade 'transformers>=4.57'"),
        ("torch", "2.5.1", "pip install --upgrade 'torch>=2.6'"),
        ("python", "3.9.18", "a newer Python"),
    ],
)
def test_versions_below_the_range_are_refused_with_the_range_and_what_to_do(name, found, remedy, monkeypatch):
    known = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda one: found if one == name else known(one))
    if name == "python":
        monkeypatch.setattr(sys, "version_info", tuple(map(int, found.split("."))))
    spec = importlib.util.spec_from_file_location("compat_again", ROOT / "compat_mmfusion.py")
    with pytest.raises(ImportError) as raised:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    said = str(raised.value)
    assert f"{name}=={found}" in said and remedy in said
    assert all(requirement in said for requirement in REQUIRES)


@pytest.mark.parametrize("version", PYTHONS)
def test_travelling_files_are_of_the_syntax_of_the_oldest_and_the_newest_python(version, tmp_path):
    """Compiled only: no torch for these Pythons need be there."""
    code = "import sys; [compile(open(name, encoding='utf-8').read(), name, 'exec') for name in sys.argv[1:]]"
    files = [ROOT / name for name in (*TRAVELLING, "mmfusion.py")]
    env = os.environ | {"PYENV_VERSION": version}  # where pyenv has it
    try:
        done = subprocess.run([f"python{version}", "-c", code, *files], capture_output=True, text=True, env=env)
    except FileNotFoundError:
        pytest.skip(f"no python{version} on this machine")
    if "command not found" in done.stderr:
        pytest.skip(f"pyenv has no python{version}")
    assert done.returncode == 0, done.stderr
