"""The model that is served when none is named: small, trained on the embedded demo set, kept for the next start.

It is made by the same two commands that the README shows, as child processes: a server needs nothing that trains, and
a Space does not have it.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAKERS = ("train.py", "data/demo.py")
NUM_ROWS, NUM_EPOCHS = 2_000, 4


def cached_demo_model(cache: Path | None = None) -> Path:
    """Give the folder of the demo model, made first where it is not there.

    Args:
        cache: where it is kept; None: `default_cache()`.

    Raises:
        ValueError: When the files that make it are not there, as on a Space, or making it fails.
    """
    if missing := [name for name in MAKERS if not (ROOT / name).is_file()]:
        raise ValueError(
            f"no model is named, and none can be made here without `{missing[0]}`: give `--model FOLDER_OR_HUB_ID`, "
            "or set the variable MMFUSION_MODEL."
        )
    folder = (cache or default_cache()) / f"demo-{fingerprint()}"
    if not (folder / "config.json").is_file():
        make(folder)
    return folder


def default_cache(environment: Mapping[str, str] = os.environ) -> Path:
    """Give the user's cache folder for this program."""
    return Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmfusion"


def fingerprint() -> str:
    """Name the code that makes the model: after a change of it, an old model is not served."""
    digest = hashlib.sha256(f"{NUM_ROWS} {NUM_EPOCHS}".encode())
    for path in [*(ROOT / name for name in MAKERS), *sorted(ROOT.glob("*_mmfusion.py"))]:  # the latter lie in it, too
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def make(folder: Path) -> None:
    print(f"no model is named: training a small one on the demo set, once (about a minute), into {folder}", flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        rows = f"{work}/rows"
        run_step("-m", "data.demo", rows, "--num_rows", str(NUM_ROWS))
        run_step(
            "train.py", "--train_file", f"{rows}/train.csv", "--validation_file", f"{rows}/validation.csv",
            "--num_train_epochs", str(NUM_EPOCHS), "--image_size", "32", "--output_dir", f"{work}/model",
        )  # fmt: skip
        try:
            os.replace(f"{work}/model", folder)
        except OSError:
            if not (folder / "config.json").is_file():  # else another process was quicker
                raise


def run_step(*arguments: str) -> None:
    """Run one of our commands; its progress goes to stderr, like ours."""
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, stdout=sys.stderr)
    if done.returncode != 0:
        raise ValueError(
            f"making the demo model failed in `{' '.join(arguments[:2])}` (exit code {done.returncode}; see above): "
            "give `--model FOLDER_OR_HUB_ID` instead."
        )
