"""Fixtures of the browser tests: one server and one Chromium for each file of tests, a fresh visitor for each test.

Unusual: a test fails by itself when its page asked another host for anything, threw, or logged an error. The served
model has a stranger's card, and its index a stranger's row, which try to make it do so.
"""

import shutil

import pytest
from browser_page import Site, Visit, launch, sound_file, wait_until_ready

# A card that wants to be fetched for, and to run something.
HOSTILE_CARD = """---
license: mit
---
# Animals

![far](https://example.org/a.png) <img src="https://example.org/b.png" onerror="window.hacked=1">
<div style="background: url(https://example.org/c.png)">styled</div><script>window.hacked=1</script>
<style>@import url(https://example.org/d.css); body {background: url(https://example.org/e.png)}</style>
<svg><image href="https://example.org/f.png"/></svg><a href="javascript:window.hacked=1">link</a>
<iframe src="https://example.org/g"></iframe><form action="https://example.org/h"><button>send</button></form>
![ref][1] <video poster="https://example.org/i.png"></video> <b onclick="window.hacked=1">bold</b>

[1]: https://example.org/j.png
"""


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A table beside its pictures and sounds, with a row that wants to run something and to be fetched for."""
    from test_evaluation import make_table

    table = make_table(tmp_path_factory.mktemp("indexed") / "rows")
    with table.open("a") as file:
        file.write("id7,<script>window.hacked=1</script><img src=https://example.org/k.png>,,,<b>ant</b>\n")
    return table


@pytest.fixture(scope="module")
def index(published, table, tmp_path_factory):
    from test_evaluation import COLUMNS

    import search

    folder = tmp_path_factory.mktemp("index") / "index"
    call = [
        "build",
        str(published),
        "--data_file",
        str(table),
        "--index_dir",
        str(folder),
        "--device",
        "cpu",
        *COLUMNS,
    ]
    assert search.main([*call, "--label_column", "kind", "--device", "cpu"]) == 0
    return folder


@pytest.fixture(scope="module")
def site(published, table, index, tmp_path_factory):
    """The app, as a user starts it, on a folder that `train.py` could have left, with a stranger's card in it."""
    from app_here import running

    feedback = tmp_path_factory.mktemp("visitors") / "feedback"
    folder = shutil.copytree(published, tmp_path_factory.mktemp("hostile") / "animals")
    (folder / "README.md").write_text(HOSTILE_CARD)
    flags = ["--feedback_folder", str(feedback), "--index", str(index), "--index_media", str(table.parent)]
    with running(folder, *flags) as (address, process):
        wait_until_ready(address)
        yield Site(address, feedback, process.log)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = launch(playwright, sound_file(tmp_path_factory.mktemp("microphone") / "five.wav", seconds=2))
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, site):
    """Give a function that brings a visitor to the page; its arguments are those of a browser context."""
    visits = []

    def come(query: str = "", **options) -> Visit:
        context = browser.new_context(permissions=["microphone", "camera"], **{"locale": "en-US", **options})
        visits.append(Visit(context.new_page(), site.address))
        return visits[-1].open(query)

    yield come
    for visitor in visits:
        visitor.page.context.close()
    assert [url for visitor in visits for url in visitor.abroad] == [], "the page asked another host"
    assert [error for visitor in visits for error in visitor.errors] == [], "the page's scripts failed"
