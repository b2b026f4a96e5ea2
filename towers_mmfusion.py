"""Towers of MMFusion: how one encoder of `transformers` is built, loaded, and asked for tokens.

A tower is any text, image or audio encoder of the library. All that depends on its architecture is in this file: the
model around it sees a last hidden state and a mask of its tokens.

Shape legend: P rows in which the modality is present, T tokens, C width of a tower, D fusion width.
"""

import contextlib
import inspect
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModel, PreTrainedModel

# == Building and loading =============================================================================================


def tower_width(config) -> int:
    """Width of a tower's tokens; ResNet-like configurations have `hidden_sizes` and no `hidden_size`."""
    width = getattr(config, "hidden_size", None)
    return width if width is not None else config.hidden_sizes[-1]


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
    return limit if limit is None or first is None else limit - first - 1


def without_pooler(model_class: type) -> dict:
    """Keyword that leaves a tower's pooler out where it has one: nothing here would train it."""
    knows = "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
    return {"add_pooling_layer": False} if knows else {}


def build_tower(config) -> PreTrainedModel:
    """A tower with fresh weights. `trust_remote_code` is never forwarded: a tower is a `transformers` class."""
    return AutoModel.from_config(config, **without_pooler(AutoModel._model_mapping[type(config)]))


def load_tower(name_or_path: str, **kwargs) -> PreTrainedModel:
    """A pretrained tower from a Hub id or folder: in float32, from safetensors only, never with code of its own."""
    kwargs["trust_remote_code"] = False
    config = AutoConfig.from_pretrained(name_or_path, **kwargs)
    kwargs = {"dtype": torch.float32, "use_safetensors": True, **kwargs}
    pooler = without_pooler(AutoModel._model_mapping[type(config)])
    return AutoModel.from_pretrained(name_or_path, config=config, **kwargs, **pooler)


# == Running ==========================================================================================================


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
        inputs = {"inputs_embeds": text.masked_fill(~mask[..., None], 0.0).to(tower.dtype)}
    else:
        inputs = {"input_ids": text.masked_fill(~mask, tower.config.pad_token_id or 0)}
    output = tower(**inputs, attention_mask=attention_mask, return_dict=True)
    return output.last_hidden_state, mask


def run_image_tower(tower: PreTrainedModel, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the last hidden state (P, T, C) or feature map (P, C, H, W) of pictures, and a mask (P, T) of ones."""
    # The statistics of a batch are no use where it holds one picture, and torch refuses them for a map of 1×1.
    is_alone = tower.training and not torch.compiler.is_compiling() and len(pixel_values) == 1
    with eval_mode(tower) if is_alone else contextlib.nullcontext():
        output = tower(pixel_values=pixel_values.to(tower.dtype), return_dict=True)
    hidden = output.last_hidden_state  # (P, T, C) or (P, C, H, W)
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


def run_audio_tower(
    tower: PreTrainedModel, input_values: torch.Tensor, audio_attention_mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the last hidden state (P, T, C) of waveforms (P, samples) and the mask (P, T) of their frames.

    Group-norm towers were pretrained on zero-padded clips without a mask and get none: their first layer takes
    statistics over the whole clip anyway (see the processor's rule). The fusion reads valid frames only.
    """
    if audio_attention_mask is None:
        audio_attention_mask = torch.ones_like(input_values, dtype=torch.long)
    input_values = input_values.masked_fill(~audio_attention_mask.bool(), 0.0).to(tower.dtype)
    # A clip too short for one frame counts as padded with silence to exactly one, whatever its neighbours' length.
    frame = needed = receptive_field(tower.config)
    if tower.training:  # SpecAugment refuses a batch that is not longer than one of its spans
        needed += tower.config.mask_time_length * math.prod(tower.config.conv_stride)
    if (missing := needed - input_values.shape[1]) > 0:
        input_values, audio_attention_mask = (F.pad(x, (0, missing)) for x in (input_values, audio_attention_mask))
    first_frame = torch.arange(input_values.shape[1], device=input_values.device) < frame
    audio_attention_mask = (audio_attention_mask.bool() | first_frame).long()
    reads_mask = getattr(tower.config, "feat_extract_norm", "layer") != "group"
    output = tower(
        input_values=input_values, attention_mask=audio_attention_mask if reads_mask else None, return_dict=True
    )
    hidden = output.last_hidden_state
    num_frames = tower._get_feat_extract_output_lengths(audio_attention_mask.sum(dim=1))
    frames = torch.arange(hidden.shape[1], device=hidden.device)
    return hidden, frames < num_frames[:, None]  # (P, T)


def receptive_field(audio_config) -> int:
    """Samples that the convolutional front of a Wav2Vec2-like tower needs for its first frame (400 for the base)."""
    field = 1
    for kernel, stride in zip(reversed(audio_config.conv_kernel), reversed(audio_config.conv_stride), strict=True):
        field = (field - 1) * stride + kernel
    return field
