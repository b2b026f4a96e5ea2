"""Towers and processor of a new model: small ones from scratch, pretrained ones, or some of each.

The tiny towers are made for two CPU cores and a few thousand rows. What is unusual in them: the picture is seen by a
ResNet (a small ViT needs far more rows to learn from scratch), and the waveform is cut by few convolutions with a
large first stride, which cost a tenth of the seven layers of the base model.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoTokenizer,
    BertConfig,
    BertTokenizer,
    PreTrainedModel,
    ResNetConfig,
    ViTImageProcessor,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
)

from modeling_mmfusion import build_tower, load_tower
from processing_mmfusion import MMFusionProcessor

BASE = {
    "text": "google-bert/bert-base-uncased",
    "image": "google/vit-base-patch16-224-in21k",
    "audio": "facebook/wav2vec2-base",
}
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass
class Towers:
    """What a new model reads with.

    Args:
        encoders: A tower for each modality.
        processor: What prepares their inputs.
        pretrained: For each pretrained tower where it came from; the others start from scratch.
    """

    encoders: dict[str, PreTrainedModel]
    processor: MMFusionProcessor
    pretrained: dict[str, str] = field(default_factory=dict)


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

    Raises:
        OSError: When a name is neither a folder nor to be had from the Hub; the message says which.
    """
    parts, encoders, pretrained = {}, {}, {}
    for modality in modalities:
        name = names[modality]
        if name is not None:
            encoders[modality] = load_tower(name)
            parts[modality] = load_preprocessor(modality, name)
            pretrained[modality] = name
        elif modality == "text":
            parts[modality] = train_tokenizer(texts, vocab_size, max_text_length)
            encoders[modality] = build_tower(tiny_text_config(len(parts[modality]), max_text_length))
        elif modality == "image":
            parts[modality] = ViTImageProcessor(size={"height": image_size, "width": image_size})
            encoders[modality] = build_tower(tiny_image_config())
        else:
            parts[modality] = Wav2Vec2FeatureExtractor(sampling_rate=sampling_rate, return_attention_mask=True)
            encoders[modality] = build_tower(tiny_audio_config())
    processor = MMFusionProcessor(
        tokenizer=parts.get("text"),
        image_processor=parts.get("image"),
        feature_extractor=parts.get("audio"),
        max_text_length=max_text_length if "text" not in encoders else _text_limit(encoders["text"], max_text_length),
        max_audio_seconds=max_audio_seconds,
    )
    return Towers(encoders, processor, pretrained)


def load_preprocessor(modality: str, name: str):
    """The tokenizer, image processor or feature extractor that belongs to a pretrained tower."""
    if modality == "text":
        return AutoTokenizer.from_pretrained(name)
    if modality == "image":
        return AutoImageProcessor.from_pretrained(name, backend="pil")
    extractor = AutoFeatureExtractor.from_pretrained(name)
    # Layer-norm towers read the mask, whether or not their extractor was saved with it; group-norm ones must not.
    extractor.return_attention_mask = AutoConfig.from_pretrained(name).feat_extract_norm != "group"
    return extractor


def train_tokenizer(texts: Iterable[str], vocab_size: int, max_text_length: int) -> BertTokenizer:
    """A WordPiece tokenizer that has learnt the words of the training text."""
    empty = BertTokenizer(vocab={token: i for i, token in enumerate(SPECIAL_TOKENS)}, do_lower_case=True)
    tokenizer = empty.train_new_from_iterator(texts, vocab_size, show_progress=False)
    tokenizer.model_max_length = max_text_length
    return tokenizer


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


def tiny_audio_config() -> Wav2Vec2Config:
    """At 16 kHz a frame stands for 20 ms. Layer norm, so that padding cannot change a frame."""
    return Wav2Vec2Config(
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        conv_dim=[64, 96, 128],
        conv_kernel=[128, 8, 4],
        conv_stride=[32, 5, 2],
        num_feat_extract_layers=3,
        conv_bias=True,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        feat_proj_dropout=0.0,
        activation_dropout=0.0,
        layerdrop=0.0,
        # SpecAugment, sized for clips of a tenth of a second, too: spans of 2 frames over about 5 % of the clip.
        apply_spec_augment=True,
        mask_time_prob=0.05,
        mask_time_length=2,
        mask_time_min_masks=0,
    )


def _text_limit(tower: PreTrainedModel, max_text_length: int) -> int:
    """Tokens to keep: no more than the tower has positions for (RoBERTa-like ones lose two to their padding)."""
    positions = getattr(tower.config, "max_position_embeddings", max_text_length)
    reserved = 2 if "roberta" in tower.config.model_type else 0
    return min(max_text_length, positions - reserved)
