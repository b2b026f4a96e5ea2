"""Towers and processor of a new model: small ones from scratch, pretrained ones, or some of each.

The tiny towers are made for two CPU cores and a few thousand rows. What is unusual in them: the picture is seen by a
ResNet (a small ViT needs far more rows to learn from scratch); the waveform is cut by three convolutions with a large
first stride instead of seven, and the first of them starts as a filterbank, as an ear would, instead of as noise.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from tokenizers.trainers import WordPieceTrainer
from transformers import (
    BertConfig,
    BertTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    ViTImageProcessor,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
)
from transformers.audio_utils import hertz_to_mel, mel_to_hertz

from cli.arguments import first_line
from configuration_mmfusion import MMFusionConfig
from loading_mmfusion import load_tower, load_tower_config
from modeling_mmfusion import TOWERS
from processing_mmfusion import MMFusionProcessor
from towers_mmfusion import build_tower, max_text_tokens, why_not
from training.continuing import load_processor, load_weights
from training.preprocessors import check_reading, load_preprocessor

BASE = {
    "text": "google-bert/bert-base-uncased",
    "image": "google/vit-base-patch16-224-in21k",
    "audio": "facebook/wav2vec2-base",
}
KINDS = {
    "text": "a BERT-like encoder (bert, roberta, distilbert, modernbert …)",
    "image": "a ViT-like or ResNet-like encoder (vit, dinov2, resnet, convnext …)",
    "audio": "a Wav2Vec2-like encoder of raw waveforms (wav2vec2, hubert, wavlm …) or one of spectrograms "
    "(whisper, audio-spectrogram-transformer, wav2vec2-bert)",
}
PREPROCESSORS = {"text": "tokenizer", "image": "image processor", "audio": "feature extractor"}
MIN_SPEECH_RATE = 4_000  # Hz; what is slower is no telephone line, but a sensor
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass
class Towers:
    """What a new model reads with.

    Args:
        encoders: A tower for each modality.
        processor: What prepares their inputs.
        pretrained: For each pretrained tower where it came from; the others start from scratch.
        notes: Sentences for people about how they were loaded.
    """

    encoders: dict[str, PreTrainedModel]
    processor: MMFusionProcessor
    pretrained: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def make_towers(
    modalities: Iterable[str],
    names: dict[str, str | None],
    *,
    texts: Iterable[str],
    vocab_size: int,
    image_size: int,
    sampling_rate: int,
    max_text_length: int,
    max_audio_seconds: float,
    mask_time_prob: float = 0.05,
    mask_feature_prob: float = 0.0,
    allow_missing_weights: bool = False,
) -> Towers:
    """Load the towers that have a name, and make tiny ones for the others.

    Args:
        modalities: What the table holds and the model shall read.
        names: For each modality the Hub id or folder of a pretrained tower; None: a tiny one from scratch.
        texts: The training text, from which a tiny text tower learns its vocabulary.
        vocab_size: Most entries of that vocabulary.
        image_size: Pixels a side that a tiny image tower sees.
        sampling_rate: Hz that a tiny audio tower hears.
        max_text_length: Tokens that are kept of a text.
        max_audio_seconds: Seconds that are kept of a sound.
        mask_time_prob: Share of the frames that SpecAugment masks in a tiny audio tower while it trains.
        mask_feature_prob: The same for the channels.
        allow_missing_weights: Whether weights that a pretrained tower's checkpoint lacks start random.

    Raises:
        FileNotFoundError: When a name is the path of a folder that is not there.
        ValueError: When a tower, or what prepares its inputs, cannot be had, or is of another kind; the message names
            the flag.
    """
    parts, encoders, pretrained, notes = {}, {}, {}, []
    for modality in modalities:
        name = names[modality]
        if name is not None:
            parts[modality], encoders[modality], note = load_pretrained(modality, name, allow_missing_weights)
            pretrained[modality] = name
            notes += [note] if note else []
        elif modality == "text":
            parts[modality] = train_tokenizer(texts, vocab_size, max_text_length)
            encoders[modality] = build_tower(tiny_text_config(len(parts[modality]), max_text_length))
        elif modality == "image":
            parts[modality] = ViTImageProcessor(size={"height": image_size, "width": image_size})
            encoders[modality] = build_tower(tiny_image_config())
        else:
            parts[modality] = Wav2Vec2FeatureExtractor(sampling_rate=sampling_rate, return_attention_mask=True)
            encoders[modality] = build_tower(tiny_audio_config(sampling_rate, mask_time_prob, mask_feature_prob))
            start_as_filterbank(encoders[modality], sampling_rate)
    if hasattr(parts.get("audio"), "mean"):  # AST's extractor pads with zeros before it normalises
        extractor = parts["audio"]
        padding = -extractor.mean / (2 * extractor.std) if extractor.do_normalize else 0.0
        encoders["audio"].config.padding_value = padding
    processor = MMFusionProcessor(
        tokenizer=parts.get("text"),
        image_processor=parts.get("image"),
        feature_extractor=parts.get("audio"),
        max_text_length=max_text_length if "text" not in encoders else _text_limit(encoders["text"], max_text_length),
        max_audio_seconds=max_audio_seconds,
    )
    return Towers(encoders, processor, pretrained, notes)


def load_pretrained(modality: str, name: str, allow_missing_weights: bool = False) -> tuple:
    """Load what prepares a tower's inputs, and the tower, and have it read a row; (part, tower, a note or None).

    The weights, which may be gigabytes, come after all that is quickly found to be wrong.
    """
    flag = f"--{modality}_model_name_or_path {name}"
    is_path = name.count("/") > 1 or name.startswith((".", "~"))
    if is_path and not Path(name).is_dir():
        raise FileNotFoundError(f"{flag}: there is no such folder")
    with _one_sentence(flag, "configuration"):
        settings, _ = PreTrainedConfig.get_config_dict(name)
    if settings.get("model_type") == MMFusionConfig.model_type:
        return (*load_part(modality, name, MMFusionConfig.from_dict(settings)), None)
    with _one_sentence(flag, "configuration"):
        config = load_tower_config(name, modality)
    if reason := why_not(config, modality):
        raise ValueError(
            f"{flag}: a `{config.model_type}` model cannot be the {modality} tower; give {KINDS[modality]}: {reason}"
        )
    with _one_sentence(flag, PREPROCESSORS[modality]):
        part, note = load_preprocessor(modality, name, config)
    if modality == "text":
        _check_vocabulary(flag, part, config)
    with _one_sentence(flag, "weights"):
        tower = load_tower(name, modality, allow_missing_weights=allow_missing_weights)
    check_reading(flag, modality, part, tower)
    return part, tower, None if note is None else f"{flag}: {note}"


def load_part(modality: str, name: str, config: MMFusionConfig) -> tuple:
    """The same out of an MMFusion model, which may be a specialist that was trained on this modality alone."""
    flag = f"--{modality}_model_name_or_path"
    if modality not in config.modalities:
        raise ValueError(f"{flag} {name}: this model has no such tower; it reads {', '.join(config.modalities)}")
    part = getattr(load_processor(name, flag=flag), PREPROCESSORS[modality].replace(" ", "_"))
    return part, getattr(load_weights(name, None, config, flag).mmfusion, TOWERS[modality])


@contextmanager
def _one_sentence(flag: str, what: str) -> Iterator[None]:
    """Turn the many ways in which loading fails into one, with the flag and the reason."""
    try:
        yield
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RuntimeError, ImportError, SafetensorError) as e:
        told = isinstance(e, ValueError) and "`" in str(e) and "\n" not in str(e)  # in a sentence of its own
        reason = str(e) if told else first_line(e)
        advice = "" if told else "; give a complete folder, or a Hub id that can be reached"
        raise ValueError(f"{flag}: its {what} could not be loaded ({reason}){advice}") from e


def _check_vocabulary(flag: str, tokenizer, config: PreTrainedConfig):
    """Without its files a tokenizer is made with special tokens only, and would read every word as unknown."""
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ValueError(f"{flag}: its tokenizer knows no words; put the tokenizer's files into the folder")
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"{flag}: its tokenizer has {len(tokenizer):,} entries, the tower knows {config.vocab_size:,}; give the "
            "tokenizer that belongs to the tower"
        )


def train_tokenizer(texts: Iterable[str], vocab_size: int, max_text_length: int) -> BertTokenizer:
    """A WordPiece tokenizer that has learnt the words of the training text, the same ones every time.

    By itself the library numbers the letters inside words in an order of chance, and lets these numbers decide between
    pieces that are equally frequent. So a first look finds the letters, and the second one gets them in order.
    """
    texts = list(texts)
    letters = [piece for piece in _learn_pieces(texts, SPECIAL_TOKENS, 0) if piece.startswith("##")]
    pieces = _learn_pieces(texts, (*SPECIAL_TOKENS, *sorted(letters)), vocab_size)
    vocab = {piece: number for number, piece in enumerate(pieces)}
    return BertTokenizer(vocab=vocab, do_lower_case=True, model_max_length=max_text_length)


def _learn_pieces(texts: list[str], first: Iterable[str], vocab_size: int) -> list[str]:
    """The pieces of words in the order of their numbers, `first` in front; with 0 as size only single letters."""
    empty = BertTokenizer(vocab={token: i for i, token in enumerate(SPECIAL_TOKENS)}, do_lower_case=True)
    trainer = WordPieceTrainer(vocab_size=vocab_size, special_tokens=list(first), show_progress=False)
    empty.backend_tokenizer.train_from_iterator(texts, trainer)
    vocab = empty.backend_tokenizer.get_vocab()
    return sorted(vocab, key=vocab.get)


def tiny_text_config(vocab_size: int, max_text_length: int) -> BertConfig:
    return BertConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=max(128, max_text_length),
    )


def tiny_image_config() -> ResNetConfig:
    return ResNetConfig(embedding_size=32, hidden_sizes=[32, 64, 128], depths=[1, 1, 1], layer_type="basic")


def tiny_audio_config(sampling_rate: int, mask_time_prob: float, mask_feature_prob: float) -> Wav2Vec2Config:
    """At 16 kHz a frame stands for 20 ms. Layer norm, so that padding cannot change a frame.

    Below the rates of speech the signal is a sensor's, of which a row has fewer samples: frames are a quarter as long,
    80 samples, and the first of them needs 290.
    """
    is_signal = sampling_rate < MIN_SPEECH_RATE
    return Wav2Vec2Config(
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        conv_dim=[64, 96, 128],
        conv_kernel=[100 if is_signal else 400, 8, 4],
        conv_stride=[10 if is_signal else 40, 4, 2],
        num_feat_extract_layers=3,
        conv_bias=True,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        feat_proj_dropout=0.0,
        activation_dropout=0.0,
        layerdrop=0.0,
        # SpecAugment: spans of 4 frames (80 ms at 16 kHz), and an eighth of the channels at a time.
        apply_spec_augment=True,
        mask_time_prob=mask_time_prob,
        mask_time_length=4,
        mask_time_min_masks=0,
        mask_feature_prob=mask_feature_prob,
        mask_feature_length=16,
    )


@torch.no_grad()
def start_as_filterbank(tower: PreTrainedModel, sampling_rate: int):
    """Let the first convolution start as pairs of Gabor filters (cosine, sine) at mel-spaced frequencies.

    They go on learning from there. From noise, a few thousand clips are too few to find them. The lowest is at 60 Hz,
    where an ear begins to be of use, and for slow signals as far below the highest as it is at `MIN_SPEECH_RATE`.

    Args:
        tower: Wav2Vec2-like; its first convolution has an even number of channels.
        sampling_rate: That it hears, in Hz.

    Source: Zeghidour et al. 2018, arXiv:1711.01161 (time-domain filterbanks); pairs instead of complex filters.
    """
    weight = tower.feature_extractor.conv_layers[0].conv.weight  # (channels, 1, kernel)
    num_pairs, kernel = weight.shape[0] // 2, weight.shape[2]
    lowest, highest = 60.0 * min(1.0, sampling_rate / MIN_SPEECH_RATE), 0.49 * sampling_rate
    mels = np.linspace(hertz_to_mel(lowest, mel_scale="htk"), hertz_to_mel(highest, mel_scale="htk"), num_pairs + 2)
    edges = mel_to_hertz(mels, mel_scale="htk")
    centers = edges[1:-1, None]  # (pairs, 1), Hz
    widths = (edges[2:] - edges[:-2])[:, None] / 2  # between neighbours, Hz
    seconds = (np.arange(kernel) - (kernel - 1) / 2) / sampling_rate
    # A window as long as the filter's width in frequency asks for, and no longer than the kernel can hold.
    deviations = np.minimum(1 / (2 * np.pi * 0.6 * widths), kernel / sampling_rate / 5)
    window = np.exp(-(seconds**2) / (2 * deviations**2))  # (pairs, kernel)
    angle = 2 * np.pi * centers * seconds
    filters = np.stack([window * np.cos(angle), window * np.sin(angle)], axis=1).reshape(2 * num_pairs, kernel)
    filters *= np.sqrt(2) / np.linalg.norm(filters, axis=1, keepdims=True)
    weight[: 2 * num_pairs, 0] = torch.from_numpy(filters).to(weight)


def _text_limit(tower: PreTrainedModel, max_text_length: int) -> int:
    """Tokens to keep: no more than the tower has positions for."""
    limit = max_text_tokens(tower)
    return max_text_length if limit is None else min(max_text_length, limit)
