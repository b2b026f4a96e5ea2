"""The Space as it was pushed, in an environment built from its own requirements, on a Hub that clients believe."""

import json
import os
import subprocess
import sys
import time
import urllib.request

import pytest
from local_hub import LocalHub
from test_evaluation import ROOT

pytestmark = pytest.mark.slow  # installs torch


def test_a_pushed_space_starts_from_its_own_requirements_and_answers(published, tmp_path):
    with LocalHub(tmp_path / "hub") as hub:
        hub.add_user("alice", write_token="hf_alice_write", read_token="hf_alice_read")
        env = hub.environment(tmp_path / "home", "hf_alice_write")
        command = [sys.executable, "push_to_hub.py", str(published), "alice/animals", "--private"]
        command += ["--space", "alice/show", "--space_secret", "HF_TOKEN"]
        subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True)

        folder = tmp_path / "space"
        for name in hub.files("alice/show", "space"):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(hub.read("alice/show", name, "space"))
        python = fresh_environment(tmp_path / "venv", folder / "requirements.txt")

        space = hub.repository("alice/show", "space")
        env = hub.environment(tmp_path / "space-home") | space.variables | space.secrets
        env |= {"SPACE_ID": "alice/show", "MMFUSION_HOST": "127.0.0.1", "MMFUSION_PORT": "7997"}
        env.pop("PYTHONPATH", None)
        app = subprocess.Popen([python, "app.py"], cwd=folder, env=env, stderr=subprocess.PIPE, text=True)
        try:
            assert ready("http://127.0.0.1:7997/readyz", app), app.stderr.read()
            answer = post("http://127.0.0.1:7997/v1/predict", {"text": "a small animal"})
        finally:
            app.terminate()
            app.wait(60)
        assert answer["predictions"][0]["score"] >= answer["predictions"][-1]["score"] > 0
        assert {entry["label"] for entry in answer["predictions"]} == {"ant", "bee", "cat"}


def fresh_environment(folder, requirements):
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", requirements]
    subprocess.run(install, check=True, env={key: value for key, value in os.environ.items() if "HF_" not in key})
    return python


def ready(url, app, seconds=120):
    for _ in range(seconds):
        if app.poll() is not None:
            return False
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.status == 200
        except OSError:
            time.sleep(1)
    return False


def post(url, content):
    request = urllib.request.Request(url, json.dumps(content).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)
