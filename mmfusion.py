"""Register MMFusion with `transformers`: any of its models then loads without `trust_remote_code`.

    import mmfusion
    from transformers import pipeline

    classify = pipeline(model="user/name")  # runs the code that is installed, none of the repository's

Installed by `pip install git+https://…` together with the `*_mmfusion.py` files, and nothing else of the repository.
"""

from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from configuration_mmfusion import MMFusionConfig
from modeling_mmfusion import MMFusionForSequenceClassification, MMFusionModel
from pipeline_mmfusion import TASK, MMFusionPipeline
from processing_mmfusion import MMFusionProcessor


class RegisteredPipelines(dict):
    """The `custom_pipelines` of a configuration, of which none needs the code of a repository.

    `pipeline` takes the only entry as the task, and then asks whether it is custom: answered with no, it looks for the
    task among those that are registered.
    """

    def __contains__(self, task: object) -> bool:
        return super().__contains__(task) and task != TASK


AutoConfig.register(MMFusionConfig.model_type, MMFusionConfig, exist_ok=True)
AutoModel.register(MMFusionConfig, MMFusionModel, exist_ok=True)
AutoModelForSequenceClassification.register(MMFusionConfig, MMFusionForSequenceClassification, exist_ok=True)
AutoProcessor.register(MMFusionConfig, MMFusionProcessor, exist_ok=True)
if TASK not in PIPELINE_REGISTRY.get_supported_tasks():
    PIPELINE_REGISTRY.register_pipeline(TASK, MMFusionPipeline, pt_model=(AutoModelForSequenceClassification,))
MMFusionConfig.pipelines_class = RegisteredPipelines

__all__ = [
    "MMFusionConfig", "MMFusionForSequenceClassification", "MMFusionModel", "MMFusionPipeline", "MMFusionProcessor",
]  # fmt: skip
