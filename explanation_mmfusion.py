"""Why a model said what it said: what each modality gave, and what mattered inside each of them.

Unusual here: the modalities' shares are exact Shapley values, not estimates. The towers run once, and only the fusion
is asked again, for every subset of what a row has. Inside the modalities, gradients go through a private copy of the
model that shares its weights: the model itself keeps its mode, its attention and its (missing) gradients, and other
threads may use it meanwhile.

This file travels to the Hub beside the weights; the pipeline imports it.

Shape legend: B rows, M = 3 modalities, S = 2^M subsets (row `SUBSETS.index(…)`), L labels, T tokens.
"""

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

try:
    from .towers_mmfusion import audio_steps, frame_axis, hears_waveforms, time_scores
except ImportError:
    if __package__:  # inside the Hub cache this is a real failure: show it
        raise
    from towers_mmfusion import audio_steps, frame_axis, hears_waveforms, time_scores

MODALITIES = ("text", "image", "audio")  # the columns of `modality_mask`
MASKS = {"text": "attention_mask", "audio": "audio_attention_mask"}
METHODS = ("integrated_gradients", "attention")
WITH_ATTENTION = ("cross_attention", "bottleneck", "pairwise")  # the strategies of fusion that have weights to show
FUNCTIONS = ("softmax", "sigmoid", "none")

# Every subset as a row of presence, "nothing" first; a subset's number is its columns read as a binary number.
SUBSETS = tuple(itertools.product((False, True), repeat=len(MODALITIES)))
MAX_FUSED_NUMBERS = 2**25  # numbers in the tokens of one fusion call, 128 MiB as float32
STEPS_PER_CALL = 16  # points of the path that the towers read at a time
MAX_GRID = 16  # rows and columns of the heat over a picture whose tower has no patches of its own
MAX_SEGMENTS = 200  # of a sound; a longer one has longer segments
TOLERANCE = 0.05  # of the larger of the two outputs whose difference the attributions should sum up to


def score_function(config) -> str:
    """How logits become scores: one of `FUNCTIONS`, by what the model was trained for."""
    if config.problem_type == "multi_label_classification":
        return "sigmoid"
    return "none" if config.problem_type == "regression" or config.num_labels == 1 else "softmax"


def explain_methods(config) -> tuple[str, ...]:
    """Those of `METHODS` that the model has."""
    return tuple(name for name in METHODS if name != "attention" or config.fusion_type in WITH_ATTENTION)


def scores_of(logits: torch.Tensor, function: str) -> torch.Tensor:
    """Scores (…, L) of logits (…, L); `function` is one of `FUNCTIONS`."""
    if function == "softmax":
        return logits.softmax(dim=-1)
    return logits.sigmoid() if function == "sigmoid" else logits.clone()


def ranked_labels(scores: torch.Tensor, labels: dict[int, str]) -> list[dict]:
    """Labels and scores (L,), best first."""
    entries = [{"label": labels[i], "score": score} for i, score in enumerate(scores.tolist())]
    return sorted(entries, key=lambda entry: entry["score"], reverse=True)


# == Rows in, explanations out ========================================================================================


def explain_rows(
    model,
    processor,
    cells: list[dict[str, Any]],
    collate: Callable[[list[dict]], dict[str, torch.Tensor]],
    *,
    label: str | int | None,
    details: bool | Sequence[str],
    method: str,
    num_steps: int,
    top_k: int | None,
) -> list[dict[str, Any]]:
    """Explanations of some rows; `MMFusionPipeline.explain` says what they hold.

    Args:
        model: The classifier, in eval mode.
        processor: Its processor.
        cells: What is given to the processor of each row: "text", "images", "audio", each None where there is none.
        collate: Cells to model inputs on the model's device.
        label, details, method, num_steps, top_k: As for the pipeline.
    """
    wanted = _wanted_modalities(details, method, num_steps)
    if wanted and method not in explain_methods(model.config):
        raise ValueError(
            f"`method` is {method!r}, and the `fusion_type` of this model, {model.config.fusion_type!r}, has none: "
            "choose 'integrated_gradients'"
        )
    number = label_number(model.config, label)
    with torch.no_grad():
        inputs = collate(cells)
        encoded = model.encode(**inputs)
        table = subset_scores(model, encoded).cpu()
    rows = []
    for row, presence in enumerate(encoded.modality_mask.tolist()):
        explained = int(table[row, -1].argmax()) if number is None else number
        about = describe_modalities(model, table[row], presence, explained, top_k)
        about |= {"method": method if wanted else None, **dict.fromkeys((*MODALITIES, "completeness"))}
        chosen = [name for name, there in zip(MODALITIES, presence, strict=True) if there and name in wanted]
        if chosen:
            # Alone, a row has no padding but its own.
            own = inputs if len(cells) == 1 else collate([cells[row]])
            here = _rows_of(encoded, torch.tensor([row], device=encoded.tokens.device))
            about |= _details(model, processor, cells[row], own, here, explained, chosen, method, num_steps)
        rows.append(about)
    return rows


def contributions(model, inputs: dict[str, torch.Tensor], label: str | int | None = None) -> dict[str, torch.Tensor]:
    """Scores and the modalities' shares of a ready batch; `MMFusionPipeline.explain_batch` says what comes back."""
    number = label_number(model.config, label)
    with torch.no_grad():
        encoded = model.encode(**inputs)
        table = subset_scores(model, encoded).cpu()
    scores, presence = table[:, -1], encoded.modality_mask.cpu()
    labels = scores.argmax(dim=1) if number is None else torch.full((len(scores),), number)
    shares = shapley_values(table)[torch.arange(len(scores)), :, labels]
    return {"scores": scores, "labels": labels, "contributions": shares.masked_fill(~presence, float("nan"))}


def label_number(config, label: str | int | None) -> int | None:
    """The number of a label that is given by name or number; None stays None.

    Raises:
        ValueError: When the model knows no such label.
    """
    if label is None or (isinstance(label, int) and not isinstance(label, bool) and label in config.id2label):
        return label
    numbers = {name: number for number, name in config.id2label.items()}
    if not isinstance(label, str) or label not in numbers:
        names = [*numbers]
        more = f" and {len(names) - 20} more" if len(names) > 20 else ""
        raise ValueError(f"`label` is {label!r}; this model knows {', '.join(names[:20])}{more}")
    return numbers[label]


def _wanted_modalities(details: bool | Sequence[str], method: str, num_steps: int) -> tuple[str, ...]:
    """Which modalities to look into; everything about the details is checked here."""
    if method not in METHODS:
        raise ValueError(f"`method` is {method!r}; allowed are {', '.join(METHODS)}")
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1:
        raise ValueError(f"`num_steps` is {num_steps!r}; allowed are whole numbers from 1")
    if isinstance(details, bool):
        return MODALITIES if details else ()
    if isinstance(details, str) or not set(details) <= set(MODALITIES):
        raise ValueError(f"`details` is {details!r}; allowed are True, False and a list of {', '.join(MODALITIES)}")
    return tuple(details)


def _details(
    model, processor, cells: dict, inputs: dict, encoder_outputs: Any, label: int, modalities: list[str],
    method: str, num_steps: int,
) -> dict[str, Any]:  # fmt: skip
    """What mattered inside the modalities of one row, as parts of its explanation."""
    words = find_words(processor, cells["text"]) if "text" in modalities else None
    completeness = None
    if method == "attention":
        scores = attention_weights(model, encoder_outputs)
    else:
        is_special = None if words is None else [word is None for word in words.word_of_token]
        scores, completeness = integrated_gradients(
            model, inputs, encoder_outputs, label, modalities, num_steps=num_steps, is_special=is_special,
            silence=_silence(processor, inputs) if "audio" in modalities else None,
        )  # fmt: skip
    about: dict[str, Any] = {"completeness": completeness}
    if "text" in modalities:
        about["text"] = describe_text(words, scores["text"])
    if "image" in modalities:
        seen = tuple(inputs["pixel_values"].shape[2:])
        patch_size = getattr(model.config.vision_config, "patch_size", None)
        grid = scores["image"]
        grid = pooled_pixels(grid, patch_size) if grid.ndim == 2 else token_grid(grid, seen, patch_size)
        about["image"] = describe_image(processor, cells["images"], grid, seen)
    if "audio" in modalities:
        about["audio"] = _sound(model, processor, inputs, encoder_outputs, scores["audio"], method)
    return about


def _sound(model, processor, inputs: dict, encoder_outputs: Any, scores: torch.Tensor, method: str) -> dict:
    """Stretches of the clip, from scores of tokens (T,) or of the frames of a spectrogram (N,)."""
    config, rate = model.config.audio_config, processor.audio_sampling_rate
    num_steps, of_tokens = int(inputs["audio_attention_mask"].sum()), method == "attention"
    if hears_waveforms(config):
        return describe_audio(config, scores[: num_valid_frames(encoder_outputs)], num_steps, rate)
    hop, field = audio_steps(config)
    num_samples = (num_steps - 1) * hop + field  # the clip's, to half a frame
    scores = time_scores(config, scores) if of_tokens else scores
    steps = audio_steps(config, of_tokens)
    return describe_audio(config, scores[: -(-num_steps * hop // steps[0])], num_samples, rate, steps)


def _silence(processor, inputs: dict[str, torch.Tensor]) -> torch.Tensor | None:
    """The spectrogram of a silent clip, of the shape of a row's own; None where the tower reads waveforms."""
    if (own := inputs.get("input_features")) is None:
        return None
    rate = processor.audio_sampling_rate
    nothing = np.zeros(round(processor.max_audio_seconds * rate), np.float32)
    silent = processor(audio=[nothing], sampling_rate=rate)["input_features"].to(own)
    return silent[tuple(slice(size) for size in own.shape)]


# == The modalities ===================================================================================================


@torch.no_grad()
def subset_scores(model, encoder_outputs: Any) -> torch.Tensor:
    """What the model says from every subset of each row's modalities.

    Only subsets of what a row has are fused; the others say what their present part says.

    Args:
        model: The classifier.
        encoder_outputs: From `model.encode`.

    Returns:
        (B, S, L) float64 scores on the CPU, for MPS has no float64; row 0 of S is "nothing present", the last one
        everything the row has.

    Raises:
        ValueError: When a score is NaN or infinite.
    """
    presence = encoder_outputs.modality_mask  # (B, M)
    subsets = torch.tensor(SUBSETS, device=presence.device)  # (S, M)
    weights = 2 ** torch.arange(len(MODALITIES) - 1, -1, -1, device=presence.device)
    numbers = ((subsets & presence[:, None]) * weights).sum(dim=-1)  # (B, S), the subset that is left of each
    is_possible = numbers == torch.arange(len(SUBSETS), device=presence.device)
    rows, chosen = is_possible.nonzero(as_tuple=True)
    logits = torch.cat([
        model(encoder_outputs=_rows_of(encoder_outputs, some), modality_mask=subsets[which]).logits.cpu().double()
        for some, which in zip(*(x.split(_rows_a_call(encoder_outputs)) for x in (rows, chosen)), strict=True)
    ])  # fmt: skip
    scores = scores_of(logits, score_function(model.config))
    if not scores.isfinite().all():
        raise ValueError("the model answered with NaN or infinite scores; its weights are damaged or overflow")
    table = scores.new_zeros(*numbers.shape, scores.shape[-1])
    table[rows.cpu(), chosen.cpu()] = scores
    numbers = numbers.cpu()
    return table.gather(1, numbers[..., None].expand_as(table))


def _rows_a_call(encoder_outputs: Any) -> int:
    return max(1, MAX_FUSED_NUMBERS // max(1, encoder_outputs.tokens[0].numel()))


def _rows_of(encoder_outputs: Any, rows: torch.Tensor) -> Any:
    """The encoder's outputs of some rows, any of them repeatedly."""
    names = ("tokens", "token_mask", "modality_mask")
    return dataclasses.replace(encoder_outputs, **{name: getattr(encoder_outputs, name)[rows] for name in names})


def shapley_values(table: torch.Tensor) -> torch.Tensor:
    """Exact Shapley values of the modalities, for every label.

    A modality that a row lacks adds nothing to any subset and gets exactly 0, so that the values over all modalities
    are the values over the present ones.

    Args:
        table: (B, S, L), from `subset_scores`.

    Returns:
        (B, M, L); over M they sum up to the score with everything minus the score with nothing.

    Source: Shapley 1953, "A value for n-person games"; the players are the modalities, the gain is the score.
    """
    values = table.new_zeros(len(table), len(MODALITIES), table.shape[-1])
    for column, subset in itertools.product(range(len(MODALITIES)), SUBSETS):
        if subset[column]:
            without = tuple(there and i != column for i, there in enumerate(subset))
            weight = 1 / (len(MODALITIES) * math.comb(len(MODALITIES) - 1, sum(without)))
            values[:, column] += weight * (table[:, SUBSETS.index(subset)] - table[:, SUBSETS.index(without)])
    return values


def describe_modalities(model, table: torch.Tensor, presence: Sequence[bool], label: int, top_k: int | None) -> dict:
    """The part of an explanation that is about whole modalities, for one row, ready for JSON.

    Args:
        model: The classifier.
        table: (S, L), from `subset_scores`.
        presence: Of each modality.
        label: Number of the explained label.
        top_k: Labels that each subset lists; None: all.
    """
    labels = model.config.id2label
    shares = shapley_values(table[None])[0, :, label].tolist()
    here = {name: share if there else None for name, share, there in zip(MODALITIES, shares, presence, strict=True)}
    present = tuple(bool(there) for there in presence)
    subsets = sorted((s for s in SUBSETS if any(s) and _is_within(s, present)), key=_small_first)
    ranked = {_subset_name(subset): ranked_labels(table[SUBSETS.index(subset)], labels) for subset in subsets}
    return {
        "label": labels[label],
        "score": table[SUBSETS.index(present), label].item(),
        "baseline": table[0, label].item(),
        "function": score_function(model.config),
        "modalities": {name: here[name] for name in model.config.modalities},
        "subsets": {name: entries[:top_k] for name, entries in ranked.items()},
        "disagreement": disagreement(model, ranked, labels[label]),
    }


def _is_within(subset: tuple[bool, ...], present: tuple[bool, ...]) -> bool:
    return all(there or not wanted for wanted, there in zip(subset, present, strict=True))


def _small_first(subset: tuple[bool, ...]) -> tuple:
    return sum(subset), [not there for there in subset]  # text, image, audio, text+image, …


def _subset_name(subset: tuple[bool, ...]) -> str:
    return "+".join(name for name, there in zip(MODALITIES, subset, strict=True) if there)


def is_predicted(scores: torch.Tensor, config, label: int | None = None) -> torch.BoolTensor:
    """Which labels a multi-label model predicts: those at least as probable as their thresholds, by default 0.5.

    Args:
        scores: (…, L) probabilities, or (…) of one label.
        config: Says the `thresholds`, or None.
        label: Its number; None: they are of all labels.
    """
    thresholds = torch.tensor(config.thresholds or [0.5] * config.num_labels, dtype=torch.double).to(scores.device)
    return scores.double() >= (thresholds if label is None else thresholds[label])


def disagreement(model, ranked: dict[str, list[dict]], label: str) -> str | None:
    """One sentence when two present modalities, each alone, say different things; None when they agree.

    Single-label: their best labels differ. Multi-label: one gives the explained label, another does not. Numbers of a
    regression always differ a little, and are not judged.
    """
    alone = {name: entries for name, entries in ranked.items() if "+" not in name}
    function = score_function(model.config)
    if len(alone) < 2 or function == "none":
        return None
    if function == "softmax":
        said = {name: entries[0] for name, entries in alone.items()}
        if len({entry["label"] for entry in said.values()}) == 1:
            return None
    else:
        said = {name: next(e for e in entries if e["label"] == label) for name, entries in alone.items()}
        scores = torch.tensor([entry["score"] for entry in said.values()])
        says_yes = is_predicted(scores, model.config, label_number(model.config, label))
        if says_yes.all() or not says_yes.any():
            return None
    told = ", ".join(f'{name} alone says "{e["label"]}" ({e["score"]:.0%})' for name, e in said.items())
    return f"The modalities disagree: {told}."


# == A private copy ===================================================================================================


def private_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode that shares the weights and takes no gradients for them.

    Only the modules and the configuration are copied (20 ms for a small model), so that hooks, modes, attention and
    gradients of the copy are nobody else's business.
    """
    shared = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    shared |= {id(buffer): buffer for buffer in model.buffers()}
    # What somebody trains with must not be copied along.
    shared |= {id(p.grad): None for p in model.parameters() if p.grad is not None}
    return copy.deepcopy(model, shared).eval()


class _Given(nn.Module):
    """Stands where a module stood and gives what it is told to."""

    def forward(self, *_: Any, **__: Any) -> torch.Tensor:
        return self.output


# == Integrated gradients =============================================================================================


def integrated_gradients(
    model,
    inputs: dict[str, torch.Tensor],
    encoder_outputs: Any,
    label: int,
    modalities: Sequence[str],
    *,
    num_steps: int = 32,
    is_special: Sequence[bool] | None = None,
    silence: torch.Tensor | None = None,
) -> tuple[dict[str, torch.Tensor], dict]:
    """How much every token, pixel and frame of one row moved the score of a label.

    The path leads from a neutral row to the row: words are [PAD] there (special tokens stay), the picture is mid-grey
    (0 after normalisation), the sound is silence. Waveforms are scaled after the convolutional front of the tower,
    whose norms take loudness out again: on a path of ever louder waveforms nothing would happen but at its start.
    Padding stays as it is. Modalities that are not asked for, and what the row lacks, stay as they are.

    Args:
        model: The classifier; it is not touched.
        inputs: One row, on the model's device.
        encoder_outputs: Of this row, from `model.encode`.
        label: Number of the label.
        modalities: Which ones; all must be present.
        num_steps: Points of the path; the price is about three forward passes each.
        is_special: Of each text token; such tokens stay on the path. None: none is.
        silence: Of a tower that reads spectrograms, that of a silent clip.

    Returns:
        Modality -> attributions: (T,) of the tokens, (H, W) of the pixels, (T,) of the frames; and the completeness
        check: how well they sum up to the difference between the scores at the two ends of the path.

    Raises:
        ImportError: Without `captum`.

    Source: Sundararajan et al. 2017, arXiv:1703.01365; computed by Captum, Gauss-Legendre quadrature.
    """
    try:
        from captum.attr import IntegratedGradients
    except ImportError as error:
        raise ImportError(
            "integrated gradients need `captum`: pip install captum. Without it, `method='attention'` or "
            "`details=False` explain, too."
        ) from error
    path = _Path(private_copy(model), inputs, encoder_outputs, label, modalities, is_special, silence)
    with torch.enable_grad():
        parts = IntegratedGradients(path).attribute(
            path.ends, path.starts, n_steps=num_steps, internal_batch_size=STEPS_PER_CALL
        )
    with torch.no_grad():
        start, end = path(*path.starts).item(), path(*path.ends).item()
    bands = 2 - frame_axis(model.config.audio_config) if silence is not None else 0  # the other axis of (N, mel)
    axes = {"text": -1, "image": 0, "audio": bands}
    summed = {
        name: part.detach()[0].float().sum(dim=axes[name]) for name, part in zip(path.modalities, parts, strict=True)
    }
    return summed, _completeness(sum(part.sum().item() for part in summed.values()), start, end, num_steps)


class _Path:
    """The score of one label as a function of word embeddings, pixels and audio features, with both ends of the path.

    `encode` of the model does the work; in the private copy, the embedding table and the convolutional front are
    replaced by what hands out the points of the path.
    """

    def __init__(
        self, model, inputs: dict, encoder_outputs: Any, label: int, modalities: Sequence[str], is_special,
        silence: torch.Tensor | None,
    ):  # fmt: skip
        self.model, self.label, self.silence = model, label, silence
        self.modalities = [name for name in MODALITIES if name in modalities]
        self.inputs = {
            key: inputs[key].clone()  # a tensor of inference mode could not take part
            for name in self.modalities
            for key in (model.config.main_inputs[name], MASKS.get(name))
            if key in inputs
        }
        self.encoded = encoder_outputs
        columns = torch.tensor([MODALITIES.index(name) for name in self.modalities], device=model.device)
        self.is_kept = ~torch.isin(encoder_outputs.token_modality, columns)  # (T,), read from `encoder_outputs`
        self.given = {}
        with torch.no_grad():
            ends = {"text": self._text_ends, "image": self._image_ends, "audio": self._audio_ends}
            pairs = [ends[name](is_special) if name == "text" else ends[name]() for name in self.modalities]
        self.starts, self.ends = (tuple(points) for points in zip(*pairs, strict=True))

    def _text_ends(self, is_special: Sequence[bool] | None) -> tuple[torch.Tensor, torch.Tensor]:
        table, ids = self.model.get_input_embeddings(), self.inputs["input_ids"]
        stays = ~self.inputs["attention_mask"].bool()
        if is_special is not None:
            stays = stays | torch.tensor(is_special, device=ids.device)
        neutral = ids.masked_fill(~stays, self.model.config.text_config.pad_token_id or 0)
        self.given["text"] = _Given()
        self.model.set_input_embeddings(self.given["text"])
        return table(neutral), table(ids)  # (1, T, C)

    def _image_ends(self) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = self.inputs["pixel_values"]
        return torch.zeros_like(pixels), pixels

    def _audio_ends(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self.silence is not None:
            return self.silence, self.inputs["input_features"]
        tower = self.model.base_model.audio_encoder
        front, seen = tower.feature_extractor, []
        # What `encode` hands to the front is the clip as the tower hears it: padded to a frame, padding silenced.
        tower.feature_extractor = _Seen(front, seen)
        self.model.encode(**{key: self.inputs[key] for key in ("input_values", "audio_attention_mask")})
        (clip, end), num_frames = seen[0], num_valid_frames(self.encoded)
        start = front(torch.zeros_like(clip))  # (1, C, T)
        start[..., num_frames:] = end[..., num_frames:]
        tower.feature_extractor = self.given["audio"] = _Given()
        return start, end

    def __call__(self, *points: torch.Tensor) -> torch.Tensor:
        """Scores (N,) of the label at N points, one tensor (N, …) a modality."""
        inputs = {key: value.expand(len(points[0]), *value.shape[1:]) for key, value in self.inputs.items()}
        for name, point in zip(self.modalities, points, strict=True):
            if name == "image":
                inputs["pixel_values"] = point
            elif name == "audio" and self.silence is not None:
                inputs["input_features"] = point
            else:
                self.given[name].output = point
        logits = self.model(encoder_outputs=self._with_kept(self.model.encode(**inputs))).logits
        return scores_of(logits.float(), score_function(self.model.config))[:, self.label]

    def _with_kept(self, encoded: Any) -> Any:
        """Adds the tokens of the modalities that stay as they are, from the row's own encoding."""
        num_points = len(encoded.tokens)
        tokens, mask = self.encoded.tokens[:, self.is_kept], self.encoded.token_mask[:, self.is_kept]
        return dataclasses.replace(
            encoded,
            tokens=torch.cat([encoded.tokens, tokens.expand(num_points, -1, -1)], dim=1),
            token_mask=torch.cat([encoded.token_mask, mask.expand(num_points, -1)], dim=1),
            token_modality=torch.cat([encoded.token_modality, self.encoded.token_modality[self.is_kept]]),
            modality_mask=self.encoded.modality_mask.expand(num_points, -1),
        )


class _Seen(nn.Module):
    """Notes what a module is given and what it makes of it."""

    def __init__(self, module: nn.Module, seen: list):
        super().__init__()
        self.module, self.seen = module, seen

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        self.seen.append((values, self.module(values)))
        return self.seen[-1][1]


def _completeness(total: float, start: float, end: float, num_steps: int) -> dict:
    error = abs(total - (end - start))
    is_complete = error <= TOLERANCE * max(abs(end - start), abs(end), abs(start))
    sentence = (
        f"The attributions sum up to {total:.3g}, the score moved by {end - start:.3g}: read them with care, or raise "
        f"`num_steps` (now {num_steps})."
    )
    return {
        "sum": total,
        "difference": end - start,
        "error": error,
        "num_steps": num_steps,
        "is_complete": is_complete,
        "warning": None if is_complete else sentence,
    }


# == Attention ========================================================================================================


@torch.no_grad()
def attention_weights(model, encoder_outputs: Any) -> dict[str, torch.Tensor]:
    """How much the fusion looked at every token of one row, as `token_shares` of its strategy says.

    Attention says where the model looked, not what that did to a label: it is the same for every label.

    Returns:
        Modality -> (T,), for those that the row has. Over everything, the slots of absent modalities included, the
        weights sum up to 1.
    """
    eager = private_copy(model)
    eager.set_attn_implementation("eager")
    layers = eager(encoder_outputs=encoder_outputs, output_attentions=True).attentions
    # As `fuse` does it: in front stand the slots of absent modalities.
    slots = torch.tensor([MODALITIES.index(name) for name in model.config.modalities], device=model.device)
    token_mask = torch.cat([~encoder_outputs.modality_mask[:, slots], encoder_outputs.token_mask], dim=1)
    token_modality = torch.cat([slots, encoder_outputs.token_modality])
    weights = model.base_model.fusion.token_shares(layers, token_mask, token_modality)[0, len(slots) :]
    present = encoder_outputs.modality_mask[0].tolist()
    return {
        name: weights[(encoder_outputs.token_modality == column) & encoder_outputs.token_mask[0]]
        for column, name in enumerate(MODALITIES)
        if present[column]
    }


# == From tokens to what a person sees ================================================================================


class Words(NamedTuple):
    """A text as the tokenizer cut it.

    Attributes:
        text: What the spans count in: the user's string, halves of surrogate pairs joined.
        spans: (start, end) of each word in `text`; end before start: nothing but white space.
        word_of_token: Of each token, special ones included; None: special.
    """

    text: str
    spans: list[tuple[int, int]]
    word_of_token: list[int | None]


def find_words(processor, text: str) -> Words:
    """Which characters each token stands for, its subwords joined to words.

    Raises:
        ValueError: When the tokenizer is a slow one, which does not know.
    """
    if not processor.tokenizer.is_fast:
        kind = type(processor.tokenizer).__name__
        raise ValueError(f"the tokenizer, a {kind}, keeps no offsets: leave text out of `details`, or use a fast one")
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # as the processor does
    options = {**processor.text_kwargs, "max_length": processor.max_text_length, "padding": False}
    encoded = processor.tokenizer(text, **{**options, "return_tensors": None}, return_offsets_mapping=True)
    spans, word_of_token, before = [], [], None
    for number, (start, end) in zip(encoded.word_ids(), encoded["offset_mapping"], strict=True):
        if number is None:
            word_of_token.append(None)
            continue
        # Some tokenizers call the whole text one word: white space tells words apart in any case.
        if number == before and not any(map(str.isspace, text[spans[-1][1] : end])):
            spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
        else:
            spans.append((start, end))
        word_of_token.append(len(spans) - 1)
        before = number
    return Words(text, [_trimmed(text, *span) for span in spans], word_of_token)


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    part = text[start:end]
    return start + len(part) - len(part.lstrip()), end - len(part) + len(part.rstrip())


def describe_text(words: Words, scores: torch.Tensor) -> dict:
    """`{"words": [{"text", "start", "end", "score"}]}`; a word's score is the sum over its tokens (T,)."""
    sums = [0.0] * len(words.spans)
    for word, score in zip(words.word_of_token, scores.tolist(), strict=True):
        if word is not None:
            sums[word] += score
    return {
        "words": [
            {"text": words.text[start:end], "start": start, "end": end, "score": score}
            for (start, end), score in zip(words.spans, sums, strict=True)
            if start < end  # some tokenizers have tokens for white space
        ]
    }


def describe_image(processor, picture: Any, scores: torch.Tensor, seen: tuple[int, int]) -> dict:
    """`{"scores", "box", "width", "height"}`: a grid of scores and where it lies on the user's upright picture.

    Args:
        processor: What cut and resized the picture.
        picture: The user's, upright.
        scores: (rows, columns).
        seen: (height, width) of `pixel_values`.
    """
    width, height = picture.size
    box = picture_box(processor.image_processor, width, height, seen)
    return {"scores": scores.tolist(), "box": box, "width": width, "height": height}


def picture_box(image_processor, width: int, height: int, seen: tuple[int, int]) -> list[float] | None:
    """[left, top, right, bottom] of what the model saw, as fractions of the upright picture; padding lies outside.

    None when the image processor's rule for sizes is not one of those that are known here.
    """
    (seen_rows, seen_columns), (columns, rows) = seen, (width, height)
    if image_processor.do_resize:
        columns, rows = _resized(image_processor, width, height)
    is_cut = getattr(image_processor, "do_center_crop", None) or hasattr(image_processor, "crop_pct")
    is_bent = max(abs(columns - seen_columns), abs(rows - seen_rows)) > 1  # a pixel may be lost in rounding
    if not columns or (is_bent and not is_cut):
        return None
    x, y = (1 - seen_columns / columns) / 2, (1 - seen_rows / rows) / 2
    return [x, y, 1 - x, 1 - y]


def _resized(image_processor, width: int, height: int) -> tuple[float, float]:
    """(columns, rows) after resizing and before cropping; zeros where the rule is unknown."""
    size = {key: value for key, value in dict(image_processor.size).items() if value is not None}
    if "height" in size and "width" in size:
        return size["width"], size["height"]
    if "shortest_edge" not in size:
        return 0, 0
    edge, share = size["shortest_edge"], getattr(image_processor, "crop_pct", None)
    if share is not None:  # ConvNeXT's: cut from a larger picture, or bent to a square from 384 on
        if edge >= 384:
            return edge, edge
        edge = int(edge / share)
    scale = edge / min(width, height)
    if "longest_edge" in size:
        scale = min(scale, size["longest_edge"] / max(width, height))
    return width * scale, height * scale


def pooled_pixels(scores: torch.Tensor, patch_size: Any) -> torch.Tensor:
    """Sums of pixel scores (H, W) in a grid: the tower's patches, or at most `MAX_GRID` cells a side."""
    for axis in (0, 1):
        size = scores.shape[axis]
        patch = patch_size[axis] if isinstance(patch_size, Sequence) else patch_size
        num_cells = size // patch if patch and size >= patch else min(MAX_GRID, size)
        cell = (torch.arange(size, device=scores.device) * num_cells // size).clamp(max=num_cells - 1)
        shape = (num_cells, scores.shape[1]) if axis == 0 else (scores.shape[0], num_cells)
        scores = scores.new_zeros(shape).index_add(axis, cell, scores)
    return scores


def token_grid(scores: torch.Tensor, seen: tuple[int, int], patch_size: Any) -> torch.Tensor:
    """Scores (rows, columns) of a picture's tokens (T,), those in front that stand for no place left out.

    Args:
        scores: (T,).
        seen: (height, width) of `pixel_values`.
        patch_size: Of a ViT-like tower; None for feature maps, all of whose tokens have a place.
    """
    num_tokens, (height, width) = len(scores), seen
    if patch_size:
        across, down = patch_size if isinstance(patch_size, Sequence) else (patch_size, patch_size)
        rows, columns = height // across, width // down
        if rows * columns <= num_tokens:
            return scores[num_tokens - rows * columns :].view(rows, columns)
    divisors = [n for n in range(1, num_tokens + 1) if num_tokens % n == 0]
    rows = min(divisors, key=lambda n: abs(math.log(n * n * width / (num_tokens * height))))
    return scores.view(rows, num_tokens // rows)


def num_valid_frames(encoder_outputs: Any) -> int:
    """Audio frames of one row that hear the clip and not its padding."""
    is_audio = encoder_outputs.token_modality == MODALITIES.index("audio")
    return int(encoder_outputs.token_mask[0, is_audio].sum())


def describe_audio(
    audio_config, scores: torch.Tensor, num_samples: int, sampling_rate: int, steps: tuple[int, int] | None = None
) -> dict:
    """`{"segments": [{"start", "end", "score"}], "seconds"}`: stretches without gaps over the whole clip.

    Args:
        audio_config: Of the tower; its strides say how far apart frames are.
        scores: (T,) of the frames that hear the clip.
        num_samples: Of the clip.
        sampling_rate: Hz.
        steps: Samples between the scores and in each of them; None: as the tower's front cuts waveforms.
    """
    hop, field = audio_steps(audio_config) if steps is None else steps
    together = -(-len(scores) // MAX_SEGMENTS)
    # Frames overlap: the border between two lies halfway between their centres.
    borders = [(i * hop + (field - hop) / 2) / sampling_rate for i in range(0, len(scores), together)]
    seconds = num_samples / sampling_rate
    borders = [0.0, *borders[1:], seconds]
    sums = [part.sum().item() for part in scores.split(together)]
    segments = [{"start": a, "end": b, "score": s} for a, b, s in zip(borders, borders[1:], sums, strict=False)]
    return {"segments": segments, "seconds": seconds}
