"""The card of a model, rendered from what its folder holds: `config.json`, `training_config.json`, `metrics.json`.

Unusual: nothing is typed by hand, and no number stands in a card that the files do not hold. Where a file of an older
run lacks something, the card is silent about it instead of guessing. The metadata is made in `hub/metadata.py`.
"""

import ast
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from hub.facts import TOWERS, FolderFacts, read_facts
from hub.markdown import code_block, code_span, count, escaped, table
from hub.pictures import CONFUSION_MATRIX, COVERAGE, RELIABILITY, SPECIALISTS, SUBSETS
from metrics.comparison import comparison_rows, comparison_warnings
from metrics.coverage import shown_points
from metrics.subsets import COLUMNS, METRIC_MODULES, warnings
from metrics.thresholds import MIN_POSITIVES

ROOT = Path(__file__).parents[1]
TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"
WORDS = {"text": "text", "image": "pictures", "audio": "sound"}
MAX_LISTED_LABELS = 100
ALT_TEXTS = {
    SUBSETS: "Bar chart of the table above: {metric} of every subset of the modalities.",
    CONFUSION_MATRIX: "Confusion matrix of the full fusion: rows are true labels, columns are predicted labels.",
    RELIABILITY: "Reliability diagram of the full fusion: how often an answer is right, against its confidence.",
    SPECIALISTS: "Bar chart of the comparison above: {metric} of each specialist and of the fused model, given the "
    "same modalities and all.",
    COVERAGE: "Coverage curve of the full fusion: accuracy, against the share of the rows that is answered.",
}
# Where the sizes of a tower stand, for those that have other names for them.
HIDDEN_SIZE = ("hidden_size", "dim", "d_model", "hidden_sizes")
NUM_LAYERS = ("num_hidden_layers", "n_layers", "depths")
NUM_HEADS = ("num_attention_heads", "n_heads")


def render_model_card(
    folder: Path,
    *,
    repo_id: str | None = None,
    revision: str | None = None,
    space_id: str | None = None,
    pictures: Sequence[str] = (),
) -> str:
    """Give the README.md of a model folder: metadata and text.

    Args:
        folder: A model folder as `train.py` writes it.
        repo_id: Where the model will be found on the Hub; None: the snippets name the folder.
        revision: The commit that the snippets pin.
        space_id: A Space that shows the model.
        pictures: File names that `draw_pictures` gave; they will lie beside the card.

    Raises:
        FileNotFoundError: A file of the folder is missing; the message names it.
        ValueError: A file is broken or not one of an MMFusion model, or `repo_id`, `space_id` or a picture's name is
            not one.
    """
    from huggingface_hub import ModelCard

    from hub.metadata import card_metadata

    _check_ids(repo_id, space_id, revision)
    facts = read_facts(folder, repo_id)
    card = ModelCard.from_template(
        card_metadata(facts, repo_id),
        template_path=str(TEMPLATE),
        **_context(facts, repo_id, revision, space_id, pictures),
    )
    return str(card).rstrip() + "\n"


def _check_ids(repo_id: str | None, space_id: str | None, revision: str | None):
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    for name, value in (("repo_id", repo_id), ("space_id", space_id)):
        if value is not None:
            try:
                validate_repo_id(value)
            except HFValidationError as error:
                raise ValueError(f"`{name}` is {value!r}: give a Hub id such as `user/name` ({error})") from None
    if revision is not None and not re.fullmatch(r"[\w./-]+", revision):
        raise ValueError(f"`revision` is {revision!r}: give a commit, a tag or a branch.")


# -- the text ---------------------------------------------------------------------------------------------------------


def _context(
    facts: FolderFacts, repo_id: str | None, revision: str | None, space_id: str | None, pictures: Sequence[str]
) -> dict:
    """Everything that the template shows, as Markdown."""
    from hub.snippets import code_snippets

    tasks = facts.each_task()
    known = [f"{one.prefix}{name}" for one in tasks for name in ALT_TEXTS]
    if unknown := [name for name in pictures if name not in known]:
        raise ValueError(f"`pictures` names {unknown[0]!r}; allowed are {', '.join(known)}, as `draw_pictures` gives.")
    return {
        "title": escaped(facts.name),
        "summary": _summary(facts),
        "space_id": space_id,
        "space": escaped(space_id),
        "revision": revision,
        "code": code_snippets(facts, repo_id or f"path/to/{facts.name}", revision),
        "single_modality": WORDS[facts.modalities[-1]],
        "requires": ", ".join(map(code_span, required_versions())),
        "code_files": ", ".join(map(code_span, facts.code_files)),
        "measured": _measured(facts),
        "tasks": [_results(one, pictures) for one in tasks],
        "labels": "\n\n".join(_labels(one) for one in tasks),
        "architecture": {"towers": _towers(facts), "fusion": _fusion(facts.config)},
        "training": _training(facts),
        "limits": list(_limits(facts)),
        "licence": _licence(facts.training),
    }


def required_versions() -> list[str]:
    """Give what the travelling files check when they are imported, read from their text: none of them is imported."""
    tree = ast.parse((ROOT / "compat_mmfusion.py").read_text(encoding="utf-8"))
    assigned = (node for node in tree.body if isinstance(node, ast.Assign))
    return list(next(ast.literal_eval(node.value) for node in assigned if ast.unparse(node.targets[0]) == "REQUIRES"))


def _results(facts: FolderFacts, pictures: Sequence[str]) -> dict:
    """What the template shows of the results of one task."""
    metrics = facts.metrics
    complete = metrics.get("complete_rows", {"num_rows": 0})
    some_lack = 0 < complete["num_rows"] < metrics["num_rows"]
    alt_texts = {f"{facts.prefix}{name}": _alt_text(facts, name) for name in ALT_TEXTS}
    return {
        "heading": "" if facts.task is None else escaped(facts.task),
        "num_rows": count(metrics["num_rows"]),
        "table": {
            "all": _metrics_table(metrics["metrics"]),
            "complete": _metrics_table(complete["metrics"]) if some_lack else "",
            "num_complete": count(complete["num_rows"]),
        },
        "specialists": _specialists(facts),
        "warnings": [*warnings(metrics), *comparison_warnings(metrics.get("baselines") or {})],
        "pictures": [{"name": name, "alt": alt_texts[name]} for name in pictures if name in alt_texts],
        "confusions": ", ".join(_confusions(facts)),
        "calibration": _temperatures(facts),
        "thresholds": _thresholds(facts),
        "coverage": _coverage(facts),
    }


def _summary(facts: FolderFacts) -> str:
    """One sentence: what it reads and what it says."""
    reads = _listed([WORDS[modality] for modality in facts.modalities])
    missing = ", any of which may be missing," if len(facts.modalities) > 1 else ""
    architecture = escaped((facts.config.get("architectures") or [facts.config["model_type"]])[0])
    each = [(one.task, _says(one)) for one in facts.each_task()]
    told = [says if task is None else f"for {escaped(task)} it {says}" for task, says in each]
    several = "" if len(told) == 1 else f"does {len(told)} tasks at once: "
    return f"This model ({architecture}) reads {reads}{missing} and {several}{'; '.join(told)}."


def _says(facts: FolderFacts) -> str:
    """What it says of a row, for one task."""
    names = [escaped(label) for label in facts.labels[:MAX_LISTED_LABELS]]
    numbers = "a number" if len(facts.labels) == 1 else "numbers"
    return {
        "single_label_classification": f"says which one of {len(facts.labels)} labels fits best",
        "multi_label_classification": f"says which of {len(facts.labels)} labels fit, any number of them",
        "regression": f"predicts {_listed(names)} as {numbers}",
    }[facts.problem]


def _labels(facts: FolderFacts) -> str:
    """All labels by name, in their order; of very many, the first."""
    shown = ", ".join(escaped(label) for label in facts.labels[:MAX_LISTED_LABELS])
    more = " … (the others stand in `config.json`)" if len(facts.labels) > MAX_LISTED_LABELS else ""
    kind = facts.problem.replace("_", " ").capitalize()
    order = ", in their order, lowest first" if facts.config.get("ordinal") else ""
    task = "" if facts.task is None else f"**{escaped(facts.task)}**, "
    return f"{task}{kind.lower() if task else kind}{order}: {shown}{more}."


def _metrics_table(results: dict[str, dict]) -> str:
    shown = [name for name in COLUMNS if name in next(iter(results.values()))]
    rows = []
    for subset, values in results.items():
        cells = ["–" if values.get(name) is None else COLUMNS[name][1](values[name]) for name in shown]
        rows.append([subset.replace("+", " + "), count(values.get("num_rows_with_input", "–")), *cells])
    return table(["modalities", "rows with input", *(COLUMNS[name][0] for name in shown)], rows)


def _specialists(facts: FolderFacts) -> str:
    """How the model stands beside models that were trained on fewer modalities; empty where there are none."""
    baselines = facts.metrics.get("baselines")
    if not baselines:
        return ""
    heading = COLUMNS[METRIC_MODULES[facts.problem][1]][0]
    header, *rows = comparison_rows(baselines)
    return (
        "Specialists are models that were trained with the same flags on the columns of these modalities alone, and "
        f"on the rows that have something of them. Each line compares {heading} on the held-out rows that have "
        "something of its modalities; the fused model is given the same modalities, and then all that a row has. The "
        "interval is that of the difference on the same rows (95 %).\n\n" + table(header, rows)
    )


def _alt_text(facts: FolderFacts, name: str) -> str:
    return ALT_TEXTS[name].format(metric=COLUMNS[METRIC_MODULES[facts.problem][1]][0])


def _confusions(facts: FolderFacts) -> Iterator[str]:
    """The pairs of labels that are mistaken most often, in words, for those who do not see the picture."""
    matrix = facts.metrics.get("confusion_matrix", [])
    found = [
        (rows, true, predicted)
        for true, row in enumerate(matrix)
        for predicted, rows in enumerate(row)
        if true != predicted and rows > 1  # once is chance
    ]
    for rows, true, predicted in sorted(found, key=lambda entry: (-entry[0], entry[1:]))[:3]:
        yield f"{escaped(facts.labels[true])} taken for {escaped(facts.labels[predicted])} ({rows:,} rows)"


def _temperatures(facts: FolderFacts) -> str:
    """The temperature of each subset, and what it did for the calibration error; empty where none were fitted."""
    calibration = facts.metrics.get("calibration")
    if calibration is None:
        return ""
    rows = []
    for subset, values in calibration["subsets"].items():
        errors = [f"{values[key]:.3f}" for key in ("error_before", "error_after")]
        rows.append([subset.replace("+", " + "), f"{values['temperature']:.2f}", *errors])
    return (
        "Confidence is calibrated: in use, logits are divided by a temperature that belongs to what a row has, fitted "
        "on the held-out rows. The calibration error (ECE) after it is cross-fitted in "
        f"{count(calibration['num_folds'])} parts: each part of the rows is judged with temperatures that were fitted "
        "on the others.\n\n" + table(["modalities", "temperature", "ECE before", "ECE after"], rows)
    )


def _thresholds(facts: FolderFacts) -> str:
    """From which probability on each label is predicted, and what that did for F1; empty where none were fitted."""
    found = facts.metrics.get("thresholds")
    if found is None:
        return ""
    rows = [
        [escaped(label), f"{value['threshold']:.3f}", count(value["num_positives"])]
        for label, value in list(found["labels"].items())[:MAX_LISTED_LABELS]
    ]
    f1 = [
        f"{COLUMNS[name][0]} {COLUMNS[name][1](value)} → {COLUMNS[name][1](found['after'][name])}"
        for name, value in found["before"].items()
        if value is not None  # of rows that have no label at all
    ]
    return (
        "A label is predicted from a probability of its own on, the one with the highest F1 on the held-out rows; a "
        f"label that fewer than {MIN_POSITIVES} of them have keeps 0.5. With all modalities, from 0.5 to these: "
        f"{_listed(f1)} (cross-fitted, as in the tables above).\n\n"
        + table(["label", "predicted from", "held-out rows with it"], rows)
    )


def _coverage(facts: FolderFacts) -> str:
    """What it brings to refuse unsure answers, in words."""
    curve = facts.metrics.get("coverage")
    if curve is None:
        return ""
    told = [
        f"{point['accuracy']:.1%} of the surest {point['coverage']:.1%} (`reject_below` {point['threshold']:.3f})"
        for point in shown_points(curve)
    ]
    return f"Refusing unsure answers, the full fusion is right in {_listed(told)}."


def _towers(facts: FolderFacts) -> str:
    rows = []
    for modality in facts.modalities:
        tower = facts.config[TOWERS[modality]]
        sizes = [_size(tower, names) for names in (HIDDEN_SIZE, NUM_LAYERS, NUM_HEADS)]
        rows.append([modality, escaped(tower.get("model_type", "–")), *sizes])
    return table(["tower", "model type", "width", "layers", "heads"], rows)


def _size(tower: dict, names: Sequence[str]) -> str:
    """The size under the first of these names that the tower has; of a size a stage, all."""
    value = next((tower[name] for name in names if name in tower), "–")
    return ", ".join(escaped(item) for item in value) if isinstance(value, list) else escaped(value)


def _fusion(config: dict) -> str:
    names = ("fusion_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
             "num_fusion_queries", "modality_dropout", "dtype")  # fmt: skip
    rows = [[code_span(name), escaped(config[name])] for name in names if name in config]
    return table(["fusion", "value"], rows)


def _measured(facts: FolderFacts) -> str:
    """On what, how the weights were chosen, and whether something went wrong on the way."""
    history = facts.metrics.get("training") or {}
    held_out = _table_name(facts, "validation")
    sentences = [f"Measured on the held-out rows: {held_out}."] if held_out else []
    num_epochs, in_soup = len(history.get("epochs", [])), (history.get("soup") or {}).get("epochs", [])
    if len(in_soup) > 1:
        sentences.append(
            f"The weights are the average of the epochs {', '.join(map(count, sorted(in_soup)))} of {num_epochs}, "
            "chosen on these very rows, so they flatter the model a bit."
        )
    elif "best_epoch" in history:
        sentences.append(
            f"The weights are those of the best of {num_epochs} epochs, number {count(history['best_epoch'])}. It was "
            "chosen on these very rows, so they flatter the model a bit."
        )
    if history.get("interrupted"):
        sentences.append("The training was interrupted before its end.")
    if history.get("num_skipped_steps"):
        skipped = count(history["num_skipped_steps"])
        sentences.append(f"Steps skipped because their gradient was no number: {skipped}.")
    return " ".join(sentences)


def _table_name(facts: FolderFacts, part: str) -> str:
    """A table by name and size; one from the Hub with a link."""
    entry = (facts.training.get("data") or {}).get(part) or {}
    if "name" not in entry:
        return ""
    name = escaped(entry["name"])
    if entry.get("hub_id"):
        at = f" at commit {code_span(entry['revision'])}" if entry.get("revision") else ""
        name = f"[{name}](https://huggingface.co/datasets/{escaped(entry['hub_id'])}){at}"
    return f"{name}, {count(entry['num_rows'])} rows" if "num_rows" in entry else name


def _training(facts: FolderFacts) -> dict[str, str]:
    training = facts.training
    parts = {part: _table_name(facts, part) for part in ("train", "validation")}
    headings = {"train": "Trained on", "validation": "Held out"}
    lines = [f"- {heading}: {parts[part]}" for part, heading in headings.items() if parts[part]]
    named = training.get("base_models") or {}
    bases = [f"{escaped(name)} ({escaped(modality)})" for modality, name in named.items()]
    command = training.get("command")
    return {
        "data": "\n".join(lines) or "The training data was not recorded.",
        "base_models": f"Towers that were pretrained: {_listed(bases)}." if bases else "",
        "command_intro": "The command:" if command else "The command line was not recorded; its arguments were:",
        "command": code_block(command or _command_of_arguments(training.get("arguments") or {}), "bash"),
        "setting": _setting(training),
    }


def _command_of_arguments(arguments: dict) -> str:
    """A call of `train.py` with every argument on record that has a value; what tells who somebody is stays out."""
    flags = []
    for name, value in sorted(arguments.items()):
        if value is None or "token" in name:
            continue
        if isinstance(value, bool):
            flags.append(f"--{name}" if value else f"--no-{name}")
        else:
            flags.append(f"--{name} {shlex.quote(str(value))}")
    return " \\\n    ".join(["python train.py", *flags])


def _setting(training: dict) -> str:
    named = {
        "seed": (training.get("arguments") or {}).get("seed"),
        "device": training.get("device"),
        "processes": training.get("num_processes"),
        **(training.get("versions") or {}),
    }
    rows = [[escaped(name), escaped(value)] for name, value in named.items() if value is not None]
    return table(["made with", ""], rows) if rows else "What it was made with was not recorded."


def _limits(facts: FolderFacts) -> Iterator[str]:
    processor = facts.processor
    if "text" in facts.modalities and processor.get("max_text_length"):
        yield f"Text beyond {count(processor['max_text_length'])} tokens is cut off."
    if "image" in facts.modalities and (size := (processor.get("image_processor") or {}).get("size")):
        yield f"Pictures are brought to one size ({', '.join(f'{escaped(k)} {escaped(v)}' for k, v in size.items())})."
    if "audio" in facts.modalities and processor.get("max_audio_seconds"):
        rate = (processor.get("feature_extractor") or {}).get("sampling_rate")
        heard = f" It is heard at {count(rate)} Hz." if rate else ""
        yield f"Sound beyond {count(processor['max_audio_seconds'])} seconds is cut off.{heard}"
    if len(facts.modalities) > 1:
        yield (
            "A row without a modality is answered from an embedding that was learned for its absence: the answer is a "
            "guess from what is there, and the tables above say how good such guesses are."
        )
    for one in facts.each_task():
        yield from (sentence if one.task is None else f"{escaped(one.task)}: {sentence}" for sentence in _errors(one))
    yield (
        "The figures are for the rows named above. For rows of another kind (other speakers, cameras, languages, "
        "years) they promise nothing: measure on your own with `evaluation.py`."
    )


def _errors(facts: FolderFacts) -> Iterator[str]:
    error = facts.metrics["metrics"][facts.everything].get("expected_calibration_error")
    if error is not None:
        yield (
            f"Calibration: the confidence of an answer differs from the share of right answers by "
            f"{COLUMNS['expected_calibration_error'][1](error)} on average (expected calibration error, all rows)."
        )
    quantiles = facts.metrics.get("absolute_error_quantiles")
    if quantiles:
        listed = _listed([f"{COLUMNS['mae'][1](value)} (quantile {escaped(q)})" for q, value in quantiles.items()])
        yield f"Absolute errors of the full fusion over all rows: {listed}."


def _licence(training: dict) -> str:
    licence = training.get("license")
    if licence:
        return f"The weights are published under: {escaped(licence)}."
    return "No licence was stated for these weights. Ask their owner before you use them."


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
