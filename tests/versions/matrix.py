"""Versions of transformers beside the environment: install them, try them, print the table of `docs/versions.md`.

    python tests/versions/matrix.py                         # the table, all versions
    python tests/versions/matrix.py 4.57.6 newest           # some of them
    python tests/versions/matrix.py environment/bin/python  # what is installed there, with its Python and torch

Each version lies in `build/versions/`, without a torch of its own; what is tried is in `attempt.py`. The models and
their logits are always those of the environment that runs this file.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
BUILD = ROOT / "build" / "versions"
OLD_HUB = ("huggingface_hub<2", "tokenizers<=0.23.0")
# Version -> what it needs in other versions than requirements.txt has.
BELOW = "4.56.2"
VERSIONS = {
    BELOW: ("huggingface_hub<1", "tokenizers<=0.23.0", "datasets<4.5"),
    "4.57.6": ("huggingface_hub<1", "tokenizers<=0.23.0", "datasets<4.5"),
    "5.0.0": OLD_HUB,
    "5.5.4": OLD_HUB,
    "5.12.1": OLD_HUB,
    "5.18.0": (),
    "5.20.2": (),
    "5.22.2": (),
    "newest": (),
}
TESTED = (BELOW, "4.57.6", "5.0.0", "5.12.1", "newest")  # by `make test-versions`
STEPS = ("load", "logits", "predict", "explain", "save", "reload", "train", "installed")


def install(version: str) -> Path:
    """Return the folder that holds a version, fetched if it is not there."""
    folder = BUILD / version
    if not (folder / ".installed").exists():
        wanted = "transformers>=5.24,<6" if version == "newest" else f"transformers=={version}"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
        subprocess.run([*pip, "--no-deps", "--upgrade", "--target", folder, wanted, *VERSIONS[version]], check=True)
        (folder / ".installed").touch()
    return folder


def write_reference(folder: Path) -> Path:
    """Have the installed version save models and their logits for every subset of modalities."""
    return _run("reference", folder, {})


def attempt(version: str, folder: Path) -> dict[str, str]:
    """Return what came of each of `STEPS` in a version or an environment, in fresh processes: "yes", or the error."""
    python = version if os.sep in version else sys.executable
    path = "" if version == "pinned" or os.sep in version else str(install(version))
    with tempfile.TemporaryDirectory() as work:
        files = Path(work) / "files.json"
        for step in ("stranger", "installed"):
            # After `import mmfusion` the code of the repository answers, else that of the folder alone.
            paths = [path, str(ROOT)] if step == "installed" else [path]
            env = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "HF_HOME": str(Path(work) / "cache")}
            _run(step, folder, env, files, Path(work) / step, python=python)
        return json.loads(files.read_text())


def refusals(folder: Path) -> list[str]:
    """Return what each way of loading says in the last version below the range."""
    with tempfile.TemporaryDirectory() as work:
        files = Path(work) / "files.json"
        env = {"PYTHONPATH": str(install(BELOW)), "HF_HOME": str(Path(work) / "cache")}
        _run("below", folder, env, files, Path(work))
        return json.loads(files.read_text())["refusals"]


def _run(step: str, folder: Path, env: dict[str, str], *arguments: Path, python: str = sys.executable) -> Path:
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **env}
    command = [python, "-W", "ignore", HERE / "attempt.py", step, folder, *arguments]
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"`{step}` ended with {done.returncode}:\n{done.stderr[-4000:]}")
    return folder


def main() -> None:
    """Print the table of the versions that are named, or of all; after --install only fetch them."""
    if sys.argv[1:2] == ["--install"]:
        for version in sys.argv[2:] or TESTED:
            install(version)
        return
    print("| transformers | Python | torch |", " | ".join(STEPS), "|")
    print("| --- | --- | --- |", " | ".join("---" for _ in STEPS), "|")
    with tempfile.TemporaryDirectory() as work:
        folder = write_reference(Path(work))
        for version in sys.argv[1:] or [*(name for name in VERSIONS if name != BELOW), "pinned"]:
            results = attempt(version, folder)
            cells = [*results["versions"], *(results.get(step, "no") for step in STEPS)]
            print("|", " | ".join(cells), "|", flush=True)
            for error in (value for name, value in results.items() if name.startswith("error")):
                print(error, file=sys.stderr)


if __name__ == "__main__":
    main()
