"""`ConfigTester` of transformers against `MMFusionConfig`."""

import json
import unittest

from conftest import model_config
from upstream_tests.test_configuration_common import ConfigTester

from configuration_mmfusion import TOWER_CONFIGS, MMFusionConfig


class ModelTester:
    """Where upstream's tester takes a configuration that differs from the defaults."""

    def get_config(self):
        return model_config()


class MMFusionConfigTest(unittest.TestCase):
    def setUp(self):
        self.model_tester = ModelTester()
        written = json.loads(model_config().to_json_string())
        self.towers = {field: written[field] for field in TOWER_CONFIGS.values()}

    def run_common_tests(self, **kwargs):
        """All of upstream's but the call without arguments: upstream wants a default, ours is an error on purpose."""
        tester = ConfigTester(
            self,
            config_class=MMFusionConfig,
            has_text_modality=False,  # asks for a `vocab_size` at the top; in a composite it is the text tower's
            common_properties=["hidden_size", "num_attention_heads", "num_hidden_layers"],
            **kwargs,
        )
        tester.run_common_tests(can_init_without_params=False)

    def test_config_of_three_towers(self):
        self.run_common_tests(hidden_size=32, **self.towers)

    def test_config_of_one_tower(self):
        for field, tower in self.towers.items():
            with self.subTest(field):
                self.run_common_tests(num_hidden_layers=3, **{field: tower})
