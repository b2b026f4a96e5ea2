"""Whether two copies of a model say the same: each is loaded in a fresh process, as a stranger loads it."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

PROBE = Path(__file__).with_name("probe.py")


def logits_of(model: str, *, revision: str | None = None, token: str | None = None) -> "np.ndarray":
    """Load a model in a fresh process with an empty cache and give what it says of made-up rows.

    Args:
        model: Folder or Hub id.
        revision: Commit on the Hub.
        token: What reads it there.

    Returns:
        (subsets of the modalities, labels) float32 logits.

    Raises:
        ValueError: It does not load or does not answer; the message has the last line that the process wrote.
    """
    from safetensors.numpy import load_file

    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch, "logits.safetensors")
        command = [sys.executable, "-P", str(PROBE), str(Path(model).resolve() if Path(model).exists() else model)]
        command += [str(output), *(() if revision is None else ("--revision", revision))]
        done = subprocess.run(
            command, cwd=scratch, env=_environment(scratch, token), capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            reason = next(iter(reversed(done.stderr.strip().splitlines())), f"exit code {done.returncode}")
            raise ValueError(f"the model `{model}` does not load in a fresh process: {reason}")
        return load_file(output)["logits"]


def _environment(scratch: str, token: str | None) -> dict[str, str]:
    """The environment of a stranger: no cache of ours, nothing of ours on the path."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_TOKEN")}
    environment |= {"HF_HUB_CACHE": f"{scratch}/hub", "HF_MODULES_CACHE": f"{scratch}/modules"}
    environment |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return environment | ({} if token is None else {"HF_TOKEN": token})


def refuse_difference(expected: "np.ndarray", found: "np.ndarray", what: str) -> None:
    """Raise a ValueError where a copy does not answer as its source does, to the last bit."""
    import numpy as np

    if expected.shape != found.shape:
        raise ValueError(f"{what} gives logits of shape {found.shape} where its source gives {expected.shape}.")
    if not np.array_equal(expected, found):
        distance = float(np.abs(expected - found).max())
        raise ValueError(f"{what} answers differently from its source (logits differ by up to {distance:.2g}).")
