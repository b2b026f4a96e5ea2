"""The model folder: everything that a stranger needs, there as a whole or not at all."""

from pathlib import Path

from safetensors import SafetensorError

from cli.files import assembled, write_json
from modeling_mmfusion import MMFusionForSequenceClassification
from processing_mmfusion import MMFusionProcessor


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
    with assembled(folder) as partial:
        try:
            model.save_pretrained(partial)
        except SafetensorError as error:  # how a full disk shows itself here
            raise OSError(f"the weights cannot be written to `{folder}`: {error}") from error
        for weights in partial.glob("*.safetensors"):  # safetensors makes them unreadable for other users
            weights.chmod((partial / "config.json").stat().st_mode)
        processor.save_pretrained(partial)
        write_json(partial / "training_config.json", training_config)
        write_json(partial / "metrics.json", metrics)
