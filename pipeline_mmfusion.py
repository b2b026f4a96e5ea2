"""A raw sample, any part of it missing, to ranked labels: `pipeline(model=folder, trust_remote_code=True)`.

Unusual here: `preprocess` only opens the cells of one sample, and the processor runs on whole batches. The stock
pipeline pads finished rows together, which would need every row to have the same modalities.

This file travels to the Hub beside the weights, so it imports no other file of the repository.
"""

import collections.abc
import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import Pipeline
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator

TASK = "multimodal-classification"
FUNCTIONS = ("softmax", "sigmoid", "none")


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
        if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
            raise ValueError(f"`top_k` is {top_k!r}; allowed are whole numbers from 1, or None for all labels")
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
        scores = _scores(model_outputs["logits"][0].float(), function_to_apply or self._default_function())
        if not torch.isfinite(scores).all():
            raise ValueError("the model answered with NaN or infinite scores; its weights are damaged or overflow")
        labels = self.model.config.id2label
        ranked = [{"label": labels[i], "score": score} for i, score in enumerate(scores.tolist())]
        ranked.sort(key=lambda entry: entry["score"], reverse=True)
        return ranked[:top_k]

    def _default_function(self) -> str:
        config = self.model.config
        if config.problem_type == "multi_label_classification":
            return "sigmoid"
        return "none" if config.problem_type == "regression" or config.num_labels == 1 else "softmax"

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


def _scores(logits: torch.Tensor, function: str) -> torch.Tensor:
    functions = {"softmax": functools.partial(torch.softmax, dim=-1), "sigmoid": torch.sigmoid, "none": torch.clone}
    return functions[function](logits)


__all__ = ["TASK", "MMFusionPipeline"]
