"""What the page shows, in this process: views against hostile words, and the tabs against a real model and service."""

import asyncio
import base64
import io
import re
import string
import tempfile
import time
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
from PIL import Image
from test_pipeline import LABELS, make_pipeline
from test_space_inputs import picture, sound

from space import page_parts, texts, views, views_pictures
from space.errors import CODES, Refusal
from space.feedback import FeedbackStore
from space.model_info import model_info
from space.options import Options, parse_options
from space.page import Page, named_answer
from space.page_examples import CELLS, DIGITS, STATIC, Examples
from space.page_model import ModelTab, fit_card, plain, read_card
from space.page_visit import Visit, answer_panel, detail_panels, shares_panels
from space.service import Service

EVIL = "<img src=x onerror=alert(1)>\"'&{{7*7}}${alert(2)}"
ROOT = Path(__file__).parents[1]


class Read(HTMLParser):
    """Tags and text of a view, as a browser sees them."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.images, self.attributes = [], "", [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        if tag == "img":
            self.images.append(dict(attrs))

    def handle_data(self, data):
        self.text += data


def explanation(**changes):
    """An explanation of text and picture, without sound, of the label that everything is named after."""
    ranked = [{"label": EVIL, "score": 0.7}, {"label": "bee", "score": 0.3}]
    other = [{"label": "bee", "score": 0.6}, {"label": EVIL, "score": 0.4}]
    given = {
        "label": EVIL, "score": 0.7, "baseline": 0.5, "function": "softmax", "method": "integrated_gradients",
        "modalities": {"text": 0.25, "image": -0.05, "audio": None},
        "subsets": {"text": ranked, "image": other, "text+image": ranked},
        "disagreement": "The modalities disagree.", "completeness": {"warning": None},
        "text": {"words": [{"text": "a", "start": 0, "end": 1, "score": 0.2},
                           {"text": "<b>", "start": 2, "end": 5, "score": -0.1}]},
        "image": {"scores": [[0.0, 1.0], [0.0, -0.5]], "box": [0, 0, 1, 1], "width": 4, "height": 4},
        "audio": None,
    }  # fmt: skip
    return {**given, **changes}


# -- words in two languages -------------------------------------------------------------------------------------------


def test_both_languages_have_the_same_sentences_with_the_same_gaps():
    assert texts.ENGLISH.keys() == texts.CHINESE.keys()
    for key, sentence in texts.ENGLISH.items():
        gaps = [
            sorted(name for _, name, _, _ in string.Formatter().parse(said) if name)
            for said in (sentence, texts.CHINESE[key])
        ]
        assert set(gaps[0]) == set(gaps[1]), key
        assert re.search(r"[\u4e00-\u9fff]", texts.CHINESE[key]) or key in ("other_language", "and", "place"), key


def test_every_refusal_is_told_in_chinese_too():
    assert texts.REFUSALS.keys() == CODES.keys()
    assert (
        texts.refusal_in("zh", "nothing_given", "nothing to answer")
        == "请至少给出文字、图片或声音中的一项（nothing to answer）"
    )
    assert texts.refusal_in("en", "nothing_given", "nothing to answer") == "nothing to answer"


def test_every_sentence_is_said_somewhere():
    sources = "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "space").glob("*.py") if path.name != "texts.py"
    )
    made = (
        "use.",
        "tab.",
        "place.",
        "alone.",
        "batch.column.",
        "batch.",
        "feedback.",
        "legend.",
        "text",
        "image",
        "audio",
    )
    unused = [key for key in texts.ENGLISH if not re.search(f"[\"']{key}[\"']", sources) and not key.startswith(made)]
    assert unused == []


@pytest.mark.parametrize(
    ("accepted", "language"),
    [("zh-CN,zh;q=0.9,en;q=0.8", "zh"), ("zh-HK", "zh"), ("de,en;q=0.5,zh;q=0.4", "en"), ("en;q=0.2,zh;q=0.9", "zh"),
     (None, "en"), ("", "en"), ("fr", "en"), ("zh;q=0", "en"), ("zh;q=x", "en"), (";;,,", "en")],
)  # fmt: skip
def test_the_language_is_what_the_browser_asks_for(accepted, language):
    assert texts.language_of(accepted) == language


def test_words_of_components_are_given_to_the_browser_under_names_of_their_own():
    words = page_parts.Words(**{"feedback.numbers": {"names": "x, y"}})
    with gr.Blocks():
        box = words.make(gr.Textbox, {"label": "feedback.numbers"})
    tables = words.translations().translations
    assert tables["en"]["mmfusion:feedback.numbers"].endswith("separated by blanks: x, y")
    assert tables["zh-CN"].keys() == tables["en"].keys() and tables["zh-TW"] == tables["zh-CN"]
    assert words.said_in("zh")[box]["label"].endswith("x, y")


# -- views ------------------------------------------------------------------------------------------------------------


def all_views(known):
    ranked, text = known["subsets"]["text+image"], "a <b> " + EVIL
    for language in texts.LANGUAGES:
        yield views.answer_view(language, ranked, "single_label_classification", ["image"])
        yield views.answer_view(language, ranked, "multi_label_classification")
        yield views.answer_view(language, ranked, "regression")
        yield views.refusal_view(language, EVIL)
        yield views.contributions_view(language, known)
        yield views.alone_view(language, known)
        yield views.disagreement_view(language, known)
        yield views.words_view(language, text, known)
        yield views.legend(language, known)
        yield views_pictures.heat_view(language, "data:image/webp;base64,AA", known)
        yield views.table([EVIL, "b"], [[EVIL, [EVIL, None]], [None, 0.5]], EVIL, is_wide=True)
        yield views.subsets_view(language, {"num_rows": 3, "subsets": {EVIL: {"accuracy": 0.5}}})


def test_no_word_of_a_stranger_becomes_html():
    for html in all_views(explanation()):
        read = Read(html)
        assert "onerror" not in read.attributes and not {"script", "iframe"} & set(read.tags)
        assert "<img src=x" not in html and EVIL not in html
        assert all(image["src"].startswith("data:image/") for image in read.images)


def test_a_bar_is_as_long_as_its_number_and_starts_at_zero():
    html = views.answer_view(
        "en", [{"label": "a", "score": 0.25}, {"label": "b", "score": 0.0}], "single_label_classification"
    )
    assert re.findall(r"width:([\d.]+)%", html) == ["25.0", "0.0"] and "25.0%" in Read(html).text
    html = views.contributions_view("en", explanation())
    assert re.findall(r'class="mm-(\w+)" style="width:([\d.]+)%"', html) == [("for", "50.0"), ("against", "10.0")]
    told = Read(html).text
    assert "+25.0 points" in told and "−5.0 points" in told and "not given" in told
    assert "From 50.0% with nothing given to 70.0% with everything" in told


def test_shares_of_a_regression_are_plain_numbers():
    told = Read(views.contributions_view("en", explanation(function="none", score=-3.25, baseline=1.5))).text
    assert "+0.25" in told and "points" not in told and "From 1.5 with nothing given to -3.25" in told


def test_only_so_many_labels_are_listed_and_the_rest_counted():
    ranked = [{"label": f"label {place}", "score": 0.5 / (place + 1)} for place in range(20)]
    read = Read(views.answer_view("en", ranked, "single_label_classification"))
    assert read.tags.count("li") == views.MAX_RANKS and "12 more labels" in read.text


def test_a_multi_label_answer_names_what_fits_or_says_that_nothing_does():
    ranked = [{"label": "a", "score": 0.9}, {"label": "b", "score": 0.6}, {"label": "c", "score": 0.2}]
    assert re.findall(r"<strong>(\w)</strong>", views.answer_view("en", ranked, "multi_label_classification")) == [
        "a",
        "b",
    ]
    assert "None of the labels fits" in views.answer_view("en", ranked[2:], "multi_label_classification")


def test_a_disagreement_is_told_with_what_each_modality_says():
    told = Read(views.disagreement_view("en", explanation(label="bee"))).text
    assert told == f"They disagree: the text alone says “{EVIL}” (70.0%), the picture alone says “bee” (60.0%)."
    assert views.disagreement_view("zh", explanation(disagreement=None)) == ""
    several = explanation(function="sigmoid", label="bee")
    assert "“bee” (30.0%)" in Read(views.disagreement_view("en", several)).text


def test_the_words_are_the_visitors_own_with_marks_around_what_weighs():
    html = views.words_view("en", "a <b> \n left over", explanation())
    paragraph = re.search(r'<p class="mm-words" dir="auto">(.*?)</p>', html, re.DOTALL)[1]
    assert Read(paragraph).text == "a <b> \n left over"
    assert re.findall(r'mark class="mm-(\w+)" style="--weight:([\d.]+)"', html) == [
        ("for", "1.00"),
        ("against", "0.50"),
    ]
    assert "the text is too long" in html and "“a” +20.0 points, “&lt;b&gt;” −10.0 points" in html


def test_attention_is_not_called_a_reason():
    known = explanation(method="attention")
    assert "it is not a reason" in views.legend("en", known) and "against" not in views.legend("en", known)
    assert "“a” 20.0%" in views.words_view("en", "a <b>", known)


def test_metrics_that_are_not_known_are_a_dash_and_none_at_all_a_sentence():
    metrics = {"num_rows": 1200, "subsets": {"text": {"accuracy": 0.5, "mae": None}, "text+image": {"accuracy": 1.0}}}
    read = Read(views.subsets_view("en", metrics))
    assert "Text + Picture" in read.text and "1,200 rows" in read.text and "–" in read.text
    assert "no measurements" in views.subsets_view("en", None)
    assert "no measurements" in views.subsets_view("en", {"num_rows": None, "subsets": None})


# -- pictures ---------------------------------------------------------------------------------------------------------


def test_the_heat_lies_where_its_box_is():
    heat = views_pictures.heat_map(np.array([[1.0, -0.5]], np.float32), [0.5, 0, 1, 1], (80, 40))
    assert heat.shape == (40, 80) and not heat[:, :40].any()
    assert heat[:, 42].min() == pytest.approx(1, abs=0.01) and heat[:, 78].max() == pytest.approx(-0.5, abs=0.01)


def test_a_box_beyond_the_picture_shows_only_what_lies_over_it():
    scores = np.array([[1.0, 0.0], [0.0, 0.0]], np.float32)
    heat = views_pictures.heat_map(scores, [-1, -1, 1, 1], (20, 20))  # the first cell is padding, off the picture
    assert heat[-1, -1] == 0 and heat.max() < 0.3
    assert not views_pictures.heat_map(scores * 0, [0, 0, 1, 1], (4, 4)).any()


def test_heat_for_is_of_one_colour_and_against_of_another():
    scores = [[1.0, 1.0, 0.0, 0.0, -1.0, -1.0]]
    picture = views_pictures.heat_picture(Image.new("RGB", (60, 20), "white"), scores, [0, 0, 1, 1])
    assert picture.size == (480, 160)
    (red, green, blue), (r, g, b) = picture.getpixel((20, 80)), picture.getpixel((460, 80))
    assert green > red and blue > red and r > g > b
    neutral = picture.getpixel((240, 80))
    assert max(neutral) - min(neutral) < 5


@pytest.mark.parametrize(
    ("scores", "box", "place"),
    [([[0, 0], [0, 1]], [0, 0, 1, 1], "bottom right"),
     ([[0, 0, 0], [0, -2, 1], [0, 0, 0]], [0, 0, 1, 1], "middle centre"),
     ([[1]], [0, 0, 0.2, 0.2], "top left"), ([[0, 0]], [0, 0, 1, 1], None)],
)  # fmt: skip
def test_the_strongest_place_is_said_in_words(scores, box, place):
    assert views_pictures.strongest_place("en", scores, box) == place


def test_a_heat_without_a_known_place_is_a_sentence():
    assert "not known" in views_pictures.heat_view("en", None, explanation())


def sound_explanation(scores):
    segments = [{"start": place, "end": place + 1, "score": score} for place, score in enumerate(scores)]
    return explanation(audio={"segments": segments, "seconds": len(scores)})


def test_the_waveform_has_the_colours_of_its_stretches():
    known = sound_explanation([0.0, 0.4, -0.2])
    html = views_pictures.wave_view("en", [0.5] * 6, known)
    (image,) = Read(html).images
    svg = base64.b64decode(image["src"].partition(",")[2]).decode()
    colours = re.findall(r'fill="(#\w+)"', svg)
    assert len(colours) == 6 and colours[0] == colours[1] == views_pictures.blended(0)
    assert colours[2] == views_pictures.blended(1) and colours[5] == views_pictures.blended(-0.5)
    assert "from 1.00 to 2.00 seconds" in image["alt"] and EVIL in image["alt"]
    assert "heard the first 3 seconds" in views_pictures.wave_view("en", [0.5] * 6, known, heard=3)
    assert "heard the first" not in views_pictures.wave_view("en", [0.5] * 6, known, heard=10)
    assert "stands out" in views_pictures.wave_view("en", [0.5], sound_explanation([0.0]))


def test_peaks_are_the_loudest_of_each_stretch():
    assert views_pictures.peaks_of(np.array([0, -1, 0.5, 0.25, 0, 0]), 3) == [1, 0.5, 0]
    assert views_pictures.peaks_of(np.zeros(2)) == [0, 0]


# -- the card ---------------------------------------------------------------------------------------------------------


def test_a_card_asks_no_other_site_for_anything(tmp_path):
    (tmp_path / "bars.png").write_bytes(picture())
    card = (
        "---\nlicense: mit\n---\n# Name\n"
        "![a](https://x.example/t.gif) ![b](bars.png) ![c](../secret.png) ![d](none.png)\n"
        "<img src='https://x.example/2.gif'> ![e][r]\n\n```bash\n# not a heading\n```\n"
    )
    (tmp_path / "README.md").write_text(card)
    text = read_card(str(tmp_path), None)
    assert "license" not in text and text.startswith("## Name") and "\n# not a heading\n" in text
    assert "[a](https://x.example/t.gif)" in text and "![a]" not in text and "<img" not in text and "![e]" not in text
    assert text.count("data:image/png;base64,") == 1 and "../secret" not in text
    assert read_card(str(tmp_path / ".."), None) is None


def test_a_name_of_a_label_is_no_markdown():
    assert plain("a*b*\n# <i>") == r"a\*b\* \# \<i\>"
    assert fit_card("no metadata\n---\nrule", lambda file: None) == "no metadata\n---\nrule"


# -- settings ---------------------------------------------------------------------------------------------------------


def test_settings_of_feedback_come_from_flags_and_variables(capsys):
    variables = {"MMFUSION_FEEDBACK_FOLDER": "x", "MMFUSION_MASK_FEEDBACK": "yes", "MMFUSION_FEEDBACK_MEDIA": "0"}
    options = parse_options([], variables)
    assert (options.feedback_folder, options.mask_feedback, options.feedback_media) == ("x", True, False)
    assert parse_options(["--no-mask_feedback"], variables).mask_feedback is False
    for argv, environment, told in (
        (["--feedback_dataset", "a/b"], {}, "--feedback_dataset needs --feedback_folder"),
        ([], {"MMFUSION_MASK_FEEDBACK": "perhaps"}, "MMFUSION_MASK_FEEDBACK is 'perhaps': allowed are yes, true, 1"),
    ):
        with pytest.raises(SystemExit, match="2"):
            parse_options(argv, environment)
        assert told in capsys.readouterr().err


# -- the visit --------------------------------------------------------------------------------------------------------


def test_a_switch_shows_what_the_subset_says():
    visit = Visit(ranked=explanation()["subsets"]["text"], explanation=explanation())
    visit.off = {"text"}
    told = Read(answer_panel(visit, {"problem_type": "single_label_classification", "thresholds": None})).text
    assert "Without text" in told and told.index("bee") < told.index(EVIL)
    visit.off = {"text", "image", "audio"}
    told = Read(answer_panel(visit, {"problem_type": "regression", "thresholds": None})).text
    assert f"With nothing given, the model would give “{EVIL}” 50.0%" in told


def test_panels_say_what_is_being_waited_for():
    visit = Visit(language="zh")
    assert "正在计算" in shares_panels(visit)["contributions"] and not any(detail_panels(visit).values())
    visit.explanation, visit.is_looking = explanation(method=None, text=None, image=None), True
    assert "正在查看" in detail_panels(visit)["inside"]
    visit.trouble = {"zh": EVIL}
    assert EVIL in Read(detail_panels(visit)["inside"]).text


# -- a real page ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classify():
    return make_pipeline()


def on_page(classify, scenario, *, feedback=None, **options):
    """Build the page around a running service and run `scenario(page)` in its loop."""

    async def inside():
        settings = Options(**options)
        async with Service(classify, settings) as service:
            info = model_info(classify, settings, str(ROOT))
            store = feedback and FeedbackStore(
                feedback, labels=info["labels"], problem_type=info["problem_type"], model="m"
            )
            page = Page(service, settings, info, None, store)
            try:
                return await scenario(page)
            finally:
                page.close()

    return asyncio.run(inside())


def files(tmp_path):
    (tmp_path / "x.png").write_bytes(picture(40, 20))
    (tmp_path / "x.wav").write_bytes(sound(0.1))
    return tmp_path / "x.png", tmp_path / "x.wav"


def test_the_answer_comes_first_then_the_shares_then_the_details(classify, tmp_path):
    image, audio = files(tmp_path)

    async def scenario(page):
        tab, visit = page.try_tab, Visit()
        first = await tab.on_classify(visit, "a red cat", image, audio)
        assert (
            first[tab.result]["visible"]
            and first[tab.label] in LABELS.values()
            and not first[tab.switches["text"]]["interactive"]
        )
        assert "Working out" in first[tab.contributions] and first[tab.visit] is visit
        steps = [step async for step in tab.on_explain(visit)]
        assert steps[0][tab.switches["audio"]] == gr.update(value=True, interactive=True)
        assert "points" in steps[0][tab.contributions] and "Looking inside" in steps[0][tab.inside]
        assert "<mark" in steps[1][tab.word_view] and "svg+xml" in steps[1][tab.wave]
        (heat,) = Read(steps[1][tab.heat]).images
        pixels = Image.open(io.BytesIO(base64.b64decode(heat["src"].partition(",")[2])))
        assert pixels.size == (480, 240) and "Your picture" in heat["alt"]
        calls = page.service.telemetry.model_seconds.collect()[0].samples
        without = tab.on_switch(visit, True, False, True)
        assert "Without picture" in without and page.service.telemetry.model_seconds.collect()[0].samples == calls

    on_page(classify, scenario)


def test_a_newer_sample_ends_the_explanation_of_the_older(classify):
    async def scenario(page):
        tab, visit = page.try_tab, Visit()
        await tab.on_classify(visit, "a red cat", None, None)
        older = tab.on_explain(visit)
        await anext(older)
        await tab.on_classify(visit, "a dog", None, None)
        (last,) = [step async for step in older]  # Gradio shows it once more: it must not be the older answer
        assert last == tab.shown(visit) and visit.explanation is None
        assert visit.given["text"] == "a dog"

    on_page(classify, scenario)


def test_a_refusal_stands_where_the_answer_would_in_the_visitors_language(classify, tmp_path):
    async def scenario(page):
        tab, visit = page.try_tab, Visit(language="zh")
        shown = await tab.on_classify(visit, None, None, None)
        assert "请至少给出" in shown[tab.answer] and not shown[tab.result]["visible"]
        assert [step async for step in tab.on_explain(visit)] == [tab.unchanged]  # nothing would empty the answer
        image, _ = files(tmp_path)
        await tab.on_classify(visit, None, image, None)
        image.unlink()  # as Gradio does after a while
        steps = [step async for step in tab.on_explain(visit)]
        assert "已不在服务器上" in steps[0][tab.contributions] and len(steps) == 1

    on_page(classify, scenario)


def test_an_unexpected_fault_is_told_by_its_id_and_logged(caplog):
    async def fault():
        raise RuntimeError("secret detail")

    answer, (code, said) = asyncio.run(page_parts.refused(fault()))
    assert answer is None and code == "internal_error" and "secret" not in str(said)
    fault_id = re.search(r"\((\w{32})\)", said["zh"])[1]
    assert fault_id in caplog.text and "secret detail" in caplog.text


def test_without_integrated_gradients_attention_is_shown_and_without_both_a_sentence(classify, monkeypatch):
    real, missing = type(classify).explain, set()

    def explain(self, samples, **options):
        if options["details"] and options["method"] in missing:
            raise ImportError("`captum` is not installed")
        return real(self, samples, **options)

    monkeypatch.setattr(type(classify), "explain", explain)

    async def scenario(page):
        tab, visit = page.try_tab, Visit()
        missing.add("integrated_gradients")
        await tab.on_classify(visit, "a red cat", None, None)
        last = [step async for step in tab.on_explain(visit)][-1]
        assert "looked at" in last[tab.inside] and "mm-words" in last[tab.word_view]
        missing.add("attention")
        await tab.on_classify(visit, "a red cat", None, None)
        last = [step async for step in tab.on_explain(visit)][-1]
        assert "could not be worked out" in last[tab.inside] and "points" in last[tab.contributions]
        tab.info["can_explain"] = False
        await tab.on_classify(visit, "a red cat", None, None)
        (only,) = [step async for step in tab.on_explain(visit)]
        assert "cannot say why" in only[tab.contributions]

    on_page(classify, scenario)


def test_another_label_can_be_explained(classify):
    async def scenario(page):
        tab, visit = page.try_tab, Visit()
        await tab.on_classify(visit, "a red cat", None, None)
        worst = visit.ranked[-1]["label"]
        assert "Working out" in tab.on_label(visit, worst)[tab.contributions]
        steps = [step async for step in tab.on_explain(visit)]
        assert visit.explanation["label"] == worst and f"“{worst}”" in steps[-1][tab.contributions]

    on_page(classify, scenario)


def test_the_language_changes_what_was_answered_too(classify):
    async def scenario(page):
        visit = Visit()
        await page.try_tab.on_classify(visit, "a red cat", None, None)
        said = page.on_language(visit)
        assert visit.language == "zh" and "结果" in said[page.try_tab.answer]
        assert said[page.try_tab.classify]["value"] == "识别" and said[page.words.components[1]]["value"] == "English"
        assert set(said) <= {*page.words.components, *page.try_tab.panels}
        request = SimpleNamespace(headers={"accept-language": "zh-CN"})
        assert "结果" in page.on_load(Visit(), request)[page.try_tab.answer]

    on_page(classify, scenario)


def test_feedback_is_about_what_the_server_remembers(classify, tmp_path):
    image, _ = files(tmp_path)

    async def scenario(page):
        tab, form, visit = page.try_tab, page.try_tab.feedback, Visit()
        send = lambda *said: form.on_send(visit, *said)  # noqa: E731
        assert "no longer here" in (await send("right", None, True, False))[0]
        shown = await tab.on_classify(visit, "write to me@x.org", image, None)
        assert shown[form.media_consent]["visible"] and shown[form.label]["visible"] is False
        assert "right or wrong" in (await send(None, None, True, False))[0]
        assert "Nothing was stored" in (await send("right", None, False, True))[0]
        best, worst = visit.ranked[0]["label"], visit.ranked[-1]["label"]
        assert "very answer" in (await send("wrong", best, True, False))[0]
        thanks, button = await send("wrong", worst, True, True)
        assert "Thank you" in thanks and button["interactive"] is False
        row = (tmp_path / "kept/metadata.jsonl").read_text()
        assert f'"label": "{worst}"' in row and f'"predicted": "{best}"' in row and row.count("\n") == 1
        assert len(list((tmp_path / "kept/image").iterdir())) == 1
        assert form.on_verdict("wrong")["visible"] and not form.on_verdict("right")["visible"]

    on_page(classify, scenario, feedback=tmp_path / "kept")


def test_a_batch_runs_with_progress_and_gives_a_table_and_two_files(classify, tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("text,note\n" + "a red cat,<b>x</b>\n" * 20 + ",empty\n")

    async def scenario(page):
        tab, visit = page.batch_tab, Visit()
        for nothing in (None, str(table), "http://127.0.0.1/t.csv"):  # only what Gradio has uploaded is a `Path`
            (missing,) = [step async for step in tab.on_run(visit, nothing, "", "", "")]
            assert "Choose a table" in missing[tab.progress]
        steps = [step async for step in tab.on_run(visit, table, "", "", "")]
        last = steps[-1]
        assert "21 rows answered, 1 of them with an error" in last[tab.progress] and last[tab.run]["interactive"]
        assert Read(last[tab.table]).tags.count("tr") == 21 and "b" not in Read(last[tab.table]).tags
        assert (
            Path(last[tab.csv]["value"]).read_text().count("\n") == 22 and Path(last[tab.parquet]["value"]).is_file()
        )
        assert Path(last[tab.csv]["value"]).is_relative_to(tempfile.gettempdir()) and tab.running == {}
        told = [step async for step in tab.on_run(visit, table, "nowhere", "", "")][-1]
        assert "nowhere" in told[tab.progress] and "mm-error" in told[tab.progress]
        return tab.folder

    folder = on_page(classify, scenario)
    assert not folder.exists()


def test_a_batch_can_be_stopped_and_keeps_what_is_done(classify, tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("text\n" + "a red cat\n" * 400)

    async def scenario(page):
        tab, visit = page.batch_tab, Visit()
        assert tab.on_cancel(visit)[0] == gr.skip()
        tab._predict, real = lambda rows: (time.sleep(0.05), real(rows))[1], tab._predict
        steps = []
        async for step in tab.on_run(visit, table, "", "", ""):
            steps.append(step)
            if "<progress" in str(step.get(tab.progress)) and 'value="0"' not in step[tab.progress]:
                assert "Stopping" in tab.on_cancel(visit)[0]
        assert re.search(r"Stopped: [\d]+ of 400 rows", steps[-1][tab.progress])
        started = tab.on_run(visit, table, "", "", "")
        await anext(started)
        await started.aclose()  # the visitor has left
        assert visit.batch.is_set() and tab.running == {}

    on_page(classify, scenario)


# -- what the page is made of -----------------------------------------------------------------------------------------

IDS = (
    "text-input", "image-input", "audio-input", "classify-button", "answer", "contributions", "words", "heat",
    "wave", "alone", "disagreement", "use-text", "use-image", "use-audio", "explain-label", "examples",
    "feedback-verdict", "feedback-label", "feedback-consent", "feedback-media-consent", "feedback-send",
    "feedback-thanks", "batch-file", "batch-run", "batch-cancel", "batch-table", "batch-csv", "batch-parquet",
    "model-card", "subset-table", "tab-try", "tab-batch", "tab-model",
)  # fmt: skip


def test_parts_have_lasting_names_and_programs_only_one_call(classify, tmp_path):
    async def scenario(page):
        ids = [block.elem_id for block in page.blocks.blocks.values() if block.elem_id]
        assert set(IDS) <= set(ids) and len(ids) == len(set(ids))
        assert [call.api_name for call in page.blocks.fns.values() if call.api_visibility != "private"] == ["predict"]

    on_page(classify, scenario, feedback=tmp_path / "kept")


def test_without_a_folder_visitors_are_not_asked(classify):
    async def scenario(page):
        assert not any((block.elem_id or "").startswith("feedback") for block in page.blocks.blocks.values())

    on_page(classify, scenario)


def test_there_is_an_example_for_every_subset():
    demo = Examples({"modalities": ["text", "image", "audio"], "labels": sorted(DIGITS)})
    assert len(demo.examples()) == 8 and demo.examples()[6] == CELLS and "One click" in demo._head("en")
    assert demo.filler(demo.examples()[2])()[:2] == ("", None)
    other = Examples({"modalities": ["text", "audio"], "labels": ["a", "b"]})
    assert [list(example) for example in other.examples()] == [["text"], ["audio"], ["text", "audio"]]
    assert "not made for" in other._head("en")
    assert sum(path.stat().st_size for path in STATIC.iterdir()) < 60_000


def test_the_page_brings_all_that_it_shows():
    for path in STATIC.iterdir():
        if path.suffix in (".css", ".js"):
            assert not re.search(r"https?://|@import|url\(", path.read_text(encoding="utf-8")), path


def test_a_regression_answers_programs_with_plain_numbers():
    assert named_answer([{"label": "x", "score": 1.23456}], "regression") == "1.235"
    assert named_answer([{"label": "x", "score": 1.0}, {"label": "y", "score": 2.0}], "regression") == "x: 1, y: 2"
    assert Refusal("timeout", "x").status == 504


@pytest.mark.parametrize(
    ("problem", "right", "stored"),
    [("multi_label_classification", ["low", "high"], '"label": ["low", "high"]'),
     ("regression", "1, 2.5 3", '"label": [1.0, 2.5, 3.0]')],
)  # fmt: skip
def test_models_of_all_problems_have_a_page(tmp_path, problem, right, stored):
    image, audio = files(tmp_path)

    async def scenario(page):
        tab, form, visit = page.try_tab, page.try_tab.feedback, Visit()
        await tab.on_classify(visit, "a red cat", image, audio)
        last = [step async for step in tab.on_explain(visit)][-1]
        assert "mm-shares" in last[tab.contributions] and "mm-words" in last[tab.word_view]
        assert ("points" in last[tab.contributions]) == (problem != "regression")
        assert "Without sound" in tab.on_switch(visit, True, True, False)
        assert "Thank you" in (await form.on_send(visit, "wrong", right, True, False))[0]
        assert stored in (tmp_path / "kept/metadata.jsonl").read_text()

    on_page(make_pipeline(problem_type=problem), scenario, feedback=tmp_path / "kept")


def test_the_page_says_which_of_several_tasks_it_answers():
    tab = ModelTab(None, {"task": "<stars>", "tasks": ["mood", "<stars>"]}, None)
    assert tab._task("en") == (
        "<p>This model has several tasks (mood, &lt;stars&gt;). This page answers for “&lt;stars&gt;”.</p>"
    )
    assert "mood" in tab._task("zh")
