"""One cell into one picture or one sound: what training, the pipeline and a Space open a stranger's file with.

Unusual here: sizes are looked at before anything is decoded, and a URL is never fetched.

This file travels to the Hub beside the weights.

Shape letters: N samples of sound, C channels, H and W height and width.
"""

import io
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# The Hub's scanner demands at load whatever is imported outside `try`; a text-only user needs none of these.
try:
    from PIL import Image, ImageCms
except ImportError:
    Image = ImageCms = None
try:
    import soundfile
except ImportError:
    soundfile = None
try:
    import soxr
except ImportError:
    soxr = None
try:
    from .containers_mmfusion import InOrder, Part, count_of_frames, sound_parts
except ImportError:
    if __package__:  # inside the Hub cache this is a real failure: show it
        raise
    from containers_mmfusion import InOrder, Part, count_of_frames, sound_parts

# An allow-list: EPS would start Ghostscript, SVG and PDF are programs of their own.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
ALPHA_BACKGROUND = "white"
PIXEL_BITS = (8, 10, 12, 14, 16)
# What EXIF orientations from 2 on ask for; `ImageOps.exif_transpose` also writes EXIF anew, and fails over broken one.
_TURNS = () if Image is None else (
    Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90,
)  # fmt: skip
# What people have and is not on the list: how it begins, and what it is called
_OTHER_PICTURES = (
    (rb".{4}ftyp(hei|hev|mif1|msf1)", "HEIC"),
    (rb".{4}ftypavi[fs]", "AVIF"),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "JPEG 2000"),
    (rb"\0\0\0\x0cJXL |\xff\x0a", "JPEG XL"),
    (rb".{128}DICM", "DICOM"),
    (rb"8BPS", "a Photoshop file"),
    (rb"%PDF", "PDF"),
    (rb"\s*(<\?xml[^>]*>\s*)?<svg", "SVG"),
)

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
WHOLE_SHARE = 0.9  # of what a header promises: a sound that has less is cut off, else the samples are right
_BLOCK = 2**16  # samples that are decoded at once
_MAX_FAILED_READS = 1000  # one after the other; mpg123 looks for the next frame in a kilobyte of garbage each time
_MP3_PADDING = 2 * 1152  # samples at the end that a decoder may leave out
# What people have and libsndfile does not read: how it begins, and what it is called
_OTHER_SOUNDS = (
    (rb".{4}ftyp", "MP4 or M4A (AAC)"),
    (rb"\x1aE\xdf\xa3", "WebM or Matroska"),
    (rb"0&\xb2u\x8ef\xcf\x11", "WMA or another Windows Media file"),
    (rb"#!AMR", "AMR"),
    (rb"\x89PNG|\xff\xd8\xff|GIF8", "a picture"),
    (rb"\xff[\xf0\xf1\xf8\xf9]", "AAC"),
    (rb"OggS.{24}.{0,8}(\x7fFLAC|Speex|\x80theora)", "OGG that holds neither Vorbis nor Opus"),
    (rb"MAC ", "Monkey's Audio"),
    (rb"wvpk", "WavPack"),
    (rb"FLV", "Flash video"),
    (rb"RIFF.{4}AVI ", "AVI"),
)


# --- One picture


def decode_image(source: Any, *, max_pixels: int = 50_000_000, bits: int | None = None) -> "Image.Image":
    """Return one picture, upright, as 8-bit RGB.

    The header is read first: a picture with more than `max_pixels` pixels is never decoded. Of an animation or a
    multi-page file the first frame counts. Transparency is laid on white, the orientation of the camera is applied,
    and pictures of 16 bits or floats are scaled to 8 bits. Metadata that is broken is passed over.

    Args:
        source: A path, the bytes of a file, or a PIL image (returned as it is where nothing needs changing). URLs are
            refused.
        max_pixels: Largest width x height that is decoded.
        bits: How many of its 16 bits a picture uses; the largest number that they hold becomes white, and what is
            larger too. None: the fewest of 8, 10, 12, 14 and 16 that its brightest pixel needs, which makes pictures
            of one table unlike one another: `MMFusionProcessor.decode_image` has the bits that its model learnt with.

    Raises:
        ValueError: A URL, an unknown format, a damaged or truncated file, NaN, or too many pixels.
        FileNotFoundError: No file at that path.
    """
    _require(Image, "Pillow", "pictures")
    if isinstance(source, Image.Image):
        return _guarded_rgb(source, max_pixels, bits, "the picture")
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _open_image(io.BytesIO(source), None, max_pixels, bits, f"the {len(source)} bytes")
    path = _local_path(source, "image", "a path, bytes or a PIL image")
    try:
        with open(path, "rb") as file:
            return _open_image(file, path, max_pixels, bits, f"`{path}`")
    except OSError as error:  # no permission, a failing disk
        raise ValueError(f"`{path}` cannot be opened ({_reason(error)})") from None


def _open_image(file: Any, path: Path | None, max_pixels: int, bits: int | None, name: str) -> "Image.Image":
    try:
        image = _identified(file)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{name} has too many pixels: {error}; shrink the picture to {max_pixels} or fewer") from None
    except Exception as error:  # Pillow's readers raise nearly anything on foreign bytes; none of it is a bug of ours
        raise ValueError(_no_picture(file, path, name, _reason(error))) from None
    try:
        return _guarded_rgb(image, max_pixels, bits, name, file)
    except ValueError:
        if image.format != "PNG" or (plain := _png_without_metadata(file)) is None:
            raise
        return _guarded_rgb(plain, max_pixels, bits, name)


def _identified(file: Any) -> "Image.Image":
    try:
        return Image.open(file, formats=IMAGE_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise
    except Exception:
        if (plain := _png_without_metadata(file)) is None:
            raise
        return plain


def _png_without_metadata(file: Any) -> "Image.Image | None":
    """Return a PNG of the chunks that its pixels need, since Pillow gives up over any other; None: there is none."""
    file.seek(0)
    if (mark := file.read(8)) != b"\x89PNG\r\n\x1a\n":
        return None
    chunks = []
    while len(head := file.read(8)) == 8:
        chunks.append((head, file.read(int.from_bytes(head[:4], "big") + 4)))
    needed = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
    pixels, opaque = (_of_chunks(mark, chunks, names) for names in (needed, needed - {b"tRNS"}))
    return pixels or opaque  # a transparency may be broken, too


def _of_chunks(mark: bytes, chunks: Sequence[tuple[bytes, bytes]], names: set[bytes]) -> "Image.Image | None":
    kept = b"".join(head + body for head, body in chunks if head[4:] in names)
    try:
        return Image.open(io.BytesIO(mark + kept), formats=("PNG",))
    except Exception:
        return None


def _no_picture(file: Any, path: Path | None, name: str, reason: str) -> str:
    file.seek(0)
    head = file.read(160)
    kind = next((kind for pattern, kind in _OTHER_PICTURES if re.match(pattern, head, re.DOTALL)), None)
    allowed = ", ".join(IMAGE_FORMATS)
    if kind is None:
        return f"{name} cannot be read as a picture ({reason}); allowed are {allowed}"
    source, target = ("input", "output.png") if path is None else (path.name, f"{path.stem}.png")
    convert = f"`magick {shlex.quote(source)} {shlex.quote(target)}` (ImageMagick)"
    return f"{name} cannot be read as a picture: it is {kind}; allowed are {allowed}, convert it with {convert}"


def _guarded_rgb(
    image: "Image.Image", max_pixels: int, bits: int | None, name: str, file: Any = None
) -> "Image.Image":
    width, height = image.size
    if width < 1 or height < 1:
        raise ValueError(f"{name} is empty ({width} x {height} pixels)")
    if width * height > max_pixels:
        raise ValueError(
            f"{name} has {width} x {height} = {width * height} pixels, the limit is {max_pixels}; shrink the picture"
        )
    try:
        deep = None if bits == 16 else deep_colours(image, file)
        image.load()
    except Exception as error:  # as above: truncated data, broken palettes
        raise ValueError(f"{name} cannot be decoded ({_reason(error)}); is the file damaged or cut off?") from None
    try:
        orientation = _orientation(image)
        if deep is not None and (white := white_level(deep, bits)) < 65535:
            image = _with_colours(image, _scaled(deep, white))
        return to_rgb(image if orientation == 1 else image.transpose(_TURNS[orientation - 2]), bits)
    except Exception as error:  # NaN, impossible colour spaces
        raise ValueError(f"{name} cannot be made RGB ({_reason(error)}); save it as 8-bit RGB or grey") from None


def deep_colours(image: "Image.Image", file: Any) -> np.ndarray | None:
    """Return (H, W, 3) uint16, the colours of a picture of 16 bits each; None: it is none, or already loaded.

    Pillow keeps the upper byte of such colours. Read in the other order of bytes, the picture has the lower ones.

    Args:
        image: Opened, not loaded yet; it is loaded where it is such a picture.
        file: That it was opened from.
    """
    tiles = [_lower_byte(tile) for tile in getattr(image, "tile", ())]
    if file is None or not tiles or None in tiles:
        return None
    upper = np.asarray(image)[..., :3].astype(np.uint16)
    lower = Image.open(file, formats=(image.format,))
    lower.tile = tiles
    return upper << 8 | np.asarray(lower)[..., :3]


def _lower_byte(tile: Any) -> Any:
    *rest, args = tile
    mode, *more = args if isinstance(args, tuple) else (args,)
    other = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
    if not re.fullmatch("RGBA?;16[BLN]", str(mode)):
        return None
    mode = mode[:-1] + other[mode[-1]]
    return type(tile)(*rest, (mode, *more) if more else mode) if hasattr(tile, "_fields") else None


def _with_colours(image: "Image.Image", colours: np.ndarray) -> "Image.Image":
    result = Image.fromarray(colours)
    if image.mode == "RGBA":
        result.putalpha(image.getchannel("A"))
    return result


def _orientation(image: "Image.Image") -> int:
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # a broken EXIF block says nothing about orientation, and every viewer shows such a picture
        return 1
    return orientation if isinstance(orientation, int) and 2 <= orientation <= 8 else 1


def to_rgb(image: "Image.Image", bits: int | None = None) -> "Image.Image":
    """Return a loaded picture of any mode as RGB; `bits` as `decode_image` takes them."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        values = np.asarray(image)
        return _gray(values, white_level(values, bits))
    if image.mode in ("I", "F"):
        return _gray_of_any_range(np.asarray(image), bits)
    if image.mode in ("La", "RGBa"):  # colours that are multiplied with their opacity
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if image.has_transparency_data:
        return _on_background(image)
    return _rgb_of_lab(image) if image.mode == "LAB" else image.convert("RGB")


def _on_background(image: "Image.Image") -> "Image.Image":
    try:
        image = image.convert("RGBA")
    except Exception:  # a transparency that the palette does not have
        image = image.copy()
        image.info.pop("transparency", None)
        return image.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", image.size, ALPHA_BACKGROUND), image).convert("RGB")


def _rgb_of_lab(image: "Image.Image") -> "Image.Image":
    lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB")


def white_level(values: np.ndarray, bits: int | None) -> float:
    """Return the number that becomes white in grey integers of 16 bits: the largest that `bits` can hold.

    Args:
        values: (H, W), from 0 to 65535.
        bits: How many bits are used; None: the fewest of 8, 10, 12, 14 and 16 that hold `values`.
    """
    if bits is None:
        bits = bits_needed(int(values.max()))
    return float(2**bits - 1)


def bits_needed(highest: int) -> int:
    """Return the fewest bits, of those that cameras and scanners have, that hold a number up to 65535."""
    return next(bits for bits in PIXEL_BITS if highest < 2**bits)


def _gray(values: np.ndarray, white: float, black: float = 0.0) -> "Image.Image":
    return Image.fromarray(_scaled(values, white, black)).convert("RGB")


def _scaled(values: np.ndarray, white: float, black: float = 0.0) -> np.ndarray:
    scaled = (np.minimum(values.astype(np.float64), white) - black) * (255.0 / (white - black))
    return np.rint(scaled).astype(np.uint8)


def _gray_of_any_range(values: np.ndarray, bits: int | None) -> "Image.Image":
    """Scale mode I (16-bit in all but name) and mode F (0..1 or 0..255); any other range goes darkest to lightest."""
    if not np.isfinite(values).all():
        raise ValueError("it holds NaN or infinite pixels")
    low, high = float(values.min()), float(values.max())
    if values.dtype.kind != "f" and low >= 0 and high <= 65535:
        return _gray(values, white_level(values, bits))
    for white in (1.0, 255.0) if values.dtype.kind == "f" else ():
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
        return _read_sound(io.BytesIO(source), None, f"the {len(source)} bytes", target_rate, max_seconds)
    path = _local_path(source, "audio", 'a path, bytes or {"array", "sampling_rate"}')
    try:
        with open(path, "rb") as file:
            return _read_sound(file, path, f"`{path}`", target_rate, max_seconds)
    except OSError as error:  # no permission, a failing disk
        raise ValueError(f"`{path}` cannot be opened ({_reason(error)})") from None


def _read_sound(
    file: Any, path: Path | None, name: str, target_rate: int, max_seconds: float | None
) -> tuple[np.ndarray, int]:
    """Return ((N,) mono samples, their rate) of an open file, whose parts (chained OGG streams) are put together."""
    heard, rate = [], None
    try:
        for part in sound_parts(file, path):
            left = None if max_seconds is None else max_seconds - sum(map(len, heard)) / (rate or 1)
            if left is not None and left <= 0:
                break
            samples, own_rate = _read_part(part, name, target_rate, left)
            rate = rate or own_rate
            heard.append(samples if own_rate == rate else _resampled(samples, own_rate, rate))
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: headerless formats (.raw) want a rate
        raise ValueError(_unreadable(file, path, name, _reason(error))) from None
    return heard[0] if len(heard) == 1 else np.concatenate(heard), rate


def _read_part(part: Part, name: str, target_rate: int, max_seconds: float | None) -> tuple[np.ndarray, int]:
    with InOrder(part) as sound:
        rate = _checked_rate(sound.samplerate, target_rate)
        if sound.channels > MAX_AUDIO_CHANNELS:
            raise ValueError(
                f"{name} has {sound.channels} channels, at most {MAX_AUDIO_CHANNELS} are read; mix it down"
            )
        limit = sys.maxsize if max_seconds is None else round(max_seconds * rate)
        (samples, is_damaged), promised = _read_blocks(sound, limit), sound.frames
        cut, is_mp3 = _CUT_CHUNK.search(sound.extra_info), sound.format == "MP3"
    if is_mp3:
        if len(samples) < limit and (is_damaged or len(samples) >= promised):
            samples = _whole_mp3(part, samples, 0 if is_damaged else promised, limit)
        promised = promised if _is_cut_mp3(part) else len(samples)
    elif part.promised is not None:  # a FLAC file that is cut off ends inside a frame
        promised = part.promised if is_damaged else len(samples)
    if cut and int(cut[1]) not in _UNKNOWN_SIZES and int(cut[2]) < WHOLE_SHARE * int(cut[1]):
        raise ValueError(f"{name} is cut off: its header promises {cut[1]} bytes of sound, the file holds {cut[2]}")
    wanted = min(promised, limit)
    if len(samples) < WHOLE_SHARE * wanted:
        raise ValueError(f"{name} is cut off: its header promises {wanted} samples, {len(samples)} could be read")
    return _downmixed(samples), rate


def _read_blocks(sound: Any, limit: int) -> tuple[np.ndarray, bool]:
    """Return ((N, C) float32, whether damage was passed over): what can be decoded, whatever the header says."""
    blocks, count, num_failed, is_damaged = [np.empty((0, sound.channels), np.float32)], 0, 0, False
    while count < limit and num_failed < _MAX_FAILED_READS:
        block = np.full((min(_BLOCK, limit - count), sound.channels), np.nan, np.float32)
        try:
            block, num_failed = sound.read(out=block), 0
            if not len(block):
                break
        except soundfile.SoundFileError:
            is_damaged, num_failed = True, num_failed + 1
            # What was decoded before the damage stands in the block already; its count is lost.
            block = block[: int((~np.isnan(block).all(axis=1)).sum())]
            if not count + len(block) and num_failed == _MAX_FAILED_READS:
                raise
        blocks.append(block)
        count += len(block)
    return blocks[1] if len(blocks) == 2 else np.concatenate(blocks), is_damaged


def _whole_mp3(part: Part, samples: np.ndarray, promised: int, limit: int) -> np.ndarray:
    """Return all samples of an MP3 file of which `samples` were read, the `promised` ones, where more come behind.

    Without a Xing header the length is estimated from the first frame, and libsndfile stops there; a header may be
    wrong as well, or be that of the first of several files in one.
    """
    count_at, _ = count_of_frames(part)
    unlimited = part.claiming(100 * len(part), () if count_at is None else ((count_at, b"\x0f\xff\xff\xff"),))
    if promised:
        with InOrder(unlimited) as sound:
            try:
                sound.seek(promised + _MP3_PADDING)
                if not len(sound.read(1)):
                    return samples
            except soundfile.SoundFileError:
                return samples
    with InOrder(unlimited) as sound:
        return _read_blocks(sound, limit)[0]


def _is_cut_mp3(part: Part) -> bool:
    """Whether bytes are missing; only a header that counts them tells a file that is cut off from a wrong header."""
    _, num_bytes = count_of_frames(part)
    return num_bytes is not None and len(part) < WHOLE_SHARE * num_bytes


def _unreadable(file: Any, path: Path | None, name: str, reason: str) -> str:
    """Return the sentence about a file that libsndfile does not read, with how to convert it."""
    head = Part(file).peek(0, 64)
    kind = next((kind for pattern, kind in _OTHER_SOUNDS if re.match(pattern, head, re.DOTALL)), None)
    source = shlex.quote("input" if path is None else path.name)
    target = "output.wav" if path is None or path.suffix.lower() == ".wav" else f"{path.stem}.wav"
    convert = f"convert it with `ffmpeg -i {source} {shlex.quote(target)}`"
    if kind == "a picture":
        return f"{name} is a picture, not sound; give it as the image"
    if kind is not None:
        return f"{name} is {kind}, which is not read; {convert}"
    return f"{name} cannot be read as sound ({reason}); allowed are WAV, FLAC, OGG, MP3 and AIFF, else {convert}"


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
