"""The model folder: everything that a stranger needs, there as a whole or not at all."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from configuration_mmfusion import MMFusionConfig
from modeling_mmfusion import MMFusionForSequenceClassification, MMFusionModel
from processing_mmfusion import MMFusionProcessor

PIPELINE_FILE = Path(__file__).parents[1] / "pipeline_mmfusion.py"
AUTO_MAP = {
    "AutoConfig": "configuration_mmfusion.MMFusionConfig",
    "AutoModel": "modeling_mmfusion.MMFusionModel",
    "AutoModelForSequenceClassification": "modeling_mmfusion.MMFusionForSequenceClassification",
    "AutoProcessor": "processing_mmfusion.MMFusionProcessor",
}
CUSTOM_PIPELINES = {
    "multimodal-classification": {
        "impl": "pipeline_mmfusion.MMFusionPipeline",
        "pt": ["AutoModelForSequenceClassification"],
        "type": "multimodal",
    }
}


def save_model_folder(
    folder: Path,
    model: MMFusionForSequenceClassification,
    processor: MMFusionProcessor,
    *,
    training_config: dict,
    metrics: dict,
    state_dict: dict | None = None,
):
    """Write weights, config, processor, tokenizer, travelling files, choices and results of a run.

    Args:
        folder: Where the model shall stand; a model that stands there is replaced.
        model: Whose weights and architecture are saved.
        processor: What prepares its inputs.
        training_config: Choices of the run, for `training_config.json`.
        metrics: Its results, for `metrics.json`.
        state_dict: Weights to save instead of the model's own.
    """
    MMFusionConfig.register_for_auto_class()
    MMFusionModel.register_for_auto_class("AutoModel")
    MMFusionForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
    MMFusionProcessor.register_for_auto_class("AutoProcessor")
    model.config.auto_map = AUTO_MAP
    model.config.custom_pipelines = CUSTOM_PIPELINES
    with assembled(folder) as partial:
        try:
            model.save_pretrained(partial, state_dict=state_dict)
        except SafetensorError as error:  # how a full disk shows itself here
            raise OSError(f"the weights cannot be written to `{folder}`: {error}") from error
        processor.save_pretrained(partial)
        shutil.copyfile(PIPELINE_FILE, partial / PIPELINE_FILE.name)
        write_json(partial / "training_config.json", training_config)
        write_json(partial / "metrics.json", metrics)


def write_json(path: Path, content: dict):
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


@contextmanager
def assembled(folder: Path) -> Iterator[Path]:
    """Give an empty folder beside to write to, and move it into place when all is written.

    Whoever looks at `folder` finds the old one or the new one. After a failure nothing of the new one is left.
    """
    folder = folder.resolve()  # a link stays, and what it points to is replaced
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial, replaced = (folder.with_name(f".{folder.name}.{what}-{os.getpid()}") for what in ("partial", "replaced"))
    shutil.rmtree(partial, ignore_errors=True)  # of a killed run with our process id: in a container it is often 1
    partial.mkdir()
    try:
        yield partial
        if folder.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            os.replace(folder, replaced)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if replaced.exists() and not folder.exists():  # the second move failed: put the old one back
            os.replace(replaced, folder)
        shutil.rmtree(replaced, ignore_errors=True)
