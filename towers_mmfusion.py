"""Towers of MMFusion: how one encoder of `transformers` is built and asked for tokens.

A tower is any text, image or audio encoder of the library. All that depends on its architecture is in this file: the
model around it sees a last hidden state and a mask of its tokens. The general rule comes first; a family that needs
more stands in one of the tables below, by its `model_type`.

Shape legend: P rows in which the modality is present, T tokens, C width of a tower, D fusion width, N samples of a
waveform or frames of a spectrogram, L rows of the same length.
"""

import contextlib
import functools
import importlib
import inspect
import json
import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from transformers import AutoModel, PreTrainedModel

try:
    from .configuration_mmfusion import SPECTROGRAMS
except ImportError:
    if __package__:  # inside the Hub cache this is a real failure: show it
        raise
    from configuration_mmfusion import SPECTROGRAMS

# Families whose encoder alone is the tower: AutoModel would add the decoder.
ENCODERS = {"whisper": ("transformers.models.whisper.modeling_whisper", "WhisperEncoder")}
# Families in which padding changes the tokens, by convolutions, Fourier transforms or landmarks over all of a batch's
# length, mask or not: their rows are run with those of the same length, without padding.
BY_LENGTH = {
    "big_bird", "canine", "convbert", "fnet", "funnel", "mobilebert", "mra", "nystromformer", "reformer", "yoso",
    "data2vec-audio", "sew", "sew-d", "wav2vec2-conformer",
}  # fmt: skip
# Families whose pictures are no batch of one size, and why.
FLAT = "it reads pictures as flattened patches; a SigLIP 2 of fixed resolution is of type siglip"
OTHER_PICTURES = {
    "siglip2": FLAT, "siglip2_vision_model": FLAT,
    "pixtral": "it reads pictures of all sizes as one sequence",
}  # fmt: skip
MAIN_INPUTS = {"text": ("input_ids",), "image": ("pixel_values",), "audio": ("input_values", "input_features")}
AST_PADDING = 4.2677393 / (
    2 * 4.5689974
)  # what a frame of zeros is for ASTFeatureExtractor, with its usual mean and std
WHISPER_SILENCE, WHISPER_RANGE = (
    -1.5,
    2.0,
)  # of WhisperFeatureExtractor: silence, and how far below the loudest it ends

# == Kinds ============================================================================================================


def tower_class(config) -> type[PreTrainedModel]:
    """Return the class of `transformers` that is the tower of a configuration.

    Raises:
        ValueError: There is none.
    """
    if config.model_type in ENCODERS:
        module, name = ENCODERS[config.model_type]
        return getattr(importlib.import_module(module), name)
    try:
        found = AutoModel._model_mapping[type(config)]
    except KeyError:
        raise ValueError(f"AutoModel has no encoder of type {config.model_type!r}") from None
    if isinstance(found, (list, tuple)):  # the library chooses by name, too
        found = next((one for one in found if one.__name__ in (config.architectures or ())), found[0])
    return found


def why_not(config, modality: str) -> str | None:
    """Return why an architecture cannot be the tower of a modality, as a clause; None where it can.

    What a configuration alone does not tell, the first row that a tower reads does.

    Args:
        config: Of the tower.
        modality: `text`, `image` or `audio`.
    """
    try:
        main = getattr(tower_class(config), "main_input_name", None)
    except (ValueError, ImportError) as error:
        return " ".join(str(error).split())
    kind = config.model_type
    if "video" in str(main) or hasattr(config, "num_frames") or hasattr(config, "tubelet_size"):
        return "it reads videos"
    if kind in OTHER_PICTURES:
        return OTHER_PICTURES[kind]
    if getattr(config, "is_encoder_decoder", False) and kind not in ENCODERS:
        return "it is an encoder with a decoder"
    if main not in MAIN_INPUTS[modality]:
        return f"it reads `{main}`"
    if modality == "text" and not hasattr(config, "vocab_size"):
        return "it has no vocabulary"
    if modality == "text" and "vision_config" in (getattr(type(config), "sub_configs", None) or {}):
        return "it reads several modalities at once"
    if modality == "audio" and not hears_waveforms(config) and kind not in SPECTROGRAMS:
        return "it reads neither waveforms as Wav2Vec2 does nor the spectrograms of " + ", ".join(SPECTROGRAMS)
    return None


def hears_waveforms(config) -> bool:
    """Return whether an audio tower has a convolutional front for samples, as Wav2Vec2."""
    return isinstance(getattr(config, "conv_kernel", None), (list, tuple))


def runs_by_length(config) -> bool:
    """Return whether rows of a tower must not be padded; see `BY_LENGTH`."""
    if not reads_mask(config):
        return False
    return config.model_type in BY_LENGTH or bool(getattr(config, "add_adapter", False))


def reads_mask(config) -> bool:
    """Return whether a tower tells padding apart: group-norm audio towers take statistics over all of a clip."""
    return getattr(config, "feat_extract_norm", "layer") != "group" and not has_fixed_length(config)


def has_fixed_length(config) -> bool:
    """Return whether an audio tower has positions for one length, to which every clip is padded."""
    return config.model_type in ("whisper", "audio-spectrogram-transformer")


# == Building =========================================================================================================


def tower_width(config) -> int:
    """Return the width C of a tower's tokens."""
    if getattr(config, "add_adapter", False):
        return config.output_hidden_size
    if config.model_type == "reformer":  # two streams side by side
        return 2 * config.hidden_size
    width = getattr(config, "hidden_size", None)
    if width is not None:
        return width
    for name in ("neck_hidden_sizes", "hidden_sizes", "embed_dims"):
        if sizes := getattr(config, name, None):
            return sizes[-1]
    return _measured_width(config.to_json_string(), type(config))


@functools.lru_cache(maxsize=32)
def _measured_width(settings: str, config_class: type) -> int:
    """Return the width of a picture tower whose configuration does not say it, by a tower without numbers."""
    with torch.device("meta"), torch.no_grad():
        tower = build_tower(config_class.from_dict(json.loads(settings))).eval()
        hidden, _ = run_image_tower(tower, torch.empty(1, getattr(tower.config, "num_channels", 3), 224, 224))
    return hidden.shape[1] if hidden.ndim == 4 else hidden.shape[2]


def tower_tokens(hidden: torch.Tensor) -> torch.Tensor:
    """Tokens (P, T, C) of a tower's last hidden state, be it (P, T, C) or a feature map (P, C, H, W)."""
    return hidden.flatten(2).transpose(1, 2) if hidden.ndim == 4 else hidden


def grid_positions(height: int, width: int, size: int) -> torch.Tensor:
    """Sines and cosines of row and column (H · W, size), for the tokens of a feature map.

    Source: DETR (Carion et al. 2020, arXiv:2005.12872, appendix A.4): half of the channels for the row, half for the
    column; positions here run from 0 to 1 over the picture, so that its resolution does not matter.
    """
    frequencies = 2 * math.pi * 2.0 ** (torch.arange(-(-size // 4)) % 6 - 2)  # a quarter to eight periods a picture
    waves = []
    for count in (height, width):
        angles = (torch.arange(count) + 0.5)[:, None] / count * frequencies  # (count, size / 4)
        waves.append(torch.cat([angles.sin(), angles.cos()], dim=1))
    rows, columns = waves
    grid = torch.cat([rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)], dim=-1)
    return grid.flatten(0, 1)[:, :size]


def max_text_tokens(tower: PreTrainedModel) -> int | None:
    """Tokens that a text tower has positions for; RoBERTa-like ones count them from `pad_token_id + 1` on."""
    limit = getattr(tower.config, "max_position_embeddings", None)
    positions = getattr(getattr(tower, "embeddings", None), "position_embeddings", None)
    first = getattr(positions, "padding_idx", None)
    if limit is None or limit < 1:  # XLNet's -1: any number
        return None
    return limit if first is None else limit - first - 1


def without_pooler(model_class: type) -> dict:
    """Keyword that leaves a tower's pooler out where it has one: nothing here would train it."""
    knows = "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
    return {"add_pooling_layer": False} if knows else {}


def build_tower(config) -> PreTrainedModel:
    """A tower with fresh weights. `trust_remote_code` is never forwarded: a tower is a `transformers` class."""
    found = tower_class(config)
    return found._from_config(config, **without_pooler(found))


# == Running ==========================================================================================================


def takes_batch_statistics(tower: PreTrainedModel) -> bool:
    """Return whether what a tower makes of a row depends on the rows beside it, as in BatchNorm that is trained."""
    return any(
        isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and module.training for module in tower.modules()
    )


def run_text_tower(
    tower: PreTrainedModel, text: torch.Tensor, attention_mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the last hidden state (P, T, C) of texts and the mask (P, T) of their tokens.

    Args:
        tower: The text tower.
        text: Token ids (P, T), or in place of them the embeddings of tokens and prompts (P, T, C).
        attention_mask: (P, T), 1 = token; None: all are.
    """
    if attention_mask is None:
        attention_mask = torch.ones(text.shape[:2], dtype=torch.long, device=text.device)
    mask = attention_mask.bool()  # (P, T)
    # Under the mask may lie anything, ids outside the vocabulary too.
    if text.is_floating_point():
        width = getattr(tower.get_input_embeddings(), "embedding_dim", None)
        if width is not None and text.shape[-1] != width:
            raise ValueError(f"`inputs_embeds` is {text.shape[-1]} wide, the text tower's embeddings are {width}")
        name, text = "inputs_embeds", text.masked_fill(~mask[..., None], 0.0).to(tower.dtype)
    else:
        name, text = "input_ids", text.masked_fill(~mask, getattr(tower.config, "pad_token_id", None) or 0)
    if _is_by_length(tower):
        return _by_length(functools.partial(_last_hidden_state, tower, name), text, mask, in_place=True)
    return _last_hidden_state(tower, name, text, attention_mask), mask


def run_image_tower(tower: PreTrainedModel, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the last hidden state (P, T, C) or feature map (P, C, H, W) of pictures, and a mask (P, T) of ones."""
    # The statistics of a batch are no use where it holds one picture, and torch refuses them for a map of 1×1.
    is_alone = takes_batch_statistics(tower) and pixel_values.shape[0] == 1
    with eval_mode(tower) if is_alone else contextlib.nullcontext():
        output = tower(
            pixel_values=pixel_values.to(tower.dtype), return_dict=True, **_in_order(tower.config, pixel_values)
        )
    hidden = output.last_hidden_state if "last_hidden_state" in output else output.feature_maps[-1]
    hidden = hidden.to(pixel_values.device)  # as in `_last_hidden_state`
    num_tokens = hidden.shape[1] if hidden.ndim == 3 else hidden.shape[2] * hidden.shape[3]
    return hidden, torch.ones(hidden.shape[0], num_tokens, dtype=torch.bool, device=hidden.device)


@contextlib.contextmanager
def eval_mode(tower: PreTrainedModel) -> Iterator[None]:
    """Hold a tower in eval mode, and give each of its modules its own mode back: a frozen batch norm stays in eval."""
    in_training = [module for module in tower.modules() if module.training]
    tower.eval()
    try:
        yield
    finally:
        for module in in_training:
            module.training = True


def _in_order(config, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
    """Keyword by which a ViT-MAE leaves all patches where they are; `mask_ratio` 0 keeps all of them."""
    if config.model_type != "vit_mae":
        return {}
    patch, (height, width) = config.patch_size, pixel_values.shape[2:]
    num_patches = (height // patch) * (width // patch)
    noise = torch.arange(num_patches, device=pixel_values.device, dtype=torch.float32)  # the order by which it sorts
    return {"noise": noise.expand(pixel_values.shape[0], -1)}


def run_audio_tower(
    tower: PreTrainedModel, sound: torch.Tensor, audio_attention_mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the last hidden state (P, T, C) of sounds and the mask (P, T) of their tokens.

    Inputs:
        sound: Waveforms (P, N), or spectrograms (P, N, mel), of Whisper (P, mel, N).
        audio_attention_mask: (P, N), 1 = sample or frame, 0 = padding.
    """
    if audio_attention_mask is None:
        num_steps = sound.shape[frame_axis(tower.config)]
        audio_attention_mask = torch.ones(sound.shape[0], num_steps, dtype=torch.long, device=sound.device)
    run = _run_on_waveforms if hears_waveforms(tower.config) else _run_on_spectrograms
    return run(tower, sound, audio_attention_mask.bool())


def _run_on_waveforms(
    tower: PreTrainedModel, input_values: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return hidden states and frame-level mask of waveforms (P, N).

    Group-norm towers were pretrained on zero-padded clips without a mask and get none: their first layer takes
    statistics over the whole clip anyway (see the processor's rule). The fusion reads valid frames only.
    """
    config = tower.config
    input_values = input_values.masked_fill(~mask, 0.0).to(tower.dtype)
    # A clip too short for one frame counts as padded with silence to exactly one, whatever its neighbours' length.
    frame = needed = receptive_field(config)
    if tower.training:  # SpecAugment refuses a batch that is not longer than one of its spans
        needed += config.mask_time_length * math.prod(config.conv_stride)
    if (missing := needed - input_values.shape[1]) > 0:
        input_values, mask = (F.pad(x, (0, missing)) for x in (input_values, mask))
    mask = mask | (torch.arange(input_values.shape[1], device=input_values.device) < frame)
    if _is_by_length(tower):
        return _by_length(lambda own: _run_padded(tower, own, needed), input_values, mask)
    hidden = _last_hidden_state(tower, "input_values", input_values, mask.long() if reads_mask(config) else None)
    num_frames = tower._get_feat_extract_output_lengths(mask.sum(dim=1))
    frames = torch.arange(hidden.shape[1], device=hidden.device)
    return hidden, frames < num_frames[:, None]  # (P, T)


def _run_on_spectrograms(
    tower: PreTrainedModel, features: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return hidden states and token-level mask of spectrograms, (P, N, mel) or of Whisper (P, mel, N)."""
    config = tower.config
    needed = 1 + (config.mask_time_length if tower.training and hasattr(config, "mask_time_length") else 0)
    if not has_fixed_length(config) and (missing := needed - features.shape[1]) > 0:
        features, mask = F.pad(features, (0, 0, 0, missing)), F.pad(mask, (0, missing))
    features = _without_padding(config, features, mask).to(tower.dtype)
    if _is_by_length(tower):
        return _by_length(lambda own: _run_padded(tower, own, needed), features, mask)
    hidden = _last_hidden_state(tower, tower.main_input_name, features, mask.long() if reads_mask(config) else None)
    return hidden, _heard_tokens(config, mask, hidden.shape[1])


def sound_shape(config) -> tuple[int | str, ...]:
    """Return the shape of one row of an audio tower's input: sizes, or names of those that are free."""
    if config.model_type == "whisper":
        return (config.num_mel_bins, 2 * config.max_source_positions)
    if config.model_type == "audio-spectrogram-transformer":
        return (config.max_length, config.num_mel_bins)
    if config.model_type == "wav2vec2-bert":
        return ("frames", config.feature_projection_input_dim)
    return ("samples",)


def frame_axis(config) -> int:
    """Return the axis of an audio tower's input along which time runs."""
    return 2 if config.model_type == "whisper" else 1


def audio_steps(config, of_tokens: bool = False) -> tuple[int, int]:
    """Return samples from one step to the next, and samples that a step hears: frames of a spectrogram, or tokens.

    A frame of Whisper stands around its sample, so that it hears none beyond; waveforms have tokens only.
    """
    if hears_waveforms(config):
        return math.prod(config.conv_stride), receptive_field(config)
    hop, field = {"whisper": (160, 0), "wav2vec2-bert": (320, 560)}.get(config.model_type, (160, 400))
    if not of_tokens:
        return hop, field
    if config.model_type == "whisper":
        return 2 * hop, field
    if config.model_type == "audio-spectrogram-transformer":
        return config.time_stride * hop, field + (config.patch_size - 1) * hop
    together = config.adapter_stride**config.num_adapter_layers if config.add_adapter else 1
    return together * hop, field + (together - 1) * hop


def time_scores(config, scores: torch.Tensor) -> torch.Tensor:
    """Return (T,) scores, in the order of time, of the tokens that hear a clip; patches of one time are summed up."""
    if config.model_type != "audio-spectrogram-transformer":
        return scores
    num_bands = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
    return scores[2:].view(num_bands, -1).sum(dim=0)


def _without_padding(config, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Put in place of whatever lies under the mask what the feature extractor pads a clip with."""
    if config.model_type == "whisper":
        under = ~mask[:, None]  # (P, 1, N)
        loudest = features.masked_fill(under, WHISPER_SILENCE).amax(dim=(1, 2), keepdim=True)
        return torch.where(under, (loudest - WHISPER_RANGE).clamp(min=WHISPER_SILENCE), features)
    padding = 0.0
    if config.model_type == "audio-spectrogram-transformer":
        padding = getattr(config, "padding_value", AST_PADDING)
    return features.masked_fill(~mask[..., None], padding)


def _heard_tokens(config, mask: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """Return (P, T), True for the tokens of a spectrogram that hear the clip and not only its padding."""
    num_frames = mask.sum(dim=1, keepdim=True)  # (P, 1)
    if config.model_type == "audio-spectrogram-transformer":  # two tokens of the whole, then patches, band by band
        per_band = (config.max_length - config.patch_size) // config.time_stride + 1
        token = torch.arange(num_tokens, device=mask.device) - 2
        return (token < 0) | ((token % per_band) * config.time_stride < num_frames)
    hop = 2 if config.model_type == "whisper" else 1
    return torch.arange(num_tokens, device=mask.device) * hop < num_frames


def _is_by_length(tower: PreTrainedModel) -> bool:
    """While a graph is traced shapes may not depend on data: rows are padded then, as the library has them."""
    return runs_by_length(tower.config) and not torch.compiler.is_compiling()


def _by_length(
    run: Callable[[torch.Tensor], torch.Tensor], values: torch.Tensor, mask: torch.Tensor, in_place: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return hidden states (P, T, C) and their mask (P, T) of rows that are run without padding.

    Args:
        in_place: Whether the tower makes a token of each step, which stands where that stood; else they stand at the
            front.

    Inputs:
        run: Of rows (L, N, …) of one length: their hidden states (L, T, C).
        values: (P, N, …).
        mask: (P, N), True = no padding.
    """
    lengths, outputs = mask.sum(dim=1), []
    for length in lengths.unique().tolist():
        rows = (lengths == length).nonzero().squeeze(1)  # (L,)
        own = values[rows][mask[rows]].view(len(rows), length, *values.shape[2:])
        outputs.append((rows, run(own)))
    width = mask.shape[1] if in_place else max(output.shape[1] for _, output in outputs)
    first = outputs[0][1]
    hidden, kept = first.new_zeros(len(mask), width, first.shape[2]), mask.new_zeros(len(mask), width)
    for rows, output in outputs:
        kept[rows] = mask[rows] if in_place else torch.arange(width, device=mask.device) < output.shape[1]
        placed = hidden.new_zeros(len(rows), width, output.shape[2])
        placed[kept[rows]] = output.flatten(0, 1)
        hidden[rows] = placed
    return hidden, kept


def _run_padded(tower: PreTrainedModel, sound: torch.Tensor, needed: int) -> torch.Tensor:
    """Return the hidden states of sounds of one length, which silence makes as long as the tower asks for."""
    missing = max(needed - sound.shape[1], 0)
    sound = F.pad(sound, (*[0] * (2 * (sound.ndim - 2)), 0, missing))
    return _last_hidden_state(tower, tower.main_input_name, sound)


def _last_hidden_state(
    tower: PreTrainedModel, name: str, values: torch.Tensor, attention_mask: torch.Tensor | None = None
) -> torch.Tensor:
    given = {name: values}
    if attention_mask is not None:
        given["attention_mask"] = attention_mask
    # With a `device_map` over several devices the tower may end on another than it began.
    return tower(**given, return_dict=True).last_hidden_state.to(values.device)


def receptive_field(audio_config) -> int:
    """Samples that the convolutional front of a Wav2Vec2-like tower needs for its first frame (400 for the base)."""
    field = 1
    for kernel, stride in zip(reversed(audio_config.conv_kernel), reversed(audio_config.conv_stride), strict=True):
        field = (field - 1) * stride + kernel
    return field
