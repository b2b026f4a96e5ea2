"""The model folder: everything that a stranger needs, there as a whole or not at all."""

import shutil
from pathlib import Path

from safetensors import SafetensorError

from cli.files import assembled, write_json
from configuration_mmfusion import MMFusionConfig
from modeling_mmfusion import MMFusionForSequenceClassification, MMFusionModel
from processing_mmfusion import MMFusionProcessor

# `save_pretrained` copies what config, model and processor need; the pipeline and what it imports are ours to copy.
PIPELINE_FILES = [Path(__file__).parents[1] / f"{name}_mmfusion.py" for name in ("pipeline", "explanation")]
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
):
    """Write weights, config, processor, tokenizer, travelling files, choices and results of a run.

    Args:
        folder: Where the model shall stand; a model that stands there is replaced.
        model: Whose weights and architecture are saved.
        processor: What prepares its inputs.
        training_config: Choices of the run, for `training_config.json`.
        metrics: Its results, for `metrics.json`.
    """
    MMFusionConfig.register_for_auto_class()
    MMFusionModel.register_for_auto_class("AutoModel")
    MMFusionForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
    MMFusionProcessor.register_for_auto_class("AutoProcessor")
    model.config.auto_map = AUTO_MAP
    model.config.custom_pipelines = CUSTOM_PIPELINES
    with assembled(folder) as partial:
        try:
            model.save_pretrained(partial)
        except SafetensorError as error:  # how a full disk shows itself here
            raise OSError(f"the weights cannot be written to `{folder}`: {error}") from error
        for weights in partial.glob("*.safetensors"):  # safetensors makes them unreadable for other users
            weights.chmod((partial / "config.json").stat().st_mode)
        processor.save_pretrained(partial)
        for file in PIPELINE_FILES:
            shutil.copyfile(file, partial / file.name)
        write_json(partial / "training_config.json", training_config)
        write_json(partial / "metrics.json", metrics)
