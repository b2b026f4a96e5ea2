"""Fixtures of the browser tests: one server and one Chromium for each file of tests, a fresh visitor for each test.

Unusual: a test fails by itself when its page asked another host for anything, threw, or logged an error. The served
model has a stranger's card, which tries to make it do so.
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
def site(published, tmp_path_factory):
    """The app, as a user starts it, on a folder that `train.py` could have left, with a stranger's card in it."""
    from app_here import running

    feedback = tmp_path_factory.mktemp("visitors") / "feedback"
    folder = shutil.copytree(published, tmp_path_factory.mktemp("hostile") / "animals")
    (folder / "README.md").write_text(HOSTILE_CARD)
    with running(folder, "--feedback_folder", str(feedback)) as (address, process):
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
