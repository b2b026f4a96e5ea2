"""The server as its users meet it: a real process, real HTTP, Gradio's own client; on a tiny model folder."""

import io
import json
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
from app_here import error_of, in_base64, peak_mib, running
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from test_evaluation import LABELS, ROOT, make_folder
from test_space_inputs import picture, sound
from test_space_service import noise_picture

LIMITS = ["--max_body_mib", "2", "--max_text_chars", "200", "--max_audio_seconds", "2", "--max_rows", "4"]


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


EMPTY_JSON = ["null", '""', '" \\n"', "NaN"]


@pytest.mark.parametrize("empty", EMPTY_JSON)
def test_an_empty_value_is_absent_in_json_and_in_a_list(http, empty):
    expected = http.post("/v1/predict", json={"text": SAMPLE["text"]}).json()["predictions"]
    sample = f'{{"text": {json.dumps(SAMPLE["text"])}, "image": {empty}, "audio": {empty}}}'
    nothing = f'{{"text": {empty}, "image": {empty}}}'
    assert http.post("/v1/predict", content=sample, headers=JSON).json()["predictions"] == expected
    assert error_of(http.post("/v1/predict", content=nothing, headers=JSON)) == "nothing_given"
    first, second = http.post("/v1/predict/batch", content=f"[{sample}, {nothing}]", headers=JSON).json()["results"]
    assert [entry["label"] for entry in first["predictions"]] == [entry["label"] for entry in expected]
    assert second["error"]["code"] == "nothing_given"


@pytest.mark.parametrize("address", ["/v1/predict?top_k=2", "/v1/embed", "/v1/explain?details=false"])
def test_an_empty_field_is_absent_in_a_form(http, address):
    expected = http.post(address, json={"text": SAMPLE["text"]}).json()
    fields = {"text": SAMPLE["text"], "image": "", "audio": " "}
    for sent in (dict(data=fields), dict(files={name: (None, value) for name, value in fields.items()})):
        answer = http.post(address, **sent).json()
        assert {**answer, "request_id": 0} == {**expected, "request_id": 0}


def test_base64_in_a_form_is_read_as_in_json(http):
    for image in (JSON_SAMPLE["image"], "data:image/png;base64," + JSON_SAMPLE["image"]):
        by_form = http.post("/v1/predict", data={"image": image}).json()
        assert by_form["predictions"] == http.post("/v1/predict", json={"image": image}).json()["predictions"]


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


def large_picture(width, height):
    """A whole picture of one bit a pixel: hundreds of megapixels are a few kilobytes."""
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, "PNG")
    return file.getvalue()


def sound_of_nan():
    file = io.BytesIO()
    soundfile.write(file, np.full(800, np.nan), 16_000, format="WAV", subtype="FLOAT")
    return file.getvalue()


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
    "200 megapixels": (dict(files={"image": large_picture(20_000, 10_000)}), "image_unreadable"),
    "NaN for sound": (dict(files={"audio": sound_of_nan()}), "audio_unreadable"),
    "URL in JSON": (dict(json={"audio": "http://127.0.0.1/x.wav"}), "not_a_file"),
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


def test_whatever_is_sent_the_memory_stays_flat(http, server):
    """At no moment may a stranger's file take more than a few times its size on the wire."""
    for request, _ in BAD_BODIES.values():
        http.post("/v1/predict", **request)
    before = peak_mib(server[1], forget=True)
    for _ in range(5):
        for request, _ in BAD_BODIES.values():
            assert http.post("/v1/predict", **request).status_code >= 400
    assert peak_mib(server[1]) < before + 40
    assert http.post("/v1/predict", json=JSON_SAMPLE).status_code == 200


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
        ("TRACE", "/healthz", "method_not_allowed"),
        ("NEVERHEARD", "/metrics", "method_not_allowed"),
        ("GET", "/v1/nothing", "not_found"),
        ("POST", "/v1/../v1/nothing", "not_found"),
        ("POST", "/gradio_api/call/nothing", "not_found"),
        ("POST", "/v1/predict?top_k=0", "bad_parameter"),
        ("POST", "/v1/predict?top_k=x", "bad_parameter"),
        ("POST", "/v1/predict?topk=1", "bad_parameter"),
        ("POST", "/v1/predict/batch?top-k=1", "bad_parameter"),
        ("POST", "/v1/embed?top_k=1", "bad_parameter"),
        ("POST", "/v1/explain?step=3", "bad_parameter"),
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
