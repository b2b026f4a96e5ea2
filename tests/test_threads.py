"""How threads wait for one another: what OpenMP itself says that it read when torch loaded it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
COMMAND = "from cli.arguments import exit_code; exit_code(lambda: __import__('torch'))"


def spins(code: str, **environment) -> str:
    known = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    known |= {"OMP_DISPLAY_ENV": "VERBOSE", **environment}
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=known, capture_output=True, text=True, check=True
    )
    found = re.search(r"GOMP_SPINCOUNT = '(\w+)'", said.stderr)
    if found is None:
        pytest.skip("this torch does not come with GNU's OpenMP")
    return found[1]


def test_a_command_lets_its_threads_sleep_soon_and_a_user_who_knows_better_is_obeyed():
    assert spins("import torch") != "1000"
    assert spins(COMMAND) == "1000"
    assert spins(COMMAND, GOMP_SPINCOUNT="77") == "77"
    assert spins(COMMAND, OMP_WAIT_POLICY="PASSIVE") == "0"
    assert spins(COMMAND, OMP_WAIT_POLICY="ACTIVE") == spins("import torch", OMP_WAIT_POLICY="ACTIVE")
