"""`ProcessorTesterMixin` of transformers against `MMFusionProcessor`, with both rules of padding sound."""

import unittest

import numpy as np
import torch
from transformers import BertTokenizerFast, ViTImageProcessorPil, Wav2Vec2FeatureExtractor
from upstream_tests.test_processing_common import ProcessorTesterMixin

from processing_mmfusion import MMFusionProcessor

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "lower", "newer", "upper", "older", "longer", "string"]
MAX_TEXT_LENGTH = 117
SAMPLING_RATE = 16_000


class MMFusionProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = MMFusionProcessor
    return_attention_mask = True

    # The processor's own limit goes before the length that a tokenizer was saved with, so upstream's must be ours.
    images_text_kwargs_max_length = MAX_TEXT_LENGTH
    audio_text_kwargs_max_length = MAX_TEXT_LENGTH

    @classmethod
    def _setup_tokenizer(cls):
        return BertTokenizerFast(vocab={word: i for i, word in enumerate(WORDS)})

    @classmethod
    def _setup_image_processor(cls):
        return ViTImageProcessorPil(size={"height": 16, "width": 16})

    @classmethod
    def _setup_feature_extractor(cls):
        return Wav2Vec2FeatureExtractor(return_attention_mask=cls.return_attention_mask)

    @staticmethod
    def prepare_processor_dict():
        return {"max_text_length": MAX_TEXT_LENGTH, "max_audio_seconds": 0.5}

    def prepare_audio_inputs(self, batch_size: int | None = None):
        """As upstream's, but each sound says its rate: ours takes no bare array without one."""
        sounds = super().prepare_audio_inputs(batch_size)
        return [{"array": sound.astype(np.float32), "sampling_rate": SAMPLING_RATE} for sound in sounds]

    def test_subprocessor_defaults_3_audio(self):
        """Overrides upstream's, which hands the same to both: a feature extractor takes no dict."""
        sounds = self.prepare_audio_inputs(batch_size=2)
        expected = self.get_component("feature_extractor")(
            [sound["array"] for sound in sounds],
            sampling_rate=SAMPLING_RATE,
            return_attention_mask=True,
            return_tensors="pt",
        )["input_values"]
        values = self.get_processor()(audio=sounds)["input_values"]
        torch.testing.assert_close(values[:, : expected.shape[1]], expected)
        self.assertFalse(values[:, expected.shape[1] :].any())

    def test_processor_text_has_no_visual(self):
        """Overrides upstream's, whose rows are lists of pictures: ours hold one picture or None."""
        text, images = self.prepare_text_inputs(batch_size=3), self.prepare_images_inputs(batch_size=3)
        everywhere = self.get_processor()(text=text, images=images)
        but_one = self.get_processor()(text=text, images=[None, *images[1:]])
        torch.testing.assert_close(but_one["input_ids"], everywhere["input_ids"])
        torch.testing.assert_close(but_one["pixel_values"][1:], everywhere["pixel_values"][1:])
        self.assertEqual(but_one["modality_mask"].tolist(), [[1, 0, 0], [1, 1, 0], [1, 1, 0]])


class MMFusionGroupNormProcessorTest(MMFusionProcessorTest):
    return_attention_mask = False
