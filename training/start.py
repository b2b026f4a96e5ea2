"""Where a training starts: with new towers and a new fusion, or with a whole model to go on from."""

from configuration_mmfusion import FUSION_TYPES
from training.arguments import refuse_idle_towers
from training.optimization import tower_learning_rate
from training.towers import BASE, Towers, make_towers


def choose_start(args) -> "NewModel | GivenModel":
    """What `--model_name_or_path` asks for; a wrong name is told before any row is read."""
    return NewModel(args) if args.model_name_or_path is None else GivenModel(args)


class NewModel:
    """Towers by `--preset` or by name, and around them a fusion that knows nothing yet."""

    origin = "from scratch"

    def __init__(self, args):
        self.args = args

    def reads(self, modality: str) -> bool:
        """Whether the model shall have this modality, where the table has it."""
        return self.tower_name(modality) != "none"

    def towers(self, rows) -> Towers:
        """The towers for the modalities of the training rows; a tiny text tower learns its vocabulary from these."""
        args, modalities = self.args, rows.modalities
        refuse_idle_towers(args, rows.name, modalities)
        return make_towers(
            modalities,
            {modality: self.tower_name(modality) for modality in modalities},
            texts=rows.texts() if "text" in modalities else (),
            vocab_size=args.vocab_size,
            image_size=args.image_size,
            sampling_rate=args.sampling_rate,
            max_text_length=args.max_text_length,
            max_audio_seconds=args.max_audio_seconds,
            mask_time_prob=args.mask_time_prob,
            mask_feature_prob=args.mask_feature_prob,
            allow_missing_weights=args.allow_missing_tower_weights,
        )

    def model(self, towers: Towers, labels):
        """The classifier around the towers."""
        from modeling_mmfusion import MMFusionForSequenceClassification

        args = self.args
        hidden_size = args.fusion_hidden_size or {"tiny": 128, "base": 512}[args.preset]
        model = MMFusionForSequenceClassification.from_encoders(
            **towers.encoders,
            **fields_of(labels),
            hidden_size=hidden_size,
            intermediate_size=4 * hidden_size,
            num_hidden_layers=args.num_fusion_layers,
            num_fusion_queries=args.num_fusion_queries,
            hidden_dropout_prob=args.hidden_dropout_prob,
            attention_probs_dropout_prob=args.hidden_dropout_prob,
            fusion_type=args.fusion_type or FUSION_TYPES[0],
            **learning_choices(args),
        )
        return prepared(args, model, towers)

    def tower_name(self, modality: str) -> str | None:
        """Where the tower comes from: a name, `none` (no tower), or None (a tiny one from scratch)."""
        given = getattr(self.args, f"{modality}_model_name_or_path")
        return given if given is not None or self.args.preset == "tiny" else BASE[modality]


class GivenModel:
    """A model that was trained before, with the labels of the new table."""

    def __init__(self, args):
        from training.continuing import load_config

        self.args, self.origin = args, args.model_name_or_path
        self.config = load_config(args.model_name_or_path, args.model_revision)

    def reads(self, modality: str) -> bool:
        return modality in self.config.modalities

    def towers(self, rows) -> Towers:
        """What prepares the model's inputs; its towers come with it."""
        from training.continuing import load_processor

        name = self.args.model_name_or_path
        processor = load_processor(name, self.args.model_revision)
        return Towers(encoders={}, processor=processor, pretrained=dict.fromkeys(self.config.modalities, name))

    def model(self, towers: Towers, labels):
        """The model whole, its head anew where the labels are new."""
        from modeling_mmfusion import TOWERS
        from training.continuing import load_classifier

        args = self.args
        model = load_classifier(
            args.model_name_or_path, args.model_revision, labels,
            dropout=args.hidden_dropout_prob, choices=learning_choices(args),
        )  # fmt: skip
        towers.encoders |= {m: getattr(model.mmfusion, TOWERS[m]) for m in self.config.modalities}
        return prepared(args, model, towers)


def fields_of(labels) -> dict:
    """Fields of the configuration that say what the outputs of a new model mean; with tasks the names follow."""
    if labels.tasks is not None:
        return {"tasks": labels.tasks}
    return {"id2label": labels.id2label, "label2id": labels.label2id, "problem_type": labels.problem_type}


def learning_choices(args) -> dict:
    """Fields of the configuration that say how a model learns, and that a given model takes anew."""
    names = (
        "modality_dropout", "subset_ranking_weight", "balance", "unimodal_loss_weight", "contrastive_weight",
        "contrastive_by_class", "label_smoothing", "ordinal",
    )  # fmt: skip
    return {**{name: getattr(args, name) for name in names}, "class_weights": None}  # they come with the rows


def prepared(args, model, towers: Towers):
    """The model as it is trained: a tower whose learning rate is 0 is frozen, those of `--lora` get LoRA layers."""
    from modeling_mmfusion import TOWERS
    from training.adapters import add_lora

    for modality in towers.encoders:
        if tower_learning_rate(args, modality, towers) == 0:
            getattr(model.mmfusion, TOWERS[modality]).requires_grad_(False)
    if args.lora:
        add_lora(args, model, towers)
    if args.activation_checkpointing:
        model.activation_checkpointing_enable()
    return model
