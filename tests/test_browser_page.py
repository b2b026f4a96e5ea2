"""The page in a real Chromium: what visitors do on it, and that it serves all of them.

First what one does: give, record, ask why, turn off, judge, send a whole table. Then who comes: without a mouse, by
phone, in the dark, in Chinese, with a screen reader, with malice. One file, for one server and one browser.
"""

import csv
import json
import zipfile

import httpx
import pyarrow.parquet as pq
import pytest
from browser_page import TABS, findings, needs_chromium, picture_file, sound_file
from PIL import Image
from test_evaluation import LABELS

from data.table import read_table

pytest_plugins = ["browser_fixtures"]
pytestmark = needs_chromium
REASONS = ("contributions", "alone", "words", "heat", "wave")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("given")
    return {"image": picture_file(folder / "noise.png"), "audio": sound_file(folder / "five.wav")}


@pytest.fixture
def answered(visit, files):
    """Give a function that brings a visitor with everything on the page: inputs, answer, reasons."""

    def come(**options):
        visitor = visit(**options).give("a small red animal", **files)
        visitor.classify()
        return visitor

    return come


def ask(site, path, **sample):
    """Ask the same server over HTTP."""
    files = {name: value.read_bytes() for name, value in sample.items() if name != "text"}
    data = {"text": sample["text"]} if "text" in sample else None
    return httpx.post(f"{site.address}/v1/{path}", data=data, files=files or None, timeout=30).json()


def as_percentages(predictions):
    return {entry["label"]: pytest.approx(100 * entry["score"], abs=0.06) for entry in predictions}


# -- one sample -------------------------------------------------------------------------------------------------------


def test_text_picture_and_sound_get_ranked_labels_and_every_reason(visit, site, files):
    visitor = visit().give("a small red animal", **files)
    best = visitor.classify()
    ranks = visitor.ranks()
    assert ranks == as_percentages(ask(site, "predict", text="a small red animal", **files)["predictions"])
    assert next(iter(ranks)) == best and sorted(ranks) == LABELS
    for name in REASONS:
        assert visitor.at(name).is_visible() and visitor.at(name).inner_text().strip(), name
    assert visitor.at("contributions").locator(".mm-shares li").count() == 3
    assert visitor.at("words").locator(".mm-words").inner_text() == "a small red animal"
    for name in ("heat", "wave"):
        picture = visitor.at(name).locator("img")
        assert picture.evaluate("image => image.naturalWidth") > 100, name
        assert best in picture.get_attribute("alt"), name


def test_each_input_alone_is_enough(visit, site, files):
    visitor = visit()
    for name, value in {"text": "a loud animal", **files}.items():
        visitor.open().give(**{name: value}).classify()
        assert visitor.ranks() == as_percentages(ask(site, "predict", **{name: value})["predictions"]), name
        absent = visitor.at("contributions").locator(".mm-shares li", has_text="not given")
        assert absent.count() == 2, name
        assert not visitor.at("disagreement").locator(".mm-warning").is_visible(), name


def test_what_is_recorded_is_classified(visit):
    visitor = visit()
    visitor.record(seconds=0.8)
    assert visitor.classify() in LABELS
    assert visitor.at("wave").locator("img").is_visible() and not visitor.at("heat").locator("img").is_visible()


def test_what_the_camera_sees_is_classified(visit):
    visitor = visit()
    visitor.photograph()
    assert visitor.classify() in LABELS
    assert visitor.at("heat").locator("img").is_visible() and not visitor.at("wave").locator("img").is_visible()


def test_turning_inputs_off_changes_the_answer_without_asking_the_model(visit, site, files):
    sample = {"text": "a loud red animal", **files}
    visitor = visit().give(**sample)
    visitor.classify()
    whole, num_calls = visitor.ranks(), site.num_model_calls()
    for name in sample:
        visitor.switch(name)
        assert visitor.at("answer").locator(".mm-without").is_visible()
        rest = {other: value for other, value in sample.items() if other != name}
        seen = visitor.ranks()
        assert site.num_model_calls() == num_calls, "the towers ran again"
        assert seen == as_percentages(ask(site, "predict", **rest)["predictions"]) and seen != whole, name
        num_calls = site.num_model_calls()
        visitor.switch(name)
    assert visitor.ranks() == whole


def test_the_most_similar_rows_are_shown_and_are_others_without_an_input(visit, site, files):
    sample = {"text": "a small animal", **files}
    visitor = visit().give(**sample)
    visitor.classify()
    rows = visitor.at("nearest").locator("li")

    def expected():
        return [f"Similarity {row['score']:.3f}, row {row['row']}" for row in ask(site, "search", **sample)["results"]]

    assert rows.locator(".mm-note").all_inner_texts() == expected() and rows.count() == 7
    assert rows.locator("img").evaluate_all("images => images.every(image => image.naturalWidth > 100)")
    assert rows.filter(has_text="row 1").locator("audio").evaluate("sound => sound.duration") > 0.04
    before, num_calls = rows.all_inner_texts(), site.num_model_calls()
    visitor.switch("text")
    assert site.num_model_calls() == num_calls and rows.all_inner_texts() != before
    del sample["text"]
    assert rows.locator(".mm-note").all_inner_texts() == expected()


def test_a_sentence_says_when_the_inputs_disagree(visit, site, tmp_path):
    for seed in range(40):
        image = picture_file(tmp_path / f"{seed}.png", seed)
        explanation = ask(site, "explain?details=false", text="a loud animal", image=image)["explanation"]
        if explanation["disagreement"]:
            break
    visitor = visit().give("a loud animal", image)
    visitor.classify()
    told = visitor.at("disagreement").locator(".mm-warning")
    told.wait_for()
    for name in ("text", "image"):
        assert f"“{explanation['subsets'][name][0]['label']}”" in told.inner_text()


def test_one_click_on_an_example_fills_it_in_and_classifies_it(visit):
    visitor = visit()
    with visitor.settled():
        visitor.at("examples").get_by_role("button").first.click()
    assert visitor.best() in LABELS


# -- what bad input gets ----------------------------------------------------------------------------------------------


def test_bad_input_gets_a_sentence_on_the_page_which_goes_on(visit, tmp_path):
    Image.new("1", (20_000, 10_000)).save(tmp_path / "large.png")
    (tmp_path / "text.png").write_text("hello")
    visitor = visit()
    assert "nothing to answer" in visitor.refusal()
    for name, told in {"large.png": "pixels", "text.png": "`image`"}.items():
        visitor.open().give(image=tmp_path / name)
        assert told in visitor.refusal(), name
    visitor.open().give("a loud animal")
    assert visitor.classify() in LABELS


# -- feedback ---------------------------------------------------------------------------------------------------------


def test_feedback_is_stored_only_with_consent_and_train_py_can_read_it(visit, site, files):
    visitor = visit().give("a small animal", **files)
    best = visitor.classify()
    right = next(label for label in LABELS if label != best)
    visitor.at("feedback-verdict").get_by_label("wrong", exact=True).check()
    visitor.pick("feedback-label", right)
    visitor.button("feedback-send").click()
    visitor.page.get_by_text("Nothing was stored").first.wait_for()
    assert not (site.feedback / "metadata.jsonl").exists()
    for name in ("feedback-consent", "feedback-media-consent"):
        visitor.at(name).get_by_role("checkbox").check()
    visitor.button("feedback-send").click()
    visitor.at("feedback-thanks").get_by_text("Thank you").wait_for()
    (row,) = map(json.loads, (site.feedback / "metadata.jsonl").read_text().splitlines())
    assert (row["text"], row["label"], row["predicted"]) == ("a small animal", right, best)
    table = read_table(site.feedback / "metadata.jsonl")
    assert table.cell(0, "text") == "a small animal" and table.media(0, "image") and table.media(0, "audio")


# -- many rows --------------------------------------------------------------------------------------------------------


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def test_a_table_is_answered_row_by_row_and_can_be_downloaded(visit, site, tmp_path):
    texts = ["a loud animal", "a small animal", "=1+1"] * 20
    visitor = visit()
    visitor.run_batch(write_csv(tmp_path / "rows.csv", [["id", "text"], *enumerate(texts)]))
    rows = visitor.at("batch-table").locator("tbody tr")
    assert 10 <= rows.count() < len(texts), "the first rows are shown, the files have all"
    expected = ask(site, "predict", text=texts[1])["predictions"][0]["label"]
    assert expected in rows.nth(1).inner_text()
    with visitor.download("batch-csv").open(encoding="utf-8-sig", newline="") as file:
        downloaded = list(csv.DictReader(file))
    assert [row["id"] for row in downloaded] == [str(number) for number in range(len(texts))]
    assert downloaded[1]["prediction"] == expected and downloaded[2]["text"] != "=1+1", "a formula was left as it is"
    table = pq.read_table(visitor.download("batch-parquet"))
    assert table["text"].to_pylist() == texts and set(table["prediction"].to_pylist()) <= set(LABELS)


def test_a_zip_brings_its_files_and_a_bad_row_spoils_no_other(visit, site, files, tmp_path):
    rows = [["text", "image", "audio"], ["a cat", "x.png", "x.wav"], ["", "missing.png", ""], ["", "", "x.wav"]]
    with zipfile.ZipFile(tmp_path / "rows.zip", "w") as archive:
        archive.write(write_csv(tmp_path / "rows.csv", rows), "rows.csv")
        archive.write(files["image"], "x.png")
        archive.write(files["audio"], "x.wav")
    visitor = visit()
    visitor.run_batch(tmp_path / "rows.zip")
    table = pq.read_table(visitor.download("batch-parquet")).to_pylist()
    assert [row["prediction"] is None for row in table] == [False, True, False]
    assert "missing.png" in table[1]["error"] and "missing.png" in visitor.at("batch-table").inner_text()
    assert table[0]["prediction"] == ask(site, "predict", text="a cat", **files)["predictions"][0]["label"]


def test_a_batch_can_be_stopped_and_what_is_done_is_kept(visit, tmp_path):
    visitor = visit()
    table = write_csv(tmp_path / "rows.csv", [["text"], *([f"animal {number}"] for number in range(1000))])
    visitor.run_batch(table, stop=True)
    assert "Stopped" in visitor.at("batch-progress").inner_text()
    # How many rows were done by then is the machine's affair; what there is, is a whole file.
    assert pq.read_table(visitor.download("batch-parquet")).num_rows < 1000


def test_a_table_that_is_none_gets_a_sentence(visit, tmp_path):
    visitor = visit()
    visitor.run_batch(write_csv(tmp_path / "rows.csv", [["colour"], ["red"]]))
    visitor.page.get_by_text("column").filter(visible=True).first.wait_for()


# -- screen readers ---------------------------------------------------------------------------------------------------


def test_axe_finds_nothing_serious_on_any_tab(visit):
    visitor = visit()
    for tab in TABS:
        visitor.go_to(tab)
        for scheme in ("light", "dark"):
            visitor.see_in(scheme)
            assert findings(visitor.page) == [], (tab, scheme)


def test_axe_finds_nothing_serious_beside_an_answer(answered):
    visitor = answered()
    for scheme in ("light", "dark"):
        visitor.see_in(scheme)
        assert findings(visitor.page) == [], scheme


def test_the_names_of_the_tabs_can_be_read(visit):
    visitor = visit()
    for scheme in ("light", "dark"):
        visitor.see_in(scheme)
        for tab in visitor.page.get_by_role(
            "tab"
        ).all():  # axe cannot judge them: a line is drawn below by other means
            assert visitor.contrast(tab) >= 4.5, (scheme, tab.inner_text())


def test_a_screen_reader_is_told_of_a_new_answer(answered):
    visitor = answered()
    live = visitor.page.locator("[aria-live=polite], [role=status]").filter(has=visitor.page.locator(".mm-best"))
    assert live.count() >= 1, "the answer stands in no live region"


# -- keyboard ---------------------------------------------------------------------------------------------------------


def test_the_keyboard_alone_goes_from_loading_to_an_answer_and_to_feedback(visit, site):
    visitor = visit()
    visitor.tab_to("text-input")
    visitor.page.keyboard.type("a loud animal")
    visitor.tab_to("classify-button")
    assert visitor.has_visible_focus()
    with visitor.settled():
        visitor.page.keyboard.press("Enter")
    visitor.tab_to("feedback-verdict")
    visitor.page.keyboard.press("Space")
    visitor.tab_to("feedback-consent")
    visitor.page.keyboard.press("Space")
    visitor.tab_to("feedback-send")
    visitor.page.keyboard.press("Enter")
    visitor.at("feedback-thanks").get_by_text("Thank you").wait_for()
    assert "a loud animal" in (site.feedback / "metadata.jsonl").read_text()


def test_arrows_go_from_tab_to_tab(visit):
    from playwright.sync_api import expect  # where it is absent, these tests are skipped

    visitor = visit()
    tabs = visitor.page.get_by_role("tab")
    visitor.page.wait_for_selector("#answer[aria-live]", state="attached")  # the page's own script has run
    tabs.first.focus()
    for key, selected in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("Home", 0), ("End", 2)):
        visitor.page.keyboard.press(key)
        expect(tabs.nth(selected)).to_have_attribute("aria-selected", "true")


# -- screens ----------------------------------------------------------------------------------------------------------


def test_nothing_sticks_out_of_a_phone(answered):
    visitor = answered(viewport={"width": 390, "height": 780}, is_mobile=True, has_touch=True)
    for width in (390, 360):
        visitor.page.set_viewport_size({"width": width, "height": 780})
        for tab in TABS:
            visitor.go_to(tab)
            assert visitor.sticking_out() == [], (tab, width)


def test_on_a_phone_the_answer_comes_into_sight(answered):
    visitor = answered(viewport={"width": 390, "height": 780}, is_mobile=True, has_touch=True, reduced_motion="reduce")
    visitor.page.wait_for_function("document.getElementById('answer').getBoundingClientRect().top < innerHeight / 2")


def test_light_and_dark_follow_the_visitor_and_the_address(visit):
    visitor = visit(color_scheme="light")
    assert visitor.brightness() > 0.8
    visitor.see_in("dark")
    assert visitor.brightness() < 0.2
    visitor.see_in("light")
    assert visitor.open("?__theme=dark").brightness() < 0.2


# -- languages --------------------------------------------------------------------------------------------------------


def test_a_chinese_browser_gets_a_chinese_page(visit):
    visitor = visit(locale="zh-CN")
    assert visitor.button("classify-button").inner_text().strip() == "识别"
    visitor.page.wait_for_function("document.documentElement.lang.startsWith('zh')")
    visitor.give("a loud animal")
    assert visitor.classify() in LABELS
    assert "贡献" in visitor.at("contributions").inner_text()
    assert visitor.button("feedback-send").inner_text().strip() == "发送"


def test_the_language_can_be_changed_after_an_answer(visit):
    visitor = visit().give("a loud animal")
    best = visitor.classify()
    for name in ("识别", "Classify"):
        with visitor.settled():
            visitor.button("language").click()
        assert visitor.button("classify-button").inner_text().strip() == name and visitor.best() == best


# -- malice -----------------------------------------------------------------------------------------------------------

HOSTILE = {
    "markup": '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script><b>bold</b>',
    "attribute": '" onmouseover="window.hacked=1" x="',
    "template": "{{constructor.constructor('window.hacked=1')()}} ${window.hacked=1} $$x$$ [a](javascript:hacked=1)",
    "right to left": "שלום עולם مرحبا \u202eevil\u202c",
    "emoji": "👩‍👩‍👧‍👦 🐝 a bee 🇩🇪",
    "long": "animal " * 714,
    "one long word": "a" * 5_000,
}


def test_hostile_text_is_shown_as_text_and_runs_nothing(visit):
    visitor = visit(viewport={"width": 390, "height": 780})
    for name, text in HOSTILE.items():
        visitor.give(text)
        assert visitor.classify() in LABELS, name
        assert visitor.at("words").locator(".mm-words").text_content().strip() == text.strip(), name
        assert visitor.page.evaluate("window.hacked === undefined"), name
        assert visitor.sticking_out() == [], name


def test_a_hostile_card_is_read_and_runs_and_fetches_nothing(visit):
    visitor = visit()
    visitor.go_to("model")
    card = visitor.at("model-card")
    card.get_by_role("heading", name="Animals").wait_for()
    for text in ("link", "bold", "styled"):
        card.get_by_text(text, exact=True).first.click()
    visitor.page.wait_for_timeout(300)
    assert visitor.page.evaluate("window.hacked === undefined")
    assert all(url.startswith("https://example.org/") for url in visitor.blocked)
