"""The embedded demo set: spoken-of, written and dialled digits, made in seconds from what is installed.

A row is a digit, told three ways: a phrase in one of four languages, a real handwritten digit (of scikit-learn) and
the two tones that a telephone sends for it. Each way alone leaves doubt (a vague phrase, a covered picture, a lost
tone, an empty cell), and the doubts are independent: only who uses all three is nearly always right.

    python -m data.demo demo_data                        # 5,000 rows
    python -m data.demo demo_small --num_rows 500 --seed 1
"""

import argparse
import csv
import io
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.terminal import lasting_output

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPLITS = {"train": 0.8, "validation": 0.1, "test": 0.1}
COLUMNS = ("text", "image", "audio", "label")
MIN_ROWS = 100
VERSION = 1  # raise when other rows come out for the same seed
MANIFEST = "demo.json"

# How hard it is. Shares are of the filled cells.
EMPTY_SHARE = 0.12

LANGUAGE_SHARES = {"en": 0.4, "de": 0.2, "fr": 0.2, "es": 0.2}
PHRASE_SHARES = {"plain": 0.46, "contrast": 0.30, "arithmetic": 0.14, "vague": 0.10}
TYPO_SHARE = 0.20

PICTURE_SIZE = 32
MAX_ROTATION = math.radians(12)
MAX_SHIFT = 2.5  # pixels
ZOOM = (0.85, 1.1)
PICTURE_NOISE = (0.05, 0.22)  # standard deviation; 1 is black to white
COVERED_SHARE = 0.14
COVER = (0.45, 0.65)  # share of the width or height that is hidden

SAMPLING_RATE = 8_000
SECONDS = (0.15, 0.5)
MAX_SILENCE = 0.12  # seconds before the tones, and after
LEVEL_DB = (-20.0, -6.0)
TWIST_DB = 4.0  # how much one tone may be louder than the other
DETUNE = 0.012  # as a share of the frequency
SNR_DB = (0.0, 15.0)
HUM_DB = (-40.0, -20.0)
LOST_TONE_SHARE = 0.10

ROW_TONES, COLUMN_TONES = (697, 770, 852, 941), (1209, 1336, 1477)
KEYPAD = ("123", "456", "789", "*0#")

NUMBER_WORDS = {
    "en": DIGITS,
    "de": ("null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun"),
    "fr": ("zéro", "un", "deux", "trois", "quatre", "cinq", "six", "sept", "huit", "neuf"),
    "es": ("cero", "uno", "dos", "tres", "cuatro", "cinco", "seis", "siete", "ocho", "nueve"),
}
# {n} is the digit, {m} another one; {a} plus {b}, or {a} minus {b}, is the digit.
PHRASES = {
    "en": {
        "plain": ["{n}", "the number is {n}", "please press {n}", "room {n} is free", "i choose {n}", "take line {n}"],
        "contrast": ["not {m} but {n}", "{n}, not {m}", "i said {n} instead of {m}", "forget {m}, it is {n}"],
        "plus": ["{a} plus {b}", "the sum of {a} and {b}"],
        "minus": ["{a} minus {b}", "{a} take away {b}"],
        "vague": ["either {n} or {m}", "maybe {n}, maybe {m}"],
        "parity": ["an even number", "an odd number"],
    },
    "de": {
        "plain": ["{n}", "die Zahl ist {n}", "bitte die {n} drücken", "Zimmer {n} ist frei", "ich nehme {n}"],
        "contrast": ["nicht {m}, sondern {n}", "{n} statt {m}", "vergiss {m}, es ist {n}"],
        "plus": ["{a} plus {b}", "{a} und {b} zusammen"],
        "minus": ["{a} minus {b}", "{a} weniger {b}"],
        "vague": ["entweder {n} oder {m}", "vielleicht {n}, vielleicht {m}"],
        "parity": ["eine gerade Zahl", "eine ungerade Zahl"],
    },
    "fr": {
        "plain": ["{n}", "le nombre est {n}", "appuyez sur {n}", "la chambre {n} est libre", "je prends {n}"],
        "contrast": ["pas {m} mais {n}", "{n} au lieu de {m}", "oublie {m}, c'est {n}"],
        "plus": ["{a} plus {b}", "la somme de {a} et {b}"],
        "minus": ["{a} moins {b}", "{a} sans {b}"],
        "vague": ["soit {n}, soit {m}", "peut-être {n}, peut-être {m}"],
        "parity": ["un nombre pair", "un nombre impair"],
    },
    "es": {
        "plain": ["{n}", "el número es {n}", "pulse {n}", "la sala {n} está libre", "elijo {n}"],
        "contrast": ["no {m} sino {n}", "{n} en lugar de {m}", "olvida {m}, es {n}"],
        "plus": ["{a} más {b}", "la suma de {a} y {b}"],
        "minus": ["{a} menos {b}", "{a} sin {b}"],
        "vague": ["o {n} o {m}", "quizás {n}, quizás {m}"],
        "parity": ["un número par", "un número impar"],
    },
}
PARITY_SHARE = 0.2  # of the vague phrases


def make_demo(folder: str | Path, *, num_rows: int = 5_000, seed: int = 0, progress: bool = False) -> Path:
    """Writes the demo set as a user would bring a table: a CSV for each split, and media files in folders.

    The folder appears complete or not at all. One that already holds the same set is left as it is.

    Args:
        folder: Where to; a new or an empty folder.
        num_rows: Rows of train.csv, validation.csv and test.csv together (80, 10 and 10 %), at least 100.
        seed: Of everything that is drawn.
        progress: Whether a bar is shown on stderr.

    Returns:
        The folder.

    Raises:
        ValueError: too few rows, or a folder that holds something else.
    """
    if num_rows < MIN_ROWS:
        raise ValueError(f"`num_rows` is {num_rows}; at least {MIN_ROWS} are needed, for every digit in every split.")
    if seed < 0:
        raise ValueError(f"`seed` is {seed}; allowed are whole numbers from 0.")
    manifest = {"demo": "digits told three ways", "version": VERSION, "num_rows": num_rows, "seed": seed}
    return make_set(folder, manifest, lambda staging: _write_splits(staging, num_rows, seed, progress))


def make_set(folder: str | Path, manifest: dict, write: Callable[[Path], None]) -> Path:
    """Lets `write` fill a folder, which appears complete, with its manifest, or not at all.

    Args:
        folder: Where to; a new or an empty folder. One that already holds this manifest is left as it is.
        manifest: What tells this set from all others.
        write: Fills the folder that it is given.

    Returns:
        The folder.

    Raises:
        ValueError: a folder that holds something else.
    """
    folder = Path(folder)
    if _is_there(folder, manifest):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        write(staging)
        (staging / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        staging.chmod(0o755)  # `mkdtemp` makes it private
        os.replace(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def _is_there(folder: Path, manifest: dict) -> bool:
    """Whether the folder already holds this set; raises where it holds anything else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    found = folder / MANIFEST
    if found.is_file():
        try:
            has = json.loads(found.read_text())
        except ValueError:
            has = None
        if has == manifest:
            return True
        what = f"a demo set of other settings ({has})"
    else:
        what = "something else" if folder.is_dir() else "a file"
    raise ValueError(f"`{folder}` holds {what} and is not overwritten. Name another folder, or remove this one.")


def _write_splits(folder: Path, num_rows: int, seed: int, progress: bool) -> None:
    (folder / "images").mkdir()
    (folder / "audio").mkdir()
    pictures, digits = handwriting()
    sources = split_pictures(digits, seed)
    with tqdm(total=num_rows, desc="Demo set", unit=" rows", disable=not progress) as bar:
        for number, split in enumerate(SPLITS):
            rng = np.random.default_rng([seed, number])
            rows = _rows(folder, split, split_size(split, num_rows), pictures, digits, sources[split], rng)
            with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(COLUMNS)
                for row in rows:
                    writer.writerow(row)
                    bar.update()


def split_size(split: str, num_rows: int) -> int:
    held_out = {name: round(share * num_rows) for name, share in SPLITS.items() if name != "train"}
    return held_out.get(split, num_rows - sum(held_out.values()))


def handwriting() -> tuple[np.ndarray, np.ndarray]:
    """The 1,797 handwritten digits of scikit-learn: (1797, 8, 8) from 0 to 1, and which digit each is."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return bunch.images.astype(np.float32) / 16, bunch.target


def split_pictures(digits: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Gives each split pictures of its own."""
    from sklearn.model_selection import train_test_split

    held_out = 1 - SPLITS["train"]
    train, rest = train_test_split(np.arange(len(digits)), test_size=held_out, stratify=digits, random_state=seed)
    share = SPLITS["test"] / held_out
    validation, test = train_test_split(rest, test_size=share, stratify=digits[rest], random_state=seed)
    return {"train": train, "validation": validation, "test": test}


def _rows(
    folder: Path,
    split: str,
    num_rows: int,
    pictures: np.ndarray,
    digits: np.ndarray,
    sources: np.ndarray,
    rng: np.random.Generator,
) -> Iterator[tuple[str, str, str, str]]:
    """Yields the rows of a split and writes their files; the digits are balanced and in random order."""
    from PIL import Image

    for number, digit in enumerate(rng.permutation(np.arange(num_rows) % 10)):
        has_text, has_image, has_audio = _filled(rng)
        image, audio = f"images/{split}-{number + 1:05d}.png", f"audio/{split}-{number + 1:05d}.wav"
        text = write_phrase(int(digit), rng)
        drawn = draw_digit(pictures[rng.choice(sources[digits[sources] == digit])], rng)
        sound = dial_digit(int(digit), rng)
        if has_image:
            Image.fromarray(drawn).save(folder / image)
        if has_audio:
            (folder / audio).write_bytes(wav_bytes(sound, SAMPLING_RATE))
        yield text * has_text, image * has_image, audio * has_audio, DIGITS[digit]


def _filled(rng: np.random.Generator) -> list[bool]:
    """Which of the three cells hold something; at least one does."""
    while not (filled := rng.random(3) >= EMPTY_SHARE).any():
        pass
    return filled.tolist()


# --- Text ------------------------------------------------------------------------------------------------------------


def write_phrase(digit: int, rng: np.random.Generator) -> str:
    """A phrase in English, German, French or Spanish that implies the digit, or, if vague, nearly."""
    language = rng.choice(list(LANGUAGE_SHARES), p=list(LANGUAGE_SHARES.values()))
    kind = rng.choice(list(PHRASE_SHARES), p=list(PHRASE_SHARES.values()))
    words, phrases = NUMBER_WORDS[language], PHRASES[language]
    other = (digit + rng.integers(1, 10)) % 10
    if kind == "arithmetic":
        phrase = _write_arithmetic(digit, words, phrases, rng)
    elif kind == "vague":
        phrase = _write_vague(digit, int(other), words, phrases, rng)
    else:
        phrase = str(rng.choice(phrases[kind])).format(n=words[digit], m=words[other])
    return _with_typo(phrase, rng) if rng.random() < TYPO_SHARE else phrase


def _write_arithmetic(digit: int, words: Sequence[str], phrases: dict, rng: np.random.Generator) -> str:
    """Sums and differences with one and two, within the digits."""
    step = int(rng.integers(1, 3))
    operations = [("plus", digit - step)] * (digit >= step) + [("minus", digit + step)] * (digit + step <= 9)
    operation, start = operations[rng.integers(len(operations))]
    return str(rng.choice(phrases[operation])).format(a=words[start], b=words[step])


def _write_vague(digit: int, other: int, words: Sequence[str], phrases: dict, rng: np.random.Generator) -> str:
    if rng.random() < PARITY_SHARE:
        return phrases["parity"][digit % 2]
    first, second = rng.permutation([digit, other])
    return str(rng.choice(phrases["vague"])).format(n=words[first], m=words[second])


def _with_typo(phrase: str, rng: np.random.Generator) -> str:
    """Drops, doubles or swaps a letter."""
    at = int(rng.integers(len(phrase)))
    edits = (
        phrase[:at] + phrase[at + 1 :],
        phrase[:at] + phrase[at] + phrase[at:],
        phrase[:at] + phrase[at : at + 2][::-1] + phrase[at + 2 :],
    )
    return edits[rng.integers(3)]


# --- Picture ---------------------------------------------------------------------------------------------------------


def draw_digit(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Enlarges a handwritten digit, turns and shifts it, covers a part of some, and adds noise.

    Args:
        picture: (8, 8), 0 (paper) to 1 (ink).

    Returns:
        (32, 32) uint8, 0 is black.
    """
    from PIL import Image

    scale = PICTURE_SIZE / picture.shape[0] * rng.uniform(*ZOOM)
    angle = rng.uniform(-MAX_ROTATION, MAX_ROTATION)
    shift = PICTURE_SIZE / 2 + rng.uniform(-MAX_SHIFT, MAX_SHIFT, size=2)
    a, b = math.cos(angle) / scale, math.sin(angle) / scale
    centre = picture.shape[0] / 2
    # Pillow wants the way back: from a pixel of the result to one of the source.
    matrix = (a, b, centre - a * shift[0] - b * shift[1], -b, a, centre + b * shift[0] - a * shift[1])
    size = (PICTURE_SIZE, PICTURE_SIZE)
    drawn = Image.fromarray(picture).transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    ink = np.array(drawn)
    if rng.random() < COVERED_SHARE:
        _cover(ink, rng)
    ink += rng.normal(0, rng.uniform(*PICTURE_NOISE), ink.shape)
    return (255 * np.clip(ink, 0, 1)).astype(np.uint8)


def _cover(ink: np.ndarray, rng: np.random.Generator) -> None:
    """Lays a grey strip over one side, in place."""
    strip = slice(0, round(PICTURE_SIZE * rng.uniform(*COVER)))
    rotated = np.rot90(ink, rng.integers(4))  # a view
    rotated[strip] = 0.5


# --- Sound -----------------------------------------------------------------------------------------------------------


def dial_digit(digit: int, rng: np.random.Generator) -> np.ndarray:
    """The two tones of a telephone key in noise and mains hum; of some clips one tone is lost.

    Returns:
        (samples,) at 8 kHz, from -1 to 1.
    """
    row = next(number for number, keys in enumerate(KEYPAD) if str(digit) in keys)
    column = KEYPAD[row].index(str(digit))
    gains = 10 ** (rng.uniform(-TWIST_DB, TWIST_DB, size=2) / 20)
    if rng.random() < LOST_TONE_SHARE:
        gains[rng.integers(2)] = 0
    num_samples = int(SAMPLING_RATE * rng.uniform(*SECONDS))
    tones = sum(
        gain * _tone(frequency * (1 + rng.uniform(-DETUNE, DETUNE)), num_samples, rng)
        for gain, frequency in zip(gains, (ROW_TONES[row], COLUMN_TONES[column]), strict=True)
    )
    before, after = (rng.uniform(0, MAX_SILENCE, size=2) * SAMPLING_RATE).astype(int)
    sound = np.pad(tones * 10 ** (rng.uniform(*LEVEL_DB) / 20) / 2, (before, after))
    power = np.mean(sound[before : before + num_samples] ** 2)
    noise = rng.normal(0, math.sqrt(power / 10 ** (rng.uniform(*SNR_DB) / 10)), len(sound))
    hum = _tone(50, len(sound), rng) + 0.5 * _tone(150, len(sound), rng)
    return np.clip(sound + noise + hum * 10 ** (rng.uniform(*HUM_DB) / 20), -1, 1)


def wav_bytes(sound: np.ndarray, sampling_rate: int) -> bytes:
    """Written in memory: soundfile waits for the disk at the end of every file, three milliseconds each."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, sound, sampling_rate, subtype="PCM_16", format="WAV")
    return buffer.getvalue()


def _tone(frequency: float, num_samples: int, rng: np.random.Generator) -> np.ndarray:
    return np.sin(2 * math.pi * (frequency * np.arange(num_samples) / SAMPLING_RATE + rng.random()))


# --- Command line ----------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m data.demo", description="Makes the embedded demo set.")
    parser.add_argument("output_folder", help="A new or empty folder; the same set in it is reused.")
    parser.add_argument(
        "--num_rows",
        type=int,
        default=5_000,
        help="Rows: 80 %% for training, 10 %% for validation, 10 %% for testing; at least 100 (default: 5000).",
    )
    parser.add_argument("--seed", type=int, default=0, help="Seed of everything that is drawn, from 0 (default: 0).")
    args = parser.parse_args(argv)
    with lasting_output():
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    try:
        folder = make_demo(args.output_folder, num_rows=args.num_rows, seed=args.seed, progress=True)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
