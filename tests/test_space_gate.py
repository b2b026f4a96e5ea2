"""The gate alone, before a small app, in this process: tokens, sizes, and faults that nobody foresaw."""

import asyncio
import base64
import json
import logging
import socket
from types import SimpleNamespace

import httpx
import pytest

from space.gate import Gate
from space.options import Options
from space.telemetry import Telemetry

TOKENS = ("first-token", "second-token")
OPTIONS = Options(max_body_mib=1.0)
PATHS = ["/v1/predict", "/v1/model", "/docs", "/openapi.json", "/metrics", "/", "/gradio_api/info"]


async def app(scope, receive, send):
    """Answer with the number of bytes that came; fail when asked to."""
    size, message = 0, {"more_body": True}
    while message.get("more_body"):
        message = await receive()
        size += len(message["body"])
    if scope["path"] == "/fails":
        raise RuntimeError("secret of the server")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(size).encode()})


def call(method, path, *, service=None, options=OPTIONS, **kwargs):
    service = service or SimpleNamespace(num_requests=0, is_draining=False, telemetry=Telemetry())
    gate = Gate(app, service, options, page_calls={"predict"})

    async def inside():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(gate), base_url="http://x") as client:
            return await client.request(method, path, **kwargs)

    response = asyncio.run(inside())
    assert service.num_requests == 0
    return response


def error_of(response):
    assert response.headers["x-request-id"] == response.json()["error"]["request_id"]
    return response.status_code, response.json()["error"]["code"]


def basic(password):
    return "Basic " + base64.b64encode(f"anybody:{password}".encode()).decode()


# -- tokens -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/v1/predict", "/v1/model", "/docs", "/openapi.json", "/metrics", "/", "/gradio_api/info"]
)
@pytest.mark.parametrize(
    "header", [None, "Bearer wrong", "Bearer ", "first-token", "Basic ???", basic("wrong"), "Digest first-token"]
)
def test_without_a_token_nothing_but_health_is_open(path, header):
    headers = {} if header is None else {"Authorization": header}
    response = call("GET", path, options=Options(api_tokens=TOKENS), headers=headers)
    assert error_of(response) == (401, "unauthorized")
    asks_browser = response.headers["www-authenticate"].startswith("Basic")
    assert asks_browser is not path.startswith("/v1/")


@pytest.mark.parametrize("header", ["Bearer first-token", "bearer second-token", basic("second-token")])
def test_each_token_opens_everything(header):
    for path in ("/v1/predict", "/", "/gradio_api/call/predict"):
        response = call("POST", path, options=Options(api_tokens=TOKENS), headers={"Authorization": header})
        assert response.status_code == 200


def test_health_needs_no_token_and_without_tokens_nothing_does():
    assert call("GET", "/healthz", options=Options(api_tokens=TOKENS)).status_code == 200
    assert call("GET", "/readyz", options=Options(api_tokens=TOKENS)).status_code == 200
    assert call("GET", "/v1/model").status_code == 200


# -- sizes ------------------------------------------------------------------------------------------------------------


async def pieces(count):
    for _ in range(count):
        yield bytes(2**16)


def test_a_body_is_counted_while_it_streams():
    assert call("POST", "/", content=pieces(16)).text == str(2**20)
    assert error_of(call("POST", "/", content=pieces(17))) == (413, "body_too_large")


def test_a_length_that_is_too_large_is_refused_before_anything_is_read():
    response = call("POST", "/fails", content=bytes(2**20 + 1))
    assert error_of(response) == (413, "body_too_large")
    assert response.json()["error"]["message"] == "the request has more than 1,048,576 bytes, the limit."


def test_a_length_that_lies_does_not_help():
    response = call("POST", "/", content=pieces(17), headers={"Content-Length": "5"})
    assert error_of(response) == (413, "body_too_large")


# -- room and faults --------------------------------------------------------------------------------------------------


def test_too_many_open_requests_are_refused_before_their_bodies_are_read():
    service = SimpleNamespace(num_requests=0, is_draining=False, telemetry=Telemetry())
    response = call("POST", "/fails", service=service, options=Options(max_waiting=0))
    assert error_of(response) == (429, "overloaded") and response.headers["retry-after"] == "1"
    assert call("GET", "/", service=service, options=Options(max_waiting=0)).status_code == 200


def test_a_draining_server_refuses_new_work_and_still_shows_itself():
    service = SimpleNamespace(num_requests=0, is_draining=True, telemetry=Telemetry())
    response = call("POST", "/v1/predict", service=service)
    assert error_of(response) == (503, "draining") and response.headers["retry-after"] == "5"
    assert call("GET", "/", service=service).status_code == 200


def test_an_unknown_call_of_the_page_is_not_found():
    for path in ("/gradio_api/call/nope", "/gradio_api/run/nope/", "/gradio_api/call/v2/nope", "/gradio_api/api/nope"):
        assert error_of(call("POST", path)) == (404, "not_found")
    assert call("POST", "/gradio_api/call/v2/predict").status_code == 200


def test_a_fault_is_told_to_the_log_and_not_to_the_client(caplog):
    with caplog.at_level(logging.ERROR, logger="mmfusion"):
        response = call("POST", "/fails")
    assert error_of(response) == (500, "internal_error") and "secret" not in response.text
    assert response.json()["error"]["request_id"] in caplog.text and "secret of the server" in caplog.text


def test_strange_paths_do_not_become_labels_of_metrics():
    service = SimpleNamespace(num_requests=0, is_draining=False, telemetry=Telemetry())
    for path in ("/v1/guess", "/gradio_api/x", "/v1/predict"):
        call("GET", path, service=service)
    told = service.telemetry.exposition()[0].decode()
    for route in ("other", "page", "/v1/predict"):
        assert f'mmfusion_requests_total{{route="{route}",status="200"}} 1.0' in told
    assert "guess" not in told and json.dumps(told)


def test_the_port_is_taken_by_a_socket_whose_small_answers_do_not_wait():
    from space.server import bound_socket

    with bound_socket("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP, "asyncio looks at this before it sets TCP_NODELAY"
