"""`ModelTesterMixin` of transformers against both model classes, with a ViT-like and a ResNet-like vision tower."""

import tempfile
import unittest

import torch
from conftest import make_inputs, model_config, resnet_config
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification
from transformers.exporters import DynamoConfig, DynamoExporter
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, MODEL_MAPPING_NAMES
from transformers.testing_utils import torch_device
from upstream_tests.test_modeling_common import ModelTesterMixin

from configuration_mmfusion import MMFusionConfig
from modeling_mmfusion import MMFusionForSequenceClassification, MMFusionModel

from .skips import skips


def setUpModule():
    """Enter our classes where upstream looks up which test applies to which class: without it, many pass unrun."""
    AutoConfig.register("mmfusion", MMFusionConfig, exist_ok=True)
    AutoModel.register(MMFusionConfig, MMFusionModel, exist_ok=True)
    AutoModelForSequenceClassification.register(MMFusionConfig, MMFusionForSequenceClassification, exist_ok=True)
    MODEL_MAPPING_NAMES["mmfusion"] = "MMFusionModel"
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES["mmfusion"] = "MMFusionForSequenceClassification"


class MMFusionModelTester:
    """What upstream asks of a model's tester: sizes to expect, a configuration, inputs."""

    batch_size = 5
    is_training = True
    num_hidden_layers = 2
    num_attention_heads = 4
    hidden_size = 32
    seq_length = 3  # the fusion's queries: what its hidden states are made of
    key_length = 3 + 8 + 5 + 19  # absent slots, text tokens, patches and CLS, audio frames

    def __init__(self, parent):
        self.parent = parent

    def get_config(self):
        return model_config()

    def prepare_config_and_inputs_for_common(self):
        inputs = make_inputs(rows=self.batch_size)
        return self.get_config(), {name: value.to(torch_device) for name, value in inputs.items()}


class ResNetModelTester(MMFusionModelTester):
    key_length = 3 + 8 + 4 + 19

    def get_config(self):
        return model_config(vision_config=resnet_config())


ONE_SPACE = "ours returns unit vectors of the space that all modalities share, not a tower's ModelOutput"


@skips(
    {
        f"test_get_{modality}_features_{what}": ONE_SPACE
        for modality in ("text", "image", "audio")
        for what in ("output", "hidden_states", "attentions")
    }
)
class MMFusionModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (MMFusionModel, MMFusionForSequenceClassification)
    additional_model_inputs = ("pixel_values", "input_values", "audio_attention_mask")
    _is_composite = True
    test_can_init_all_missing_weights_before_2023 = True  # upstream reads the year from a licence header
    model_tester_class = MMFusionModelTester
    vision_attention = "sdpa"

    def setUp(self):
        self.model_tester = self.model_tester_class(self)

    def test_sdpa_can_dispatch_composite_models(self):
        """Overrides upstream's, which looks for towers by other names and asks others to overwrite it."""
        config, _ = self.model_tester.prepare_config_and_inputs_for_common()
        towers = {"text_encoder": "sdpa", "vision_encoder": self.vision_attention, "audio_encoder": "sdpa"}
        for model_class in self.all_model_classes:
            with tempfile.TemporaryDirectory() as folder:
                model_class(config).save_pretrained(folder)
                sdpa = model_class.from_pretrained(folder).base_model
                eager = model_class.from_pretrained(folder, attn_implementation="eager").base_model
            for name, expected in {**towers, "fusion": "sdpa"}.items():
                self.assertEqual(getattr(sdpa, name).config._attn_implementation, expected)
                self.assertEqual(getattr(eager, name).config._attn_implementation, "eager")

    def test_dynamo_export(self):
        """For upstream's `ExportTesterMixin`, which the source distribution lacks: the library's exporter runs."""
        for model_class in self.all_model_classes:
            config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
            model = model_class(config).to(torch_device).eval()
            exported = DynamoExporter().export(model, inputs, config=DynamoConfig(dynamic=True))
            others = {name: value.to(torch_device) for name, value in make_inputs(rows=7, seed=1).items()}
            with torch.no_grad():
                torch.testing.assert_close(exported(**others)[0], model(**others)[0])


class MMFusionResNetModelTest(MMFusionModelTest):
    model_tester_class = ResNetModelTester
    vision_attention = "eager"  # ResNet has no attention, and says "eager"
