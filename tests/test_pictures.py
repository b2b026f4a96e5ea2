"""The pictures of an evaluation: whole, the same bytes every time, and never a warning or a box for a letter."""

import gc
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib import font_manager
from PIL import Image

from hub import pictures
from hub.pictures import draw_pictures
from metrics.details import evaluation_details

SEVEN = ["text", "image", "audio", "text+image", "text+audio", "image+audio", "text+image+audio"]
ALL = ["confusion_matrix.png", "coverage.png", "reliability.png", "subsets.png"]
has_chinese = any("CJK" in font.name for font in font_manager.fontManager.ttflist)


@pytest.fixture(autouse=True)
def warnings_are_errors():
    gc.collect()  # sockets and loops that other tests of this process left open tell of it now, and not in here
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def metrics_of(num_labels, metric="accuracy", details=True):
    """What an evaluation of a rather good model would leave."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, num_labels, 500)
    logits = generator.normal(size=(500, num_labels))
    logits[np.arange(500), labels] += 3
    values = {name: {metric: 0.5 + 0.05 * i, "num_rows_with_input": 400} for i, name in enumerate(SEVEN)}
    result = {"metrics": values, "num_rows": 500, "complete_rows": {"num_rows": 300, "metrics": values}}
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return result | (evaluation_details("single_label_classification", shares, labels) if details else {})


def names(num):
    return [f"label {number}" for number in range(num)]


@pytest.mark.parametrize("num_labels", [2, 12, 60])
def test_every_picture_is_drawn_and_can_be_opened(num_labels, tmp_path):
    assert sorted(draw_pictures(metrics_of(num_labels), names(num_labels), tmp_path)) == ALL
    assert sorted(path.name for path in tmp_path.iterdir()) == ALL  # nothing half written beside
    for name in ALL:
        with Image.open(tmp_path / name) as image:
            image.load()
            assert 400 < image.width < 1400 and 400 < image.height < 1400
            pixels = np.asarray(image.convert("L"))
            for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
                assert edge.min() == 255, f"something is cut off at an edge of {name}"


def test_the_same_numbers_give_the_same_bytes(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        draw_pictures(metrics_of(5), names(5), folder)
    for name in ALL:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_results_without_details_give_the_subsets_alone(tmp_path):
    assert draw_pictures(metrics_of(3, details=False), names(3), tmp_path) == ["subsets.png"]
    regression = metrics_of(3, metric="mae", details=False)
    assert draw_pictures(regression, ["height"], tmp_path) == ["subsets.png"]


def test_nothing_is_left_in_pyplot_and_it_is_not_even_imported(tmp_path):
    code = (
        "import sys, json; from pathlib import Path; from hub.pictures import draw_pictures;"
        "metrics = {'metrics': {'text': {'accuracy': 0.5}}, 'num_rows': 2, 'confusion_matrix': [[1, 1], [0, 0]]};"
        f"draw_pictures(metrics, ['a', 'b'], Path({str(tmp_path)!r}));"
        "assert 'matplotlib.pyplot' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=Path(__file__).parent.parent, check=True)
    assert (tmp_path / "confusion_matrix.png").exists()


@pytest.mark.parametrize(
    "label",
    ["a$b$", r"$\frac{", "_hidden", "", "two\nlines\tand a tab", "\x07\u202e\u200b", "名" * 60, "x" * 500, "%s{}"],
)
def test_a_hostile_label_is_drawn_without_a_word(label, tmp_path):
    assert "confusion_matrix.png" in draw_pictures(metrics_of(2), [label, "plain"], tmp_path)


def test_long_names_are_shortened_by_their_width():
    assert pictures._shortened("a very long name of a label") == "a very long name…"
    assert pictures._shortened("一二三四五六七八九十") == "一二三四五六七八…"
    assert pictures._shortened("just fits in here!") == "just fits in here!"


@pytest.mark.skipif(not has_chinese, reason="no font with Chinese letters is installed")
def test_chinese_names_are_drawn_in_a_font_that_has_them(tmp_path):
    drawn, families = pictures._drawable(["愤怒", "joy"])
    assert drawn == ["愤怒", "joy"] and len(families) == 2
    assert "confusion_matrix.png" in draw_pictures(metrics_of(2), ["愤怒", "joy"], tmp_path)


def test_a_name_that_no_font_can_draw_stands_there_by_its_number(tmp_path):
    tangut = "\U00017000"
    assert pictures._drawable(["joy", tangut, "\u200b"])[0] == ["joy", "#1", "#2"]
    assert "confusion_matrix.png" in draw_pictures(metrics_of(2), ["joy", tangut], tmp_path)


def test_a_matrix_of_other_labels_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`confusion_matrix` has the shape \(3, 3\), but there are 2 `labels`"):
        draw_pictures(metrics_of(3), names(2), tmp_path)
    assert not list(tmp_path.iterdir())
