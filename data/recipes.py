"""The tables of docs/recipes.md, made in seconds from what is installed: pictures, sounds, signals and texts.

A set has a CSV for each split and media files beside them, as a user would bring a table. The digits are real
handwriting. Leaves, machines and all texts are synthetic, which is to say that we know what is in them: leaves whose
brown rims have two causes that no picture tells apart, machines whose early faults hide in the noise. Their columns
are made independently given the label, as those of a real table are not; that flatters the gain from fusion.

    python -m data.recipes leaves outputs/recipes/leaves_data
    python -m data.recipes machines machines_small --num_rows 500 --seed 1
"""

import argparse
import csv
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.demo import (
    DIGITS,
    MIN_ROWS,
    PHRASES,
    SPLITS,
    handwriting,
    make_set,
    split_pictures,
    split_size,
    wav_bytes,
)

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

VERSION = 1  # raise when other rows come out for the same seed
EMPTY_SHARE = 0.08  # of the cells of leaves and machines, never both of a row

CAPTION_KINDS = ("plain", "contrast")  # what says for sure which digit is meant

LEAF_SIZE = 48
LEAF_GREEN, SOIL, BROWN, POWDER = (70, 140, 60), (120, 95, 75), (105, 65, 35), (225, 228, 220)
BLURRED_SHARE, GLARE_SHARE = 0.15, 0.15
DIAGNOSES = ("healthy", "leaf spot", "mildew", "insects", "drought", "potassium deficiency")
VAGUE_REPORT_SHARE = 0.3
VAGUE_REPORTS = (
    "please have a look at this leaf", "what is this?", "it has not looked right since last week",
    "same bed as the last picture", "photographed this morning", "plant at the east wall",
)  # fmt: skip
REPORTS = {
    "healthy": (
        "routine picture, nothing to report", "grows well, no spots, no holes", "all fine, watered and fed as usual",
        "new leaf, firm and even green",
    ),
    "leaf spot": (
        "brown spots, more of them after the rain", "round brown spots on the lower leaves",
        "no powder, no holes, but dark spots", "spots with a darker edge, spreading upwards",
    ),
    "mildew": (
        "white powder that can be wiped off", "looks dusted with flour", "no spots, a white film on top",
        "pale powdery patches since it is humid",
    ),
    "insects": (
        "something eats holes into it", "holes, and a caterpillar on the neighbour", "no spots, but holes overnight",
        "eaten from the middle, droppings on the leaf",
    ),
    "drought": (
        "brown edges, the soil is dusty", "dry rim, nobody watered during the holidays",
        "edges curl and go brown, the pot is very light", "soil cracked, margins dry",
    ),
    "potassium deficiency": (
        "brown edges although the soil is moist", "rim of the old leaves goes brown, watered daily",
        "margins scorched, not fed this year", "brown edges, moist soil, no fertiliser since spring",
    ),
}  # fmt: skip

SIGNAL_RATE = 2_000  # Hz, of an accelerometer at the bearing's housing
SIGNAL_SECONDS = 1.0
SHAFT_HZ = (20.0, 30.0)
BEARING_ORDER = 3.58  # impulses a turn: the outer race of a common ball bearing
RESONANCE_HZ = (450.0, 850.0)  # what an impulse lets ring
SEVERITIES = (0.1, 1.0)
FAULTS = ("none", "imbalance", "looseness", "bearing")
VAGUE_NOTE_SHARE = 0.4
VAGUE_NOTES = (
    "monthly round", "measured after the shift", "runs at half load today", "cleaned the housing", "sensor replaced",
    "operator says it sounds different", "see last month's note",
)  # fmt: skip
NOTES = {
    "none": ("runs quietly, no remarks", "greased, bolts checked, all tight", "new bearing, fan cleaned"),
    "imbalance": (
        "fan blades caked with dust", "a balancing weight is missing", "shakes once a turn, worse at full speed",
        "one blade chipped",
    ),
    "looseness": (
        "foot bolt turned by hand", "rattles on its base", "crack in the frame, a shim is missing",
        "base plate moves, bolts not retightened",
    ),
    "bearing": (
        "grinding from the drive end", "bearing is warm, grease is black", "metal flakes in the grease",
        "clicking that grows faster with the speed",
    ),
}  # fmt: skip

Row = dict[str, str]


@dataclass(frozen=True)
class RecipeSet:
    """One table of docs/recipes.md.

    Args:
        columns: In the order in which they stand in the CSV files.
        num_rows: Of all splits together, unless said.
        rows: Writes the files of a split's rows and gives the rows; called with the folder, the name of the split, how
            many, the seed, and what draws random numbers.
        max_rows: More than these cannot be made; None: any number.
    """

    columns: tuple[str, ...]
    num_rows: int
    rows: Callable[[Path, str, int, int, np.random.Generator], Iterator[Row]]
    max_rows: int | None = None


def make_recipe_set(name: str, folder: str | Path, *, num_rows: int | None = None, seed: int = 0) -> Path:
    """Writes a table of docs/recipes.md: train.csv, validation.csv and test.csv (80, 10 and 10 %) and their files.

    The folder appears complete or not at all. One that already holds the same set is left as it is.

    Args:
        name: One of `SETS`.
        folder: Where to; a new or an empty folder.
        num_rows: Of all splits together; None: as many as the document uses.
        seed: Of everything that is drawn.

    Returns:
        The folder.

    Raises:
        ValueError: an unknown name, too few or too many rows, or a folder that holds something else.
    """
    if name not in SETS:
        raise ValueError(f"`name` is {name!r}; allowed are {', '.join(SETS)}.")
    made = SETS[name]
    num_rows = made.num_rows if num_rows is None else num_rows
    if not MIN_ROWS <= num_rows <= (made.max_rows or num_rows):
        allowed = f"from {MIN_ROWS}" + (f" to {made.max_rows}" if made.max_rows else "")
        raise ValueError(f"`num_rows` is {num_rows}; of `{name}` there can be {allowed}.")
    if seed < 0:
        raise ValueError(f"`seed` is {seed}; allowed are whole numbers from 0.")
    manifest = {"recipe": name, "version": VERSION, "num_rows": num_rows, "seed": seed}
    return make_set(folder, manifest, lambda staging: _write_splits(staging, made, num_rows, seed))


def _write_splits(folder: Path, made: RecipeSet, num_rows: int, seed: int) -> None:
    (folder / "files").mkdir()
    for number, split in enumerate(SPLITS):
        rng = np.random.default_rng([seed, number])
        with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, made.columns)
            writer.writeheader()
            writer.writerows(made.rows(folder, split, split_size(split, num_rows), seed, rng))


def _balanced(names: Sequence[str], num_rows: int, rng: np.random.Generator) -> Iterator[tuple[int, str]]:
    """The number of each row, from 1, and its label; each label as often as the others, in random order."""
    for number, label in enumerate(rng.permutation(np.arange(num_rows) % len(names)), start=1):
        yield number, names[label]


def _emptied(row: Row, columns: Sequence[str], rng: np.random.Generator) -> Row:
    """Leaves out some cells, but one of the columns always stays."""
    empty = rng.random(len(columns)) < EMPTY_SHARE
    if empty.all():
        return row
    return row | {name: "" for name, is_empty in zip(columns, empty, strict=True) if is_empty}


def _said(phrases: Sequence[str], vague: Sequence[str], vague_share: float, rng: np.random.Generator) -> str:
    return str(rng.choice(vague if rng.random() < vague_share else phrases))


# --- Handwritten digits, and captions that fit them or do not --------------------------------------------------------


def digit_rows(folder: Path, split: str, num_rows: int, seed: int, rng: np.random.Generator) -> Iterator[Row]:
    """Real handwriting as it is, 8 x 8 pixels; only which pictures go where is drawn."""
    pictures, digits = handwriting()
    for number, source in enumerate(split_pictures(digits, seed)[split][:num_rows], start=1):
        yield {"image": _write_digit(folder, split, number, pictures[source]), "label": DIGITS[digits[source]]}


def _write_digit(folder: Path, split: str, number: int, picture: np.ndarray) -> str:
    """Writes a picture of 0 (paper) to 1 (ink), and says where it is."""
    from PIL import Image

    image = f"files/{split}-{number:05d}.png"
    Image.fromarray(np.rint(255 * picture).astype(np.uint8)).save(folder / image)
    return image


def pair_rows(folder: Path, split: str, num_rows: int, seed: int, rng: np.random.Generator) -> Iterator[Row]:
    """A handwritten digit and a caption; every second caption is about another digit."""
    pictures, digits = handwriting()
    sources = split_pictures(digits, seed)[split]
    for number, label in _balanced(("fits", "does not fit"), num_rows, rng):
        source = rng.choice(sources)
        shown = int(digits[source])
        said = shown if label == "fits" else (shown + int(rng.integers(1, 10))) % 10
        image = _write_digit(folder, split, number, pictures[source])
        yield {"image": image, "text": write_caption(said, rng), "label": label}


def write_caption(digit: int, rng: np.random.Generator) -> str:
    """An English phrase from which one digit follows; another one may be named in it ("not two but three")."""
    other = (digit + int(rng.integers(1, 10))) % 10
    phrases = [phrase for kind in CAPTION_KINDS for phrase in PHRASES["en"][kind]]
    return str(rng.choice(phrases)).format(n=DIGITS[digit], m=DIGITS[other])


# --- Leaves ----------------------------------------------------------------------------------------------------------


def leaf_rows(folder: Path, split: str, num_rows: int, seed: int, rng: np.random.Generator) -> Iterator[Row]:
    for number, diagnosis in _balanced(DIAGNOSES, num_rows, rng):
        picture = f"files/{split}-{number:05d}.png"
        drawn = draw_leaf(diagnosis, rng)
        report = _said(REPORTS[diagnosis], VAGUE_REPORTS, VAGUE_REPORT_SHARE, rng)
        row = {"picture": picture, "report": report, "diagnosis": diagnosis}
        row = _emptied(row, ("picture", "report"), rng)
        if row["picture"]:
            drawn.save(folder / picture)
        yield row


def draw_leaf(diagnosis: str, rng: np.random.Generator) -> "Image.Image":
    """A leaf on soil, 48 x 48 pixels; drought and potassium deficiency look the same on it."""
    from PIL import Image, ImageDraw, ImageFilter

    soil, green = _shade(SOIL, rng), _shade(LEAF_GREEN, rng)
    picture = Image.new("RGB", (LEAF_SIZE, LEAF_SIZE), soil)
    draw = ImageDraw.Draw(picture)
    box = (5, 13 + rng.uniform(-2, 2), 43, 35 + rng.uniform(-2, 2))
    rim = diagnosis in ("drought", "potassium deficiency")
    draw.ellipse(box, fill=green, outline=_shade(BROWN, rng) if rim else None, width=int(rng.integers(2, 5)))
    draw.line((8, 24, 40, 24), fill=tuple(channel + 25 for channel in green))
    marks = {"leaf spot": BROWN, "mildew": POWDER, "insects": soil}
    if diagnosis in marks:
        _dot(draw, _shade(marks[diagnosis], rng), int(rng.integers(2, 6)), (1.2, 2.8), rng)
    if rng.random() < GLARE_SHARE:
        _dot(draw, POWDER, 1, (2.0, 4.0), rng)
    picture = picture.rotate(float(rng.uniform(0, 360)), Image.Resampling.BILINEAR, fillcolor=soil)
    if rng.random() < BLURRED_SHARE:
        picture = picture.filter(ImageFilter.GaussianBlur(2.5))
    return _noisy(picture, rng)


def _shade(colour: tuple[int, int, int], rng: np.random.Generator) -> tuple[int, int, int]:
    return tuple(int(channel) for channel in np.clip(np.add(colour, rng.normal(0, 12, 3)), 0, 230))


def _dot(
    draw: "ImageDraw.ImageDraw", colour: tuple, count: int, radii: tuple[float, float], rng: np.random.Generator
) -> None:
    """Puts discs onto the leaf."""
    for _ in range(count):
        angle, away, radius = rng.uniform(0, 2 * math.pi), math.sqrt(rng.random()), rng.uniform(*radii)
        x, y = LEAF_SIZE / 2 + 14 * away * math.cos(angle), LEAF_SIZE / 2 + 6 * away * math.sin(angle)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def _noisy(picture: "Image.Image", rng: np.random.Generator) -> "Image.Image":
    from PIL import Image

    pixels = np.asarray(picture) * rng.uniform(0.7, 1.15) + rng.normal(0, 10, (LEAF_SIZE, LEAF_SIZE, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


# --- Machines --------------------------------------------------------------------------------------------------------


def machine_rows(folder: Path, split: str, num_rows: int, seed: int, rng: np.random.Generator) -> Iterator[Row]:
    """Signals and notes; how severe a fault is stands beside it, and is empty where there is none."""
    for number, fault in _balanced(FAULTS, num_rows, rng):
        signal = f"files/{split}-{number:05d}.wav"
        severity = float(rng.uniform(*SEVERITIES))
        vibration = vibrate(fault, severity, rng)
        note = _said(NOTES[fault], VAGUE_NOTES, VAGUE_NOTE_SHARE, rng)
        row = {
            "signal": signal,
            "note": note,
            "fault": fault,
            "severity": "" if fault == "none" else f"{severity:.3f}",
        }
        row = _emptied(row, ("signal", "note"), rng)
        if row["signal"]:
            (folder / signal).write_bytes(wav_bytes(vibration, SIGNAL_RATE))
        yield row


def vibrate(fault: str, severity: float, rng: np.random.Generator) -> np.ndarray:
    """What an accelerometer at a turning machine measures: the turns, the fault, and noise.

    Args:
        fault: One of `FAULTS`. Imbalance shakes once a turn, looseness at many multiples and halves of that, a damaged
            race is hit several times a turn and rings.
        severity: From 0 to 1, how strong the fault is against the rest.
        rng: Draws speed, phases and noise.

    Returns:
        (samples,) at `SIGNAL_RATE`, from -1 to 1.
    """
    time = np.arange(round(SIGNAL_SECONDS * SIGNAL_RATE)) / SIGNAL_RATE
    shaft = rng.uniform(*SHAFT_HZ)
    signal = 0.4 * _wave(shaft, time, rng) + 0.2 * _wave(2 * shaft, time, rng)
    if fault == "imbalance":
        signal += 2.0 * severity * _wave(shaft, time, rng)
    elif fault == "looseness":
        orders = (0.5, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0)
        signal += severity * sum(rng.uniform(0.3, 1.0) * _wave(order * shaft, time, rng) for order in orders)
    elif fault == "bearing":
        signal += 3.0 * severity * _impulses(BEARING_ORDER * shaft, time, rng)
    signal += rng.normal(0, 0.6, len(time))
    return 0.9 * signal / np.abs(signal).max()


def _wave(frequency: float, time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.sin(2 * math.pi * (frequency * time + rng.random()))


def _impulses(frequency: float, time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blows at nearly regular times, each of which lets the housing ring for some milliseconds."""
    resonance, period = rng.uniform(*RESONANCE_HZ), 1 / frequency
    ringing = np.zeros(len(time))
    for blow in np.arange(rng.uniform(0, period), time[-1], period):
        since = time - (blow + rng.normal(0, 0.02 * period))
        after = since >= 0
        decay = np.exp(-since[after] / 0.003) * np.sin(2 * math.pi * resonance * since[after])
        ringing[after] += rng.uniform(0.7, 1.0) * decay
    return ringing


# --- Command line ----------------------------------------------------------------------------------------------------

SETS = {
    "digits": RecipeSet(("image", "label"), 1_797, digit_rows, max_rows=1_797),
    "pairs": RecipeSet(("image", "text", "label"), 5_000, pair_rows),
    "leaves": RecipeSet(("picture", "report", "diagnosis"), 3_000, leaf_rows),
    "machines": RecipeSet(("signal", "note", "fault", "severity"), 3_000, machine_rows),
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m data.recipes", description="Makes a table of docs/recipes.md.")
    parser.add_argument("name", choices=SETS, help="Which; the digits are real handwriting, all else is synthetic.")
    parser.add_argument("output_folder", help="A new or empty folder; the same set in it is reused.")
    parser.add_argument(
        "--num_rows",
        type=int,
        help="Rows: 80 %% for training, 10 %% for validation, 10 %% for testing; at least 100 (default: as many as in "
        "docs/recipes.md).",
    )
    parser.add_argument("--seed", type=int, default=0, help="Seed of everything that is drawn, from 0 (default: 0).")
    args = parser.parse_args(argv)
    try:
        folder = make_recipe_set(args.name, args.output_folder, num_rows=args.num_rows, seed=args.seed)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
