"""The rows of an index on the page and over HTTP: found as `search.py` finds them, shown small, from one folder."""

import asyncio
import base64
import io
import json
import shutil
import time

import httpx
import numpy as np
import pytest
import soundfile
from app_here import error_of, in_base64, running
from fastapi.testclient import TestClient
from PIL import Image
from safetensors.torch import load_file, save_file
from test_evaluation import COLUMNS, LABELS, ROOT, make_folder, make_table
from test_space_service import mixed_rows, scores

import app
import search
from cli.loading import load_pipeline
from metrics import retrieval
from searching import nearest
from searching.store import open_index
from space.errors import Refusal
from space.gallery import HEARD_SECONDS, THUMBNAIL_SIDE, Card, Gallery, data_of_sound, open_gallery
from space.inputs import read_sample
from space.model_info import model_info
from space.options import Options, parse_options
from space.page import Page
from space.page_gallery import gallery_panel
from space.page_visit import Visit
from space.server import make_app
from space.service import Service
from space.tasks import TASKS, predict_with_vectors
from space.views_gallery import gallery_view

CPU = ["--device", "cpu"]
TEXT = "a small animal"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("served") / "animals")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A table with pictures and sounds beside it, and above it a picture that nobody shall see."""
    folder = tmp_path_factory.mktemp("rows")
    table = make_table(folder / "table", num_rows=9)
    shutil.copy(folder / "table/1.png", folder / "secret.png")
    soundfile.write(folder / "table/1.wav", np.sin(np.arange(8 * 16_000) / 20), 16_000)
    return table


@pytest.fixture(scope="module")
def index(model, table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("outputs") / "index"
    call = ["build", str(model), "--data_file", str(table), "--index_dir", str(folder), *COLUMNS, *CPU]
    assert search.main([*call, "--label_column", "kind"]) == 0
    return folder


@pytest.fixture(scope="module")
def classify(model):
    return load_pipeline(str(model), device="cpu")


@pytest.fixture(scope="module")
def gallery(classify, model, table, index):
    return open_gallery(classify, Options(index=str(index), index_media=str(table.parent)), str(model))


@pytest.fixture(scope="module")
def http(model, table, index):
    server = running(model, "--index", str(index), "--index_media", str(table.parent))
    with server as (address, _), httpx.Client(base_url=address, timeout=30) as client:
        yield client


def queried(index, capsys, *sample, top_k=10):
    """What `search.py query` says, with the file as strangers see it."""
    capsys.readouterr()
    assert search.main(["query", "--index_dir", str(index), *CPU, "--json", "--top_k", str(top_k), *sample]) == 0
    return [{**row, "file": "rows.csv"} for row in json.loads(capsys.readouterr().out)]


# -- over HTTP --------------------------------------------------------------------------------------------------------


def test_the_api_finds_what_the_command_finds(http, index, table, capsys):
    files = {name: table.parent / f"5.{suffix}" for name, suffix in {"image": "png", "audio": "wav"}.items()}
    contents = {name: path.read_bytes() for name, path in files.items()}
    by_form = http.post("/v1/search?top_k=4", data={"text": TEXT}, files=contents).json()
    by_json = http.post("/v1/search?top_k=4", json={"text": TEXT} | {n: in_base64(c) for n, c in contents.items()})
    flags = [part for name, path in files.items() for part in (f"--{name}", str(path))]
    expected = queried(index, capsys, "--text", TEXT, *flags, top_k=4)
    assert by_form["results"] == by_json.json()["results"] == expected and len(expected) == 4
    assert expected[0]["row"] == 5 and expected[0]["score"] == pytest.approx(1)
    assert by_form["model"] == "animals" and by_form["request_id"]
    assert http.post("/v1/search", json={"text": TEXT}).json()["results"] == queried(index, capsys, "--text", TEXT)


def test_a_search_refuses_what_the_other_questions_refuse(http):
    for query in ("top_k=0", "top_k=51", "top_k=x"):
        assert error_of(http.post(f"/v1/search?{query}", json={"text": TEXT})) == "bad_parameter"
    assert error_of(http.post("/v1/search", json={"image": "photo.png"})) == "not_a_file"
    assert error_of(http.post("/v1/search", json={})) == "nothing_given"
    assert error_of(http.get("/v1/search")) == "method_not_allowed"


def test_a_text_that_holds_no_token_finds_nothing(classify, gallery, monkeypatch):
    # What such a text gets beside others; most tokenizers, ours too, find a token or two in any text.
    monkeypatch.setitem(TASKS, "embed", lambda _, samples: [{"fused": [0.0]} for _ in samples])
    with TestClient(make_app(Service(classify, Options(), gallery=gallery), Options(), "animals")) as client:
        answer = client.post("/v1/search", json={"text": "\u200b"})
    assert error_of(answer) == "nothing_given" and "no word that the model reads" in answer.text


def test_the_model_says_whether_there_is_an_index_and_the_description_knows_the_search(http):
    assert http.get("/v1/model").json()["index"] == {"num_rows": 9}
    described = http.get("/openapi.json").json()
    operation = described["paths"]["/v1/search"]["post"]
    assert set(operation["requestBody"]["content"]) == {"multipart/form-data", "application/json"}
    answer = http.post("/v1/search", json={"text": TEXT}).json()
    assert set(answer) == set(described["components"]["schemas"]["Found"]["properties"])
    assert set(answer["results"][0]) == set(described["components"]["schemas"]["FoundRow"]["properties"])
    assert 'route="/v1/search",status="200"' in http.get("/metrics").text


def test_a_date_and_a_nan_in_a_row_become_json_and_the_folder_of_the_table_stays_secret():
    import datetime

    from space.api import row_of_json

    cells = {"day": datetime.date(2026, 1, 2), "share": float("nan"), "tags": ["a"], "name": "NaN"}
    row = {"rank": 1, "score": 0.5, "row": 3, "file": "/home/somebody/rows.csv", "cells": cells}
    told = json.loads(json.dumps(row_of_json(row), allow_nan=False))
    assert told["cells"] == {"day": "2026-01-02", "share": None, "tags": ["a"], "name": "NaN"}
    assert told["file"] == "rows.csv"


def test_the_app_and_the_command_round_alike():
    assert nearest.SCORE_DECIMALS == retrieval.SCORE_DECIMALS


# -- at the start -----------------------------------------------------------------------------------------------------


def start(capsys, *flags):
    """Start the app as far as it comes, and give its exit code and its last words."""
    code = app.main(["--port", "0", *CPU, *map(str, flags)])
    return code, capsys.readouterr().err.splitlines()[-1]


def test_an_index_of_another_model_ends_the_start(model, index, tmp_path, capsys):
    other = shutil.copytree(model, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["mmfusion.projectors.text.linear.bias"] += 1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    code, told = start(capsys, "--model", other, "--index", index)
    assert code == 1 and told.startswith("error: ") and "was made with another model than" in told


def test_an_index_that_is_absent_or_torn_ends_the_start(classify, index, tmp_path):
    def opened(folder, **more):
        return open_gallery(classify, Options(index=str(folder), **more), "animals")

    with pytest.raises(FileNotFoundError, match=r"none` does not exist: make it with `python search.py build`"):
        opened(tmp_path / "none")
    for name in ("vectors-fused.npy", "rows.parquet"):
        torn = shutil.copytree(index, tmp_path / name)
        (torn / name).write_bytes((torn / name).read_bytes()[:-7])
        with pytest.raises(ValueError, match=rf"is damaged: `{name}` has .* bytes where .* Build it again"):
            opened(torn)
    with pytest.raises(FileNotFoundError, match=r"`--index_media nowhere` is no folder: give the one that the paths"):
        opened(index, index_media="nowhere")


def test_media_without_an_index_are_a_wrong_call(capsys):
    with pytest.raises(SystemExit) as caught:
        parse_options(["--index_media", "x"], {})
    assert caught.value.code == 2 and "--index_media needs --index" in capsys.readouterr().err
    options = parse_options([], {"MMFUSION_INDEX": "outputs/index", "MMFUSION_INDEX_MEDIA": "my"})
    assert (options.index, options.index_media) == ("outputs/index", "my")


def test_without_an_index_there_is_no_address_and_nothing_on_the_page(classify):
    from space.api import make_router

    service = Service(classify, Options())
    info = model_info(classify, Options(), str(ROOT))
    assert info["index"] is None
    assert "/v1/search" not in {route.path for route in make_router(service, Options(), info).routes}
    assert Page(service, Options(), info, None, None).try_tab.gallery is None


# -- what is shown of a row -------------------------------------------------------------------------------------------


def decoded(address):
    return io.BytesIO(base64.b64decode(address.partition(",")[2]))


def vector_of(classify, **sample):
    ((_, vectors),) = predict_with_vectors(classify, [sample])
    return vectors["+".join(sample)]


def test_pictures_and_sounds_are_shown_small(gallery, classify):
    cards = {card.row: card for card in gallery.cards(vector_of(classify, text=TEXT), top_k=9)}
    assert [card.score for card in cards.values()] == sorted((c.score for c in cards.values()), reverse=True)
    assert cards[1].cells["text"] == TEXT and cards[1].cells["label"] in LABELS
    assert not cards[2].cells["text"] and cards[3].picture is None and cards[4].sound is None
    assert max(Image.open(decoded(cards[1].picture)).size) == THUMBNAIL_SIDE
    heard = classify.processor.max_audio_seconds
    assert soundfile.info(decoded(cards[1].sound)).duration == pytest.approx(heard, abs=0.1) and heard < 1


def test_of_a_long_sound_the_beginning_is_played_and_of_a_sensor_nothing():
    tone = np.sin(np.arange(16_000 * 8) / 20).astype(np.float32)
    assert soundfile.info(decoded(data_of_sound(tone, 16_000))).duration == pytest.approx(HEARD_SECONDS, abs=0.1)
    assert data_of_sound(tone, 100) is None


OUTSIDE = [
    "../secret.png",
    "/etc/passwd",
    "link.png",
    "https://example.org/x.png",
    "none.png",
    "\x00",
    "a" * 5000,
    ".",
]


def test_what_is_not_in_the_folder_is_not_shown(gallery, table):
    link = table.parent / "link.png"
    if not link.is_symlink():
        link.symlink_to(table.parent.parent / "secret.png")
    assert all(gallery._path(cell) is None for cell in OUTSIDE)
    assert gallery._path(" 1.png ") == (table.parent / "1.png").resolve()


def test_a_file_beyond_the_limits_of_visitors_is_named_and_not_shown(classify, index, table):
    small = Gallery(open_index(index), classify.processor, Options(index_media=str(table.parent), max_body_mib=0.0005))
    (card,) = small.cards(vector_of(classify, text=TEXT), top_k=1)
    assert card.picture is None and card.sound is None
    assert f'Picture <span dir="auto">{card.cells["image"]}' in gallery_view("en", [card])
    unknown = Gallery(open_index(index), classify.processor, Options())  # no folder of media
    assert not any(c.picture or c.sound for c in unknown.cards(vector_of(classify, text=TEXT)))


def test_what_a_row_holds_is_escaped():
    evil = '"><script>alert(1)</script>'
    card = Card(3, -0.25, dict.fromkeys(("text", "label", "image", "audio"), evil), None, None)
    told = gallery_view("zh", [card], ["image"])
    assert "<script>" not in told and told.count("&lt;script&gt;") == 4
    assert "相似度 −0.250，第 3 行" in told and "不使用图片" in told


# -- on the page ------------------------------------------------------------------------------------------------------


def test_switches_ask_the_index_anew_and_no_model(classify, gallery, index, table, capsys):
    image = table.parent / "6.png"

    async def scenario():
        async with Service(classify, Options(), gallery=gallery) as service:
            page = Page(service, Options(), model_info(classify, Options(), str(ROOT), gallery), None, None)
            tab, visit = page.try_tab, Visit()
            first = await tab.on_classify(visit, TEXT, image, None)
            assert "Looking for similar rows" in first[tab.gallery.panel]
            whole = await tab.gallery.on_search(visit)
            rows = [card.row for card in visit.cards]
            _ = [step async for step in tab.on_explain(visit)]
            calls = service.telemetry.model_seconds.collect()[0].samples
            tab.on_switch(visit, True, False, False)
            rest = await tab.gallery.on_search(visit)
            assert service.telemetry.model_seconds.collect()[0].samples == calls
            only_text = [card.row for card in visit.cards]
            assert "Without picture." in rest and page.said_in(visit)[tab.gallery.panel] == rest != whole
            tab.on_switch(visit, False, False, False)
            assert "nothing left to look for" in await tab.gallery.on_search(visit)
            assert tab.on_clear(visit)[tab.gallery.panel] == ""
            return rows, only_text

    rows, only_text = asyncio.run(scenario())
    assert rows == [r["row"] for r in queried(index, capsys, "--text", TEXT, "--image", str(image), top_k=8)]
    assert only_text == [r["row"] for r in queried(index, capsys, "--text", TEXT, top_k=8)]


def test_rows_that_come_too_late_are_not_shown(classify, gallery):
    async def scenario():
        async with Service(classify, Options(), gallery=gallery) as service:
            page = Page(service, Options(), model_info(classify, Options(), str(ROOT), gallery), None, None)
            tab, visit = page.try_tab, Visit()
            await tab.on_classify(visit, TEXT, None, None)
            late = asyncio.create_task(tab.gallery.on_search(visit))
            await asyncio.sleep(0)
            await tab.on_classify(visit, "a dog", None, None)
            assert "value" not in (await late) and visit.cards is None

    asyncio.run(scenario())


def test_one_pass_gives_the_plain_answer_and_the_vectors_of_every_subset(classify):
    samples = [read_sample(row, classify.processor, Options()) for row in mixed_rows(3)]
    both, plain, embedded = (TASKS[name](classify, samples) for name in ("predict_with_vectors", "predict", "embed"))
    for (ranked, vectors), expected, known, sample in zip(both, plain, embedded, samples, strict=True):
        assert scores(ranked) == pytest.approx(scores(expected), abs=1e-6)
        assert len(vectors) == 2 ** len(sample) - 1 and vectors.keys() >= sample.keys()
        whole = "+".join(name for name in ("text", "image", "audio") if name in sample)
        for name, vector in {**{name: vectors[name] for name in sample}, "fused": vectors[whole]}.items():
            assert vector == pytest.approx(np.array(known[name]), abs=1e-6)


def test_a_search_that_takes_too_long_is_given_up_and_counted(classify, gallery, monkeypatch):
    async def scenario():
        async with Service(classify, Options(timeout_seconds=0.05), gallery=gallery) as service:
            with pytest.raises(Refusal, match=r"no answer within 0\.05 s") as caught:
                await service.find(np.ones(4, np.float32), 3)
            return caught.value.code, service.telemetry.exposition()[0].decode()

    monkeypatch.setattr(gallery, "find", lambda *_: time.sleep(0.3))
    code, numbers = asyncio.run(scenario())
    assert code == "timeout" and 'mmfusion_refusals_total{code="timeout"} 1.0' in numbers


def test_a_trouble_stands_in_the_place_of_the_rows():
    visit = Visit(ranked=[{"label": "ant", "score": 1.0}], vectors={"text": np.ones(2)})
    visit.cards_trouble = {"en": "no answer within 30 s"}
    assert "no answer within 30 s" in gallery_panel(visit)
