"""A raw sample, any part of it missing, to ranked labels and why: `pipeline(model=folder, trust_remote_code=True)`.

Unusual here: `preprocess` only opens the cells of one sample, and the processor runs on whole batches. The stock
pipeline pads finished rows together, which would need every row to have the same modalities.

This file travels to the Hub beside the weights; of the repository's files it imports the cells and the explanations.
"""

import collections.abc
import copy
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers import Pipeline
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator

try:
    from .cells_mmfusion import is_row, rows_of, sample_of_row
    from .explanation_mmfusion import (
        FUNCTIONS,
        MODALITIES,
        contributions,
        disagreement,
        explain_methods,
        explain_rows,
        is_predicted,
        label_number,
        ranked_labels,
        score_function,
        scores_of,
    )
except ImportError:
    if __package__:  # inside the Hub cache this is a real failure: show it
        raise
    from cells_mmfusion import is_row, rows_of, sample_of_row
    from explanation_mmfusion import (
        FUNCTIONS,
        MODALITIES,
        contributions,
        disagreement,
        explain_methods,
        explain_rows,
        is_predicted,
        label_number,
        ranked_labels,
        score_function,
        scores_of,
    )

TASK = "multimodal-classification"
OPINION_THRESHOLD = 0.5


class MMFusionPipeline(Pipeline):
    """Classifies samples of text, picture and sound.

    Example:

    ```python
    classify = pipeline(model="folder", trust_remote_code=True)
    classify({"text": "seven", "audio": "seven.wav"}, top_k=2)
    # [{"label": "7", "score": 0.98}, {"label": "1", "score": 0.01}]
    ```

    Args:
        model: The classifier.
        task_name: Of a model with several tasks, the one to answer; None: all of them.
        **kwargs: As for `transformers.Pipeline`.

    Attributes:
        task_name: The task that is answered, of a model with several; else None.
        task_names: All tasks of such a model.
    """

    _load_processor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_feature_extractor = False

    def __init__(self, model: Any, task_name: str | None = None, **kwargs: Any):
        self.task_name, self.task_names = task_name, tuple(task["name"] for task in model.config.tasks or ())
        super().__init__(model if task_name is None else model.for_task(task_name), **kwargs)

    def for_task(self, name: str) -> "MMFusionPipeline":
        """This pipeline for one of the model's tasks, as if it had no others; the weights are shared."""
        one = copy.copy(self)
        one.model, one.task_name = self.model.for_task(name), name
        return one

    def __call__(self, inputs: Any = None, **kwargs: Any) -> Any:
        """Ranks the labels for one sample or many.

        Args:
            inputs: A dict with any of "text" (string), "image" or "images" (path, bytes, PIL image or array, never a
                URL) and "audio" (path, bytes, {"array", "sampling_rate"} or a decoder of torchcodec); media may be
                undecoded, {"bytes", "path"}. Or many of them: a list, a `datasets.Dataset`, any other data set or
                iterable, a DataFrame. A missing key, None, NaN, `pandas.NA` and a blank string are the same: that
                modality is absent. Other keys, such as a label, are ignored, unless they look like a misspelt one.
            **kwargs: `top_k`, number of labels returned, all by default; `function_to_apply`, one of softmax, sigmoid
                and none, by default what the model was trained for; `reject_below`, a probability below which the
                answer is that there is none; `opinions`, whether to say what each modality by itself says, and
                whether they disagree; `opinion_threshold`, from which probability one has a say in that, 0.5 by
                default; `task_name`, of a model with several tasks the one to answer, all by default; `batch_size`;
                `num_workers`.

        Returns:
            For a dict, a list of {"label", "score"}, best first; for a list or a DataFrame, a list of such lists; for
            a data set or an iterable, an iterator over them.

            Of a multi-label model all labels are listed; those whose score reaches `model.config.thresholds`, by
            default 0.5, are predicted.

            An answer that `reject_below` refuses is [{"label": None, "score"}]: the score is the best label's
            probability, of a multi-label model that of its least sure yes or no.

            With `opinions`, in place of each list {"labels": the list, "opinions": {"text": such a list of what the
            text by itself says, …}, "disagrees": bool, "disagreement": a sentence or None}. It is asked of the
            modalities' own heads where the model has them, else of the fusion, with one modality at a time.

            Of several tasks, where none is named, in place of each of these {"task": what there would be for it, …}.

        Raises:
            ValueError: No modality, a misspelt key, a modality the model lacks, or a cell that cannot be opened; an
                option out of its range, or probabilities are needed and the model predicts numbers.
            FileNotFoundError: No file at a path.
        """
        if inputs is None and kwargs.keys() & {"text", "image", "images", "audio"}:
            raise TypeError('a sample is given as one dict, as in `classify({"text": "…", "image": "a.png"})`')
        if (task_name := kwargs.pop("task_name", None)) is not None:
            return self.for_task(task_name)(inputs, **kwargs)
        if is_row(inputs) or isinstance(inputs, (str, bytes)):
            return super().__call__(inputs, **kwargs)
        rows = rows_of(inputs)
        if isinstance(rows, list):
            return super().__call__(rows, **kwargs) if rows else []
        if hasattr(rows, "__getitem__") and hasattr(rows, "__len__"):
            return super().__call__(_RowDataset(rows), **kwargs)
        if isinstance(rows, collections.abc.Iterable):
            return super().__call__(_RowStream(rows), **kwargs)
        return super().__call__(rows, **kwargs)

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Save model, processor and code; with `push_to_hub` push them, too, in one commit.

        Args:
            save_directory: Folder, made where there is none.
            push_to_hub: Whether to push to `repo_id`, by default the name of the folder.
            **kwargs: For `model.save_pretrained`, or with `push_to_hub` for the method of this name.
        """
        # The base class saves parts of the processor by themselves, one over the other, and not the processor.
        self.model.save_pretrained(save_directory, **({} if push_to_hub else kwargs))
        self.processor.save_pretrained(save_directory)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", os.path.basename(os.path.normpath(save_directory))), **kwargs)

    def _sanitize_parameters(
        self,
        top_k: int | None = None,
        function_to_apply: str | None = None,
        reject_below: float | None = None,
        opinions: bool | None = None,
        opinion_threshold: float | None = None,
        **unknown: Any,
    ) -> tuple[dict, dict, dict]:
        if unknown:
            known = ("top_k", "function_to_apply", "reject_below", "opinions", "opinion_threshold", "task_name")
            raise TypeError(f"`{next(iter(unknown))}` is not an option of the pipeline; allowed: {', '.join(known)}")
        if top_k is not None:
            _check_count("top_k", top_k)
        if function_to_apply is not None and function_to_apply not in FUNCTIONS:
            raise ValueError(f"`function_to_apply` is {function_to_apply!r}; allowed are {', '.join(FUNCTIONS)}")
        for task in self.model.config.each_task():
            where = "here" if task.name is None else f"in the task `{task.name}`"
            function = function_to_apply or score_function(task.config)
            _check_share("reject_below", reject_below, function, where)
            _check_share("opinion_threshold", opinion_threshold, function, where)
            _check_share("opinions", 0 if opinions else None, score_function(task.config), where)
        given = {
            "top_k": top_k, "function_to_apply": function_to_apply, "reject_below": reject_below,
            "opinion_threshold": opinion_threshold,
        }  # fmt: skip
        given = {name: value for name, value in given.items() if value is not None}
        return {}, {} if opinions is None else {"opinions": opinions}, given

    def preprocess(self, sample: Mapping) -> dict[str, Any]:
        """Opens the cells of one sample; what is absent stays None."""
        cells = sample_of_row(sample)
        self._check_cells(cells)
        image, audio = cells.get("image"), cells.get("audio")
        return {
            "text": cells.get("text"),
            "images": None if image is None else self.processor.decode_image(image),
            "audio": None if audio is None else self.processor.decode_audio(audio),
        }

    def _check_cells(self, cells: dict[str, Any]) -> None:
        if not isinstance(text := cells.get("text", ""), str):
            advice = ": give a list of samples, each a dict" if isinstance(text, (list, tuple)) else ""
            raise ValueError(f'"text" is of type {type(text).__name__}; allowed is a string{advice}')
        if not cells:
            raise ValueError(f"an empty sample: give at least one of {', '.join(self.processor.modalities)}")
        if lacking := [name for name in cells if name not in self.processor.modalities]:
            raise ValueError(
                f'"{lacking[0]}" was given, but this model reads only {", ".join(self.processor.modalities)};'
                " leave it out"
            )

    def _collate(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        columns = {name: [sample[name] for sample in samples] for name in ("text", "images", "audio")}
        return dict(self.processor(**columns, sampling_rate=self.processor.audio_sampling_rate, return_tensors="pt"))

    def _forward(self, model_inputs: dict[str, torch.Tensor], opinions: bool = False) -> dict[str, torch.Tensor]:
        if not opinions:
            return {"logits": self.model(**model_inputs).logits}
        encoded = self.model.encode(**model_inputs)
        output = self.model(encoder_outputs=encoded)
        return {
            "logits": output.logits,
            "alone": logits_alone(self.model, encoded, output.unimodal_logits),
            "presence": encoded.modality_mask,
        }

    def postprocess(self, model_outputs: dict[str, torch.Tensor], **options: Any) -> list[dict[str, Any]] | dict:
        """Scores and ranks the labels of one sample, of several tasks those of each."""
        if self.model.config.tasks is None:
            return self._answer(model_outputs, **options)
        answers = {}
        for task in self.model.config.each_task():
            own = {name: x if name == "presence" else x[..., task.outputs] for name, x in model_outputs.items()}
            answers[task.name] = self.for_task(task.name)._answer(own, **options)
        return answers

    def _answer(
        self,
        model_outputs: dict[str, torch.Tensor],
        top_k: int | None = None,
        function_to_apply: str | None = None,
        reject_below: float | None = None,
        opinion_threshold: float = OPINION_THRESHOLD,
    ) -> list[dict[str, Any]] | dict[str, Any]:
        function = function_to_apply or score_function(self.model.config)
        scores = scores_of(model_outputs["logits"][0].float(), function)
        if not torch.isfinite(scores).all():
            raise ValueError("the model answered with NaN or infinite scores; its weights are damaged or overflow")
        labels = ranked_labels(scores, self.model.config.id2label)[:top_k]
        if reject_below is not None and (sure := sureness(scores, function, self.model.config)) < reject_below:
            labels = [{"label": None, "score": sure}]
        if "alone" not in model_outputs:
            return labels
        function = score_function(self.model.config)
        alone = scores_of(model_outputs["alone"][0].float(), function)  # (M, L)
        said = {name: alone[i] for i, name in enumerate(MODALITIES) if model_outputs["presence"][0, i]}
        return {"labels": labels, **self._opinions(said, function, opinion_threshold, top_k)}

    def _opinions(
        self, said: dict[str, torch.Tensor], function: str, threshold: float, top_k: int | None
    ) -> dict[str, Any]:
        names = self.model.config.id2label
        ranked = {name: ranked_labels(scores, names) for name, scores in said.items()}
        asked, label = confident(said, function, threshold, self.model.config)
        sentence = disagreement(self.model, {name: ranked[name] for name in asked}, names[label])
        return {
            "opinions": {name: entries[:top_k] for name, entries in ranked.items()},
            "disagrees": sentence is not None,
            "disagreement": sentence,
        }

    def opinions_batch(
        self, model_inputs: Mapping, opinion_threshold: float = OPINION_THRESHOLD
    ) -> dict[str, torch.Tensor]:
        """Answers and what each modality by itself says of a ready batch, on the CPU: for whole tables.

        Args:
            model_inputs: From the processor.
            opinion_threshold: As for `__call__`.

        Returns:
            `scores` (B, L); `opinions` (B, 3, L), columns text, image, audio, NaN where a row lacks the modality;
            `disagrees` (B,) True where they disagree.
        """
        self._refuse_several_tasks()
        function = score_function(self.model.config)
        _check_share("opinion_threshold", opinion_threshold, function)
        with self.device_placement(), torch.no_grad():
            outputs = self._forward(self.ensure_tensor_on_device(**model_inputs), opinions=True)
        outputs = {name: value.cpu() for name, value in outputs.items()}
        alone = scores_of(outputs["alone"].double(), function)
        rows = [
            {name: scores[i] for i, name in enumerate(MODALITIES) if presence[i]}
            for scores, presence in zip(alone, outputs["presence"], strict=True)
        ]
        return {
            "scores": scores_of(outputs["logits"].double(), function),
            "opinions": alone.masked_fill(~outputs["presence"][..., None], float("nan")),
            "disagrees": torch.tensor(
                [self._opinions(said, function, opinion_threshold, 1)["disagrees"] for said in rows]
            ),
        }

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

    @property
    def explain_methods(self) -> tuple[str, ...]:
        """What `explain` takes as `method` for this model: not every fusion has attention."""
        return explain_methods(self.model.config)

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
            label: Which label to explain, by name or number; None: each sample's best. Of several tasks
                `"task: label"`, as in the model's `id2label`, or a task's name for its best label; None: each task's.
            details: Whether to look inside the modalities, or the names of those to look into. Each sample with
                details costs several forward passes.
            method: "integrated_gradients" (signed shares of the score's change; needs `captum`) or "attention" (where
                the fusion looked, the same for every label, never negative; of the fusions `cross_attention`,
                `bottleneck` and `pairwise`).
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

            Of several tasks, where none is named, {"task": such a dict, …} in place of each.

        Raises:
            ValueError: As `__call__`, and for an unknown label, modality, method or number.
            ImportError: Integrated gradients without `captum`.
        """
        is_single = is_row(inputs)
        options = {"label": label, "details": details, "method": method, "num_steps": num_steps, "top_k": top_k}
        _check_count("batch_size", batch_size)
        if top_k is not None:
            _check_count("top_k", top_k)
        samples = [inputs] if is_single else list(rows_of(inputs))
        if self.model.config.tasks is not None:
            answers = self._explain_tasks(samples, batch_size=batch_size, **options)
            return answers[0] if is_single else answers
        answers = []
        for first in range(0, len(samples), batch_size):
            cells = [self.preprocess(sample) for sample in samples[first : first + batch_size]]
            with self.device_placement(), torch.inference_mode(False):
                answers += explain_rows(self.model, self.processor, cells, self._collate_on_device, **options)
        return answers[0] if is_single else answers

    def _explain_tasks(self, samples: list[Mapping], label: str | int | None, **options: Any) -> list[dict[str, Any]]:
        """As `explain`, for a model with several tasks."""
        if label is None:
            each = {name: self.for_task(name).explain(samples, **options) for name in self.task_names}
            return [dict(zip(each, rows, strict=True)) for rows in zip(*each.values(), strict=True)]
        if label in self.task_names:
            return self.for_task(label).explain(samples, **options)
        number = label_number(self.model.config, label)
        task = next(task for task in self.model.config.each_task() if number < task.outputs.stop)
        return self.for_task(task.name).explain(samples, label=number - task.outputs.start, **options)

    def _refuse_several_tasks(self) -> None:
        if self.model.config.tasks is not None:
            raise ValueError(
                f"this model has the tasks {', '.join(self.task_names)}: ask for one of them, as in "
                f"`for_task({self.task_names[0]!r})`"
            )

    def explain_batch(self, model_inputs: Mapping, label: str | int | None = None) -> dict[str, torch.Tensor]:
        """The modalities' shares for a ready batch, as tensors on the CPU: what a whole table is explained with.

        Args:
            model_inputs: From the processor.
            label: As for `explain`.

        Returns:
            `scores` (B, L); `labels` (B,), numbers of the explained labels; `contributions` (B, 3), columns text,
            image, audio, NaN where a row lacks the modality.
        """
        self._refuse_several_tasks()
        with self.device_placement(), torch.inference_mode(False):
            return contributions(self.model, self.ensure_tensor_on_device(**model_inputs), label)

    def _collate_on_device(self, cells: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return self.ensure_tensor_on_device(**self._collate(cells))


class _RowDataset(Dataset):
    """Rows with numbers, whoever made them, as the base class knows a data set."""

    def __init__(self, rows: Any):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Any:
        return self.rows[number]


class _RowStream(IterableDataset):
    """Rows without numbers; some versions of the base class would make a list of a generator."""

    def __init__(self, rows: Iterable):
        self.rows = rows

    def __iter__(self) -> Iterator:
        return iter(self.rows)


# -- what a modality says by itself -----------------------------------------------------------------------------------


def logits_alone(model, encoder_outputs: Any, unimodal_logits: torch.Tensor | None) -> torch.Tensor:
    """What each modality by itself says (B, M, L), 0 where a row lacks it.

    Args:
        model: The classifier.
        encoder_outputs: From `model.encode`.
        unimodal_logits: (B, M, L) of the modalities' own heads; None: the fusion is asked, with one at a time.
    """
    presence, config = encoder_outputs.modality_mask, model.config
    if unimodal_logits is not None:
        divisors = torch.ones_like(unimodal_logits[0])
        for task in config.each_task():
            for row, name in enumerate(MODALITIES):
                divisors[row, task.outputs] = (task.config.unimodal_temperatures or {}).get(name, 1.0)
        return unimodal_logits / divisors
    masks = torch.eye(len(MODALITIES), dtype=torch.long, device=presence.device)
    each = [
        model(encoder_outputs=encoder_outputs, modality_mask=mask.expand_as(presence)).logits
        if name in config.modalities
        else torch.zeros(len(presence), config.num_labels, device=presence.device, dtype=encoder_outputs.tokens.dtype)
        for name, mask in zip(MODALITIES, masks, strict=True)
    ]
    return torch.stack(each, dim=1) * presence[..., None]


def confident(said: dict[str, torch.Tensor], function: str, threshold: float, config) -> tuple[list[str], int]:
    """Which modalities are sure enough to have a say, and the label that they may disagree about.

    Args:
        said: Modality -> scores (L,) of what it says by itself.
        function: How logits became scores.
        threshold: Of one of several classes its probability, of a yes or no that of the answer given.
        config: Of the model.

    Returns:
        (Names, number of the label); with a sigmoid it is a label on which they say yes and no, where there is one,
        and of these, or else of all, that on which their answers lie farthest apart.
    """
    table = torch.stack([*said.values()])  # (modalities that are there, L)
    if function == "softmax":
        return [name for name, scores in said.items() if scores.max() >= threshold], int(table[0].argmax())
    says_yes = is_predicted(table, config)
    sure = torch.where(says_yes, table, 1 - table) >= threshold
    apart = table.masked_fill(~sure, 0.0).amax(dim=0) - table.masked_fill(~sure, 1.0).amin(dim=0)  # at most 1
    is_opposed = (sure & says_yes).any(dim=0) & (sure & ~says_yes).any(dim=0)
    label = int((apart + 2.0 * is_opposed).argmax())
    return [name for name, is_sure in zip(said, sure[:, label].tolist(), strict=True) if is_sure], label


def sureness(scores: torch.Tensor, function: str, config) -> float:
    """How sure an answer (L,) is: the best label's probability; of yes and no for each label, the least sure one's.

    A yes is as sure as its label is probable, even where a threshold below 0.5 makes it a yes.
    """
    if function == "softmax":
        return scores.max().item()
    return torch.where(is_predicted(scores, config), scores, 1 - scores).min().item()


def _check_share(name: str, value: Any, function: str, where: str = "here") -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"`{name}` is {value!r}; allowed are numbers from 0 to 1")
    if function == "none":
        raise ValueError(f"`{name}` needs probabilities, and {where} the answers are plain numbers; leave it out")


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"`{name}` is {value!r}; allowed are whole numbers from 1")


__all__ = ["TASK", "MMFusionPipeline"]
