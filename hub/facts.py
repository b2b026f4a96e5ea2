"""What the files of a model folder say, read and checked before a word of a card is written.

Older folders lack some keys of `training_config.json` and `metrics.json`; that is allowed. What is there must be what
it should be: a broken file is said by its name, and results of another model never come under this model's name.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

from hub.export import code_files, read_json
from metrics.comparison import WAYS
from metrics.subsets import METRIC_MODULES, modality_subsets, problem_type, subset_name

PROCESSOR = "processor_config.json"
SEVERAL = "multi_task"  # in place of a problem type
TOWERS = {"text": "text_config", "image": "vision_config", "audio": "audio_config"}


@dataclass(frozen=True)
class FolderFacts:
    """What the files of a model folder say, read and checked.

    Attributes:
        name: Name of the folder, or of its repository.
        config: Content of `config.json`.
        training: Content of `training_config.json`; older ones lack keys.
        metrics: Content of `metrics.json`; older ones lack keys.
        processor: Content of `processor_config.json`; empty where the folder has none.
        labels: Names of the model's outputs, in their order; of one task those of the task.
        modalities: Those the model has a tower for, in the order text, image, audio.
        problem: A problem type of `transformers`; of a model with several tasks `SEVERAL`.
        code_files: Names of the Python files that are run by whoever loads the model.
        task: The task that the others are about, of a model with several; None: all that there is.
        prefix: What the names of its pictures begin with.
    """

    name: str
    config: dict
    training: dict
    metrics: dict
    processor: dict
    labels: tuple[str, ...]
    modalities: tuple[str, ...]
    problem: str
    code_files: tuple[str, ...]
    task: str | None = None
    prefix: str = ""

    def each_task(self) -> list["FolderFacts"]:
        """What the files say of each task, as they would of a model of this task alone."""
        tasks = self.config.get("tasks")
        if tasks is None:
            return [self]
        return [
            replace(
                self, task=task["name"], labels=tuple(task["labels"]), problem=task["problem_type"],
                metrics=self.metrics["tasks"][task["name"]], config={**self.config, **task}, prefix=f"task{number}_",
            )
            for number, task in enumerate(tasks, start=1)
        ]  # fmt: skip

    @property
    def everything(self) -> str:
        """Name of the subset of all modalities."""
        return subset_name(self.modalities)


def read_facts(folder: Path, repo_id: str | None = None) -> FolderFacts:
    """Read the JSON files of a model folder and check that they are what a card needs."""
    config, training, metrics = (
        _existing(folder, name) for name in ("config.json", "training_config.json", "metrics.json")
    )
    processor = _existing(folder, PROCESSOR) if (folder / PROCESSOR).is_file() else {}
    modalities = tuple(name for name, field in TOWERS.items() if config.get(field))
    if config.get("model_type") != "mmfusion" or not modalities:
        raise ValueError(
            f"`{folder / 'config.json'}` is not of an MMFusion model: give a folder that `train.py` wrote."
        )
    labels = _label_names(folder, config)
    problem = problem_type(SimpleNamespace(problem_type=config.get("problem_type"), num_labels=len(labels)))
    _check_training(folder / "training_config.json", training)
    if config.get("tasks") is not None:
        _check_tasks(folder, config["tasks"], metrics)
        problem = SEVERAL
    facts = FolderFacts(
        name=repo_id.split("/")[-1] if repo_id else folder.resolve().name,
        config=config,
        training=training,
        metrics=metrics,
        processor=processor,
        labels=labels,
        modalities=modalities,
        problem=problem,
        code_files=tuple(sorted(code_files(folder, config, processor))),
    )
    for one in facts.each_task():
        _check_results(folder / "metrics.json", one)
    return facts


def _check_results(path: Path, facts: FolderFacts):
    """Refuse results, of one task, that are not of this model."""
    metrics, modalities, problem = facts.metrics, facts.modalities, facts.problem
    _check_metrics(path, metrics, modalities, problem)
    _check_confidence(path, metrics, modalities)
    _check_baselines(path, metrics.get("baselines"), modalities, problem)
    if len(metrics.get("confusion_matrix", facts.labels)) != len(facts.labels):
        raise ValueError(f"`{path}`: `confusion_matrix` is not of the {len(facts.labels)} labels.")


def _check_tasks(folder: Path, tasks: object, metrics: dict):
    keys = {"name", "labels", "problem_type"}
    if not isinstance(tasks, list) or not all(_is_dict(task) and keys <= set(task) for task in tasks):
        raise ValueError(f"`{folder / 'config.json'}`: `tasks` is no list of objects with {', '.join(sorted(keys))}.")
    found, names = metrics.get("tasks"), [task["name"] for task in tasks]
    if not _is_dict(found) or not all(_is_dict(found.get(name)) for name in names):
        raise ValueError(
            f"`{folder / 'metrics.json'}` does not hold `tasks` with results of {', '.join(names)}, the tasks of this "
            "model: let `train.py` or `evaluation.py --output_file` write it."
        )


def _existing(folder: Path, name: str) -> dict:
    if not (folder / name).is_file():
        raise FileNotFoundError(
            f"`{folder / name}` is not there: a card needs it. Give a folder that `train.py` wrote."
        )
    return read_json(folder, name)


def _label_names(folder: Path, config: dict) -> tuple[str, ...]:
    id2label = config.get("id2label", {"0": "LABEL_0", "1": "LABEL_1"})  # `transformers` leaves its default out
    if not isinstance(id2label, dict) or not id2label or not all(key.isdecimal() for key in id2label):
        raise ValueError(f"`{folder / 'config.json'}`: `id2label` is no object of numbers and names.")
    return tuple(str(id2label[key]) for key in sorted(id2label, key=int))


def _check_training(path: Path, training: dict):
    parts = {name: training.get(name) or {} for name in ("arguments", "base_models", "data", "versions")}
    if _is_dict(parts["data"]):
        parts |= {f"data.{name}": part for name, part in parts["data"].items()}
    for name, part in parts.items():
        if not _is_dict(part):
            raise ValueError(f"`{path}`: `{name}` is {part!r:.60}, not an object: let `train.py` write the file.")


def _is_dict(value: object) -> bool:
    return isinstance(value, dict)


def _check_metrics(path: Path, metrics: dict, modalities: Sequence[str], problem: str):
    """Refuse results of something else than this model: a card must not show them under its name."""
    subsets = [subset_name(subset) for subset in modality_subsets(modalities)]
    decides = METRIC_MODULES[problem][1]
    for part in (metrics, metrics["complete_rows"]) if "complete_rows" in metrics else (metrics,):
        found = part.get("metrics") if _is_dict(part) else None
        if not _is_dict(found) or set(found) != set(subsets) or not _is_number(part.get("num_rows")):
            raise ValueError(
                f"`{path}` does not hold `num_rows` and `metrics` of the subsets {', '.join(subsets)}, which this "
                "model can read: let `train.py` or `evaluation.py --output_file` write it."
            )
        for name, row in found.items():
            if not _is_dict(row) or not _is_number(row.get(decides)):
                raise ValueError(f"`{path}` has no `{decides}` of `{name}`: a {problem} model is judged by it.")
            if bad := [key for key, value in row.items() if value is not None and not _is_number(value)]:
                raise ValueError(f"`{path}`: `{bad[0]}` of `{name}` is {row[bad[0]]!r:.60}, not a number.")


def _check_confidence(path: Path, metrics: dict, modalities: Sequence[str]):
    """Refuse temperatures, thresholds and a coverage curve that are not what `metrics/` gives."""
    if (calibration := metrics.get("calibration")) is not None:
        subsets = [subset_name(subset) for subset in modality_subsets(modalities)]
        keys = ("temperature", "error_before", "error_after")
        found = calibration.get("subsets") if _is_dict(calibration) else None
        if not _is_dict(found) or set(found) != set(subsets) or not _is_number(calibration.get("num_folds")):
            raise ValueError(f"`{path}`: `calibration` does not hold `num_folds` and `subsets` {', '.join(subsets)}.")
        if bad := [name for name, row in found.items() if not _has_numbers(row, keys)]:
            raise ValueError(f"`{path}`: `calibration` of `{bad[0]}` lacks one of the numbers {', '.join(keys)}.")
    if (thresholds := metrics.get("thresholds")) is not None:
        found = thresholds.get("labels") if _is_dict(thresholds) else None
        is_whole = _is_dict(found) and all(_has_numbers(row, ("threshold", "num_positives")) for row in found.values())
        if not is_whole or not all(_has_numbers(thresholds.get(key), ("micro_f1",)) for key in ("before", "after")):
            raise ValueError(
                f"`{path}`: `thresholds` does not hold `labels` with `threshold` and `num_positives`, and F1 `before` "
                "and `after`."
            )
    if (curve := metrics.get("coverage")) is not None:
        points, keys = curve.get("points") if _is_dict(curve) else None, ("coverage", "accuracy", "threshold")
        if not isinstance(points, list) or not points or not all(_has_numbers(point, keys) for point in points):
            raise ValueError(f"`{path}`: `coverage` holds no `points` with the numbers {', '.join(keys)}.")


def _check_baselines(path: Path, baselines: object, modalities: Sequence[str], problem: str):
    """Refuse a comparison with specialists that is not what `metrics.comparison` gives."""
    if baselines is None:
        return
    subsets = {subset_name(subset) for subset in modality_subsets(modalities)[:-1]}
    if not _is_dict(baselines) or not set(baselines) <= subsets:
        raise ValueError(f"`{path}`: `baselines` holds other specialists than those for {', '.join(sorted(subsets))}.")
    decides = METRIC_MODULES[problem][1]
    for name, row in baselines.items():
        is_whole = _has_numbers(row, ("num_rows", "seconds", "parameters")) and all(
            _has_numbers(row.get(answers), (decides,)) for answers in ("metrics", *WAYS)
        )
        if not is_whole or not all(_is_interval(row.get(interval)) for interval in WAYS.values()):
            raise ValueError(f"`{path}`: `baselines` of `{name}` lacks a number: let `train.py` write the file.")


def _is_interval(value: object) -> bool:
    return value is None or (isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)))


def _has_numbers(value: object, keys: Sequence[str]) -> bool:
    return _is_dict(value) and all(_is_number(value.get(key)) for key in keys)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
