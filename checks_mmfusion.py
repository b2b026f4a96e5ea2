"""Checks of what a model's `forward` is given: names, shapes and types, before a tower runs.

Design notes: nothing here waits for the device, and in an export with dynamic shapes sizes are symbols, so that they
are compared and never hashed.

Shape legend: B batch rows, P rows in which a modality is present, T tokens, C width of a tower, M = 3 modalities.
"""

from typing import Any

import torch
from transformers.utils import TransformersKwargs

MODALITIES = ("text", "image", "audio")  # the columns of `modality_mask`
MAIN_INPUTS = {"text": "input_ids", "image": "pixel_values", "audio": "input_values"}
MASKS = {"text": "attention_mask", "audio": "audio_attention_mask"}
# Of what `Trainer`, `peft` and others pass to any model.
TAKEN_KEYWORDS = ("output_attentions", "output_hidden_states", "return_dict", "use_cache")


# == Keywords =========================================================================================================


def refuse_unknown(kwargs: dict[str, Any]) -> None:
    """Refuse what `transformers` lets pass through `**kwargs` and this model would not use.

    Raises:
        TypeError: A name that is not an argument; what is None and known to `transformers` is not given.
    """
    for name, value in kwargs.items():
        if name in TAKEN_KEYWORDS:
            continue
        if value is not None or name not in TransformersKwargs.__annotations__:
            raise TypeError(
                f"`{name}` is not an argument of this model; beside its inputs it takes {', '.join(TAKEN_KEYWORDS)}"
            )


def refuse_beside_encoder_outputs(inputs: dict[str, Any]) -> None:
    """Refuse inputs of towers that are not run.

    Raises:
        ValueError: Any of the inputs is given.
    """
    if given := [name for name, value in inputs.items() if value is not None]:
        raise ValueError(f"`{given[0]}` was given beside `encoder_outputs`, which takes its place: leave one out")


# == Inputs ===========================================================================================================


def check_inputs(
    config,
    given: dict[str, torch.Tensor],
    masks: dict[str, torch.Tensor | None],
    modality_mask: torch.Tensor | None,
    max_text_tokens: int | None,
    audio_shape: tuple[int | str, ...] = ("samples",),
    time_axis: int = 1,
) -> None:
    """Check that inputs fit each other and the model.

    Args:
        config: Of the model.
        given: Modality -> ids (B, T) or embeddings (B, T, C), pixels (B, C, H, W), waveforms (B, samples)
            or spectrograms.
        masks: "text" and "audio" -> mask of tokens or samples, or None.
        modality_mask: (B, M) or None.
        max_text_tokens: Tokens that the text tower takes; None: any number.
        audio_shape: Of one row of the audio tower's input; sizes that are free are names.
        time_axis: The axis of that input along which time runs.

    Raises:
        ValueError: What does not fit, by its name and shape.
    """
    main_inputs = config.main_inputs
    if not given:
        names = ", ".join(f"`{name}`" for name in main_inputs.values())
        raise ValueError(f"at least one of {names} must be given, got none")
    for modality, mask in MASKS.items():
        if masks[modality] is not None and modality not in given:
            raise ValueError(f"`{mask}` was given without `{main_inputs[modality]}`: give both or none")
    for modality in given:
        if modality not in config.modalities:
            raise ValueError(
                f"`{main_inputs[modality]}` was given, but this model has no tower for {modality}: "
                f"it reads {', '.join(config.modalities)}"
            )
    _check_numbers_of_rows({main_inputs[name]: tensor for name, tensor in given.items()}, modality_mask)
    if "text" in given:
        _check_text(given["text"], masks["text"], max_text_tokens)
    if "image" in given:
        _check_image(given["image"], getattr(config.vision_config, "num_channels", 3))
    if "audio" in given:
        _check_audio(main_inputs["audio"], given["audio"], masks["audio"], audio_shape, time_axis)


def _check_numbers_of_rows(given: dict[str, torch.Tensor], modality_mask: torch.Tensor | None) -> None:
    sizes = {name: tensor.shape[0] for name, tensor in given.items()}
    if modality_mask is not None:
        sizes["modality_mask"] = modality_mask.shape[0]
    num_rows, *others = sizes.values()
    if any(size != num_rows for size in others):
        stated = ", ".join(f"`{name}` {size}" for name, size in sizes.items())
        raise ValueError(f"all inputs must have the same number of rows, got {stated}")
    if num_rows == 0:
        raise ValueError(f"`{next(iter(sizes))}` has no rows: at least one is needed")
    if modality_mask is not None:
        _check_modality_mask(modality_mask)


def _check_modality_mask(modality_mask: torch.Tensor) -> None:
    if modality_mask.shape[1:] != (len(MODALITIES),):
        raise ValueError(f"`modality_mask` must be of shape (B, 3), got {tuple(modality_mask.shape)}")


def _check_text(text: torch.Tensor, attention_mask: torch.Tensor | None, max_text_tokens: int | None) -> None:
    name, axes = ("inputs_embeds", "(B, T, C)") if text.is_floating_point() else ("input_ids", "(B, T)")
    if text.ndim != axes.count(",") + 1 or text.shape[1] == 0:
        raise ValueError(f"`{name}` must be of shape {axes} with T > 0, got {tuple(text.shape)}")
    if attention_mask is not None and attention_mask.shape != text.shape[:2]:
        raise ValueError(
            f"`attention_mask` must be of the shape of `{name}` {tuple(text.shape[:2])}, "
            f"got {tuple(attention_mask.shape)}"
        )
    if max_text_tokens is not None and text.shape[1] > max_text_tokens:
        raise ValueError(
            f"`{name}` has {text.shape[1]} tokens, the text tower takes at most {max_text_tokens}: truncate"
        )


def _check_image(pixel_values: torch.Tensor, channels: int) -> None:
    if pixel_values.ndim != 4:
        raise ValueError(f"`pixel_values` must be of shape (B, C, H, W), got {tuple(pixel_values.shape)}")
    if not pixel_values.is_floating_point():
        raise ValueError(
            f"`pixel_values` must be floating point, got {pixel_values.dtype}: let the processor rescale and "
            "normalise the picture"
        )
    if pixel_values.shape[1] != channels:
        raise ValueError(f"`pixel_values` must have {channels} channels, got {pixel_values.shape[1]}")


def _check_audio(
    name: str,
    sound: torch.Tensor,
    audio_attention_mask: torch.Tensor | None,
    shape: tuple[int | str, ...],
    time_axis: int,
) -> None:
    axes = ", ".join(map(str, ("B", *shape)))
    fits = sound.ndim == 1 + len(shape) and all(
        own > 0 if isinstance(size, str) else own == size for own, size in zip(sound.shape[1:], shape, strict=True)
    )
    if not fits:
        free = "".join(f" with {size} > 0" for size in shape if isinstance(size, str))
        raise ValueError(f"`{name}` must be of shape ({axes}){free}, got {tuple(sound.shape)}")
    if not sound.is_floating_point():
        raise ValueError(f"`{name}` must be floating point, got {sound.dtype}: let the processor scale the samples")
    expected = (sound.shape[0], sound.shape[time_axis])
    if audio_attention_mask is not None and audio_attention_mask.shape != expected:
        raise ValueError(
            f"`audio_attention_mask` must be of the shape of `{name}` {expected}, got "
            f"{tuple(audio_attention_mask.shape)}"
        )


# == Tower outputs ====================================================================================================


def check_tower_outputs(
    config, tower_outputs: dict, inputs: dict[str, torch.Tensor | None], is_training: bool
) -> None:
    """Check that tower outputs are those of the rows that `modality_mask` names.

    Args:
        config: Of the model.
        tower_outputs: Modality -> (hidden states, mask), as `run_towers` returns them.
        inputs: What else the model is given, by name.
        is_training: Then CUDA itself checks the number of rows, and nothing waits for it.

    Raises:
        ValueError: A modality that the model lacks or that is given twice, or shapes that do not fit.
    """
    if inputs["modality_mask"] is None:
        raise ValueError("`tower_outputs` needs `modality_mask` (B, 3), which says whose rows they are; got none")
    _check_modality_mask(inputs["modality_mask"])
    for modality, (hidden, mask) in tower_outputs.items():
        if modality not in config.modalities:
            raise ValueError(f"`tower_outputs` holds {modality!r}: it may hold {', '.join(config.modalities)}")
        names = [config.main_inputs[modality], *(["inputs_embeds"] if modality == "text" else [])]
        if doubled := [name for name in names if inputs[name] is not None]:
            raise ValueError(f"`tower_outputs` holds {modality!r}: leave `{doubled[0]}` out")
        present = inputs["modality_mask"][:, MODALITIES.index(modality)].bool()
        _check_tower_output(f"`tower_outputs[{modality!r}]`", hidden, mask, present, is_training)


def _check_tower_output(
    name: str, hidden: torch.Tensor, mask: torch.Tensor, present: torch.BoolTensor, is_training: bool
) -> None:
    """Refuse what is not of the P rows that are present (B,), nor of all B rows."""
    num_tokens = hidden.shape[1] if hidden.ndim == 3 else hidden.shape[2:].numel()
    if hidden.ndim not in (3, 4) or tuple(mask.shape) != (len(hidden), num_tokens):
        raise ValueError(
            f"{name} must hold hidden states (P, T, C) or (P, C, H, W) and the mask of their tokens (P, T), "
            f"got {tuple(hidden.shape)} and {tuple(mask.shape)}"
        )
    if len(hidden) == len(present):
        return
    told = f"{name} has {len(hidden)} rows, but `modality_mask` names {{}} of its {len(present)} rows"
    if torch.compiler.is_compiling():
        raise ValueError(told.format("some") + "; while a graph is traced, give all rows")
    if present.device.type != "cpu" and is_training:  # nothing waits for the device; CUDA checks it itself
        if present.device.type == "cuda":
            torch._assert_async(present.sum() == len(hidden), told.format("another number"))
    elif (count := int(present.sum())) != len(hidden):
        raise ValueError(told.format(count))
