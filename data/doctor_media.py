"""One picture or sound, opened as the training opens it, and what is kept of it: under a kilobyte.

Two fingerprints find its doubles. `mark` has 64 bits, of which few change when the content is scaled, stored again or
made brighter; `sketch` is a miniature, which decides. A sound is a picture, too, that of its loudness over pitch and
time; so both are found in the same way.
"""

import hashlib
import io
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.batches import open_media
from data.lengths import UNKNOWN_FRAMES

SKETCH_SIDE = 16
_MARK_SIDE = 32  # of which the 8 x 8 slowest waves are looked at
_BLANK_SPREAD = 2.0  # standard deviation of each colour, of 255 levels
_SILENT_PEAK = 1e-3  # -60 dB of full scale
_FULL_SCALE = 0.999
_CLIPPED_SHARE = 1e-3
_FRAME_SECONDS = 0.04
_BANDS = np.geomspace(80, 3800, 25)  # Hz; what a telephone lets through is in every copy
_FLOOR_DB = 60.0


@dataclass(slots=True)
class Content:
    """A distinct picture or sound.

    Args:
        digest: Of the pixels or samples: the same content in another file format has the same.
        num_bytes: Size of its file, or of its cell.
        facts: What the head of the file says: `width`, `height`, `mode`, or `seconds`, `sampling_rate`, `channels`;
            and `format`, and what was measured.
        mark: 64 bits, as a whole number; None where there is nothing to tell it by.
        sketch: (16 * 16,) levels from 0 to 255, then for a picture (4 * 4 * 3,) colours.
        faults: Of "blank", "silent" and "clipped" what applies.
        name: Its path in the table, or the name that its cell carries.
    """

    digest: bytes
    num_bytes: int
    facts: dict[str, Any]
    mark: int | None
    sketch: np.ndarray
    faults: tuple[str, ...] = field(default=())
    name: str | None = None


def bytes_digest(source: Any) -> bytes | None:
    """What identifies a file, or the bytes in a cell; None for an array, and for what is no file."""
    if isinstance(source, bytes):
        return hashlib.blake2b(source, digest_size=16).digest()
    if isinstance(source, Path) and source.is_file():  # a pipe has no end
        with source.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
    return None


def examine(source: Any, modality: str, max_audio_seconds: float | None) -> Content:
    """Opens a picture or a sound and measures it.

    Raises:
        ValueError, OSError: it cannot be opened; the reason is that of `decode_image` and `decode_audio`.
    """
    if modality == "image":
        return _look_at_picture(source)
    return _look_at_sound(source, max_audio_seconds)


def _size(source: Any, opened: np.ndarray) -> int:
    if isinstance(source, Path):
        return source.stat().st_size
    return len(source) if isinstance(source, bytes) else opened.nbytes


def _digest(array: np.ndarray, *also: Any) -> bytes:
    digest = hashlib.blake2b(repr((array.shape, *also)).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(array))
    return digest.digest()


# --- Pictures


def _look_at_picture(source: Any) -> Content:
    picture = open_media(source, "image", None, None)
    pixels, grey = np.asarray(picture), picture.convert("L").convert("F")
    is_blank = bool(pixels.std(axis=(0, 1)).max() < _BLANK_SPREAD)
    colours = np.asarray(picture.resize((4, 4), Image.Resampling.BOX)).ravel()
    return Content(
        digest=_digest(pixels),
        num_bytes=_size(source, pixels),
        facts=_picture_facts(source) | {"width": picture.width, "height": picture.height},
        mark=None if is_blank else _mark(grey),
        sketch=np.concatenate([_sketch(grey), colours]),
        faults=("blank",) if is_blank else (),
    )


def _picture_facts(source: Any) -> dict[str, Any]:
    """What the head of the file says; the picture was opened already, so its limits were looked at."""
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as head:
        return {"mode": head.mode, "format": head.format}


def _mark(grey: Image.Image) -> int:
    """Which of the slowest waves are strong: `phash` of ImageHash, but for the rounding of the miniature."""
    from scipy.fft import dctn

    small = grey.resize((_MARK_SIDE, _MARK_SIDE), Image.Resampling.LANCZOS)
    waves = dctn(np.asarray(small, dtype=np.float64))[:8, :8].ravel()
    return int.from_bytes(np.packbits(waves > np.median(waves)).tobytes())


def _sketch(grey: Image.Image) -> np.ndarray:
    small = np.asarray(grey.resize((SKETCH_SIDE, SKETCH_SIDE), Image.Resampling.BICUBIC), dtype=np.float64)
    low, high = small.min(), small.max()
    return np.rint((small - low) * (255 / max(high - low, 1e-9))).astype(np.uint8).ravel()


# --- Sounds


def _look_at_sound(source: Any, max_audio_seconds: float | None) -> Content:
    facts = _sound_facts(source)
    # At its own rate: a resampling filter would round off what was clipped.
    rate = facts.get("sampling_rate", 16_000)
    samples = open_media(source, "audio", rate, max_audio_seconds)
    peak = float(np.abs(samples).max())
    clipped = _clipped_share(samples)
    frames = _frames(samples, rate)
    seconds = max(len(samples) / rate, facts.get("seconds", 0))  # a header may be a guess: what was heard is there
    is_silent = peak < _SILENT_PEAK
    picture = _spectrogram(frames, rate)
    return Content(
        digest=_digest(np.rint(samples * 32767).astype(np.int16), rate, facts.get("seconds")),
        num_bytes=_size(source, samples),
        facts={**facts, "seconds": seconds, "silence": _silence_share(frames), "clipped": clipped},
        mark=None if is_silent else _mark(picture),
        sketch=_sketch(picture),
        faults=tuple(name for name, holds in (("silent", is_silent), ("clipped", clipped >= _CLIPPED_SHARE)) if holds),
    )


def _sound_facts(source: Any) -> dict[str, Any]:
    """What the head of the file says; nothing where it cannot be read, which then opening it tells."""
    import soundfile

    if isinstance(source, dict):
        rate = source.get("sampling_rate")
        return {"sampling_rate": int(rate), "channels": 1, "format": "array"} if isinstance(rate, (int, float)) else {}
    try:
        head = soundfile.info(io.BytesIO(source) if isinstance(source, bytes) else str(source))
    except (soundfile.SoundFileError, TypeError):
        return {}
    seconds = {"seconds": head.frames / head.samplerate} if head.frames < UNKNOWN_FRAMES else {}
    return seconds | {
        "sampling_rate": head.samplerate,
        "channels": head.channels,
        "format": f"{head.format} {head.subtype}",
    }


def _clipped_share(samples: np.ndarray) -> float:
    """Share of the samples that stand at full scale three in a row or more; a peak that only touches it is none."""
    full = np.abs(samples) >= _FULL_SCALE
    return float(np.mean(full[:-2] & full[1:-1] & full[2:])) if len(full) > 2 else 0.0


def _frames(samples: np.ndarray, rate: int) -> np.ndarray:
    size = max(round(_FRAME_SECONDS * rate), 1)
    padded = np.pad(samples, (0, -len(samples) % size))
    return padded.reshape(-1, size)


def _silence_share(frames: np.ndarray) -> float:
    """Share of the clip that is 40 dB below its loudest moment, or more."""
    loudness = np.sqrt(np.mean(frames.astype(np.float64) ** 2, axis=1))
    return float(np.mean(loudness <= 0.01 * loudness.max()))


def _spectrogram(frames: np.ndarray, rate: int) -> Image.Image:
    """Loudness in dB, pitch upwards and time to the right, as a picture of one channel."""
    power = np.abs(np.fft.rfft(frames * np.hanning(frames.shape[1]), axis=1)) ** 2
    edges = np.minimum(np.searchsorted(np.fft.rfftfreq(frames.shape[1], 1 / rate), _BANDS), power.shape[1] - 1)
    bands = np.stack([power[:, low : max(high, low + 1)].mean(axis=1) for low, high in pairwise(edges)])
    decibels = 10 * np.log10(bands + 1e-12)
    return Image.fromarray(np.maximum(decibels, decibels.max() - _FLOOR_DB).astype(np.float32))
