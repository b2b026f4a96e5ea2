"""A real `app.py` process for tests: start it, ask it, read what it says."""

import base64
import contextlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from test_evaluation import ROOT

from space.errors import CODES

START_SECONDS = 120


@contextlib.contextmanager
def running(folder, *flags, **environment):
    """Start a server on a free port; give (address, process). What it said is in `process.log`."""
    log = folder.parent / f"server-{os.urandom(4).hex()}.log"
    command = [sys.executable, "app.py", "--model", str(folder), "--port", "0", "--device", "cpu", *flags]
    here = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TMPDIR": str(folder.parent)}  # killed, it cannot tidy up
    variables = {**os.environ, **here, **environment}
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file, env=variables)
    process.log = log
    try:
        yield wait_for_address(process), process
    finally:
        process.kill()
        process.wait()


def wait_for_address(process):
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        if found := re.search(r"serving at (http://\S+)", process.log.read_text()):
            return found[1]
        time.sleep(0.1)
    raise AssertionError(process.log.read_text())


def error_of(response):
    """Give the code of a refusal, after a look at everything around it."""
    error = response.json()["error"]
    assert response.status_code == CODES[error["code"]][0] and error["message"]
    assert response.headers["x-request-id"] == error["request_id"]
    return error["code"]


def in_base64(content):
    return base64.b64encode(content).decode()


def peak_mib(process, forget=False):
    """Give the most memory that a process has held since it was last told to forget."""
    folder = Path(f"/proc/{process.pid}")
    if forget:
        (folder / "clear_refs").write_text("5")
    return int(re.search(r"VmHWM:\s+(\d+) kB", (folder / "status").read_text())[1]) / 1024
