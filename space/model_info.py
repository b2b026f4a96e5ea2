"""What a stranger may know about the served model; never a path of this machine."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.scored import label_thresholds
from space.options import Options
from space.tasks import can_explain

if TYPE_CHECKING:
    from space.gallery import Gallery


def model_info(pipeline, options: Options, name: str, gallery: "Gallery | None" = None) -> dict[str, Any]:
    """Describe the model as `GET /v1/model` and the page show it.

    Args:
        pipeline: the loaded pipeline.
        options: the limits, and the revision that was asked for.
        name: folder or Hub id that it was loaded from.
        gallery: the rows of its index; None: there is none.
    """
    config, processor = pipeline.model.config, pipeline.processor
    is_folder = Path(name).is_dir()
    return {
        "id": Path(name).resolve().name if is_folder else name,
        "revision": None if is_folder else getattr(config, "_commit_hash", None) or options.revision,
        "modalities": list(processor.modalities),
        "task": getattr(pipeline, "task_name", None),  # the pipeline of an older model has none
        "tasks": list(getattr(pipeline, "task_names", ())),
        "labels": [config.id2label[index] for index in sorted(config.id2label)],
        "problem_type": problem_type(config),
        "thresholds": label_thresholds(config),
        "can_explain": can_explain(pipeline),
        "index": None if gallery is None else {"num_rows": len(gallery)},
        "limits": {
            "max_body_bytes": options.max_body_bytes,
            "max_text_chars": options.max_text_chars,
            "max_text_tokens": processor.max_text_length if "text" in processor.modalities else None,
            "max_audio_seconds": options.max_audio_seconds,
            "heard_audio_seconds": processor.max_audio_seconds if "audio" in processor.modalities else None,
            "max_rows": options.max_rows,
            "timeout_seconds": options.timeout_seconds,
        },
        "metrics": read_metrics(name, options.revision, getattr(pipeline, "task_name", None)),
    }


def problem_type(config) -> str:
    """Name what the model was trained for; a config without the word is read as transformers reads it."""
    if config.problem_type is not None:
        return config.problem_type
    return "regression" if config.num_labels == 1 else "single_label_classification"


def read_metrics(name: str, revision: str | None, task: str | None = None) -> dict[str, Any] | None:
    """Give the metrics of each subset, of one task, from the model's `metrics.json`; None where there is none."""
    from transformers.utils import cached_file

    path = cached_file(
        name, "metrics.json", revision=revision,
        _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False,
    )  # fmt: skip
    if path is None:
        return None
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    content = content if task is None else content["tasks"][task]
    return {"num_rows": content.get("num_rows"), "subsets": content.get("metrics")}
