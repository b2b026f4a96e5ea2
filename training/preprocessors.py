"""What prepares the inputs of a pretrained tower: loaded, or made from its configuration, and tried on rows."""

import importlib.util
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import (
    ASTFeatureExtractor,
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
from transformers.utils import cached_file

from processing_mmfusion import MMFusionProcessor
from towers_mmfusion import (
    hears_waveforms,
    reads_mask,
    run_audio_tower,
    run_image_tower,
    run_text_tower,
    tower_tokens,
    tower_width,
)

SENTENCEPIECE_FILES = ("spm.model", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model")
FILES = ("preprocessor_config.json", "processor_config.json")
# Families whose base checkpoints take samples as they are; all others bring a clip to mean 0 and variance 1.
NOT_NORMALISED = ("wavlm", "unispeech-sat")


def load_preprocessor(modality: str, name: str, config: PreTrainedConfig) -> tuple:
    """Load the tokenizer, image processor or feature extractor of a pretrained tower; (it, a note or None).

    Where a checkpoint has no file for it, it is made from the tower's configuration, if that says enough.

    Raises:
        OSError, ValueError: It could neither be loaded nor made; the message names the file.
        ImportError: A library is missing; the message has the pip line.
    """
    if modality == "text":
        return load_tokenizer(name), None
    make = {"image": make_image_processor, "audio": make_feature_extractor}[modality]
    if not any(has_file(name, file) for file in FILES):
        made = make(config)
        if made is None:
            raise ValueError(f"`{name}` has no `{FILES[0]}`, and its configuration does not say enough to do without")
        return (
            made,
            f"`{FILES[0]}` is missing; inputs are prepared as its configuration says and its family is used to",
        )
    if modality == "image":
        return AutoImageProcessor.from_pretrained(name, backend="pil", trust_remote_code=False), None
    extractor = AutoFeatureExtractor.from_pretrained(name, trust_remote_code=False)
    # Layer-norm towers read the mask, whether or not their extractor was saved with it; group-norm ones must not.
    if hears_waveforms(config):
        extractor.return_attention_mask = reads_mask(config)
    return extractor, None


def has_file(name: str, file: str) -> bool:
    """Return whether a folder, or a repository on the Hub (here or there), has a file."""
    if Path(name).is_dir():
        return (Path(name) / file).is_file()
    options = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    return cached_file(name, file, **options) is not None


def load_tokenizer(name: str):
    """Load the tokenizer of a tower; one that is a SentencePiece model alone needs two libraries."""
    if not has_file(name, "tokenizer.json") and any(has_file(name, file) for file in SENTENCEPIECE_FILES):
        modules = {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}
        missing = [package for package, module in modules.items() if not _is_installed(module)]
        if missing:
            raise ImportError(f"its tokenizer is a SentencePiece model: pip install {' '.join(missing)}")
    return AutoTokenizer.from_pretrained(name, trust_remote_code=False)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of its parent
        return False


def make_image_processor(config: PreTrainedConfig):
    """Return what prepares pictures for a tower whose configuration says their size; None where it does not.

    Mean, deviation and resampling are those of the family's image processor.
    """
    size = getattr(config, "image_size", None)
    try:
        found = IMAGE_PROCESSOR_MAPPING[type(config)]
    except KeyError:
        return None
    classes = found if isinstance(found, dict) else dict(zip(("torchvision", "pil"), found, strict=False))
    processor_class = classes.get("pil")
    if size is None or processor_class is None:
        return None
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return processor_class(size={"height": height, "width": width}, do_center_crop=False)


def make_feature_extractor(config: PreTrainedConfig):
    """Return what prepares sounds for a tower: published audio encoders hear 16 kHz; None for an unknown kind."""
    if config.model_type == "whisper":
        return WhisperFeatureExtractor(feature_size=config.num_mel_bins)
    if config.model_type == "audio-spectrogram-transformer":
        return ASTFeatureExtractor(num_mel_bins=config.num_mel_bins, max_length=config.max_length)
    if config.model_type == "wav2vec2-bert":
        num_mel_bins = config.feature_projection_input_dim // 2
        return SeamlessM4TFeatureExtractor(feature_size=num_mel_bins, num_mel_bins=num_mel_bins)
    if not hears_waveforms(config):
        return None
    is_group = config.feat_extract_norm == "group"
    return Wav2Vec2FeatureExtractor(
        do_normalize=not (is_group and config.model_type in NOT_NORMALISED), return_attention_mask=reads_mask(config)
    )


@torch.no_grad()
def check_reading(flag: str, modality: str, part, tower: PreTrainedModel) -> None:
    """Have a tower read two made-up rows, so that what does not fit is found before anything is trained.

    Args:
        flag: That named the tower, with its value.
        modality: text, image or audio.
        part: What prepares its inputs.
        tower: The tower; its mode is left as it was.

    Raises:
        ValueError: It cannot read it, or answers with something else than tokens.
    """
    in_training = tower.training
    try:
        hidden, mask = _read_rows(modality, part, tower.eval())
    except Exception as error:  # of foreign weights, sizes and settings, nearly anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"{flag}: the {tower.config.model_type} encoder cannot read rows that its own preprocessor prepared "
            f"({reason}); configuration, weights and preprocessor must be of one checkpoint"
        ) from error
    finally:
        tower.train(in_training)
    tokens = tower_tokens(hidden)  # (2, T, C)
    if tokens.shape[2] != tower_width(tower.config) or tokens.shape[:2] != mask.shape:
        raise ValueError(
            f"{flag}: the {tower.config.model_type} encoder makes {tokens.shape[1]} tokens of width "
            f"{tokens.shape[2]}; expected are {mask.shape[1]} of width {tower_width(tower.config)}"
        )
    if not tokens[mask].isfinite().all():
        raise ValueError(f"{flag}: the {tower.config.model_type} encoder answers with NaN; its weights are damaged")


def _read_rows(modality: str, part, tower: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Return hidden state and mask of two sentences, pictures of two halves, or tones, of unequal length."""
    if modality == "text":
        processor = MMFusionProcessor(tokenizer=part, max_text_length=16)
        inputs = processor(text=["a text of a few words", "another"])
        return run_text_tower(tower, inputs["input_ids"], inputs["attention_mask"])
    if modality == "image":
        pixels = np.full((64, 64, 3), 96, np.uint8)
        pixels[:, 32:] = 160
        inputs = MMFusionProcessor(image_processor=part)(
            images=[Image.fromarray(x) for x in (pixels, pixels[:, ::-1])]
        )
        return run_image_tower(tower, inputs["pixel_values"])
    rate = part.sampling_rate
    tone = 0.5 * np.sin(np.arange(max(rate // 4, 1600)) * 0.3).astype(np.float32)
    processor = MMFusionProcessor(feature_extractor=part, max_audio_seconds=len(tone) / rate)
    inputs = processor(audio=[tone, tone[: len(tone) // 2]], sampling_rate=rate)
    name = "input_values" if "input_values" in inputs else "input_features"
    return run_audio_tower(tower, inputs[name], inputs["audio_attention_mask"])
