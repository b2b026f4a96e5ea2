"""One cell into one picture or one sound: what training, the pipeline and a Space open a stranger's file with.

Unusual here: sizes are looked at before anything is decoded, and a URL is never fetched.

This file travels to the Hub beside the weights, so it imports no other file of the repository.

Shape letters: N samples of sound, C channels, H and W height and width.
"""

import io
import os
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

# The Hub's scanner demands at load whatever is imported outside `try`; a text-only user needs none of these.
try:
    from PIL import Image, ImageOps
except ImportError:
    Image = ImageOps = None
try:
    import soundfile
except ImportError:
    soundfile = None
try:
    import soxr
except ImportError:
    soxr = None

# An allow-list: EPS would start Ghostscript, SVG and PDF are programs of their own.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
ALPHA_BACKGROUND = "white"

MIN_SECONDS = 0.025  # one output frame of a Wav2Vec2 front end
MIN_SAMPLING_RATE, MAX_SAMPLING_RATE = 1_000, 384_000
MAX_UPSAMPLING = 16  # slower than the minimum may be what a slower model hears: the signal of a sensor, not sound
MAX_AUDIO_CHANNELS = 8
MAX_FLOAT_SAMPLE = 1e3  # beyond this, "float" samples are integers that somebody cast, not sound with headroom

_URL = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]*://")
# libsndfile's log line for a chunk that promises more bytes than the file holds
_CUT_CHUNK = re.compile(r"(?:data|SSND)\s*: (\d+) \(should be (\d+)\)")
# What a streaming writer leaves in a WAV header when it cannot know the length
_UNKNOWN_SIZES = range(0x7FFF0000, 0x1_0000_0000)


# --- One picture


def decode_image(source: Any, *, max_pixels: int = 50_000_000) -> "Image.Image":
    """Opens one picture as an upright 8-bit RGB image.

    The header is read first: a picture with more than `max_pixels` pixels is never decoded. Of an animation or a
    multi-page file the first frame counts. Transparency is laid on white, 16-bit and float pictures are scaled (not
    clipped) to 8 bits, and the camera's EXIF orientation is applied.

    Args:
        source: A path, the bytes of a file, or a PIL image (returned as it is where nothing needs changing). URLs are
            refused.
        max_pixels: Largest width x height that is decoded.

    Raises:
        ValueError: A URL, an unknown format, a damaged or truncated file, or too many pixels.
        FileNotFoundError: No file at that path.
    """
    _require(Image, "Pillow", "pictures")
    if isinstance(source, Image.Image):
        return _guarded_rgb(source, max_pixels, "the picture")
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _open_image(io.BytesIO(source), max_pixels, f"the {len(source)} bytes")
    path = _local_path(source, "image", "a path, bytes or a PIL image")
    try:
        with open(path, "rb") as file:
            return _open_image(file, max_pixels, f"`{path}`")
    except OSError as error:  # no permission, a failing disk
        raise ValueError(f"`{path}` cannot be opened ({_reason(error)})") from None


def _open_image(file: Any, max_pixels: int, name: str) -> "Image.Image":
    try:
        image = Image.open(file, formats=IMAGE_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{name} has too many pixels: {error}; shrink the picture to {max_pixels} or fewer") from None
    except Exception as error:  # Pillow's readers raise nearly anything on foreign bytes; none of it is a bug of ours
        allowed = ", ".join(IMAGE_FORMATS)
        raise ValueError(f"{name} cannot be read as a picture ({_reason(error)}); allowed are {allowed}") from None
    return _guarded_rgb(image, max_pixels, name)


def _guarded_rgb(image: "Image.Image", max_pixels: int, name: str) -> "Image.Image":
    width, height = image.size
    if width < 1 or height < 1:
        raise ValueError(f"{name} is empty ({width} x {height} pixels)")
    if width * height > max_pixels:
        raise ValueError(
            f"{name} has {width} x {height} = {width * height} pixels, the limit is {max_pixels}; shrink the picture"
        )
    try:
        image.load()
        return to_rgb(_upright(image))
    except Exception as error:  # as above: truncated data, broken palettes, impossible colour spaces
        raise ValueError(f"{name} cannot be decoded ({_reason(error)}); is the file damaged or cut off?") from None


def _upright(image: "Image.Image") -> "Image.Image":
    # exif_transpose copies even upright pictures, so ask first.
    try:
        orientation = image.getexif().get(0x0112, 1)
    except (SyntaxError, struct.error, ValueError, KeyError, TypeError):
        return image  # a broken EXIF block says nothing about orientation, and every viewer shows such a picture
    return image if orientation == 1 else ImageOps.exif_transpose(image)


def to_rgb(image: "Image.Image") -> "Image.Image":
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        return _gray(np.asarray(image), 65535.0)
    if image.mode in ("I", "F"):
        return _gray_of_any_range(np.asarray(image))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, ALPHA_BACKGROUND), image).convert("RGB")
    return image.convert("RGB")


def _gray(values: np.ndarray, white: float, black: float = 0.0) -> "Image.Image":
    scaled = (values.astype(np.float64) - black) * (255.0 / (white - black))
    return Image.fromarray(np.rint(scaled).astype(np.uint8)).convert("RGB")


def _gray_of_any_range(values: np.ndarray) -> "Image.Image":
    """Scales mode I (16-bit in all but name) and mode F (0..1 or 0..255); any other range goes darkest to lightest."""
    if not np.isfinite(values).all():
        raise ValueError("it holds NaN or infinite pixels")
    low, high = float(values.min()), float(values.max())
    whites = (1.0, 255.0) if values.dtype.kind == "f" else (65535.0,)
    for white in whites:
        if low >= 0 and high <= white:
            return _gray(values, white)
    return _gray(values, high if high > low else low + 1.0, black=low)


# --- One sound


def decode_audio(source: Any, *, sampling_rate: int, max_seconds: float | None = None) -> np.ndarray:
    """Opens one sound as mono float32 samples in [-1, 1].

    Only the first `max_seconds` are decoded, however long the file. Channels are averaged. Integers are scaled by the
    range of their type; floats that peak above 1 are divided by their peak, and beyond 1000 they are refused, because
    they are then integers in disguise whose scale is unknown.

    Args:
        source: A path, the bytes of a file (WAV, FLAC, OGG, MP3, AIFF), or a dict with "array" ((samples,), (samples,
            channels) or (channels, samples), at most 8 channels) and "sampling_rate". URLs are refused.
        sampling_rate: Rate of the result, in Hz.
        max_seconds: What comes later is cut off. None: keep all.

    Returns:
        (N,) float32.

    Raises:
        ValueError: A URL, an unknown format, a damaged file, fewer than 25 ms (or less than one sample of the result),
            NaN, an impossible rate or shape.
        FileNotFoundError: No file at that path.
    """
    if isinstance(source, Mapping):
        samples, rate = _samples_of_dict(source, sampling_rate, max_seconds)
    else:
        samples, rate = _samples_of_file(source, sampling_rate, max_seconds)
    samples = _resampled(_bounded(samples, rate, sampling_rate), rate, sampling_rate)
    return samples if max_seconds is None else samples[: round(max_seconds * sampling_rate)]


def _samples_of_file(source: Any, target_rate: int, max_seconds: float | None) -> tuple[np.ndarray, int]:
    _require(soundfile, "soundfile", "sound files")
    if isinstance(source, (bytes, bytearray, memoryview)):
        name, file = f"the {len(source)} bytes", _SoundBytes(source)
    else:
        file = os.fspath(_local_path(source, "audio", 'a path, bytes or {"array", "sampling_rate"}'))
        name = f"`{file}`"
    try:
        with soundfile.SoundFile(file) as sound:
            return _read_sound(sound, name, target_rate, max_seconds)
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: headerless formats (.raw) want a rate
        raise ValueError(
            f"{name} cannot be read as sound ({_reason(error)}); allowed are WAV, FLAC, OGG, MP3 and AIFF"
        ) from None


class _SoundBytes(io.BytesIO):
    """Bytes for soundfile, whose callback prints a traceback where a damaged header makes it seek before the start."""

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return super().seek(offset, whence)
        except ValueError:
            return self.tell()  # libsndfile sees that it is not where it wanted to be, and gives up


def _read_sound(sound: Any, name: str, target_rate: int, max_seconds: float | None) -> tuple[np.ndarray, int]:
    rate = _checked_rate(sound.samplerate, target_rate)
    if sound.channels > MAX_AUDIO_CHANNELS:
        raise ValueError(f"{name} has {sound.channels} channels, at most {MAX_AUDIO_CHANNELS} are read; mix it down")
    cut = _CUT_CHUNK.search(sound.extra_info)
    if cut and int(cut[1]) > int(cut[2]) and int(cut[1]) not in _UNKNOWN_SIZES:
        raise ValueError(f"{name} is cut off: its header promises {cut[1]} bytes of sound, the file holds {cut[2]}")
    wanted = sound.frames if max_seconds is None else min(sound.frames, round(max_seconds * rate))
    samples = sound.read(wanted, dtype="float32", always_2d=True)
    if len(samples) < 0.9 * wanted:  # an MP3 header may be a little off
        raise ValueError(f"{name} is cut off: its header promises {wanted} samples, {len(samples)} could be read")
    return _downmixed(samples), rate


def _samples_of_dict(source: Mapping, target_rate: int, max_seconds: float | None) -> tuple[np.ndarray, int]:
    if source.get("array") is None or source.get("sampling_rate") is None:
        keys = ", ".join(map(str, source)) or "none"
        raise ValueError(f'a sound given as a dict needs the keys "array" and "sampling_rate"; it has: {keys}')
    rate = _checked_rate(source["sampling_rate"], target_rate)
    return _samples_of_array(source["array"], rate, max_seconds), rate


def _samples_of_array(array: Any, rate: int, max_seconds: float | None) -> np.ndarray:
    array = np.asarray(array)
    if array.ndim == 2:
        array = _channels_last(array)
    elif array.ndim != 1:
        raise ValueError(
            f"sound of shape {array.shape}; allowed are (samples,), (samples, channels) and (channels, samples)"
        )
    if max_seconds is not None:
        array = array[: round(max_seconds * rate)]
    return _downmixed(_scaled_to_float(array))


def _channels_last(array: np.ndarray) -> np.ndarray:
    channels = min(array.shape)
    if channels > MAX_AUDIO_CHANNELS or array.shape[0] == array.shape[1]:
        raise ValueError(
            f"sound of shape {array.shape}: one axis must be the channels, at most {MAX_AUDIO_CHANNELS} and fewer than"
            " the samples; pass several sounds as a list"
        )
    return array if array.shape[1] == channels else array.T


def _scaled_to_float(array: np.ndarray) -> np.ndarray:
    kind, bits = array.dtype.kind, array.dtype.itemsize * 8
    if kind == "f":
        # Compared in the original type: 1e300 must not become infinite before it is judged.
        return array if array.dtype == np.float32 else np.clip(array, -1e30, 1e30).astype(np.float32)
    if kind not in "iu" or bits > 32:
        raise ValueError(
            f"samples of type {array.dtype}, whose full scale is unknown; allowed are floats in [-1, 1] and integers"
            " of 8, 16 or 32 bits: use `array.astype(numpy.int16)` if that is what they are"
        )
    half = 2.0 ** (bits - 1)
    centre = half if kind == "u" else 0.0
    return ((array.astype(np.float64) - centre) / half).astype(np.float32)


def _downmixed(samples: np.ndarray) -> np.ndarray:
    if samples.ndim == 1:
        return samples
    return samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1, dtype=np.float32)


def _bounded(samples: np.ndarray, rate: int, target_rate: int) -> np.ndarray:
    """Refuses what is no sound (too short, NaN, wild values) and brings the peak to at most 1."""
    min_seconds = max(MIN_SECONDS, 1 / target_rate)  # under 40 Hz one sample lasts longer than a frame of sound
    if len(samples) < min_seconds * rate:
        raise ValueError(
            f"the clip lasts {len(samples) / rate:.4g} s ({len(samples)} samples at {rate} Hz), at least"
            f" {min_seconds:.4g} s are needed; leave the cell empty if there is no sound"
        )
    # One pass each, no temporary: NaN survives max, and an infinity is the largest there is.
    peak = max(float(samples.max()), -float(samples.min()))
    if not np.isfinite(peak):
        raise ValueError("the clip holds NaN or infinite samples; repair it or leave the cell empty")
    if peak > MAX_FLOAT_SAMPLE:
        raise ValueError(
            f"the clip peaks at {peak:.4g}, float samples belong in [-1, 1]; divide by the full scale of the"
            " recording (32768 for 16 bits) or pass the integers as they are"
        )
    return samples / np.float32(peak) if peak > 1.0 else samples


def _resampled(samples: np.ndarray, rate: int, target_rate: int) -> np.ndarray:
    if rate != target_rate:
        _require(soxr, "soxr", f"sound at {rate} Hz (the model hears {target_rate} Hz)")
        samples = soxr.resample(np.ascontiguousarray(samples), rate, target_rate)
        # The filter rings a little beyond full scale at steep edges.
        np.clip(samples, -1.0, 1.0, out=samples)
    return np.ascontiguousarray(samples, dtype=np.float32)


def _checked_rate(rate: Any, target_rate: int) -> int:
    if getattr(rate, "ndim", None) == 0:  # a number of NumPy or torch, as data sets with these formats give it
        rate = rate.item()
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or rate % 1 != 0:  # also NaN and infinity
        raise ValueError(f"`sampling_rate` is {_short(repr(rate))}; it must be a whole number of Hz")
    lowest = max(1, min(MIN_SAMPLING_RATE, target_rate // MAX_UPSAMPLING))
    if not lowest <= rate <= MAX_SAMPLING_RATE:
        raise ValueError(
            f"`sampling_rate` is {_short(rate)} Hz, allowed are {lowest} to {MAX_SAMPLING_RATE} Hz; is the unit Hz?"
        )
    return int(rate)


# --- What both need


def _local_path(source: Any, column: str, allowed: str) -> Path:
    if not isinstance(source, (str, os.PathLike)):
        raise ValueError(f"`{column}` is of type {type(source).__name__}; allowed is {allowed}")
    if isinstance(source, str) and _URL.match(source):
        raise ValueError(f"`{_short(source)}` is a URL, and nothing is ever fetched; download it and pass {allowed}")
    path = Path(source)
    try:
        is_file = path.is_file()
    except (OSError, ValueError) as error:  # a name too long, a NUL inside
        raise ValueError(f"`{_short(source)}` is no usable path ({_reason(error)})") from None
    if not is_file:
        problem = "is not a regular file" if path.exists() else "does not exist"
        raise FileNotFoundError(f"the file `{_short(source)}` {problem}; check the path and the folder it starts from")
    return path


def _short(text: Any, limit: int = 200) -> str:
    text = str(text)
    return text if len(text) <= limit else text[:limit] + "…"


def _reason(error: BaseException) -> str:
    """The library's words on one line, without the object's address that Pillow and soundfile like to print."""
    words = " ".join(re.sub(r"<[^<>]* at 0x[0-9a-f]+>", "", str(error)).split()).replace(" :", ":")
    return _short(words) or type(error).__name__


def _require(module: Any, package: str, purpose: str) -> None:
    if module is None:
        raise ImportError(f"`{package}` is needed to read {purpose}: pip install {package.lower()}")


__all__ = ["decode_audio", "decode_image"]
