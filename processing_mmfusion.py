"""Raw text, pictures and sounds into the inputs of an MMFusion model.

Unusual here: every cell may be empty (`None`), and the batch says which cells were there (`modality_mask`). The two
functions that open a cell, `decode_image` and `decode_audio`, look at sizes before they decode and never fetch a URL:
training, the pipeline and a Space all open a stranger's file with them.

This file travels to the Hub beside the weights, so it imports no other file of the repository.

Shape letters: B batch, T tokens, N samples of sound, C channels, H and W height and width.
"""

import io
import os
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoTokenizer, BatchFeature
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin, Unpack

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

MODALITIES = ("text", "image", "audio")

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
        return _to_rgb(_upright(image))
    except Exception as error:  # as above: truncated data, broken palettes, impossible colour spaces
        raise ValueError(f"{name} cannot be decoded ({_reason(error)}); is the file damaged or cut off?") from None


def _upright(image: "Image.Image") -> "Image.Image":
    # exif_transpose copies even upright pictures, so ask first.
    try:
        orientation = image.getexif().get(0x0112, 1)
    except (SyntaxError, struct.error, ValueError, KeyError, TypeError):
        return image  # a broken EXIF block says nothing about orientation, and every viewer shows such a picture
    return image if orientation == 1 else ImageOps.exif_transpose(image)


def _to_rgb(image: "Image.Image") -> "Image.Image":
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
    if isinstance(rate, bool) or not isinstance(rate, (int, float, np.number)) or rate != rate or rate != int(rate):
        raise ValueError(f"`sampling_rate` is {rate!r}; it must be a whole number of Hz")
    lowest = max(1, min(MIN_SAMPLING_RATE, target_rate // MAX_UPSAMPLING))
    if not lowest <= rate <= MAX_SAMPLING_RATE:
        raise ValueError(
            f"`sampling_rate` is {rate} Hz, allowed are {lowest} to {MAX_SAMPLING_RATE} Hz; is the unit Hz?"
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


# --- The processor


class MMFusionAudioKwargs(TypedDict, total=False):
    """What of `audio_kwargs` may be passed flat: no `padding` or `max_length`, which flat belong to the text."""

    return_tensors: Any


class MMFusionProcessorKwargs(ProcessingKwargs, total=False):
    """Keyword arguments of `MMFusionProcessor.__call__`, nested or flat."""

    audio_kwargs: MMFusionAudioKwargs


class _PresentAttributes(classmethod):
    """`get_attributes`, but asked on an instance it names only the parts that this instance has.

    The base class saves, prints and lists every part that `get_attributes` names, and stumbles over a None.
    """

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        names_of_class = super().__get__(instance, owner)
        if instance is None:
            return names_of_class
        return lambda: [name for name in names_of_class() if getattr(instance, name) is not None]


class MMFusionProcessor(ProcessorMixin):
    """Turns rows of text, pictures and sounds, any cell of them empty, into the inputs of an MMFusion model.

    Group-norm audio towers (their feature extractor has `return_attention_mask=False`) take statistics over the whole
    clip, padding included. For these every clip is padded to `max_audio_seconds`, so that a row alone and a row in a
    batch see the same numbers. All others are padded to the longest clip of the batch.

    Args:
        tokenizer: For text; None where the model reads no text.
        image_processor: For pictures; None where the model sees no pictures.
        feature_extractor: For sound, one that returns waveforms; None where the model hears nothing.
        max_text_length: Tokens that are kept of a text, special tokens included. Goes before whatever length the
            tokenizer was saved with.
        max_audio_seconds: Seconds that are kept of a sound.
    """

    valid_processor_kwargs = MMFusionProcessorKwargs
    # "[SEP]" in a stranger's text is five characters, not the end of the text.
    text_kwargs = {
        "padding": True,
        "truncation": True,
        "return_tensors": "pt",
        "return_token_type_ids": False,
        "split_special_tokens": True,
    }

    def __init__(
        self,
        tokenizer: Any = None,
        image_processor: Any = None,
        feature_extractor: Any = None,
        max_text_length: int = 128,
        max_audio_seconds: float = 10.0,
    ):
        # The base class's __init__ demands all parts; here a missing one means a modality that the model lacks.
        self.chat_template = None
        parts = {"tokenizer": tokenizer, "image_processor": image_processor, "feature_extractor": feature_extractor}
        if all(part is None for part in parts.values()):
            raise ValueError(
                "at least one of `tokenizer`, `image_processor` and `feature_extractor` is needed, got none"
            )
        for name, part in parts.items():
            if part is not None:
                self.check_argument_for_proper_class(name, part)
            setattr(self, name, part)
        if feature_extractor is not None and feature_extractor.model_input_names[0] != "input_values":
            raise ValueError(
                f"`feature_extractor` is a {type(feature_extractor).__name__}, which returns"
                f" `{feature_extractor.model_input_names[0]}`; one that returns waveforms (`input_values`) is needed,"
                " such as Wav2Vec2FeatureExtractor"
            )
        if max_text_length < 1:
            raise ValueError(f"`max_text_length` is {max_text_length}, at least 1 token is needed")
        if not MIN_SECONDS <= max_audio_seconds < float("inf"):
            raise ValueError(f"`max_audio_seconds` is {max_audio_seconds}, at least {MIN_SECONDS} s are needed")
        self.max_text_length = max_text_length
        self.max_audio_seconds = max_audio_seconds

    def __call__(
        self,
        text: Any = None,
        images: Any = None,
        audio: Any = None,
        sampling_rate: int | None = None,
        **kwargs: Unpack[MMFusionProcessorKwargs],
    ) -> BatchFeature:
        """Prepares one row or a list of rows.

        Each argument is one cell or a list with one cell a row; None, and for text also blanks, is an empty cell.
        Paths and URLs are refused here, so that a service can hand over what a stranger sent: open them with
        `decode_image` and `decode_audio`. A modality that no row has is left out of the result.

        Args:
            text: Strings. Longer ones are cut to `max_text_length` tokens.
            images: PIL images or arrays: (H, W), (H, W, C) or (C, H, W), integers 0..255 or floats 0..1.
            audio: Arrays (with `sampling_rate`) or dicts with "array" and "sampling_rate", shaped and scaled as
                `decode_audio` says.
            sampling_rate: Rate of bare arrays, in Hz.
            **kwargs: For the parts, nested (`text_kwargs`, `images_kwargs`, `audio_kwargs`, `common_kwargs`) or flat;
                `return_tensors` is "pt" if not given.

        Returns:
            `input_ids`, `attention_mask` (B, T), `pixel_values` (B, 3, H, W), `input_values`, `audio_attention_mask`
            (B, N) and `modality_mask` (B, 3), columns text, image, audio. 1 = there, 0 = padding or empty.

        Raises:
            ValueError: Nothing given, lists of unequal length, a modality that the model lacks, a bad cell.
            TypeError: A cell of the wrong type.
        """
        cells = _rows({"text": text, "images": images, "audio": audio})
        modality_mask = np.array([[cell is not None for cell in column] for column in cells.values()], np.int64).T
        options = self._merge_kwargs(
            self.valid_processor_kwargs, tokenizer_init_kwargs=self._tokenizer_defaults(), **kwargs
        )
        data, (has_text, has_images, has_audio) = {}, modality_mask.any(axis=0)
        if has_text:
            self._require_part("text", "tokenizer")
            data |= self._encode_text(cells["text"], options["text_kwargs"])
        if has_images:
            self._require_part("images", "image_processor")
            data |= self._encode_images(cells["images"], options["images_kwargs"])
        if has_audio:
            self._require_part("audio", "feature_extractor")
            data |= self._encode_audio(cells["audio"], sampling_rate, options["audio_kwargs"])
        data["modality_mask"] = np.ascontiguousarray(modality_mask)
        return BatchFeature(data, tensor_type=options["text_kwargs"]["return_tensors"])

    def decode_image(self, source: Any) -> "Image.Image":
        """Opens one picture, for `images=`; see the function of this name."""
        return decode_image(source)

    def decode_audio(self, source: Any) -> np.ndarray:
        """Opens one sound at the rate and length that the model hears, for `audio=`; see the function of this name."""
        self._require_part("audio", "feature_extractor")
        return decode_audio(source, sampling_rate=self.audio_sampling_rate, max_seconds=self.max_audio_seconds)

    @property
    def audio_sampling_rate(self) -> int | None:
        """Hz that the audio tower hears; None without one."""
        return None if self.feature_extractor is None else self.feature_extractor.sampling_rate

    @property
    def modalities(self) -> tuple[str, ...]:
        """Those of text, image and audio that this processor reads."""
        parts = (self.tokenizer, self.image_processor, self.feature_extractor)
        return tuple(name for name, part in zip(MODALITIES, parts, strict=True) if part is not None)

    @property
    def model_input_names(self) -> list[str]:
        names = {
            "text": ["input_ids", "attention_mask"],
            "image": ["pixel_values"],
            "audio": ["input_values", "audio_attention_mask"],
        }
        return [name for modality in self.modalities for name in names[modality]] + ["modality_mask"]

    # --- saving and loading: a part that is None is stored as null and comes back as None

    get_attributes = _PresentAttributes(lambda cls: ["tokenizer", "image_processor", "feature_extractor"])

    def to_dict(self) -> dict[str, Any]:
        # The base class leaves the tokenizer out because it has files of its own; that there is none must be said.
        return super().to_dict() | ({"tokenizer": None} if self.tokenizer is None else {})

    @classmethod
    def _get_arguments_from_pretrained(cls, path: Any, processor_dict: dict | None = None, **kwargs: Any) -> list:
        loaders = (AutoTokenizer, AutoImageProcessor, AutoFeatureExtractor)
        stored, parts = processor_dict or {}, []
        for name, loader in zip(cls.get_attributes(), loaders, strict=True):
            # One backend for all: torchvision resizes differently, and a service would disagree with the training.
            backend = {"backend": "pil"} if name == "image_processor" else {}
            is_absent = name in stored and stored[name] is None
            parts.append(None if is_absent else loader.from_pretrained(path, **kwargs, **backend))
        return parts

    # --- one modality each

    def _tokenizer_defaults(self) -> dict:
        # Some tokenizers are saved with a length, or with special tokens parsed in text: our own choices go before.
        stored = {} if self.tokenizer is None else self.tokenizer.init_kwargs
        ours = {*self.text_kwargs, "max_length"} - {"padding"}
        return {key: value for key, value in stored.items() if key not in ours}

    def _require_part(self, argument: str, part: str) -> None:
        if getattr(self, part) is None:
            raise ValueError(
                f"`{argument}` was given, but this model reads only {', '.join(self.modalities)}; leave it empty"
            )

    def _encode_text(self, column: list[str | None], options: dict) -> dict[str, Any]:
        options.setdefault("max_length", self.max_text_length)
        encoded = self.tokenizer(
            ["" if cell is None else cell for cell in column], **{**options, "return_tensors": None}
        )
        input_ids, attention_mask = encoded["input_ids"], encoded["attention_mask"]
        for row, cell in enumerate(column):
            if cell is None or not input_ids[row]:  # without special tokens a text may hold none: a batch needs one
                input_ids[row] = [self.tokenizer.pad_token_id] * (len(input_ids[row]) or 1)
                attention_mask[row] = [0] * len(input_ids[row])
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def _encode_images(self, column: list, options: dict) -> dict[str, Any]:
        channels = options.pop("input_data_format", None)
        images = [_picture(cell, f"`images`[{row}]", channels) for row, cell in enumerate(column) if cell is not None]
        arrays = self.image_processor(images, **{**options, "return_tensors": None})["pixel_values"]
        if len({array.shape for array in arrays}) > 1:
            raise ValueError(
                "`images` come out in different sizes, which no batch can hold; set `do_resize=True` and a `size`"
            )
        return {"pixel_values": _with_zeros_for_empty(column, np.stack(arrays).astype(np.float32, copy=False))}

    def _encode_audio(self, column: list, sampling_rate: int | None, options: dict) -> dict[str, Any]:
        sampling_rate = options.pop("sampling_rate", None) if sampling_rate is None else sampling_rate
        clips = [
            self._clip(cell, f"`audio`[{row}]", sampling_rate) for row, cell in enumerate(column) if cell is not None
        ]
        rule = {"padding": True}
        if not self.feature_extractor.return_attention_mask:  # group norm: see the class
            rule = {"padding": "max_length", "max_length": round(self.max_audio_seconds * self.audio_sampling_rate)}
        # With a mask the extractor normalises over the clip's own samples; without, over the padding too.
        forced = {"return_attention_mask": True, "sampling_rate": self.audio_sampling_rate, "return_tensors": "np"}
        encoded = self.feature_extractor(clips, **rule | options | forced)
        return {
            "input_values": _with_zeros_for_empty(column, encoded["input_values"]),
            "audio_attention_mask": _with_zeros_for_empty(column, encoded["attention_mask"].astype(np.int64)),
        }

    def _clip(self, cell: Any, name: str, sampling_rate: int | None) -> np.ndarray:
        _refuse_file(cell, name, "decode_audio", 'arrays and {"array", "sampling_rate"}')
        if not isinstance(cell, Mapping):
            if sampling_rate is None:
                raise ValueError(
                    f'{name} is a bare array: pass its `sampling_rate=` in Hz, or {{"array", "sampling_rate"}}'
                )
            cell = {"array": cell, "sampling_rate": sampling_rate}
        try:
            return decode_audio(cell, sampling_rate=self.audio_sampling_rate, max_seconds=self.max_audio_seconds)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None


def _rows(arguments: dict[str, Any]) -> dict[str, list]:
    """Makes every argument a list of equal length, an absent one a list of None."""
    columns = {name: _cells(name, value) for name, value in arguments.items() if value is not None}
    if not columns:
        raise ValueError("nothing to process: pass at least one of `text`, `images` and `audio`")
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"`{name}` {length}" for name, length in lengths.items())
        raise ValueError(f"lists of different length: {counts}; give each one cell a row, None where there is nothing")
    num_rows = next(iter(lengths.values()))
    if num_rows == 0:
        raise ValueError(f"no rows: {', '.join(f'`{name}`' for name in columns)} is an empty list")
    return {name: columns.get(name, [None] * num_rows) for name in arguments}


def _cells(name: str, value: Any) -> list:
    is_row_of_samples = name == "audio" and isinstance(value, list) and value and isinstance(value[0], (int, float))
    if not isinstance(value, (list, tuple)) or is_row_of_samples:
        is_stack = name == "images" and getattr(value, "ndim", 0) == 4
        value = list(value) if is_stack else [value]
    if name == "text":
        return [_text(cell, row) for row, cell in enumerate(value)]
    return [_only_picture(cell, row) for row, cell in enumerate(value)] if name == "images" else list(value)


def _only_picture(cell: Any, row: int) -> Any:
    """Unwraps the nested form of other processors, a list of pictures for each row, where it holds one or none."""
    if not isinstance(cell, (list, tuple)):
        return cell
    if len(cell) > 1:
        raise ValueError(f"`images`[{row}] is a list of {len(cell)}; a row has one picture, as an array or PIL image")
    return cell[0] if cell else None


def _text(cell: Any, row: int) -> str | None:
    if cell is None:
        return None
    if not isinstance(cell, str):
        raise TypeError(f"`text`[{row}] is a {type(cell).__name__}; allowed is a string, or None where there is none")
    if not cell.isascii():
        # Half a surrogate pair (JSON allows it) is no character: pairs are joined, halves replaced.
        cell = cell.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return cell if cell.strip() else None


def _refuse_file(cell: Any, name: str, opener: str, allowed: str) -> None:
    if isinstance(cell, (str, os.PathLike, bytes, bytearray)):
        kind = type(cell).__name__
        raise TypeError(
            f"{name} is a {kind}; files are opened by `processor.{opener}`, not here. Allowed are {allowed}"
        )


def _picture(cell: Any, name: str, channels: str | None) -> Any:
    try:
        if Image is not None and isinstance(cell, Image.Image):
            return decode_image(cell)
        _refuse_file(cell, name, "decode_image", "PIL images and arrays")
        return _rgb_of_array(np.asarray(cell), channels)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _rgb_of_array(array: np.ndarray, channels: str | None) -> np.ndarray:
    """(H, W), (H, W, C) or (C, H, W) to (H, W, 3) uint8; channels last where both readings are possible."""
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.size == 0:
        raise ValueError(f"an array of shape {array.shape}; allowed are (H, W), (H, W, C) and (C, H, W)")
    channels_first = array.shape[-1] not in (1, 3, 4) if channels is None else str(channels).endswith("first")
    array = np.moveaxis(array, 0, -1) if channels_first else array
    if array.shape[-1] not in (1, 3, 4):
        raise ValueError(f"an array of shape {array.shape}; 1, 3 or 4 channels are allowed")
    image = Image.fromarray(np.squeeze(_to_bytes(array), -1) if array.shape[-1] == 1 else _to_bytes(array))
    return _to_rgb(image)


def _to_bytes(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"pixels of type {array.dtype}; allowed are integers 0..255, uint16 and floats 0..1")
    white = {"b": 1.0, "f": 1.0}.get(array.dtype.kind, 65535.0 if array.dtype == np.uint16 else 255.0)
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= white):  # also NaN
        raise ValueError(f"{array.dtype} pixels range over {low:.4g}..{high:.4g}, allowed is 0..{white:.0f}")
    return np.rint(array.astype(np.float32) * (255.0 / white)).astype(np.uint8)


def _with_zeros_for_empty(column: list, filled: np.ndarray) -> np.ndarray:
    if len(filled) == len(column):
        return filled
    result = np.zeros((len(column), *filled.shape[1:]), filled.dtype)
    result[[row for row, cell in enumerate(column) if cell is not None]] = filled
    return result


__all__ = ["MODALITIES", "MMFusionProcessor", "MMFusionProcessorKwargs", "decode_audio", "decode_image"]
