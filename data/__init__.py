"""From a table to batches: reading, labels, checking, splitting and the embedded demo set.

The names below are imported on first use, so that `import data` (and with it the `--help` of a script) costs nothing.
"""

import importlib

_HOMES = {
    "Columns": "table",
    "Table": "table",
    "MODALITIES": "table",
    "read_table": "table",
    "LabelMap": "labels",
    "declared_names": "labels",
    "PROBLEM_TYPES": "labels",
    "TaskMap": "tasks",
    "labels_of": "tasks",
    "label_notes": "tasks",
    "BadCellsError": "checking",
    "CheckReport": "checking",
    "ON_BAD_CELL": "checking",
    "check_table": "checking",
    "count_shared_rows": "splitting",
    "stratified_split": "splitting",
    "HubSet": "hub",
    "find_hub_set": "hub",
    "Stream": "streaming",
    "StreamedDataset": "streaming",
    "open_stream": "streaming",
    "stream_of": "streaming",
    "Collator": "batches",
    "FusionDataset": "batches",
    "diagnose": "doctor",
    "make_demo": "demo",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module `data` has no attribute `{name}`")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
