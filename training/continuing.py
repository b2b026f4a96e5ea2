"""Going on from a whole model, one's own or the Hub's: its towers, its fusion and, for the same labels, its head.

The classes are those of this repository and only weights and settings are read, so no code of the model's folder runs.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError

from cli.arguments import first_line
from configuration_mmfusion import MMFusionConfig
from modeling_mmfusion import MMFusionForSequenceClassification
from processing_mmfusion import MMFusionProcessor

FLAG = "--model_name_or_path"


def load_config(name: str, revision: str | None = None, flag: str = FLAG) -> MMFusionConfig:
    """The architecture of a model that the training goes on from, or learns from: `flag` is what named it.

    Raises:
        FileNotFoundError: There is no such folder, or no such model on the Hub.
        ValueError: It is no MMFusion model.
    """
    is_path = name.count("/") > 1 or name.startswith((".", "~", "/")) or Path(name).exists()
    if is_path and not (Path(name) / "config.json").is_file():
        raise FileNotFoundError(f"{flag} {name}: there is no such folder, or it has no `config.json`")
    try:
        settings, _ = MMFusionConfig.get_config_dict(name, revision=revision)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(f"{flag} {name} cannot be had: {first_line(error)}") from error
    if settings.get("model_type") != "mmfusion":
        raise ValueError(
            f"{flag} {name}: a `{settings.get('model_type')}` model; give an MMFusion model that "
            "train.py wrote. A single tower goes to --text_model_name_or_path and its like"
        )
    return MMFusionConfig.from_dict(settings)


def load_processor(name: str, revision: str | None = None, flag: str = FLAG) -> MMFusionProcessor:
    """What prepares the inputs of that model."""
    try:
        return MMFusionProcessor.from_pretrained(name, revision=revision, trust_remote_code=False)  # else it asks
    except (OSError, ValueError) as error:
        raise ValueError(f"{flag} {name}: no processor can be had ({first_line(error)})") from error


def load_classifier(
    name: str, revision: str | None, labels, *, dropout: float, choices: dict
) -> MMFusionForSequenceClassification:
    """The model with the labels of the new table; its head is kept where these are the old ones, else made anew.

    Args:
        name: Folder or Hub id.
        revision: Commit, tag or branch on the Hub.
        labels: A `data.LabelMap` or `data.TaskMap`.
        dropout: Of the fusion, in this training.
        choices: Fields of the configuration that say how it learns, in this training.

    Raises:
        ValueError: The weights are not whole.
    """
    config = load_config(name, revision)
    before = config.meaning()
    config.forget_fitted()  # it belongs to the weights as they were
    if labels.tasks is not None:
        config.take_tasks(labels.tasks)
    else:
        config.tasks, config.problem_type = None, labels.problem_type
        config.id2label, config.label2id = labels.id2label, labels.label2id
    keeps_head = config.meaning() == before
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = dropout
    for field, value in choices.items():
        setattr(config, field, value)
    model = load_weights(name, revision, config, FLAG, is_head_new=not keeps_head)
    if not keeps_head:
        torch.nn.init.normal_(model.classifier.weight, std=config.initializer_range)
        torch.nn.init.zeros_(model.classifier.bias)
    return model


def load_weights(
    name: str, revision: str | None, config: MMFusionConfig, flag: str, *, is_head_new: bool = False
) -> MMFusionForSequenceClassification:
    """The model with its weights; those of the head may be missing or of another shape where it is made anew.

    Raises:
        ValueError: They are not whole.
    """
    try:
        model, info = MMFusionForSequenceClassification.from_pretrained(
            name, revision=revision, config=config, use_safetensors=True, ignore_mismatched_sizes=is_head_new,
            output_loading_info=True,
        )  # fmt: skip
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{flag} {name}: the weights cannot be loaded ({first_line(error)})") from error
    # The heads of the single modalities belong to the way in which a model learns: they may be new.
    may_miss = ("unimodal.", "classifier.") if is_head_new else ("unimodal.",)
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(may_miss))
    if missing:
        raise ValueError(f"{flag} {name}: the weights are not whole, `{missing[0]}` is missing")
    return model
