"""The range of library versions that MMFusion runs on, and one name for whatever moved inside of it.

The other travelling files take from here what `transformers` has not had under the same name since 4.57; it goes when
the floor rises. `make test-versions` tries the oldest, the newest, and two between.

This file travels to the Hub beside the weights and imports no other file of the repository; nor torch where there is
none, since a configuration can be read without it.
"""

import dataclasses
import types
from typing import Union, get_args

from transformers.utils import is_torch_available
from transformers.utils.versions import require_version

REQUIRES = ("python>=3.10", "transformers>=4.57", "torch>=2.6")

for requirement in REQUIRES:
    remedy = "a newer Python" if requirement.startswith("python") else f"pip install --upgrade '{requirement}'"
    if is_torch_available() or not requirement.startswith("torch"):
        require_version(requirement, f"MMFusion runs on {', '.join(REQUIRES)}: {remedy}")

from huggingface_hub import dataclasses as hub_dataclasses  # noqa: E402 (first of all, the versions)
from transformers import AutoTokenizer  # noqa: E402
from transformers.processing_utils import ProcessorMixin  # noqa: E402

try:
    from transformers import PreTrainedConfig
except ImportError:  # transformers 4
    from transformers import PretrainedConfig as PreTrainedConfig

# == Configuration: a dataclass since transformers 5.4 ================================================================

HAS_DATACLASS_CONFIG = dataclasses.is_dataclass(PreTrainedConfig)
# Image processors that resize with Pillow; the keyword changed in the same version.
PIL_BACKEND = {"backend": "pil"} if HAS_DATACLASS_CONFIG else {"use_fast": False}

if HAS_DATACLASS_CONFIG:
    DataclassConfig, strict = PreTrainedConfig, hub_dataclasses.strict
else:

    class _GivenConfigs:
        """Of the configurations inside of a configuration those that are there; of the class, all."""

        def __init__(self, kinds: dict[str, type]):
            self.kinds = kinds

        def __get__(self, instance, owner):
            if instance is None:
                return self.kinds
            return {name: kind for name, kind in self.kinds.items() if getattr(instance, name, None) is not None}

    class DataclassConfig(PreTrainedConfig):
        """A configuration whose annotated fields are its arguments."""

        validate_rope = None  # which `@strict` would take for a check of the fields

        def __init__(self, **kwargs):
            # Fields in the later versions; here set at the end, and properties of ours look at them before.
            self.__dict__ |= {name: kwargs.get(name) for name in ("id2label", "label2id", "problem_type")}
            for field in dataclasses.fields(self):
                setattr(self, field.name, kwargs.pop(field.name, field.default))
            self.__post_init__(**kwargs)

        def __post_init__(self, **kwargs):
            super().__init__(**kwargs)

        def save_pretrained(self, *args, **kwargs):
            self.validate()
            super().save_pretrained(*args, **kwargs)

        def _get_non_default_generation_parameters(self):
            return {}  # asked for when a model is saved; it would build a configuration without arguments

    def strict(cls: type) -> type:
        """Make a dataclass of a configuration and check its fields, like `@strict` since transformers 5.4."""
        for name, kind in cls.__annotations__.items():
            if isinstance(kind, types.UnionType):  # which huggingface_hub before 1.0 does not know
                cls.__annotations__[name] = Union[get_args(kind)]  # noqa: UP007
        cls.sub_configs = _GivenConfigs(cls.sub_configs)
        return hub_dataclasses.strict(dataclasses.dataclass(cls, init=False, repr=False, eq=False))


# == Model ============================================================================================================

if is_torch_available():
    try:
        from transformers import initialization as init
    except ImportError:  # transformers 4
        from torch.nn import init
    try:
        from transformers.utils.generic import merge_with_config_defaults
        from transformers.utils.output_capturing import capture_outputs

        def record_outputs(forward):
            """Have `forward` return the `hidden_states` and `attentions` that it is asked for."""
            return merge_with_config_defaults(capture_outputs(forward))
    except ImportError:  # before transformers 5.2
        from transformers.utils.generic import check_model_inputs as record_outputs

# == Processor: all its parts in one file since transformers 5 ========================================================

if not hasattr(ProcessorMixin, "get_attributes"):
    from transformers import PreTrainedTokenizerFast

    class AutoTokenizer(AutoTokenizer):
        """Loads a tokenizer that transformers 5 saved, also one of the class that is new there."""

        @classmethod
        def from_pretrained(cls, *args, **kwargs):
            try:
                return super().from_pretrained(*args, **kwargs)
            except ValueError as error:
                if "TokenizersBackend" not in str(error):
                    raise
                return PreTrainedTokenizerFast.from_pretrained(*args, **kwargs)

    class _Attributes:
        """The parts of a processor; of the class none, so that what the file says about them is handed on."""

        def __get__(self, instance, owner):
            return () if instance is None else instance.get_attributes()

    class ProcessorMixin(ProcessorMixin):
        """A processor that is saved to and loaded from one file, as in transformers 5."""

        attributes = _Attributes()
        tokenizer_class, image_processor_class = "AutoTokenizer", "AutoImageProcessor"
        feature_extractor_class = "AutoFeatureExtractor"

        def to_dict(self, legacy_serialization=False):
            return super().to_dict(legacy_serialization=False)

        def save_pretrained(self, save_directory, push_to_hub=False, **kwargs):
            return super().save_pretrained(save_directory, push_to_hub, legacy_serialization=False, **kwargs)

        @classmethod
        def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
            stored, others = cls.get_processor_dict(pretrained_model_name_or_path, **kwargs)
            parts = cls._get_arguments_from_pretrained(pretrained_model_name_or_path, stored, **kwargs)
            stored = {name: value for name, value in stored.items() if name not in cls.get_attributes()}
            return cls.from_args_and_dict(parts, stored, **others)


__all__ = [
    "PIL_BACKEND", "REQUIRES", "AutoTokenizer", "DataclassConfig", "PreTrainedConfig", "ProcessorMixin", "init",
    "record_outputs", "strict",
]  # fmt: skip
