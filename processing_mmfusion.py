"""Raw text, pictures and sounds into the inputs of an MMFusion model.

Unusual here: every cell may be empty (`None`), and the batch says which cells were there (`modality_mask`). Files are
opened by `decode_image` and `decode_audio` of `decoding_mmfusion`.

Shape letters: B batch, T tokens, N samples of sound, C channels, H and W height and width.
"""

import os
import sys
from collections.abc import Mapping
from typing import Any, TypedDict

import numpy as np
from transformers import AutoFeatureExtractor, BatchFeature
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # by name, 5.4–5.17 want torchvision
from transformers.processing_utils import ProcessingKwargs, Unpack

try:
    from .cells_mmfusion import is_empty, with_samples
    from .collating_mmfusion import MMFusionCollator, refuse_unknown_keywords
    from .compat_mmfusion import PIL_BACKEND, AutoTokenizer, ProcessorMixin
    from .decoding_mmfusion import MIN_SECONDS, decode_audio, decode_image, to_rgb
    from .saving_mmfusion import register_code
except ImportError:
    if __package__:  # inside the Hub cache this is a real failure: show it
        raise
    from cells_mmfusion import is_empty, with_samples
    from collating_mmfusion import MMFusionCollator, refuse_unknown_keywords
    from compat_mmfusion import PIL_BACKEND, AutoTokenizer, ProcessorMixin
    from decoding_mmfusion import MIN_SECONDS, decode_audio, decode_image, to_rgb
    from saving_mmfusion import register_code
try:
    from PIL import Image
except ImportError:
    Image = None

MODALITIES = ("text", "image", "audio")
FRAME, HOP = 400, 160  # samples of a frame of a spectrogram, and from one to the next
MIN_SPECTROGRAM_SAMPLES = FRAME + 3 * HOP  # shorter clips are filled up with silence: statistics need some frames
# "[SEP]" in a stranger's text is five characters, not the end of the text.
TEXT_DEFAULTS = {
    "padding": True,
    "truncation": True,
    "return_tensors": "pt",
    "return_token_type_ids": False,
    "split_special_tokens": True,
}


class MMFusionAudioKwargs(TypedDict, total=False):
    """What of `audio_kwargs` may be passed flat: no `padding` or `max_length`, which flat belong to the text."""

    return_tensors: Any


class MMFusionProcessorKwargs(ProcessingKwargs, total=False):
    """Keyword arguments of `MMFusionProcessor.__call__`, nested or flat."""

    audio_kwargs: MMFusionAudioKwargs
    _defaults = {"text_kwargs": TEXT_DEFAULTS}  # read before transformers 5.23


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
        max_audio_seconds: Seconds that are kept of a sound; of an extractor whose spectrograms have one length
            (Whisper 30 s, AST 10 s) no more than that.
        image_bits: How many bits pictures of 16 bits use, from 1 to 16: what the training rows needed.
    """

    valid_processor_kwargs = MMFusionProcessorKwargs
    text_kwargs = TEXT_DEFAULTS

    def __init__(
        self,
        tokenizer: Any = None,
        image_processor: Any = None,
        feature_extractor: Any = None,
        max_text_length: int = 128,
        max_audio_seconds: float = 10.0,
        image_bits: int = 16,
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
        if feature_extractor is not None and _sound_kind(feature_extractor) is None:
            raise ValueError(
                f"`feature_extractor` is a {type(feature_extractor).__name__}, which returns"
                f" `{feature_extractor.model_input_names[0]}`; allowed are extractors of waveforms, such as"
                " Wav2Vec2FeatureExtractor, and WhisperFeatureExtractor, ASTFeatureExtractor and"
                " SeamlessM4TFeatureExtractor"
            )
        if max_text_length < 1:
            raise ValueError(f"`max_text_length` is {max_text_length}, at least 1 token is needed")
        if not MIN_SECONDS <= max_audio_seconds < float("inf"):
            raise ValueError(f"`max_audio_seconds` is {max_audio_seconds}, at least {MIN_SECONDS} s are needed")
        if image_bits not in range(1, 17):
            raise ValueError(f"`image_bits` is {image_bits!r}; allowed are whole numbers from 1 to 16")
        self.max_text_length = max_text_length
        self.max_audio_seconds = min(max_audio_seconds, _longest_seconds(feature_extractor))
        self.image_bits = image_bits

    def __call__(
        self,
        text: Any = None,
        images: Any = None,
        audio: Any = None,
        sampling_rate: int | None = None,
        *,
        image: Any = None,
        all_modalities: bool | None = None,
        **kwargs: Unpack[MMFusionProcessorKwargs],
    ) -> BatchFeature:
        """Prepares one row or a list of rows.

        Each argument is one cell or a list with one cell a row; None, NaN, `pandas.NA` and blanks are empty cells.
        Paths and URLs are refused here, so that a service can hand over what a stranger sent: open them with
        `decode_image` and `decode_audio`. A modality that no row has is left out of the result.

        Args:
            text: Strings. Longer ones are cut to `max_text_length` tokens.
            images: PIL images or arrays: (H, W), (H, W, C) or (C, H, W), integers 0..255 or floats 0..1.
            audio: Arrays (with `sampling_rate`) or dicts with "array" and "sampling_rate", shaped and scaled as
                `decode_audio` says.
            sampling_rate: Rate of bare arrays, in Hz.
            image: The same as `images`.
            all_modalities: Whether a modality that no row has is returned nevertheless, as padding: so all batches
                have the same columns, as `Dataset.map` needs.
            **kwargs: For the parts, nested (`text_kwargs`, `images_kwargs`, `audio_kwargs`, `common_kwargs`) or flat;
                `return_tensors` is "pt" if not given.

        Returns:
            `input_ids`, `attention_mask` (B, T), `pixel_values` (B, 3, H, W), `input_values`, `audio_attention_mask`
            (B, N), or of a tower that reads spectrograms `input_features` (B, N, mel), of Whisper (B, mel, N), and the
            mask of their frames (B, N), and `modality_mask` (B, 3), columns text, image, audio. 1 = there, 0 = padding
            or empty.

        Raises:
            ValueError: Nothing given, lists of unequal length, a modality that the model lacks, a bad cell.
            TypeError: A cell of the wrong type, or an unknown keyword.
        """
        refuse_unknown_keywords(self, kwargs)
        if image is not None and images is not None:
            raise ValueError("`image` and `images` are both given, and mean the same; leave one out")
        cells = _rows({"text": text, "images": image if images is None else images, "audio": audio})
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
        if all_modalities:
            data |= self._padding_for_absent(data, len(modality_mask), options)
        data["modality_mask"] = np.ascontiguousarray(modality_mask)
        return BatchFeature(data, tensor_type=options["text_kwargs"]["return_tensors"])

    def _padding_for_absent(self, data: Mapping, num_rows: int, options: dict) -> dict[str, Any]:
        """Return the inputs of the modalities that are not in `data`, for rows that have nothing of them."""
        padding, column = {}, [None] * num_rows
        if self.tokenizer is not None and "input_ids" not in data:
            padding |= self._encode_text(column, options["text_kwargs"])
        if self.image_processor is not None and "pixel_values" not in data:
            blank = np.zeros((32, 32, 3), np.uint8)
            padding |= self._encode_images([blank, *column], options["images_kwargs"])
        if self.feature_extractor is not None and "audio_attention_mask" not in data:
            rate = self.audio_sampling_rate
            silence = {"array": np.zeros(max(rate // 10, 10)), "sampling_rate": rate}
            padding |= self._encode_audio([silence, *column], None, options["audio_kwargs"])
        return {name: values[-num_rows:] for name, values in padding.items()}

    def collator(self, config: Any = None, **options: Any) -> MMFusionCollator:
        """Return what makes batches of a data set's rows, for `DataLoader` and `Trainer`; see `MMFusionCollator`.

        Args:
            config: Of the model, for labels by name, several labels and several tasks.
            **options: `text`, `image`, `audio`, `labels`: names of columns; `all_modalities`.
        """
        return MMFusionCollator(self, config, **options)

    def decode_image(self, source: Any) -> "Image.Image":
        """Open one picture, an array too, for `images=`, with the bits that the model learnt with."""
        if isinstance(source, list) or getattr(source, "ndim", 0):
            return _rgb_of_array(np.asarray(source), None, self.image_bits)
        return decode_image(source, bits=self.image_bits)

    def decode_audio(self, source: Any) -> np.ndarray:
        """Opens one sound at the rate and length that the model hears, for `audio=`; see the function of this name."""
        self._require_part("audio", "feature_extractor")
        source = with_samples(source, self.max_audio_seconds)
        return decode_audio(source, sampling_rate=self.audio_sampling_rate, max_seconds=self.max_audio_seconds)

    @property
    def audio_sampling_rate(self) -> int | None:
        """Hz that the audio tower hears; None without one."""
        return None if self.feature_extractor is None else self.feature_extractor.sampling_rate

    @property
    def _audio_input(self) -> str:
        hears_waveforms = self.feature_extractor is None or _sound_kind(self.feature_extractor) == "waveform"
        return "input_values" if hears_waveforms else "input_features"

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
            "audio": [self._audio_input, "audio_attention_mask"],
        }
        return [name for modality in self.modalities for name in names[modality]] + ["modality_mask"]

    # --- saving and loading: a part that is None is stored as null and comes back as None

    get_attributes = _PresentAttributes(lambda cls: ["tokenizer", "image_processor", "feature_extractor"])

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """Save the processor with the code of the model; see `ProcessorMixin.save_pretrained`."""
        register_code(self)
        files = super().save_pretrained(str(save_directory), push_to_hub=push_to_hub, **kwargs)
        vars(self).pop("auto_map", None)  # the library leaves in the object what it wrote into the file
        return files

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        # The base class leaves the tokenizer out because it has files of its own; that there is none must be said.
        return super().to_dict(**kwargs) | ({"tokenizer": None} if self.tokenizer is None else {})

    @classmethod
    def _get_arguments_from_pretrained(cls, path: Any, processor_dict: dict | None = None, **kwargs: Any) -> list:
        loaders = (AutoTokenizer, AutoImageProcessor, AutoFeatureExtractor)
        stored, parts = processor_dict or {}, []
        for name, loader in zip(cls.get_attributes(), loaders, strict=True):
            # One backend for all: torchvision resizes differently, and a service would disagree with the training.
            backend = PIL_BACKEND if name == "image_processor" else {}
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
        images = [
            _picture(cell, f"`images`[{row}]", channels, self.image_bits)
            for row, cell in enumerate(column)
            if cell is not None
        ]
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
        kind, extractor = _sound_kind(self.feature_extractor), self.feature_extractor
        rule, forced = {"padding": True}, {"sampling_rate": self.audio_sampling_rate, "return_tensors": "np"}
        # With a mask the extractor normalises over the clip's own samples; without, over the padding too.
        forced["return_attention_mask"] = True
        if kind == "waveform" and not extractor.return_attention_mask:  # group norm: see the class
            rule = {"padding": "max_length", "max_length": round(self.max_audio_seconds * self.audio_sampling_rate)}
        elif kind != "waveform":
            clips = [np.pad(clip, (0, max(MIN_SPECTROGRAM_SAMPLES - len(clip), 0))) for clip in clips]
        if kind == "whisper":
            forced |= {"padding": "max_length", "truncation": True}
        encoded = extractor(clips, **rule | options | forced)
        values = np.asarray(encoded[extractor.model_input_names[0]], np.float32)
        return {
            self._audio_input: _with_zeros_for_empty(column, values),
            "audio_attention_mask": _with_zeros_for_empty(column, _sound_mask(kind, encoded, values, clips)),
        }

    def _clip(self, cell: Any, name: str, sampling_rate: int | None) -> np.ndarray:
        cell = with_samples(cell, self.max_audio_seconds)
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


def _sound_kind(extractor: Any) -> str | None:
    """What a feature extractor makes of sound: a waveform, or the spectrogram of a family; None: something else."""
    name = extractor.model_input_names[0]
    if hasattr(extractor, "nb_max_frames") and name == "input_features":
        return "whisper"
    if hasattr(extractor, "num_mel_bins"):
        if hasattr(extractor, "mean") and name == "input_values":
            return "ast"
        return "seamless" if hasattr(extractor, "stride") and name == "input_features" else None
    return "waveform" if name == "input_values" and extractor.feature_size == 1 else None


def _longest_seconds(extractor: Any) -> float:
    """Seconds that fit into the spectrograms of an extractor; infinite where they may have any length."""
    kind = None if extractor is None else _sound_kind(extractor)
    if kind == "whisper":
        return extractor.n_samples / extractor.sampling_rate
    if kind == "ast":
        return (FRAME + (extractor.max_length - 1) * HOP) / extractor.sampling_rate
    return float("inf")


def _sound_mask(kind: str, encoded: Mapping, values: np.ndarray, clips: list[np.ndarray]) -> np.ndarray:
    """(B, N) 1 where a sample or frame belongs to the clip; one of Whisper reaches half a window beyond its centre."""
    if kind in ("waveform", "seamless"):
        return np.asarray(encoded["attention_mask"], np.int64)
    samples = np.array([len(clip) for clip in clips])
    num_frames = 1 + (samples - FRAME) // HOP if kind == "ast" else -(-(samples + FRAME // 2) // HOP)
    return (np.arange(values.shape[1 if kind == "ast" else 2]) < num_frames[:, None]).astype(np.int64)


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
    first = value[0] if isinstance(value, list) and value else None
    is_row_of_samples = name == "audio" and isinstance(first, (int, float)) and not is_empty(first)
    if not isinstance(value, (list, tuple)) or is_row_of_samples:
        is_stack = name == "images" and getattr(value, "ndim", 0) == 4
        value = list(value) if is_stack else [value]
    value = [None if is_empty(cell) else cell for cell in value]
    if name == "text":
        return [_text(cell, row) for row, cell in enumerate(value)]
    return [_only_picture(cell, row) for row, cell in enumerate(value)] if name == "images" else value


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
    return cell


def _refuse_file(cell: Any, name: str, opener: str, allowed: str) -> None:
    if isinstance(cell, (str, os.PathLike, bytes, bytearray)):
        kind = type(cell).__name__
        raise TypeError(
            f"{name} is a {kind}; files are opened by `processor.{opener}`, not here. Allowed are {allowed}"
        )


def _picture(cell: Any, name: str, channels: str | None, bits: int) -> Any:
    try:
        if Image is not None and isinstance(cell, Image.Image):
            return decode_image(cell, bits=bits)
        _refuse_file(cell, name, "decode_image", "PIL images and arrays")
        return _rgb_of_array(np.asarray(cell), channels, bits)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _rgb_of_array(array: np.ndarray, channels: str | None, bits: int) -> np.ndarray:
    """(H, W), (H, W, C) or (C, H, W) to (H, W, 3) uint8; channels last where both readings are possible."""
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.size == 0:
        raise ValueError(f"an array of shape {array.shape}; allowed are (H, W), (H, W, C) and (C, H, W)")
    channels_first = array.shape[-1] not in (1, 3, 4) if channels is None else str(channels).endswith("first")
    array = np.moveaxis(array, 0, -1) if channels_first else array
    if array.shape[-1] not in (1, 3, 4):
        raise ValueError(f"an array of shape {array.shape}; 1, 3 or 4 channels are allowed")
    array = _to_bytes(array, bits)
    image = Image.fromarray(np.squeeze(array, -1) if array.shape[-1] == 1 else array)
    return to_rgb(image)


def _to_bytes(array: np.ndarray, bits: int) -> np.ndarray:
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"pixels of type {array.dtype}; allowed are integers 0..255, uint16 and floats 0..1")
    white = {"b": 1.0, "f": 1.0}.get(array.dtype.kind, 255.0)
    if array.dtype == np.uint16:
        white = 2.0**bits - 1
        array = np.minimum(array, np.uint16(white))
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


# As the import system does and the loader of `transformers` does not. Without it `dill`, hence `Dataset.map`, takes
# the classes apart instead of naming them, and a result is not found in the cache again.
if __package__ in sys.modules:
    setattr(sys.modules[__package__], __name__.rpartition(".")[2], sys.modules[__name__])


def _other_files():
    """Name the other travelling files; never called, but read by `transformers`: see `saving_mmfusion`."""
    from .checks_mmfusion import check_inputs  # noqa: F401
    from .configuration_mmfusion import MMFusionConfig  # noqa: F401
    from .containers_mmfusion import Part  # noqa: F401
    from .explanation_mmfusion import explain_rows  # noqa: F401
    from .fusion_mmfusion import FUSIONS  # noqa: F401
    from .loading_mmfusion import tower_config  # noqa: F401
    from .modeling_mmfusion import MMFusionModel  # noqa: F401
    from .objectives_mmfusion import row_losses  # noqa: F401
    from .pipeline_mmfusion import MMFusionPipeline  # noqa: F401
    from .towers_mmfusion import build_tower  # noqa: F401


__all__ = ["MODALITIES", "MMFusionProcessor", "MMFusionProcessorKwargs", "decode_audio", "decode_image"]
