"""Configuration of MMFusion: up to three towers (text, picture, sound) and one fusion.

The sizes at the top level are the fusion's own; each tower keeps the configuration class that `transformers` gives it.
A tower is left out by leaving its configuration out. This file imports no torch.
"""

import copy
import difflib
from typing import NamedTuple

try:
    from .compat_mmfusion import DataclassConfig, PreTrainedConfig, strict
    from .saving_mmfusion import name_code, register_code
except ImportError:
    if __package__:  # inside the Hub cache this is a real failure: show it
        raise
    from compat_mmfusion import DataclassConfig, PreTrainedConfig, strict  # flat checkout: train.py, tests
    from saving_mmfusion import name_code, register_code
from transformers import AutoConfig, logging  # after the check of the versions

logger = logging.get_logger(__name__)

# Audio towers that read spectrograms, by `model_type`; all others read waveforms.
SPECTROGRAMS = ("whisper", "audio-spectrogram-transformer", "wav2vec2-bert")
# Modality -> the field that configures its tower. The order is the order of the columns of `modality_mask`.
TOWER_CONFIGS = {"text": "text_config", "image": "vision_config", "audio": "audio_config"}
# Raised when a saved model can no longer be read by the code before.
FORMAT_VERSION = 1
# What a tower's configuration is of when it does not say.
DEFAULT_MODEL_TYPES = {"text_config": "bert", "vision_config": "vit", "audio_config": "wav2vec2"}
FUSION_TYPES = ("cross_attention", "bottleneck", "pairwise", "gate", "weighted_sum", "concat", "low_rank")
BALANCES = ("none", "unimodal", "ogm_ge", "mmpareto")
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")
# What a model of one task says in fields of its own, and one of several tasks in the entries of `tasks`.
FITTED_FIELDS = ("temperatures", "unimodal_temperatures", "thresholds")  # after training
TASK_FIELDS = ("problem_type", "class_weights", "ordinal", *FITTED_FIELDS)
# What says what the outputs mean; and what belongs to outputs of one meaning, and is of no use to others.
LABEL_FIELDS = ("id2label", "label2id", "num_labels", "problem_type", "tasks")
OF_THE_LABELS = ("class_weights", "ordinal", "tasks", *FITTED_FIELDS)


class Task(NamedTuple):
    """One of the tasks of a model.

    Attributes:
        name: Its name; None for the only task of a model that has no `tasks`.
        config: That of a model of this task alone.
        outputs: Its columns among the logits.
        labels: Its columns among the labels: one for a class number, else one for each output.
        weight: Of its loss.
    """

    name: str | None
    config: "MMFusionConfig"
    outputs: slice
    labels: slice
    weight: float


@strict
class MMFusionConfig(DataclassConfig):
    """Architecture of an MMFusion model.

    Args:
        text_config: A BERT-like encoder (BERT, RoBERTa, DistilBERT, ModernBERT, MiniLM …); None: reads no text.
        vision_config: A ViT-like or ResNet-like encoder (ViT, DINOv2, ResNet, ConvNeXt …); None: reads no pictures.
        audio_config: A Wav2Vec2-like encoder of raw waveforms (Wav2Vec2, HuBERT, WavLM …) or one of spectrograms
            (Whisper's encoder, AST, Wav2Vec2-BERT); None: reads no sound.
        fusion_type: How the present modalities become one vector; one of `FUSION_TYPES`.
        num_fusion_queries: Learned queries that read the tokens; of `bottleneck` its bottleneck tokens.
        hidden_size: Width D of the fusion; a multiple of `num_attention_heads`.
        num_hidden_layers: Fusion blocks (attention and feed-forward), where the strategy has some.
        balanced_attention: Whether in `cross_attention` each modality starts with the same share of the attention,
            instead of each token.
        fusion_rank: Rank of the tensor of `low_rank`.
        num_attention_heads: Attention heads of a fusion block.
        intermediate_size: Width of the feed-forward part of a fusion block.
        hidden_act: Its activation, a name that `transformers.activations.ACT2FN` knows.
        hidden_dropout_prob: Dropout on the projected tokens, after attention, after the feed-forward part and
            before the head, in [0, 1).
        attention_probs_dropout_prob: Dropout on the attention weights, in [0, 1).
        modality_dropout: While training with labels, every row is fused a second time with each of its modalities
            left out with this probability (never all of them), and the loss is the mean over both; in [0, 1).
            0.5 makes all subsets about equally likely; 0 turns the second fusion off.
        subset_ranking_weight: While training, weight of a penalty for being worse with all modalities of a row than
            with the subset that was drawn; 0 turns it off.
        balance: What keeps a modality that is quick to learn from starving the others in training; one of `BALANCES`:
            `unimodal` adds a head and a loss for each modality by itself, `ogm_ge` slows the one that is ahead,
            `mmpareto` finds a compromise where the joint and the unimodal gradients conflict. All but `none` have the
            unimodal heads, which also answer in use.
        unimodal_loss_weight: Weight of the unimodal heads' loss.
        ogm_alpha: How strongly `ogm_ge` slows.
        contrastive_weight: While training, weight of a loss that brings the vectors of a row's modalities together;
            0 turns it off.
        contrastive_by_class: Whether all rows of a class belong together for it, instead of each row with itself.
        label_smoothing: While training, share of the probability that is spread over all labels, in [0, 1).
        class_weights: Weight of each label in the loss (of multi-label: of its presence), or None.
        ordinal: Whether the classes have an order, that of their numbers: the loss then also counts how far
            probability lies from the true class. For `single_label_classification`.
        temperatures: What logits are divided by in use, for each subset of modalities (`"text+image"`) that a row may
            have; fitted after training, so that a confidence is as often right as it says. None: 1.
        unimodal_temperatures: The same for the unimodal heads, by modality; the pipeline applies them.
        thresholds: Of `multi_label_classification`, the probability from which each label counts as predicted; fitted
            after training. None: 0.5.
        tasks: Of a model with several tasks, a list of {"name", "problem_type", "labels": names of its outputs,
            "weight": of its loss}, and where they were fitted what is fitted after training. The outputs of all tasks
            stand side by side, in this order; `id2label` follows from it. None: one task. (A list, since the keys of
            an object come out of a JSON file sorted.)
        layer_norm_eps: Epsilon of the fusion's layer norms.
        initializer_range: Standard deviation of the initial weights.
        mmfusion_version: Version of the format that a saved model has; a later one than `FORMAT_VERSION` is refused.

    Raises:
        ValueError: When no tower is configured or a size is not allowed (`huggingface_hub` wraps it in its
            `StrictDataclassClassValidationError`).
    """

    model_type = "mmfusion"
    sub_configs = dict.fromkeys(TOWER_CONFIGS.values(), AutoConfig)
    has_no_defaults_at_init = True  # at least one tower must be given
    pipelines_class = dict  # of `custom_pipelines`; `mmfusion` puts one in its place

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    audio_config: dict | PreTrainedConfig | None = None

    fusion_type: str = "cross_attention"
    balanced_attention: bool = True
    fusion_rank: int = 4
    num_fusion_queries: int = 8
    hidden_size: int = 256
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    intermediate_size: int = 1024
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    modality_dropout: float = 0.5
    subset_ranking_weight: float = 0.0
    balance: str = "none"
    unimodal_loss_weight: float = 1.0
    ogm_alpha: float = 0.3
    contrastive_weight: float = 0.0
    contrastive_by_class: bool = False
    label_smoothing: float = 0.0
    class_weights: list[float] | None = None
    ordinal: bool = False
    temperatures: dict[str, float] | None = None
    unimodal_temperatures: dict[str, float] | None = None
    thresholds: list[float] | None = None
    tasks: list[dict] | None = None
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    mmfusion_version: int = FORMAT_VERSION

    def __post_init__(self, **kwargs):
        if self.mmfusion_version > FORMAT_VERSION:
            raise ValueError(
                f"`mmfusion_version` of this model is {self.mmfusion_version}, and this MMFusion reads up to "
                f"{FORMAT_VERSION}: update it (`git pull`, or `pip install --upgrade` of the package), or load "
                "the model where it is not imported, with `trust_remote_code=True`"
            )
        self.mmfusion_version = FORMAT_VERSION  # in which it is saved
        self._warn_misspelt(kwargs)
        for field, model_type in DEFAULT_MODEL_TYPES.items():
            tower = getattr(self, field)
            if isinstance(tower, dict):
                tower = AutoConfig.for_model(**{"model_type": model_type, **tower})
                setattr(self, field, tower)
            if tower is not None:
                # Where a tower was loaded from is the run's business, not the architecture's, and may be a local path.
                tower._name_or_path = ""
        self.__dict__["_is_built"] = False  # until all fields stand, labels that are set are not other labels
        super().__post_init__(**kwargs)
        if self.tasks is not None:
            self.take_tasks(self.tasks)
        del self.__dict__["_is_built"]

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs) -> "MMFusionConfig":
        """Build a configuration from what a file holds.

        How attention is computed is the caller's choice (`attn_implementation=…`): in a file it could name a kernel
        repository, whose code the library would then fetch and run.
        """
        ignored = ("attn_implementation", "_attn_implementation")
        config_dict = {key: value for key, value in config_dict.items() if key not in ignored}
        if not (any(map(config_dict.get, OF_THE_LABELS)) and kwargs.keys() & {*LABEL_FIELDS}):
            return super().from_dict(config_dict, **kwargs)
        # Other labels than those of the file: what belongs to the old ones is left out, before it is found not to fit.
        old = super().from_dict(dict(config_dict))
        kept = {key: value for key, value in config_dict.items() if key not in OF_THE_LABELS}
        result = super().from_dict(dict(kept), **kwargs)
        new = result[0] if isinstance(result, tuple) else result
        if new.meaning() == old.meaning():
            return super().from_dict(config_dict, **kwargs)
        dropped = [name for name in OF_THE_LABELS if config_dict.get(name) and not getattr(new, name)]
        if dropped:
            logger.warning(f"`{'`, `'.join(dropped)}` of the saved model are dropped: they belong to other labels")
        return result

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs):
        """Save the configuration, and beside it the code that it names; see `PreTrainedConfig.save_pretrained`."""
        register_code(self)
        name_code(self)
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    # -- what belongs to the labels ----------------------------------------------------------------------------------

    def __setattr__(self, key: str, value):
        """Set a field; other labels or another problem forget what was fitted to the old ones."""
        fields = self.__dict__
        if key == "custom_pipelines":
            value = self.pipelines_class(value)
        if key not in ("id2label", "problem_type") or not any(fields.get(name) for name in OF_THE_LABELS):
            return super().__setattr__(key, value)
        before = self.meaning() if fields.get("id2label") and fields.get("_is_built", True) else None
        super().__setattr__(key, value)
        names = [name for task in self.tasks or () for name in output_names(task)]
        if before is not None and key == "id2label" and names and names != [*value.values()]:
            self.tasks = None
            logger.warning("`tasks` are dropped: the labels are others now")
        if before is None or self.meaning() == before:
            return None
        self.forget_fitted("the labels or the problem are others now")
        if self.class_weights is not None and len(self.class_weights) != self.num_labels:
            self.class_weights = None
            logger.warning(f"`class_weights` are dropped: there are {self.num_labels} labels now")
        return None

    def meaning(self) -> list[tuple]:
        """What the outputs say: two heads of one meaning can stand for each other."""
        meaning = []
        for task in self.each_task():
            names = task.config.id2label or {}
            problem = task.config.problem_type
            if problem is None:
                problem = "regression" if len(names) == 1 else "single_label_classification"
            meaning.append((task.name, problem, [str(names[number]) for number in sorted(names, key=int)]))
        return meaning

    def forget_fitted(self, reason: str | None = None):
        """Have the model answer as its weights say: without the temperatures and thresholds that were fitted to it.

        Args:
            reason: Why, for a line that is logged where there was something to forget; None: nothing is logged.
        """
        owners = [self.__dict__, *(self.tasks or ())]
        forgotten = [name for name in FITTED_FIELDS if any(owner.get(name) is not None for owner in owners)]
        for name in FITTED_FIELDS:
            setattr(self, name, None)
            for task in self.tasks or ():
                task.pop(name, None)
        if forgotten and reason is not None:
            logger.warning(f"`{'`, `'.join(forgotten)}` are forgotten: {reason}")

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that this model has a tower for, in the order text, image, audio."""
        return tuple(name for name, field in TOWER_CONFIGS.items() if getattr(self, field) is not None)

    @property
    def main_inputs(self) -> dict[str, str]:
        """The argument of the model that carries each modality."""
        hears_spectrograms = self.audio_config is not None and self.audio_config.model_type in SPECTROGRAMS
        audio = "input_features" if hears_spectrograms else "input_values"
        return {"text": "input_ids", "image": "pixel_values", "audio": audio}

    # -- tasks -------------------------------------------------------------------------------------------------------

    def take_tasks(self, tasks: list[dict]):
        """Have these tasks, and name the outputs by them."""
        if self.tasks is not tasks:
            self.forget_fitted("the tasks are others now")
        self.tasks, self.problem_type = tasks, None
        self._check_tasks()
        names = [name for task in tasks for name in output_names(task)]
        self.id2label, self.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}

    def each_task(self) -> list[Task]:
        """The tasks in the order of their outputs; a model without `tasks` has one, itself."""
        if self.tasks is None:
            return [Task(None, self, slice(None), slice(None), 1.0)]
        found, output, label = [], 0, 0
        for task in self.tasks:
            size = len(task["labels"])
            width = 1 if task["problem_type"] == PROBLEM_TYPES[0] else size
            outputs, labels = slice(output, output + size), slice(label, label + width)
            found.append(Task(task["name"], self._alone(task), outputs, labels, task.get("weight", 1.0)))
            output, label = outputs.stop, labels.stop
        return found

    def task(self, name: str) -> Task:
        """The task of this name.

        Raises:
            ValueError: There is none.
        """
        names = [task["name"] for task in self.tasks or ()]
        if name not in names:
            known = f"its tasks are {', '.join(names)}" if names else "it has one task, without a name: leave it out"
            raise ValueError(f"this model has no task {name!r}; {known}")
        return self.each_task()[names.index(name)]

    def keep_fitted(self, name: str | None, config: "MMFusionConfig"):
        """Take over what was fitted to one task after training, from the configuration that `each_task` gave of it."""
        for task in self.tasks or ():
            if task["name"] == name:
                fitted = {field: getattr(config, field) for field in FITTED_FIELDS}
                task |= {field: value for field, value in fitted.items() if value is not None}

    def _alone(self, task: dict) -> "MMFusionConfig":
        one = copy.copy(self)
        fields = {field: task.get(field, getattr(type(self), field, None)) for field in TASK_FIELDS}
        label2id = {label: number for number, label in enumerate(task["labels"])}
        id2label = {number: label for label, number in label2id.items()}
        one.__dict__ |= {"tasks": None, "id2label": id2label, "label2id": label2id, **fields}
        return one

    def _check_tasks(self):
        names = [task.get("name") for task in self.tasks]
        if len(names) < 2 or not all(isinstance(name, str) and name for name in names) or len({*names}) < len(names):
            raise ValueError(f"`tasks` must be at least two, each with a `name` of its own, got {names}")
        for task in self.tasks:
            labels, problem = task.get("labels") or [], task.get("problem_type")
            if problem not in PROBLEM_TYPES or len(labels) < 1 + (problem == PROBLEM_TYPES[0]):
                raise ValueError(
                    f"the task {task['name']!r} in `tasks` must have a `problem_type`, one of "
                    f"{', '.join(PROBLEM_TYPES)}, and `labels` (of one class or another, at least two), got "
                    f"{problem!r} and {labels}"
                )
            if not 0 < task.get("weight", 1.0) < float("inf"):
                raise ValueError(f"the task {task['name']!r} must have a `weight` above 0, got {task['weight']}")

    # -- checks ------------------------------------------------------------------------------------------------------

    def validate_architecture(self):
        """Check what types alone do not: called by `@strict` at construction and before saving."""
        if not self.modalities:
            raise ValueError(
                "at least one of `text_config`, `vision_config`, `audio_config` must be given, got none of them"
            )
        if self.fusion_type not in FUSION_TYPES:
            raise ValueError(f"`fusion_type` must be one of {', '.join(FUSION_TYPES)}, got {self.fusion_type!r}")
        if self.balance not in BALANCES:
            raise ValueError(f"`balance` must be one of {', '.join(BALANCES)}, got {self.balance!r}")
        self._check_sizes()
        for task in self.each_task():
            task.config._check_training()
            task.config._check_decisions()
        audio = self.audio_config
        if audio is not None and audio.model_type not in SPECTROGRAMS and not hasattr(audio, "conv_kernel"):
            raise ValueError(
                "`audio_config` must be of a Wav2Vec2-like encoder of raw waveforms (wav2vec2, hubert, wavlm …), "
                f"got model_type {audio.model_type!r}; of encoders of spectrograms it may be {', '.join(SPECTROGRAMS)}"
            )

    def _check_sizes(self):
        sizes = ("num_fusion_queries", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
                 "fusion_rank")  # fmt: skip
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`hidden_size` must be a multiple of `num_attention_heads` ({self.num_attention_heads}), "
                f"got {self.hidden_size}"
            )
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "modality_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be in [0, 1), got {getattr(self, name)}")
        if not self.layer_norm_eps > 0:
            raise ValueError(f"`layer_norm_eps` must be greater than 0, got {self.layer_norm_eps}")
        if not self.initializer_range >= 0:
            raise ValueError(f"`initializer_range` must be at least 0, got {self.initializer_range}")

    def _check_training(self):
        for name in ("subset_ranking_weight", "unimodal_loss_weight", "ogm_alpha", "contrastive_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"`{name}` must be a number of at least 0, got {getattr(self, name)}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"`label_smoothing` must be in [0, 1), got {self.label_smoothing}")
        weights = self.class_weights
        if weights is not None and (
            len(weights) != self.num_labels or not all(0 <= w < float("inf") for w in weights)
        ):
            raise ValueError(
                f"`class_weights` must hold {self.num_labels} numbers of at least 0, one for each label, got {weights}"
            )
        for name, value in [*(self.temperatures or {}).items(), *(self.unimodal_temperatures or {}).items()]:
            if not 0 < value < float("inf") or not set(name.split("+")) <= set(TOWER_CONFIGS):
                raise ValueError(
                    "`temperatures` must give a number greater than 0 for subsets such as `text+image`, got "
                    f"{value} for {name!r}"
                )

    def _check_decisions(self):
        if self.ordinal and self.problem_type not in (None, "single_label_classification"):
            raise ValueError(f"`ordinal` is for single_label_classification, got {self.problem_type}")
        thresholds = self.thresholds
        if thresholds is not None and (
            len(thresholds) != self.num_labels or not all(0 <= threshold <= 1 for threshold in thresholds)
        ):
            raise ValueError(
                f"`thresholds` must hold {self.num_labels} probabilities, one for each label, got {thresholds}"
            )

    def _warn_misspelt(self, extras: dict):
        """`PreTrainedConfig` stores any keyword; one that is nearly a field of ours is most likely a slip."""
        fields = [*self.__dataclass_fields__, "num_labels"]
        for key in extras:
            if key not in fields and (near := difflib.get_close_matches(key, fields, n=1, cutoff=0.85)):
                logger.warning(f"MMFusionConfig does not know `{key}`: did you mean `{near[0]}`?")


def output_names(task: dict) -> list[str]:
    """What the outputs of a task are called beside those of others."""
    alone = task["labels"] == [task["name"]]  # of one number, whose name is that of the column
    return [task["name"]] if alone else [f"{task['name']}: {label}" for label in task["labels"]]


def _other_files():
    """Name the other travelling files; never called, but read by `transformers`: see `saving_mmfusion`."""
    from .cells_mmfusion import sample_of_row  # noqa: F401
    from .checks_mmfusion import check_inputs  # noqa: F401
    from .collating_mmfusion import refuse_unknown_keywords  # noqa: F401
    from .containers_mmfusion import Part  # noqa: F401
    from .decoding_mmfusion import decode_image  # noqa: F401
    from .explanation_mmfusion import explain_rows  # noqa: F401
    from .fusion_mmfusion import FUSIONS  # noqa: F401
    from .loading_mmfusion import tower_config  # noqa: F401
    from .modeling_mmfusion import MMFusionModel  # noqa: F401
    from .objectives_mmfusion import row_losses  # noqa: F401
    from .pipeline_mmfusion import MMFusionPipeline  # noqa: F401
    from .processing_mmfusion import MMFusionProcessor  # noqa: F401
    from .towers_mmfusion import build_tower  # noqa: F401


__all__ = ["MMFusionConfig"]
