"""The gate alone, before a small app, in this process: tokens, sizes, and faults that nobody foresaw."""

import asyncio
import base64
import json
import logging
import re
import socket
import time
from types import SimpleNamespace

import httpx
import pytest
import uvicorn

from space import connections, gate
from space.connections import TimedProtocol
from space.gate import Gate
from space.options import Options
from space.server import bound_socket
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


def call(method, path, *, service=None, options=OPTIONS, inner=app, **kwargs):
    service = service or SimpleNamespace(num_requests=0, is_draining=False, telemetry=Telemetry())
    guarded = Gate(inner, service, options, page_calls={"predict"})

    async def inside():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(guarded), base_url="http://x") as client:
            return await client.request(method, path, **kwargs)

    response = asyncio.run(inside())
    assert service.num_requests == 0
    return response


def stopping():
    return SimpleNamespace(num_requests=0, is_draining=True, telemetry=Telemetry())


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


# -- time -------------------------------------------------------------------------------------------------------------


async def drops(count, seconds, size=1):
    for _ in range(count):
        yield bytes(size)
        await asyncio.sleep(seconds)


def test_a_body_that_drips_in_is_given_up_and_holds_its_place_no_longer(monkeypatch):
    monkeypatch.setattr(gate, "BODY_SECONDS", 0.2)
    start = time.perf_counter()
    response = call("POST", "/", content=drops(100, 0.1))
    assert error_of(response) == (408, "body_too_slow") and response.headers["connection"] == "close"
    assert re.search(r"only \d bytes of the request came in 0\.2 s or more", response.json()["error"]["message"])
    assert time.perf_counter() - start < 2


def test_a_slow_body_may_take_longer_as_long_as_its_bytes_keep_coming(monkeypatch):
    monkeypatch.setattr(gate, "BODY_SECONDS", 0.2)
    monkeypatch.setattr(gate, "MIN_BODY_BYTES_PER_SECOND", 5_000)
    assert call("POST", "/", content=drops(12, 0.05, size=1_000)).text == "12000"


def test_a_refused_body_that_drips_in_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(gate, "BODY_SECONDS", 0.2)
    for headers, service in (({"Content-Length": str(2**30)}, None), ({}, stopping())):
        start = time.perf_counter()
        response = call("POST", "/", content=drops(100, 0.1), headers=headers, service=service)
        assert error_of(response)[0] == (413 if headers else 503) and time.perf_counter() - start < 2


def test_who_waits_for_a_slow_answer_is_not_taken_for_a_slow_sender(monkeypatch):
    async def slow(scope, receive, send):
        while (await receive())["more_body"]:
            pass
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(receive(), 0.4)  # whether the client has left: it has not
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"late"})

    monkeypatch.setattr(gate, "BODY_SECONDS", 0.1)
    assert call("POST", "/", inner=slow, content=b"x").text == "late"


async def on_connections(scenario, inner=app, max_body_mib=1.0):
    """Run `scenario(port)` beside a real server that has nothing but a gate and a small app."""
    service = SimpleNamespace(num_requests=0, is_draining=False, telemetry=Telemetry())
    guarded = Gate(inner, service, Options(max_body_mib=max_body_mib), page_calls={})
    server = uvicorn.Server(uvicorn.Config(guarded, http=TimedProtocol, lifespan="off", log_level="error"))
    with bound_socket("127.0.0.1", 0) as listener:
        task = asyncio.create_task(server.serve([listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        try:
            return await scenario(listener.getsockname()[1])
        finally:
            server.should_exit = True
            await task


async def seconds_until_closed(port, sent):
    """Send some bytes, then one a tenth of a second; give what came and when the connection was over."""
    start = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    answer = asyncio.create_task(reader.read(-1))
    while not answer.done() and time.perf_counter() - start < 5:
        writer.write(b"x")
        await asyncio.sleep(0.1)
    writer.close()
    try:
        return await answer, time.perf_counter() - start
    except ConnectionResetError:
        return b"", time.perf_counter() - start


def post(length, path="/"):
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", b""),
        (b"GET / HTTP/1.1\r\nX: ", b""),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nX: ", b"HTTP/1.1 200"),
        (post(1000), b"HTTP/1.1 408"),
        (post(1000, "/gradio_api/call/nope"), b"HTTP/1.1 404"),  # refused by its head; the body drips on
    ],
)
def test_no_connection_is_held_by_dripping(monkeypatch, sent, status):
    monkeypatch.setattr(gate, "BODY_SECONDS", 0.4)
    monkeypatch.setattr(connections, "HEAD_SECONDS", 1.0)
    answer, seconds = asyncio.run(on_connections(lambda port: seconds_until_closed(port, sent)))
    assert answer.startswith(status) and 0.3 < seconds < 3


def test_a_connection_that_is_used_stays_open(monkeypatch):
    async def scenario(port):
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            for _ in range(4):
                assert (await client.post("/", content=bytes(100_000))).text == "100000"
                await asyncio.sleep(0.2)
            (connection,) = client._transport._pool.connections
            return connection.info()

    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.3)
    assert "Request Count: 4" in asyncio.run(on_connections(scenario))


@pytest.mark.parametrize("headers", [{}, {"Expect": "100-continue"}])
def test_who_sends_far_too_much_can_read_why_it_was_refused(headers):
    async def scenario(port):
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            return await client.post("/", content=bytes(20_000_000), headers=headers)

    assert error_of(asyncio.run(on_connections(scenario))) == (413, "body_too_large")


# -- room and faults --------------------------------------------------------------------------------------------------


def test_too_many_open_requests_are_refused_before_their_bodies_are_read():
    service = SimpleNamespace(num_requests=0, is_draining=False, telemetry=Telemetry())
    response = call("POST", "/fails", service=service, options=Options(max_waiting=0))
    assert error_of(response) == (429, "overloaded") and response.headers["retry-after"] == "1"
    assert call("GET", "/", service=service, options=Options(max_waiting=0)).status_code == 200


def test_a_draining_server_refuses_new_work_and_still_shows_itself():
    service = stopping()
    response = call("POST", "/v1/predict", service=service, content=pieces(5))
    assert error_of(response) == (503, "draining") and response.headers["retry-after"] == "5"
    shown = call("GET", "/", service=service)
    assert shown.status_code == 200, "and both are told to send the next one elsewhere"
    assert response.headers["connection"] == shown.headers["connection"] == "close"


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
    with bound_socket("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP, "asyncio looks at this before it sets TCP_NODELAY"
