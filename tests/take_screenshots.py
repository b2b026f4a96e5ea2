"""Take the screenshots of the README: light, dark, on a phone, what an index finds, and the tab for whole tables.

    make demo                          # trains outputs/demo on outputs/demo_data
    python tests/take_screenshots.py

The sample is one of the demo's test rows, found by asking the server: the first one that is answered rightly although
its inputs disagree. Pictures have few colours, so they are written with a palette: a fourth of the size, no visible
difference.
"""

import argparse
import contextlib
import csv
import io
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import httpx  # noqa: E402
from browser_page import CHROMIUM, MISSING, Visit, launch, sound_file, wait_until_ready  # noqa: E402
from PIL import Image  # noqa: E402

DESKTOP = {"width": 1200, "height": 1000}
PHONE = {"width": 390, "height": 844}
NUM_BATCH_ROWS = 60
MAX_BYTES = 200_000
# The sample shall show something: a text of some words that decided, and an answer that is not beyond doubt.
MIN_WORDS, MIN_TEXT_SHARE, SCORES = 3, 0.2, (0.75, 0.98)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("model", nargs="?", type=Path, default=ROOT / "outputs/demo", help="folder; default: outputs/demo")
    add("--data_file", type=Path, default=ROOT / "outputs/demo_data/test.csv", help="default: that of `make demo`")
    add("--index_file", type=Path, default=ROOT / "outputs/demo_data/train.csv", help="its rows are found; as above")
    add("--output_folder", type=Path, default=ROOT / "docs/images", help="default: docs/images")
    return parser.parse_args(argv)


# -- what is shown ----------------------------------------------------------------------------------------------------


def read_rows(data_file: Path) -> list[dict[str, str]]:
    with data_file.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def telling_row(address: str, rows: list[dict[str, str]], folder: Path) -> dict[str, str]:
    """Find a complete row that is answered rightly although its inputs disagree.

    Raises:
        ValueError: There is none.
    """
    for row in rows:
        if all(row.values()) and len(row["text"].split()) >= MIN_WORDS and is_telling(address, row, folder):
            return row
    raise ValueError("no row of the table is answered rightly by inputs that disagree: give another `--data_file`.")


def is_telling(address: str, row: dict[str, str], folder: Path) -> bool:
    files = {name: (folder / row[name]).read_bytes() for name in ("image", "audio")}
    answer = httpx.post(f"{address}/v1/explain?details=false", data={"text": row["text"]}, files=files).json()
    known = answer["explanation"]
    is_right = known["label"] == row["label"] and SCORES[0] < known["score"] < SCORES[1]
    return is_right and bool(known["disagreement"]) and known["modalities"]["text"] > MIN_TEXT_SHARE


def zip_of(rows: list[dict[str, str]], folder: Path, path: Path) -> Path:
    table = io.StringIO()
    writer = csv.DictWriter(table, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("rows.csv", table.getvalue())
        for row in rows:
            for name in filter(None, (row["image"], row["audio"])):
                archive.write(folder / name, name)
    return path


# -- pictures ---------------------------------------------------------------------------------------------------------


def write(shot: bytes, path: Path) -> None:
    """Write a screenshot small.

    Raises:
        ValueError: It is larger than a README should carry.
    """
    picture = Image.open(io.BytesIO(shot)).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    picture.save(path, optimize=True)
    print(f"{path}: {picture.width} x {picture.height}, {path.stat().st_size:,} bytes")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(
            f"`{path}` has {path.stat().st_size:,} bytes, the limit is {MAX_BYTES:,}: show less of the page."
        )


@contextlib.contextmanager
def visiting(browser, address: str, **options) -> Iterator[Visit]:
    context = browser.new_context(locale="en-US", **options)
    visitor = Visit(context.new_page(), address).open()
    yield visitor
    context.close()


def settle(visitor: Visit) -> None:
    """Take focus and mouse away, and wait until nothing fades any more."""
    visitor.page.evaluate("document.activeElement.blur(); window.scrollTo(0, 0)")
    visitor.page.mouse.move(0, 0)
    visitor.page.wait_for_timeout(500)


def shoot_answer(browser, address: str, sample: dict, path: Path, scheme: str) -> None:
    """Show everything about one sample; the form below it is left out."""
    with visiting(browser, address, viewport=DESKTOP, color_scheme=scheme) as visitor:
        visitor.give(**sample).classify()
        settle(visitor)
        height = visitor.at("feedback").bounding_box()["y"]
        clip = {"x": 0, "y": 0, "width": DESKTOP["width"], "height": height}
        write(visitor.page.screenshot(full_page=True, clip=clip), path)


def shoot_phone(browser, address: str, sample: dict, path: Path) -> None:
    """Show one screen, from the answer on."""
    options = {"viewport": PHONE, "is_mobile": True, "has_touch": True, "device_scale_factor": 2}
    with visiting(browser, address, color_scheme="light", **options) as visitor:
        visitor.give(**sample).classify()
        settle(visitor)
        visitor.at("answer").evaluate("element => window.scrollTo(0, element.getBoundingClientRect().top - 12)")
        write(visitor.page.screenshot(), path)


def shoot_batch(browser, address: str, table: Path, path: Path) -> None:
    with visiting(browser, address, viewport=DESKTOP, color_scheme="light") as visitor:
        visitor.run_batch(table)
        settle(visitor)
        write(visitor.page.screenshot(), path)


def shoot_gallery(browser, address: str, sample: dict, path: Path) -> None:
    """Show the rows of the index that are most like the sample."""
    with visiting(browser, address, viewport=DESKTOP, color_scheme="light") as visitor:
        visitor.give(**sample).classify()
        settle(visitor)
        write(visitor.at("nearest").screenshot(), path)


def shoot_all(address: str, indexed: str, args: argparse.Namespace, work: Path) -> None:
    """Take all pictures: of the page at `address`, and of what the one at `indexed` finds."""
    from playwright.sync_api import sync_playwright

    rows, folder = read_rows(args.data_file), args.data_file.parent
    row = telling_row(address, rows, folder)
    sample = {"text": row["text"], "image": folder / row["image"], "audio": folder / row["audio"]}
    args.output_folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = launch(playwright, sound_file(work / "five.wav"))
        for scheme in ("light", "dark"):
            shoot_answer(browser, address, sample, args.output_folder / f"space-{scheme}.png", scheme)
        shoot_phone(browser, address, sample, args.output_folder / "space-phone.png")
        table = zip_of(rows[:NUM_BATCH_ROWS], folder, work / "digits.zip")
        shoot_batch(browser, address, table, args.output_folder / "space-batch.png")
        shoot_gallery(browser, indexed, sample, args.output_folder / "space-nearest.png")
        browser.close()


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if CHROMIUM is None or MISSING:
        print(f"error: needs {', '.join(MISSING) or 'Chromium (apt-get install chromium)'}", file=sys.stderr)
        return 1
    from app_here import running

    import search

    with tempfile.TemporaryDirectory() as work:
        # A link, so that the log, which the server writes beside the model, is removed too.
        model = Path(work) / args.model.resolve().name
        model.symlink_to(args.model.resolve())
        table = ["--data_file", str(args.index_file), "--label_column", "label"]
        if search.main(["build", str(model), "--index_dir", f"{work}/index", *table]) != 0:
            return 1
        feedback = ["--feedback_folder", f"{work}/feedback"]
        index = ["--index", f"{work}/index", "--index_media", str(args.index_file.parent)]
        with running(model, *feedback) as (address, _):
            wait_until_ready(address)
            with running(model, *feedback, *index) as (indexed, _):
                wait_until_ready(indexed)
                shoot_all(address, indexed, args, Path(work))
    return 0


if __name__ == "__main__":
    sys.exit(main())
