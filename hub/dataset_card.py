"""The card of a data set, rendered from what was written of it and from nothing else.

Of the rows' contents it shows only the names of the labels: no text, no file name, nothing that a person might be in.
"""

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from hub.markdown import code_block, code_span, count, escaped, table

if TYPE_CHECKING:
    from huggingface_hub import DatasetCardData

    from hub.dataset import ExportedDataset

TEMPLATE = Path(__file__).parent / "templates" / "dataset_card.md"
SIZE_CATEGORIES = ((1e3, "n<1K"), (1e4, "1K<n<10K"), (1e5, "10K<n<100K"), (1e6, "100K<n<1M"), (1e7, "1M<n<10M"))
MAX_LISTED_LABELS = 100
PROBLEMS = {
    "single_label_classification": "one label a row",
    "multi_label_classification": "any number of labels a row",
    "regression": "numbers to predict",
}


def render_dataset_card(exported: "ExportedDataset") -> str:
    """Give the README.md of a data set: metadata that `datasets` reads, and text."""
    from huggingface_hub import DatasetCard

    card = DatasetCard.from_template(
        card_data(exported),
        template_path=str(TEMPLATE),
        title=escaped(exported.repo_id.split("/")[-1]),
        modalities=", ".join(exported.modalities),
        splits=splits_table(exported),
        media=media_table(exported),
        problem="" if exported.labels is None else PROBLEMS[exported.labels.problem_type],
        labels=labels_table(exported),
        num_hidden_labels=max(0, 0 if exported.labels is None else exported.labels.num_labels - MAX_LISTED_LABELS),
        load=code_block(loading_code(exported), "python"),
        train=code_block(training_command(exported), "bash"),
        has_audio="audio" in exported.modalities,
        license=None if exported.license is None else code_span(exported.license),
    )
    return str(card).rstrip() + "\n"


def card_data(exported: "ExportedDataset") -> "DatasetCardData":
    """The metadata: files of each split, features and sizes as `datasets` writes them, tasks, tags, size, licence."""
    from datasets import DatasetInfo, SplitInfo
    from datasets.info import DatasetInfosDict
    from datasets.splits import SplitDict
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCardData

    splits, infos = exported.splits, SplitDict()
    for name, split in splits.items():
        infos.add(SplitInfo(name, num_bytes=split.num_bytes, num_examples=split.num_rows))
    info = DatasetInfo(
        features=exported.features,
        splits=infos,
        download_size=sum(split.num_file_bytes for split in splits.values()),
        dataset_size=sum(split.num_bytes for split in splits.values()),
    )
    data = DatasetCardData(
        license=exported.license,
        task_categories=task_categories(exported),
        tags=[*exported.modalities, *(["multimodal"] if len(exported.modalities) > 1 else [])],
        size_categories=[size_category(sum(split.num_rows for split in splits.values()))],
    )
    files = [{"split": name, "path": f"data/{name}-*"} for name in splits]
    DatasetInfosDict({"default": info}).to_dataset_card_data(data)
    MetadataConfigs({"default": {"data_files": files}}).to_dataset_card_data(data)
    return data


def task_categories(exported: "ExportedDataset") -> list[str] | None:
    if exported.labels is None or exported.labels.problem_type == "regression":
        return None
    return [f"{modality}-classification" for modality in exported.modalities]


def size_category(num_rows: int) -> str:
    return next((name for limit, name in SIZE_CATEGORIES if num_rows < limit), "n>10M")


# -- the text ---------------------------------------------------------------------------------------------------------


def splits_table(exported: "ExportedDataset") -> str:
    """Rows of each split, and how many of them have which modality."""
    head = ["split", "rows", *exported.modalities]
    rows = [
        [code_span(name), count(split.num_rows), *(count(split.num_cells[m]) for m in exported.modalities)]
        for name, split in exported.splits.items()
    ]
    return table(head, rows)


def media_table(exported: "ExportedDataset") -> str:
    """Kinds of files and their size; "" where there are none."""
    rows = []
    for modality in ("image", "audio"):
        formats = sum((split.formats[modality] for split in exported.splits.values()), start=Counter())
        size = sum(split.media_bytes[modality] for split in exported.splits.values())
        if formats:
            kinds = ", ".join(f"{escaped(kind)} ({number:,})" for kind, number in formats.most_common())
            rows.append([modality, kinds, count(size)])
    return table(["column", "files", "bytes"], rows) if rows else ""


def labels_table(exported: "ExportedDataset") -> str:
    """How often each label stands in each split; for a regression the names of the targets."""
    if exported.labels is None:
        return ""
    names = exported.labels.names[:MAX_LISTED_LABELS]
    if exported.labels.problem_type == "regression":
        return ""
    head = ["label", *exported.splits]
    rows = [[escaped(name), *(count(split.labels[name]) for split in exported.splits.values())] for name in names]
    return table(head, rows)


def loading_code(exported: "ExportedDataset") -> str:
    lines = ["from datasets import load_dataset", "", f"rows = load_dataset({json.dumps(exported.repo_id)})"]
    if "audio" in exported.modalities:
        lines[0] = "from datasets import Audio, load_dataset"
        lines.append('rows = rows.cast_column("audio", Audio(decode=False))  # bytes; without this line: decoded')
    return "\n".join(lines)


def training_command(exported: "ExportedDataset") -> str:
    problem = " --problem_type regression" if exported.labels and exported.labels.problem_type == "regression" else ""
    return f"python train.py --dataset_name {exported.repo_id}{problem} --output_dir outputs/model"
