"""The doctor's page with a hostile table, the doctor's searches at size, and what it finds in real tables."""

import csv
import re
import time
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.doctor import diagnose
from data.doctor_findings import share, shown
from data.doctor_leakage import foretell, name_parts
from data.doctor_media import Content, examine
from data.doctor_near import likeness, near_media, near_texts
from data.doctor_page import render_page
from data.table import Columns, read_table

REAL = Path(__file__).parent.parent.parent / "shared" / "data"
SCRIPT = "<script>alert(1)</script>"
HOSTILE = f'{SCRIPT}<img src=x onerror="alert(2)">{{{{ 7*7 }}}} $a_b$ \x1b[31m \u202e'


class Elements(HTMLParser):
    """What a browser would make of the page: its elements with their attributes."""

    def __init__(self, page):
        super().__init__()
        self.elements = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A table whose labels, texts, file names and column names are meant to break out of a page."""
    folder = tmp_path_factory.mktemp("hostile")
    rows = [[f"{HOSTILE} number {number} with some more words", f"<b>{number}.png", f"{HOSTILE}{number % 2}"]
            for number in range(60)]  # fmt: skip
    rows[1] = rows[0]
    for _, name, _ in rows[3:]:
        Image.effect_noise((24, 24), 90).save(folder / name)
    with (folder / "a<i>.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["text", "<u>face", "label"], *rows])
    return diagnose({"train": read_table(folder / "a<i>.csv", columns=Columns(image="<u>face"))}, progress=False)


def test_nothing_of_a_hostile_table_becomes_an_element_of_the_page(hostile):
    page = render_page(hostile)
    parsed = Elements(page)
    assert not {"script", "img", "b", "i", "u", "iframe", "link", "object"} & {tag for tag, _ in parsed.elements}
    assert not [name for _, attributes in parsed.elements for name in attributes if name.startswith("on")]
    assert "&lt;script&gt;" in page and "{{ 7*7 }}" in page and "49" not in re.findall(r"<summary>.*?</summary>", page)
    assert "\x1b" not in page and "\u202e" not in page and "\\x1b" in page


def test_the_page_asks_nobody_for_anything_and_forbids_it(hostile):
    page = render_page(hostile)
    parsed = Elements(page)
    loaded = [attributes.get(name, "") for tag, attributes in parsed.elements for name in ("src", "href", "xlink:href")
              if tag != "a"]  # fmt: skip
    assert all(not value or value.startswith("#") for value in loaded)
    assert "url(http" not in page and "@import" not in page
    assert "Content-Security-Policy" in page and "default-src 'none'" in page


def test_each_plot_says_in_words_what_it_shows_and_no_id_stands_twice(hostile):
    parsed = Elements(render_page(hostile))
    plots = [attributes for _, attributes in parsed.elements if attributes.get("role") == "img"]
    assert len(plots) == len([tag for tag, _ in parsed.elements if tag == "figure"]) >= 3
    assert all(len(plot["aria-label"]) > 30 for plot in plots)
    ids = Counter(attributes["id"] for _, attributes in parsed.elements if "id" in attributes)
    assert all(count == 1 for count in ids.values()), ids.most_common(3)


def test_the_plots_take_their_colours_from_the_page(hostile):
    page = render_page(hostile)
    assert "currentColor" in page and "var(--series-1)" in page and "prefers-color-scheme: dark" in page
    assert "#010203" not in page and "#0a0b0" not in page


def test_the_terminal_gets_one_line_a_finding_without_control_characters(hostile):
    lines = hostile.describe().splitlines()
    assert len(lines) == len(hostile.findings) + 2
    assert all(line.isprintable() for line in lines)
    assert [line.split()[0] for line in lines[1:-1]] == [finding.severity for finding in hostile.findings]


def test_values_are_cut_and_written_out_and_shares_are_whole_only_where_they_are():
    assert shown("a\nb\x1b[0m") == "a\\nb\\x1b[0m"
    assert shown("x" * 100) == "x" * 59 + "…" and len(shown("\u202e" * 100)) == 60
    assert [share(0, 9), share(1, 99_999), share(99_998, 99_999), share(9, 9), share(0, 0)] == [
        "0 %", "under 0.1 %", "over 99.9 %", "100 %", "0 %",
    ]  # fmt: skip


# -- searches


def content(mark, sketch):
    return Content(b"", 1, {}, mark, np.concatenate([sketch, np.zeros(48, np.uint8)]))


def test_every_pair_of_marks_six_bits_apart_is_found_among_thirty_thousand_in_seconds():
    rng = np.random.default_rng(0)
    marks = rng.integers(0, 2**63, 30_000, dtype=np.uint64)
    flips = [rng.choice(63, 6, replace=False) for _ in range(200)]
    twins = [int(marks[at]) ^ sum(1 << int(bit) for bit in bits) for at, bits in enumerate(flips)]
    sketches = rng.integers(0, 255, (200, 256), dtype=np.uint8)
    contents = [content(int(mark), sketches[at % 200]) for at, mark in enumerate(marks)]
    contents += [content(mark, sketches[at]) for at, mark in enumerate(twins)]
    started = time.process_time()
    pairs = near_media(contents, "image")
    assert {(at, 30_000 + at) for at in range(200)} <= set(pairs)
    assert time.process_time() - started < 20


def test_a_thousand_pictures_that_nearly_equal_one_another_are_no_million_pairs():
    rng = np.random.default_rng(0)
    sketch = rng.integers(0, 255, 256, dtype=np.uint8)
    marks = [sum(1 << int(bit) for bit in rng.choice(64, 3, replace=False)) for _ in range(1_000)]
    pairs = near_media([content(mark, sketch) for mark in marks], "image")
    assert len({later for _, later in pairs}) > 900 and len(pairs) < 60_000


def test_pictures_of_the_same_brightness_but_other_colours_do_not_nearly_equal_one_another(tmp_path):
    pattern = np.kron(np.random.default_rng(0).integers(0, 2, (6, 6)), np.ones((8, 8)))
    for name, color in (("red", (200, 60, 60)), ("green", (20, 142, 40))):
        grey = np.full((48, 48, 3), 20) + pattern[..., None] * np.array(color)
        Image.fromarray(grey.astype(np.uint8)).save(tmp_path / f"{name}.png")
    red, green = (examine(tmp_path / f"{name}.png", "image", None) for name in ("red", "green"))
    assert likeness(red, green) > 0.99 and bin(red.mark ^ green.mark).count("1") <= 6
    assert near_media([red, green], "image") == []


def test_texts_that_share_their_pieces_are_found_and_others_are_not():
    rng = np.random.default_rng(0)
    texts = [" ".join("".join(rng.choice(list("abcdefgh"), 6)) for _ in range(12)) for _ in range(300)]
    changed = [f"{text} more" for text in texts[:50]]
    pairs = near_texts(350, [*texts, *changed].__getitem__)
    assert {(at, 300 + at) for at in range(50)} == set(pairs)


def test_a_tree_foretells_what_can_be_and_not_what_cannot():
    rng = np.random.default_rng(0)
    target = rng.permutation(np.arange(600) % 3).astype(float)
    knows = foretell(target[:, None] + 0.1, target, is_number=False, seed=0)
    assert knows.score == 1 and knows.guess == pytest.approx(1 / 3) and knows.is_telling
    assert not foretell(rng.random((600, 1)), target, is_number=False, seed=0).is_telling
    assert foretell(target[:, None], 3 * target, is_number=True, seed=0).is_telling
    assert foretell(np.zeros((20, 1)), target[:20], is_number=False, seed=0) is None


def test_a_trait_that_only_a_rare_label_has_is_seen_by_the_tree_that_weighs_labels_alike():
    target = np.array([0.0] * 950 + [1.0] * 50)
    rng = np.random.default_rng(0)
    trait = np.where(target == 1, 1.0, (rng.random(1000) < 0.1).astype(float))[:, None]
    answer = foretell(trait, target, is_number=False, seed=0)
    assert answer.is_balanced and answer.score > 0.9 and answer.guess == 0.5


def test_the_parts_of_a_name_carry_their_place():
    assert name_parts("angry/03-cat_7.png") == [
        "folder 1 = angry", "part 1 = 03", "part 2 = cat", "part 3 = 7", "part 4 = png",
    ]  # fmt: skip


# -- real tables


@pytest.fixture(scope="module")
def emotions():
    """Rows of the validation as the training part, and of the training beside them."""
    if not (REAL / "emotion7").is_dir():
        pytest.skip(f"{REAL / 'emotion7'} is not here")
    columns = Columns(text="utterance", image="face", audio="speech", label="emotion")
    tables = [read_table(REAL / "emotion7" / f"{name}.csv", columns=columns) for name in ("validation", "train")]
    return diagnose(
        {"train": tables[0].select(range(500)), "validation": tables[1].select(range(100))},
        progress=False, num_workers=2,
    )  # fmt: skip


def test_the_names_of_the_clips_of_real_emotions_say_the_emotion_in_their_third_part(emotions):
    finding = next(finding for finding in emotions.findings if finding.code == "shortcut.audio.name")
    assert "of 100 % of the rows" in finding.what
    assert all(line.startswith("`part 3 = ") for line in finding.details)


def test_the_copies_among_real_rows_are_those_that_a_count_of_their_cells_finds(emotions):
    train = emotions.records.splits[0].table
    clips = [cell for index in range(len(train)) if (cell := train.cell(index, "audio"))]
    finding = next(finding for finding in emotions.findings if finding.code == "duplicate.audio")
    whole = sum(finding.count for finding in emotions.findings if finding.code == "duplicate.row")
    assert len(clips) - len(set(clips)) - whole <= finding.count <= len(clips) - len(set(clips))
    assert "leak.audio" not in {finding.code for finding in emotions.findings}


def test_pictures_and_sounds_in_real_parquet_are_looked_at(tmp_path):
    if not (REAL / "digits").is_dir():
        pytest.skip(f"{REAL / 'digits'} is not here")
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = next(pq.ParquetFile(REAL / "digits" / "validation.parquet").iter_batches(batch_size=300))

    pq.write_table(pa.Table.from_batches([rows]), tmp_path / "digits.parquet")
    diagnosis = diagnose({"train": read_table(tmp_path / "digits.parquet")}, progress=False, num_workers=2)
    assert len(diagnosis.records.contents["image"]) > 200
    assert not [finding for finding in diagnosis.findings if finding.severity == "error"]
