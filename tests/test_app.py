"""The server as its users meet it: a real process, real HTTP, Gradio's own client; on a tiny model folder."""

import base64
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from test_evaluation import LABELS, ROOT, make_folder
from test_space_inputs import picture, sound
from test_space_service import noise_picture

import app
from space import demo_model
from space.errors import CODES

LIMITS = ["--max_body_mib", "2", "--max_text_chars", "200", "--max_audio_seconds", "2", "--max_rows", "4"]
START_SECONDS = 120


@contextlib.contextmanager
def running(folder, *flags, **environment):
    """Start a server on a free port; give (address, process). What it said is in `process.log`."""
    log = folder.parent / f"server-{os.urandom(4).hex()}.log"
    command = [sys.executable, "app.py", "--model", str(folder), "--port", "0", "--device", "cpu", *flags]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment}
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = make_folder(tmp_path_factory.mktemp("served") / "tiny")
    metrics = {"num_rows": 7, "metrics": {"text": {"accuracy": 0.5}}, "training": {"file": "/home/somebody/x.csv"}}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


@pytest.fixture(scope="module")
def server(folder):
    with running(folder, *LIMITS) as (address, process):
        yield address, process


@pytest.fixture(scope="module")
def http(server):
    with httpx.Client(base_url=server[0], timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def page(server):
    return Client(server[0], verbose=False)


def error_of(response):
    error = response.json()["error"]
    assert response.status_code == CODES[error["code"]][0] and error["message"]
    assert response.headers["x-request-id"] == error["request_id"]
    return error["code"]


def in_base64(content):
    return base64.b64encode(content).decode()


SAMPLE = {"text": "a small animal", "image": picture(), "audio": sound(0.1)}
FILES = {"image": ("x.png", SAMPLE["image"]), "audio": ("x.wav", SAMPLE["audio"])}
JSON_SAMPLE = {"text": SAMPLE["text"], "image": in_base64(SAMPLE["image"]), "audio": in_base64(SAMPLE["audio"])}


# -- answers ----------------------------------------------------------------------------------------------------------


def test_a_form_json_and_the_page_give_the_same_answer(http, page, tmp_path):
    by_form = http.post("/v1/predict", data={"text": SAMPLE["text"]}, files=FILES).json()["predictions"]
    by_json = http.post("/v1/predict", json=JSON_SAMPLE).json()["predictions"]
    assert by_form == by_json and [entry["label"] for entry in by_form] != []
    assert sorted(entry["label"] for entry in by_form) == LABELS
    assert sum(entry["score"] for entry in by_form) == pytest.approx(1)
    for name in ("image", "audio"):
        (tmp_path / FILES[name][0]).write_bytes(SAMPLE[name])
    files = [handle_file(tmp_path / FILES[name][0]) for name in ("image", "audio")]
    shown = page.predict(SAMPLE["text"], *files, api_name="/predict")
    assert [(c["label"], c["confidence"]) for c in shown["confidences"]] == [
        (entry["label"], pytest.approx(entry["score"], abs=1e-6)) for entry in by_form
    ]


def test_any_subset_is_enough_and_top_k_cuts(http, page):
    for name in SAMPLE:
        answer = http.post("/v1/predict?top_k=1", json={name: JSON_SAMPLE[name]}).json()
        assert len(answer["predictions"]) == 1 and answer["request_id"]
    assert page.predict("a loud animal", api_name="/predict")["label"] in LABELS


def test_many_clients_at_once_get_each_his_own_answer(http, server):
    samples = [{"image": in_base64(noise_picture(seed))} for seed in range(24)]
    alone = [http.post("/v1/predict", json=sample).json()["predictions"] for sample in samples]
    assert len({json.dumps(answer) for answer in alone}) == len(samples)
    with ThreadPoolExecutor(len(samples)) as pool:
        together = list(pool.map(lambda sample: httpx.post(f"{server[0]}/v1/predict", json=sample).json(), samples))
    for answer, expected in zip(together, alone, strict=True):
        for given, wanted in zip(answer["predictions"], expected, strict=True):
            assert given["label"] == wanted["label"] and given["score"] == pytest.approx(wanted["score"], abs=1e-5)
    assert len({answer["request_id"] for answer in together}) == len(samples)


def test_a_batch_answers_every_row_and_spoils_none(http):
    rows = [JSON_SAMPLE, {"text": "x" * 201}, 5, {"image": "http://127.0.0.1/x.png"}]
    results = http.post("/v1/predict/batch?top_k=1", json=rows).json()["results"]
    assert results[0]["predictions"] == http.post("/v1/predict?top_k=1", json=JSON_SAMPLE).json()["predictions"]
    assert [r["error"]["code"] for r in results[1:]] == ["text_too_long", "wrong_type", "not_a_file"]


def test_vectors_have_unit_length_and_one_is_given_for_each_modality(http):
    embeddings = http.post("/v1/embed", data={"text": SAMPLE["text"]}, files=FILES).json()["embeddings"]
    assert list(embeddings) == ["fused", "text", "image", "audio"]
    assert all(np.linalg.norm(vector) == pytest.approx(1, abs=1e-5) for vector in embeddings.values())


def test_an_explanation_tells_the_share_of_each_modality(http):
    answer = http.post("/v1/explain?num_steps=4&label=bee", json=JSON_SAMPLE)
    explanation = answer.json()["explanation"]
    assert answer.status_code == 200 and explanation["label"] == "bee"
    shares = explanation["modalities"]
    assert sum(shares.values()) == pytest.approx(explanation["score"] - explanation["baseline"], abs=1e-5)
    short = http.post("/v1/explain?details=false", json={"text": "a loud animal"}).json()["explanation"]
    assert short["modalities"]["image"] is None and short["text"] is None


@pytest.mark.parametrize("query", ["label=dog", "method=guess", "num_steps=0", "num_steps=100000", "details=maybe"])
def test_an_explanation_with_a_wrong_parameter_is_refused(http, query):
    assert error_of(http.post(f"/v1/explain?{query}", json={"text": "x"})) == "bad_parameter"


def test_the_model_is_described_without_paths_of_this_machine(http, folder):
    info = http.get("/v1/model").json()
    assert (info["id"], info["revision"], info["labels"]) == ("tiny", None, LABELS)
    assert info["limits"]["max_text_chars"] == 200 and info["modalities"] == ["text", "image", "audio"]
    assert info["metrics"] == {"num_rows": 7, "subsets": {"text": {"accuracy": 0.5}}}
    assert str(folder.parent) not in json.dumps(info) and "somebody" not in json.dumps(info)


# -- what bad input gets ----------------------------------------------------------------------------------------------


JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "multipart/form-data; boundary=b"}
BAD_BODIES = {
    "no body": (dict(headers=JSON), "bad_json"),
    "no JSON": (dict(content="{", headers=JSON), "bad_json"),
    "not UTF-8": (dict(content=b'"\xff"', headers=JSON), "bad_json"),
    "deep JSON": (dict(content="[" * 100_000, headers=JSON), "bad_json"),
    "huge number": (dict(content="9" * 5000, headers=JSON), "bad_json"),
    "JSON that is no object": (dict(json=["a"]), "wrong_type"),
    "nothing": (dict(json={}), "nothing_given"),
    "number for text": (dict(json={"text": 5}), "wrong_type"),
    "null": (dict(json={"text": None, "image": None}), "nothing_given"),
    "unknown field": (dict(json={"txt": "a"}), "unknown_field"),
    "long text": (dict(json={"text": "a" * 201}), "text_too_long"),
    "5 MB of text": (dict(json={"text": "a" * 5_000_000}), "body_too_large"),
    "50 MB": (dict(files={"image": bytes(50_000_000)}), "body_too_large"),
    "many files": (dict(files=[("image", picture())] * 5), "bad_form"),
    "the same name twice": (dict(files=[("image", picture())] * 2), "bad_form"),
    "40 files of 200 kB": (dict(files=[(f"f{i}", bytes(200_000)) for i in range(40)]), "body_too_large"),
    "URL as file": (dict(data={"image": "http://127.0.0.1/x.png"}), "not_a_file"),
    "path as file": (dict(data={"audio": "/etc/passwd"}), "not_a_file"),
    "text as file": (dict(files={"text": b"hello"}), "wrong_type"),
    "picture that is text": (dict(files={"image": ("x.png", b"hello")}), "image_unreadable"),
    "sound that is a picture": (dict(files={"audio": ("x.wav", picture())}), "audio_unreadable"),
    "144 megapixels": (dict(files={"image": picture(12_000, 12_000)}), "image_unreadable"),
    "an hour of sound": (dict(files={"audio": sound(3600, "FLAC", 1000)}), "audio_too_long"),
    "form without boundary": (dict(content="x", headers={"Content-Type": "multipart/form-data"}), "bad_form"),
    "broken form": (dict(content="--b\r\nContent-Disposition: form-data\r\n\r\nx", headers=FORM), "bad_form"),
    "form that is none": (dict(content=b"\x00\xff" * 50, headers=FORM), "bad_form"),
    "plain text": (dict(content="hello", headers={"Content-Type": "text/plain"}), "unsupported_media_type"),
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_a_bad_body_gets_its_code(http, name):
    request, code = BAD_BODIES[name]
    assert error_of(http.post("/v1/predict", **request)) == code


@pytest.mark.parametrize(
    ("rows", "code"), [({}, "wrong_type"), ([], "nothing_given"), ([{"text": "a"}] * 5, "too_many_rows")]
)
def test_a_bad_list_gets_its_code(http, rows, code):
    assert error_of(http.post("/v1/predict/batch", json=rows)) == code


def test_a_text_of_half_characters_is_read_or_refused_and_never_a_fault(http):
    response = http.post("/v1/predict", content=rb'{"text": "\ud800 cat \u0000"}', headers=JSON)
    assert response.status_code == 200
    assert error_of(http.post("/v1/predict", content=rb'{"\ud800": 1}', headers=JSON)) == "unknown_field"


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/v1/predict", "method_not_allowed"),
        ("DELETE", "/v1/model", "method_not_allowed"),
        ("GET", "/v1/nothing", "not_found"),
        ("POST", "/v1/../v1/nothing", "not_found"),
        ("POST", "/gradio_api/call/nothing", "not_found"),
        ("POST", "/v1/predict?top_k=0", "bad_parameter"),
        ("POST", "/v1/predict?top_k=x", "bad_parameter"),
    ],
)
def test_a_wrong_address_gets_json(http, method, path, code):
    assert error_of(http.request(method, path)) == code


BAD_CALLS = {
    "nothing": ((None, None, None), "give at least one of text, image, audio"),
    "dict for text": (({"a": 1}, None, None), "`text` must be a string, got dict"),
    "number for text": ((5, None, None), "`text` must be a string, got int"),
    "long text": (("a" * 201, None, None), "201 characters, the limit is 200"),
    "picture that is text": ((None, b"hello.png", None), "allowed are PNG, JPEG"),
    "svg": ((None, b"<svg/>.svg", None), "allowed are PNG, JPEG"),
    "sound that is text": ((None, None, b"hello.wav"), "allowed are WAV, FLAC"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_input_on_the_page_gets_the_same_sentence(page, tmp_path, name):
    arguments, words = BAD_CALLS[name]
    for index, value in enumerate(arguments):
        if isinstance(value, bytes):
            path = tmp_path / f"x{Path(value.decode()).suffix}"
            path.write_bytes(value)
            arguments = (*arguments[:index], handle_file(path), *arguments[index + 1 :])
    with pytest.raises(AppError, match=re.escape(words)):
        page.predict(*arguments, api_name="/predict")


# -- what stays shut --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "app.py", "../app.py", "..%2fapp.py", "//etc/passwd", "/proc/self/environ", "http://127.0.0.1/"],
)
def test_no_file_of_the_server_is_given_away(http, path):
    assert http.get(f"/gradio_api/file={path}").status_code in (400, 403, 404)


def test_a_file_named_by_the_caller_is_never_opened_and_a_url_never_fetched(http, folder):
    with socket.socket() as trap:
        trap.bind(("127.0.0.1", 0))
        trap.listen()
        trap.settimeout(0.3)
        url = f"http://127.0.0.1:{trap.getsockname()[1]}/x.png"
        files = [
            {"path": str(ROOT / "app.py")}, {"path": str(folder / "config.json")}, {"path": url}, {"url": url}, url,
            {"path": None, "url": "data:image/png;base64," + in_base64(picture())},
        ]  # fmt: skip
        for file in files:
            value = {"meta": {"_type": "gradio.FileData"}, **file} if isinstance(file, dict) else file
            response = http.post("/gradio_api/call/predict", json={"data": [None, value, None]})
            if response.status_code == 200:
                event = http.get(f"/gradio_api/call/predict/{response.json()['event_id']}").text
                assert "event: error" in event and "confidences" not in event
        with pytest.raises(TimeoutError):
            trap.accept()


def test_other_sites_get_no_leave_to_call(http):
    ask = {"Origin": "https://other.example", "Access-Control-Request-Method": "POST"}
    for path in ("/v1/predict", "/gradio_api/queue/join", "/config"):
        assert "access-control-allow-origin" not in http.options(path, headers=ask).headers
        assert "access-control-allow-origin" not in http.get(path, headers=ask).headers


def test_the_page_of_the_api_asks_nobody_else(http):
    page = http.get("/docs")
    assert page.status_code == 200 and "/v1/explain" in page.text and "audio_too_long" in page.text
    assert not re.search(r"<script|<link|<img|(?:src|href)=\"(?:https?:)?//", page.text)


# -- operations -------------------------------------------------------------------------------------------------------


def test_health_readiness_and_numbers(http):
    assert http.get("/healthz").json() == {"status": "alive"} and http.get("/readyz").json() == {"status": "ready"}
    http.post("/v1/predict", json={"text": "a small animal"})
    told = http.get("/metrics")
    assert told.headers["content-type"].startswith("text/plain")
    for name in ("requests_total", "request_seconds_bucket", "samples_waiting", "batch_size_bucket", "refusals_total"):
        assert f"mmfusion_{name}" in told.text
    assert 'mmfusion_requests_total{route="/v1/predict",status="200"}' in told.text


def test_the_openapi_description_fits_the_answers(http):
    paths = http.get("/openapi.json").json()
    described = {path: set(methods) for path, methods in paths["paths"].items()}
    assert described["/v1/predict"] == {"post"} and len(described) == 8
    for path in ("/v1/predict", "/v1/embed", "/v1/explain"):
        operation = paths["paths"][path]["post"]
        assert set(operation["requestBody"]["content"]) == {"multipart/form-data", "application/json"}
        assert {"200", "401", "413", "422", "429", "503", "504"} <= set(operation["responses"])
        answer = http.post(path, json={"text": "a small animal"}).json()
        name = operation["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        assert set(answer) == set(paths["components"]["schemas"][name]["properties"])


def test_the_log_holds_no_traceback_after_all_this(server, http):
    """Runs last on the shared server: whatever the tests above sent was foreseen (Gradio's own checks raise)."""
    ours = [line for line in server[1].log.read_text().splitlines() if line.startswith("request ")]
    assert ours == [] and server[1].poll() is None


# -- start and stop ---------------------------------------------------------------------------------------------------


def test_after_sigterm_running_requests_are_finished_and_new_ones_refused(folder):
    with running(folder, MMFUSION_DRAIN_SECONDS="20") as (address, process):
        port = int(address.rpartition(":")[2])
        body = json.dumps({"text": "a small animal"}).encode()
        lines = ["POST /v1/predict HTTP/1.1", "Host: x", "Content-Type: application/json"]
        head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""])
        with socket.create_connection(("127.0.0.1", port)) as half:
            half.sendall(head.encode() + body[:5])
            time.sleep(0.3)
            process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            assert httpx.get(f"{address}/readyz").json() == {"status": "draining"}
            assert httpx.get(f"{address}/healthz").status_code == 200
            refused = httpx.post(f"{address}/v1/predict", json={"text": "new"})
            assert error_of(refused) == "draining" and refused.headers["retry-after"] == "5"
            half.sendall(body[5:])
            answer = b"".join(iter(lambda: half.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 200") and b'"predictions"' in answer
        assert process.wait(10) == 0


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
    assert serving.main([str(folder), "--device", "cpu", "--audio_seconds", "0.05", *few]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(report["results"]) == 4 and report["batching_to_one_by_one"].keys() == {"1", "2"}
    assert sum(report["overload"][key] for key in ("answered", "shed_with_429")) == 32


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
