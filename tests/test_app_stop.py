"""How a server starts and stops, and what becomes of those who ask it meanwhile."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from app_here import error_of, in_base64, running
from local_hub import LocalHub, online
from test_evaluation import ROOT, make_folder
from test_space_inputs import sound
from test_space_service import noise_picture

import app
from space import demo_model

NUM_CALLERS, NUM_PAGE_JOBS, NUM_EXPLANATIONS = 16, 24, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("stopped") / "tiny")


# -- stop -------------------------------------------------------------------------------------------------------------


def ask_until_refused(address, seed):
    """Ask one thing after the other; give what came of each. A request that is cut off fails the test."""
    body = {"image": in_base64(noise_picture(seed)), "audio": in_base64(sound(0.05)), "text": "a small animal"}
    told = Counter()
    with httpx.Client(base_url=address, timeout=30) as client:
        while not told["draining"]:
            response = client.post("/v1/predict", json=body)
            told["answered" if response.status_code == 200 else error_of(response)] += 1
    assert response.headers["retry-after"] == "5" and response.headers["connection"] == "close"
    return told


def start_page_job(address):
    """Ask the page as its client does, and do not come for the answer yet."""
    started = httpx.post(f"{address}/gradio_api/call/predict", json={"data": ["a small animal", None, None]})
    return started.json()["event_id"]


def half_sent(address, body):
    """Send the first bytes of a request's body."""
    host, _, port = address.removeprefix("http://").partition(":")
    lines = ["POST /v1/predict HTTP/1.1", "Host: x", "Content-Type: application/json"]
    half = socket.create_connection((host, int(port)))
    half.sendall("\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body[:5])
    return half


def test_after_sigterm_all_that_was_accepted_is_answered_and_the_rest_sent_away(folder):
    body = json.dumps({"text": "a small animal"}).encode()
    patient = running(folder, "--drain_seconds", "60")
    with patient as (address, process), ThreadPoolExecutor(64) as pool, half_sent(address, body) as half:
        callers = [pool.submit(ask_until_refused, address, seed) for seed in range(NUM_CALLERS)]
        explain = f"{address}/v1/explain?num_steps=256"
        long = [pool.submit(httpx.post, explain, json={"text": "a b c"}, timeout=60) for _ in range(NUM_EXPLANATIONS)]
        jobs = list(pool.map(start_page_job, [address] * NUM_PAGE_JOBS))
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert httpx.get(f"{address}/readyz").json() == {"status": "draining"}
        assert httpx.get(f"{address}/healthz").status_code == 200
        refused = httpx.post(f"{address}/gradio_api/call/predict", json={"data": ["late", None, None]})
        assert error_of(refused) == "draining" and refused.headers["retry-after"] == "5"
        events = pool.map(lambda job: httpx.get(f"{address}/gradio_api/call/predict/{job}", timeout=60).text, jobs)
        assert [event for event in events if "event: complete" not in event or "confidences" not in event] == []
        told = sum((caller.result() for caller in callers), Counter())
        assert told["answered"] > 0 and told["draining"] == NUM_CALLERS and len(told) == 2
        assert [answer.result().status_code for answer in long] == [200] * NUM_EXPLANATIONS
        half.sendall(body[5:])
        answer = b"".join(iter(lambda: half.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 200") and b'"predictions"' in answer
        assert process.wait(60) == 0
    assert "Traceback" not in process.log.read_text()


# -- start ------------------------------------------------------------------------------------------------------------


def test_a_start_that_must_fail_says_why_and_ends_with_1(tmp_path, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert app.main(["--model", str(tmp_path), "--port", str(port)]) == 1
        assert f"cannot listen at `127.0.0.1` port {port}" in capsys.readouterr().err
    assert app.main(["--model", str(tmp_path / "nowhere"), "--port", "0"]) == 1
    assert "does not exist" in capsys.readouterr().err
    assert app.main(["--model", str(tmp_path), "--port", "0"]) == 1
    assert "has no `config.json`" in capsys.readouterr().err


def test_an_unknown_model_of_the_hub_is_told_in_one_line(capsys, tmp_path):
    """The Hub is one of our own, and knows no model at all."""
    with LocalHub(tmp_path) as hub, online(hub):
        assert app.main(["--model", "nobody/no-such-model", "--port", "0"]) == 1
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("error: ") and "`nobody/no-such-model`" in told


def test_a_wrong_call_ends_with_2_before_anything_heavy_is_loaded():
    code = (
        "import sys, app\ntry:\n    app.main(['--port', 'x'])\n"
        "finally:\n    print([m for m in ('torch', 'gradio', 'fastapi', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "--port: invalid int value" in done.stderr and done.stdout == "[]\n"


@pytest.mark.slow
def test_the_benchmark_compares_batching_with_none(folder, capsys):
    from benchmarks import serving

    few = ["--num_clients", "1", "2", "--num_requests", "8", "--num_rounds", "1", "--num_memory_requests", "20"]
    few += ["--num_restarts", "1"]
    assert serving.main([str(folder), "--device", "cpu", "--audio_seconds", "0.05", *few]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(report["results"]) == 4 and report["batching_to_one_by_one"].keys() == {"1", "2"}
    assert sum(report["overload"][key] for key in ("answered", "shed_with_429")) == 32
    assert report["restart"]["answered"] > 0 and report["restart"]["cut_off"] == report["restart"]["wrong"] == 0


# -- without a model --------------------------------------------------------------------------------------------------


def test_without_a_model_one_is_made_once_and_kept(tmp_path, monkeypatch, capsys):
    steps = []

    def step(*arguments):
        steps.append(arguments[0])
        if "--output_dir" in arguments:
            output = Path(arguments[arguments.index("--output_dir") + 1])
            output.mkdir()
            (output / "config.json").write_text("{}")

    monkeypatch.setattr(demo_model, "run_step", step)
    folder = demo_model.cached_demo_model(tmp_path)
    assert "training a small one on the demo set" in capsys.readouterr().out
    assert demo_model.cached_demo_model(tmp_path) == folder and (folder / "config.json").is_file()
    assert steps == ["-m", "train.py"] and [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_where_it_cannot_be_made_the_server_asks_for_a_model(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_model, "ROOT", tmp_path)  # as on a Space, which has only what `app.py` needs
    with pytest.raises(ValueError, match=r"none can be made here without `train.py`: give `--model .*MMFUSION_MODEL"):
        demo_model.cached_demo_model(tmp_path)


def test_a_demo_model_that_cannot_be_made_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"failed in `train.py --no_such_flag` \(exit code 2"):
        demo_model.run_step("train.py", "--no_such_flag")


@pytest.mark.slow
def test_the_demo_model_is_really_made(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_model, "NUM_ROWS", 300)
    monkeypatch.setattr(demo_model, "NUM_EPOCHS", 1)
    folder = demo_model.cached_demo_model(tmp_path)
    with running(folder) as (address, _):
        assert len(httpx.post(f"{address}/v1/predict", json={"text": "seven"}).json()["predictions"]) == 10
