"""A raw sample, any part of it missing, to ranked labels and why: `pipeline(model=folder, trust_remote_code=True)`.

Unusual here: `preprocess` only opens the cells of one sample, and the processor runs on whole batches. The stock
pipeline pads finished rows together, which would need every row to have the same modalities.

This file travels to the Hub beside the weights; of the repository's files it imports the explanations alone.
"""

import collections.abc
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import Pipeline
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator

try:
    from .explanation_mmfusion import FUNCTIONS, contributions, explain_rows, ranked_labels, score_function, scores_of
except ImportError:
    if __package__:  # inside the Hub cache this is a real failure: show it
        raise
    from explanation_mmfusion import FUNCTIONS, contributions, explain_rows, ranked_labels, score_function, scores_of

TASK = "multimodal-classification"


class MMFusionPipeline(Pipeline):
    """Classifies samples of text, picture and sound.

    Example:

    ```python
    classify = pipeline(model="folder", trust_remote_code=True)
    classify({"text": "seven", "audio": "seven.wav"}, top_k=2)
    # [{"label": "7", "score": 0.98}, {"label": "1", "score": 0.01}]
    ```
    """

    _load_processor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_feature_extractor = False

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """Ranks the labels for one sample or many.

        Args:
            inputs: A dict with any of "text" (string), "image" (path, bytes or PIL image, never a URL) and "audio"
                (path, bytes or {"array", "sampling_rate"}), or a list, data set or generator of such dicts. A missing
                key, None and blank text are the same: that modality is absent.
            **kwargs: `top_k`, number of labels returned, all by default; `function_to_apply`, one of softmax, sigmoid
                and none, by default what the model was trained for; `batch_size`; `num_workers`.

        Returns:
            For a dict, a list of {"label", "score"}, best first; for many, a list (or generator) of such lists.

        Raises:
            ValueError: No modality, an unknown key, a modality the model lacks, or a cell that cannot be opened.
            FileNotFoundError: No file at a path.
        """
        if isinstance(inputs, (list, tuple)):
            inputs = list(inputs)
            if not inputs:
                return []
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(
        self, top_k: int | None = None, function_to_apply: str | None = None
    ) -> tuple[dict, dict, dict]:
        if top_k is not None:
            _check_count("top_k", top_k)
        if function_to_apply is not None and function_to_apply not in FUNCTIONS:
            raise ValueError(f"`function_to_apply` is {function_to_apply!r}; allowed are {', '.join(FUNCTIONS)}")
        given = {"top_k": top_k, "function_to_apply": function_to_apply}
        return {}, {}, {name: value for name, value in given.items() if value is not None}

    def preprocess(self, sample: Mapping) -> dict[str, Any]:
        """Opens the cells of one sample; what is absent stays None."""
        self._check_sample(sample)
        text, image, audio = (sample.get(name) for name in ("text", "image", "audio"))
        return {
            "text": text,
            "images": None if image is None else self.processor.decode_image(image),
            "audio": None if audio is None else self.processor.decode_audio(audio),
        }

    def _check_sample(self, sample: Any) -> None:
        if not isinstance(sample, Mapping):
            raise ValueError(
                f'a sample is a dict such as {{"text": …, "image": …, "audio": …}}, got {type(sample).__name__}'
            )
        known = ("text", "image", "audio")
        if unknown := [key for key in sample if key not in known]:
            raise ValueError(f"unknown key in a sample: {unknown[0]!r}; allowed are {', '.join(known)}")
        text = sample.get("text")
        if text is not None and not isinstance(text, str):
            raise ValueError(f'"text" is of type {type(text).__name__}; allowed is a string')
        present = [name for name in known if sample.get(name) is not None]
        if text is not None and not text.strip():
            present.remove("text")
        if not present:
            raise ValueError(f"an empty sample: give at least one of {', '.join(self.processor.modalities)}")
        if lacking := [name for name in present if name not in self.processor.modalities]:
            raise ValueError(
                f'"{lacking[0]}" was given, but this model reads only {", ".join(self.processor.modalities)};'
                " leave it out"
            )

    def _collate(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        columns = {name: [sample[name] for sample in samples] for name in ("text", "images", "audio")}
        return dict(self.processor(**columns, sampling_rate=self.processor.audio_sampling_rate, return_tensors="pt"))

    def _forward(self, model_inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"logits": self.model(**model_inputs).logits}

    def postprocess(
        self, model_outputs: dict[str, torch.Tensor], top_k: int | None = None, function_to_apply: str | None = None
    ) -> list[dict[str, Any]]:
        """Scores and ranks the labels of one sample."""
        config = self.model.config
        scores = scores_of(model_outputs["logits"][0].float(), function_to_apply or score_function(config))
        if not torch.isfinite(scores).all():
            raise ValueError("the model answered with NaN or infinite scores; its weights are damaged or overflow")
        return ranked_labels(scores, config.id2label)[:top_k]

    def run_single(self, inputs: Any, preprocess_params: dict, forward_params: dict, postprocess_params: dict) -> list:
        batch = self._collate([self.preprocess(inputs, **preprocess_params)])
        return self.postprocess(self.forward(batch, **forward_params), **postprocess_params)

    def get_iterator(
        self,
        inputs: Any,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict,
        forward_params: dict,
        postprocess_params: dict,
    ) -> PipelineIterator:
        """As in the base class, with our own collation of a batch."""
        if isinstance(inputs, collections.abc.Sized):
            dataset = PipelineDataset(inputs, self.preprocess, preprocess_params)
        else:
            num_workers = min(num_workers, 1)  # several workers would each walk the whole generator
            dataset = PipelineIterator(inputs, self.preprocess, preprocess_params)
        batches = DataLoader(dataset, num_workers=num_workers, batch_size=batch_size, collate_fn=self._collate)
        outputs = PipelineIterator(batches, self.forward, forward_params, loader_batch_size=batch_size)
        return PipelineIterator(outputs, self.postprocess, postprocess_params)

    # -- why ---------------------------------------------------------------------------------------------------------

    def explain(
        self,
        inputs: Mapping | Iterable[Mapping],
        *,
        label: str | int | None = None,
        details: bool | Sequence[str] = True,
        method: str = "integrated_gradients",
        num_steps: int = 32,
        top_k: int | None = None,
        batch_size: int = 8,
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Says why one sample, or each of many, got its label: what each modality gave, and what mattered inside it.

        The towers run once for everything about whole modalities, which includes the answers from every subset; the
        model is not changed, and may be used by other threads meanwhile.

        Args:
            inputs: A sample as `__call__` takes it, or an iterable of them.
            label: Which label to explain, by name or number; None: each sample's best.
            details: Whether to look inside the modalities, or the names of those to look into. Each sample with
                details costs several forward passes.
            method: "integrated_gradients" (signed shares of the score's change; needs `captum`) or "attention" (where
                the fusion looked, the same for every label, never negative).
            num_steps: Points on the path of integrated gradients.
            top_k: Labels that each subset lists; None: all.
            batch_size: Samples whose towers run together.

        Returns:
            For a dict one explanation, for many a list of them, ready for JSON:

            - "label", "score": what is explained, and its score with all that the sample has.
            - "baseline": its score with nothing given. "function": "softmax", "sigmoid" or "none", how logits became
              scores.
            - "modalities": {"text": 0.41, "image": -0.02, "audio": None}, one entry for each that the model reads:
              exact Shapley values, which sum up to score - baseline; None where the sample lacks the modality.
            - "subsets": {"text": [{"label", "score"}, …], …, "text+image": […]}, what each subset of the given
              modalities says, best first; the last one is the plain prediction.
            - "disagreement": a sentence when two modalities alone say different things, else None.
            - "method": as asked for, None without details.
            - "text": {"words": [{"text", "start", "end", "score"}]}, characters `start` to `end` of the string.
            - "image": {"scores": [[…]], "box": [left, top, right, bottom] or None, "width", "height"}; the grid of
              scores lies over `box`, in fractions of the upright picture of width x height pixels (below 0 or above
              1: padding; None: not known).
            - "audio": {"segments": [{"start", "end", "score"}], "seconds"}, in seconds, without gaps.
            - "completeness": {"sum", "difference", "error", "num_steps", "is_complete", "warning"} of integrated
              gradients: the scores of all details together, and the change of the label's score that they should sum
              up to; "warning" is a sentence when they are off by more than 5 %, else None.

            The last four are None where they were not asked for or the modality is absent.

        Raises:
            ValueError: As `__call__`, and for an unknown label, modality, method or number.
            ImportError: Integrated gradients without `captum`.
        """
        is_single = isinstance(inputs, Mapping)
        options = {"label": label, "details": details, "method": method, "num_steps": num_steps, "top_k": top_k}
        _check_count("batch_size", batch_size)
        if top_k is not None:
            _check_count("top_k", top_k)
        samples = [inputs] if is_single else list(inputs)
        answers = []
        for first in range(0, len(samples), batch_size):
            cells = [self.preprocess(sample) for sample in samples[first : first + batch_size]]
            with self.device_placement(), torch.inference_mode(False):
                answers += explain_rows(self.model, self.processor, cells, self._collate_on_device, **options)
        return answers[0] if is_single else answers

    def explain_batch(self, model_inputs: Mapping, label: str | int | None = None) -> dict[str, torch.Tensor]:
        """The modalities' shares for a ready batch, as tensors on the CPU: what a whole table is explained with.

        Args:
            model_inputs: From the processor.
            label: As for `explain`.

        Returns:
            `scores` (B, L); `labels` (B,), numbers of the explained labels; `contributions` (B, 3), columns text,
            image, audio, NaN where a row lacks the modality.
        """
        with self.device_placement(), torch.inference_mode(False):
            return contributions(self.model, self.ensure_tensor_on_device(**model_inputs), label)

    def _collate_on_device(self, cells: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return self.ensure_tensor_on_device(**self._collate(cells))


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"`{name}` is {value!r}; allowed are whole numbers from 1")


__all__ = ["TASK", "MMFusionPipeline"]
