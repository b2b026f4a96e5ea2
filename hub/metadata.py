"""The YAML head of a model card: what the Hub searches, links and lists.

The only rule that needs a reason is which base models are named there; see `is_hub_id`.
"""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from metrics.subsets import COLUMNS

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

    from hub.facts import FolderFacts

# The Hub has no tag for three modalities at once: the first tower's is the nearest, and the other tags say the rest.
PIPELINE_TAGS = {"text": "text-classification", "image": "image-classification", "audio": "audio-classification"}
# Our metric -> its id among the Hub's metrics, where it has one.
METRIC_IDS = {"micro_f1": "f1", "macro_f1": "f1", "pearson_r": "pearsonr"}
# Models that the Hub knows without an owner; the list is closed, for new ones always have one.
CANONICAL = frozenset(
    f"{family}-{kind}"
    for family, kinds in {
        "albert": "base-v1 base-v2 large-v1 large-v2 xlarge-v1 xlarge-v2 xxlarge-v1 xxlarge-v2",
        "bert": "base-cased base-chinese base-german-cased base-multilingual-cased base-multilingual-uncased "
        "base-uncased large-cased large-uncased",
        "camembert": "base",
        "distilbert": "base-cased base-german-cased base-multilingual-cased base-uncased",
        "distilroberta": "base",
        "roberta": "base large",
        "xlm-roberta": "base large",
    }.items()
    for kind in kinds.split()
)


def card_metadata(facts: "FolderFacts", repo_id: str | None = None) -> "ModelCardData":
    """Give the metadata of a model folder's card; keys that the files say nothing about are left out."""
    from huggingface_hub import ModelCardData

    bases = base_models(facts.training)
    datasets = _hub_datasets(facts.training)
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=PIPELINE_TAGS[facts.modalities[0]],
        tags=["multimodal", *facts.modalities, "mmfusion", facts.problem.replace("_", "-"), "custom_code"],
        license=_one_line(facts.training.get("license")),
        base_model=bases or None,
        base_model_relation="finetune" if bases else None,
        datasets=datasets or None,
        metrics=list(dict.fromkeys(METRIC_IDS.get(n, n) for one in facts.each_task() for n in _metrics(one))),
        model_name=repo_id or facts.name,
        eval_results=[result for one in facts.each_task() for result in _eval_results(one)],
    )


def base_models(training: dict) -> list[str]:
    """Names of the pretrained towers that the Hub can link to, each once."""
    named = (training.get("base_models") or {}).values()
    return list(dict.fromkeys(name for name in named if isinstance(name, str) and is_hub_id(name)))


def is_hub_id(name: str) -> bool:
    """Whether a recorded name is surely one of the Hub: `owner/name`, or a name on the closed list without owners.

    A tower may also come from a local folder, of which only a name is on record. With no slash in it, it could be
    taken for a model of the Hub that it is not; so such a name counts only where it is on the list. Paths (`./bert`,
    `a/b/c`, `models\\bert`) are no ids; a relative path of exactly two parts cannot be told from one, as for
    `from_pretrained` itself.
    """
    return name in CANONICAL or bool(re.fullmatch(r"(?!\.)[\w.-]+/(?!\.)[\w.-]{1,96}", name, flags=re.ASCII))


def _one_line(value: object) -> str | None:
    """Text without line breaks: in YAML they are allowed, but a reader that looks for `---` could stop at one."""
    return None if value is None else " ".join(str(value).split())


def _hub_datasets(training: dict) -> list[str]:
    parts = [(training.get("data") or {}).get(part) or {} for part in ("train", "validation")]
    return list(dict.fromkeys(part["hub_id"] for part in parts if part.get("hub_id")))


def _metrics(facts: "FolderFacts") -> list[str]:
    return [name for name in COLUMNS if name in facts.metrics["metrics"][facts.everything]]


def _eval_results(facts: "FolderFacts") -> "Iterator[EvalResult]":
    """Every subset's metrics over all rows, all modalities first, for that is what a reader looks for.

    The Hub lists results by data set, so the subset stands in the metric's name and, for programs, in its arguments.
    So does the task of a model with several.
    """
    from huggingface_hub import EvalResult

    data = (facts.training.get("data") or {}).get("validation") or {}
    kind = "regression" if facts.problem == "regression" else "classification"
    task = PIPELINE_TAGS[facts.modalities[0]]
    named = {} if facts.task is None else {"task": _one_line(facts.task)}
    for subset, values in reversed(facts.metrics["metrics"].items()):
        for name in _metrics(facts):
            if values.get(name) is not None:
                yield EvalResult(
                    task_type=task,
                    task_name=f"Multimodal {kind}",
                    dataset_type=data.get("hub_id") or "unknown",  # what others write for a table that is not there
                    dataset_name=_one_line(data.get("name", "held-out rows")),
                    dataset_revision=data.get("revision"),
                    metric_type=METRIC_IDS.get(name, name),
                    metric_name=f"{COLUMNS[name][0]} ({', '.join([*named.values(), subset])})",
                    metric_value=values[name],
                    metric_args={"modalities": subset, **named},
                )
