"""The Python that a model card shows: how to load and ask this model, with the modalities that it has.

A test runs every snippet as it stands in the card.
"""

import json
from typing import TYPE_CHECKING

from hub.facts import SEVERAL
from hub.markdown import code_block

if TYPE_CHECKING:
    from hub.facts import FolderFacts

# Modality -> (its key in a pipeline's sample, its argument of the processor, one cell of each).
CELLS = {
    "text": ("text", "text", '"some words"', '"some words"'),
    "image": ("image", "images", '"photo.jpg"', 'processor.decode_image("photo.jpg")'),
    "audio": ("audio", "audio", '"clip.wav"', 'processor.decode_audio("clip.wav")'),
}
SCORES = {
    "single_label_classification": ("logits.softmax(dim=-1)", "probabilities of the labels"),
    "multi_label_classification": ("logits.sigmoid()", "a probability for each label by itself"),
    "regression": ("logits", "the numbers themselves"),
}


def code_snippets(facts: "FolderFacts", model: str, revision: str | None) -> dict[str, str]:
    """Give, as Markdown, code for the `pipeline`, for the `model` and, where it has several, a `single` modality."""
    where = [_quoted(model), *([f"revision={_quoted(revision)}"] if revision else []), "trust_remote_code=True"]
    snippets = {"pipeline": _pipeline(facts, where), "model": _model(facts, ", ".join(where))}
    if len(facts.modalities) > 1:
        snippets["single"] = _single(facts.modalities[-1])
    return {name: code_block(code, "python") for name, code in snippets.items()}


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _task(facts: "FolderFacts") -> str:
    return next(iter(facts.config.get("custom_pipelines") or {"multimodal-classification": None}))


def _pipeline(facts: "FolderFacts", where: list[str]) -> str:
    # The task is named: without it, what is asked for depends on the library's version and the page's metadata.
    sample = ", ".join(f'"{CELLS[name][0]}": {CELLS[name][2]}' for name in facts.modalities)
    alone = CELLS[facts.modalities[-1]]
    lines = [
        "from transformers import pipeline",
        "",
        "classify = pipeline(",
        f"    {_quoted(_task(facts))}, model={', '.join(where)}",
        ")",
        f"classify({{{sample}}})",
    ]
    if facts.problem == SEVERAL:
        task = _quoted(facts.each_task()[0].task)
        lines.append(f"classify({{{sample}}}, task_name={task})  # one of its tasks, as if there were no others")
    if len(facts.modalities) > 1:
        lines.append(f'classify({{"{alone[0]}": {alone[2]}}})  # the others are absent')
    if len(facts.modalities) > 1 and "explanation_mmfusion.py" in facts.code_files and facts.problem != SEVERAL:
        lines += [
            f"why = classify.explain({{{sample}}}, details=False)",
            'print(why["modalities"])  # which of them decided: exact Shapley values',
        ]
    return "\n".join(lines)


def _model(facts: "FolderFacts", where: str) -> str:
    first = facts.each_task()[0]
    expression, meaning = SCORES[first.problem]
    one_task = "" if first.task is None else f"model = model.for_task({_quoted(first.task)})  # one of its tasks\n"
    # Two rows where that shows an empty cell: the first has everything, the second only the first modality.
    columns = [f"{CELLS[name][1]}=[{CELLS[name][3]}, {_second_cell(facts, name)}]" for name in facts.modalities]
    rate = ["sampling_rate=processor.audio_sampling_rate"] if "audio" in facts.modalities else []
    arguments = "".join(f"    {argument},\n" for argument in (*columns, *rate, 'return_tensors="pt"'))
    return (
        "import torch\n"
        "from transformers import AutoModelForSequenceClassification, AutoProcessor\n\n"
        f"processor = AutoProcessor.from_pretrained({where})\n"
        f"model = AutoModelForSequenceClassification.from_pretrained({where})\n"
        f"{one_task}"
        f"inputs = processor(\n{arguments})\n"
        "with torch.no_grad():\n"
        "    logits = model(**inputs).logits\n"
        f"scores = {expression}  # {meaning}\n"
        "for row in scores.tolist():\n"
        "    print(dict(zip(model.config.id2label.values(), row)))"
    )


def _second_cell(facts: "FolderFacts", modality: str) -> str:
    return CELLS[modality][3] if modality == facts.modalities[0] else "None"


def _single(modality: str) -> str:
    rate = ", sampling_rate=processor.audio_sampling_rate" if modality == "audio" else ""
    return (
        f"cell = {CELLS[modality][3]}\n"
        f'inputs = processor({CELLS[modality][1]}=[cell]{rate}, return_tensors="pt")\n'
        "logits = model(**inputs).logits"
    )
