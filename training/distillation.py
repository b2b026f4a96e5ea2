"""Learning from a larger model, the teacher, as well as from the labels (`--teacher`).

What is unusual:

1. Both read the same rows, each through its own processor. What the two prepare alike (most often: all of it) is
   prepared once; the rest stands in the batch as `teacher.` and the name of the teacher's input.
2. The model fuses a row twice in training, as it came and with a random subset of its modalities. The teacher answers
   to the row as it came, and teaches both: so its knowledge of the whole reaches rows that lack a part.
3. The teacher belongs to no process group, to no checkpoint and to no model folder; it is read anew after a restart.

Sources: Hinton et al. 2015, arXiv:1503.02531 (answers); Romero et al. 2015, arXiv:1412.6550 (fused vectors).
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import broadcast
from torch.utils.data import Dataset

from data import LabelMap
from modeling_mmfusion import MODALITIES
from training.continuing import load_config, load_processor, load_weights
from training.objective import Objective, hooked

FLAG = "--teacher"
PREFIX = "teacher."  # of the names in a batch that only the teacher reads
NAMES = {
    "text": ("input_ids", "attention_mask"),
    "image": ("pixel_values",),
    "audio": ("input_values", "input_features", "audio_attention_mask"),
}


# == The teacher ======================================================================================================


class Teacher:
    """A model to learn from, its weights not loaded yet.

    Args:
        args: The flags of `train.py`.

    Raises:
        FileNotFoundError: There is no such model.
        ValueError: It is no MMFusion model, or not whole.
    """

    def __init__(self, args):
        self.name, self.revision = args.teacher, args.teacher_revision
        self.config = load_config(self.name, self.revision, FLAG)
        self.processor = load_processor(self.name, self.revision, FLAG)
        self.order: list[int] = []  # for each label of the model the teacher's number of it
        self.modalities: tuple[str, ...] = ()  # that both read

    def fit(self, labels: LabelMap, modalities: Sequence[str]) -> "Teacher":
        """Take the labels and modalities of the rows; itself.

        Raises:
            ValueError: They do not fit.
        """
        own = LabelMap.from_config(self.config)
        if own.problem_type != labels.problem_type:
            raise ValueError(
                f"{FLAG} {self.name} was trained for {own.problem_type}, and these rows are for "
                f"{labels.problem_type}: give a teacher of the same problem"
            )
        self.order = self._order(own, labels)
        self.modalities = tuple(modality for modality in modalities if modality in self.config.modalities)
        if not self.modalities:
            raise ValueError(
                f"{FLAG} {self.name} reads {', '.join(self.config.modalities)}, and the model is trained on "
                f"{', '.join(modalities)}: they have nothing in common"
            )
        return self

    def _order(self, own: LabelMap, labels: LabelMap) -> list[int]:
        if labels.problem_type == "regression" and len(own.names) == len(labels.names) == 1:
            return [0]  # its name is that of a column
        if set(own.names) != set(labels.names):
            missing, more = (
                sorted(set(a) - set(b)) for a, b in ((labels.names, own.names), (own.names, labels.names))
            )
            told = [f"it does not know {_some(missing)}"] if missing else []
            told += [f"it also knows {_some(more)}"] if more else []
            raise ValueError(
                f"{FLAG} {self.name} has other labels than these rows: {' and '.join(told)}. Give a teacher that was "
                "trained on the same labels, in any order"
            )
        return [own.label2id[name] for name in labels.names]

    def reads_apart(self, processor: Any) -> tuple[str, ...]:
        """The modalities that its processor prepares in another way than the model's."""
        both = (self.processor, processor)
        return tuple(name for name in self.modalities if len({_preparation(one, name) for one in both}) > 1)

    def hears_otherwise(self, processor: Any) -> bool:
        """Whether it hears sounds at another rate, or more of them, than the model."""
        heard = {(one.audio_sampling_rate, one.max_audio_seconds) for one in (self.processor, processor)}
        return "audio" in self.modalities and len(heard) > 1

    def describe(self, processor: Any) -> str:
        """A line for people, as those of the model's parts."""
        apart = self.reads_apart(processor)
        more = f"; {', '.join(apart)} prepared for it once more" if apart else ""
        return f"  teacher  {self.name} reads {', '.join(self.modalities)}{more}"

    def model(self, device: torch.device) -> torch.nn.Module:
        """The model itself, frozen.

        Raises:
            ValueError: Its weights are not whole, or not finite.
        """
        model = load_weights(self.name, self.revision, self.config, FLAG).requires_grad_(False).eval()
        if broken := [name for name, value in model.state_dict().items() if not value.isfinite().all()]:
            raise ValueError(f"{FLAG} {self.name}: its weights are not finite, `{broken[0]}` for one")
        return model.to(device)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(f"`{name}`" for name in names[:5]) + more


def choose_teacher(args) -> Teacher | None:
    """What `--teacher` names; a wrong name is told before any row is read."""
    return None if args.teacher is None else Teacher(args)


# == What it reads ====================================================================================================


def _preparation(processor: Any, modality: str) -> str:
    """All that decides what a processor makes of a cell."""
    if modality == "text":
        tokenizer = processor.tokenizer
        settings = {"vocabulary": tokenizer.get_vocab(), "max_text_length": processor.max_text_length}
        settings |= {"special": tokenizer.special_tokens_map, "side": tokenizer.padding_side}
        if backend := getattr(tokenizer, "backend_tokenizer", None):  # without its padding, which is the last batch's
            settings |= {"rules": [backend.normalizer, backend.pre_tokenizer, backend.model, backend.post_processor]}
            settings["rules"] = [None if part is None else part.__getstate__().decode() for part in settings["rules"]]
    else:
        part = processor.image_processor if modality == "image" else processor.feature_extractor
        settings = part.to_dict()
        settings.pop("auto_map", None)  # it says where the part was loaded from
        settings |= {"max_audio_seconds": processor.max_audio_seconds} if modality == "audio" else {}
    return json.dumps(settings, sort_keys=True, default=str)


class TaughtRows(Dataset):
    """Rows, each with the sound as the teacher hears it: opened at another rate, or further, than for the model.

    Args:
        dataset: The rows for the model.
        sounds: The same rows for the teacher; of these only the sound is used.
    """

    def __init__(self, dataset: Dataset, sounds: Dataset):
        self.dataset, self.sounds = dataset, sounds

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.dataset[index], "teacher_audio": self.sounds[index]["audio"]}


class TaughtCollator:
    """Puts rows together for the model, and beside it what the teacher reads in another form.

    Args:
        collate: Puts rows together for the model.
        processor: The teacher's.
        modalities: That are prepared once more.
    """

    def __init__(self, collate: Callable, processor: Any, modalities: Sequence[str]):
        self.collate, self.processor, self.modalities = collate, processor, modalities

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        names = {"text": "text", "image": "images", "audio": "audio"}
        cells = {names[modality]: [_cell(row, modality) for row in rows] for modality in self.modalities}
        prepared = self.processor(**cells, sampling_rate=self.processor.audio_sampling_rate)
        wanted = [name for modality in self.modalities for name in NAMES[modality] if name in prepared]
        return self.collate(rows) | {PREFIX + name: prepared[name] for name in wanted}


def _cell(row: dict[str, Any], modality: str) -> Any:
    return row.get("teacher_audio", row["audio"]) if modality == "audio" else row[modality]


# == What it says =====================================================================================================


class Distillation(Objective):
    """The loss of a batch that a teacher has a say in.

    Args:
        args: The flags of `train.py`.
        accelerator: Of the run.
        model: The classifier that learns, not wrapped yet.
        teacher: That fits the rows.
    """

    def __init__(self, args, accelerator, model, teacher: Teacher):
        super().__init__()
        self.accelerator, self.weight, self.feature_weight = accelerator, args.distillation_weight, args.feature_weight
        self.fusion, self.classifier = model.mmfusion.fusion, model.classifier
        self.temperature, self.problem_type = args.distillation_temperature, model.config.problem_type
        self.teacher, self.modalities = teacher.model(accelerator.device), teacher.modalities
        self.order = torch.tensor(teacher.order, device=accelerator.device)
        if self.feature_weight:
            self.extra["to_teacher"] = self._to_teacher(model.config.hidden_size, teacher.config.hidden_size)

    def _to_teacher(self, width: int, teacher_width: int) -> torch.nn.Module:
        """From the model's fused vectors to where they are compared with the teacher's; alike in all processes."""
        if width == teacher_width:
            return torch.nn.Identity()
        linear = torch.nn.Linear(width, teacher_width).to(self.accelerator.device)
        for parameter in linear.parameters():
            parameter.data = broadcast(parameter.data)
        return linear

    def learn(self, model, batch: dict, backward: Callable[[torch.Tensor], None]) -> torch.Tensor:
        """As everywhere; the linear map is not wrapped with the model, so its gradient is averaged here."""
        loss = super().learn(model, batch, backward)
        if self.accelerator.sync_gradients and self.accelerator.num_processes > 1:
            for parameter in self.extra.parameters():
                parameter.grad = self.accelerator.reduce(parameter.grad, "mean")
        return loss

    def __call__(self, model, batch: dict) -> torch.Tensor:
        inputs = self._inputs(batch)
        vectors, logits = [], []
        keep_vectors = hooked(self.fusion, lambda output: vectors.append(output.pooler_output))
        with keep_vectors, hooked(self.classifier, logits.append):
            own = model(**batch).loss
        heard, said = self._answer(inputs, len(batch["labels"]))
        logits, vectors = (torch.cat(seen).float().split(len(heard)) for seen in (logits, vectors))
        loss = (1 - self.weight) * own
        if self.weight:
            loss = loss + self.weight * self._mean(self._unlikeness, logits, said["logits"], heard)
        if self.feature_weight:  # what is fused once more, for other losses, comes after what is classified
            vectors = vectors[: len(logits)]
            loss = loss + self.feature_weight * self._mean(self._distance, vectors, said["vectors"], heard)
        return loss

    def _inputs(self, batch: dict) -> dict[str, torch.Tensor]:
        """What the teacher reads, and takes out of the batch what is there for it alone."""
        apart = {name.removeprefix(PREFIX): batch.pop(name) for name in list(batch) if name.startswith(PREFIX)}
        main_inputs = self.teacher.config.main_inputs
        masks = [name for modality in self.modalities for name in NAMES[modality] if name.endswith("mask")]
        known = [main_inputs[modality] for modality in self.modalities] + masks
        return {name: value for name, value in (batch | apart).items() if name in (*known, "modality_mask")}

    @torch.no_grad()
    def _answer(self, inputs: dict[str, torch.Tensor], num_rows: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """((B,) whether the row has anything that the teacher reads, its logits (B, L) and fused vectors (B, D))."""
        columns = [
            column
            for column, modality in enumerate(MODALITIES)
            if modality in self.modalities and self.teacher.config.main_inputs[modality] in inputs
        ]
        if not columns:  # the others go on; the map takes part all the same, for other processes average its gradient
            sizes = {"logits": len(self.order), "vectors": self.teacher.config.hidden_size}
            nothing = {name: torch.zeros(num_rows, size, device=self.order.device) for name, size in sizes.items()}
            return torch.zeros(num_rows, device=self.order.device), nothing
        vectors = []
        fusion = self.teacher.mmfusion.fusion
        with hooked(fusion, lambda output: vectors.append(output.pooler_output)), self.accelerator.autocast():
            logits = self.teacher(**inputs).logits
        heard = inputs["modality_mask"][:, columns].any(dim=1).float()
        return heard, {"logits": logits.float()[:, self.order], "vectors": vectors[0].float()}

    def _mean(
        self, compare: Callable, parts: Sequence[torch.Tensor], said: torch.Tensor, heard: torch.Tensor
    ) -> torch.Tensor:
        """The mean of a comparison (B,) over rows and fusions; over all rows, so that each weighs as its label does.

        Args:
            compare: Called with what the model gave (B, …) and the teacher's (B, …).
            parts: What the model gave: of the row as it came, then of a subset.
            said: What the teacher gave.
            heard: (B,), 1 where it had anything to read.
        """
        return torch.stack([(compare(part, said) * heard).mean() for part in parts]).mean()

    def _unlikeness(self, logits: torch.Tensor, said: torch.Tensor) -> torch.Tensor:
        """(B,), 0 where model and teacher answer alike; scaled so that the temperature keeps the gradient's size."""
        if self.problem_type == "regression":
            return (logits - said).square().mean(dim=1)
        logits, said = logits / self.temperature, said / self.temperature
        if self.problem_type == "multi_label_classification":
            pairs = [torch.stack([F.logsigmoid(x), F.logsigmoid(-x)], dim=-1) for x in (logits, said)]
            divergence = F.kl_div(*pairs, reduction="none", log_target=True).sum(dim=-1).mean(dim=1)
        else:
            both = (F.log_softmax(x, dim=1) for x in (logits, said))
            divergence = F.kl_div(*both, reduction="none", log_target=True).sum(dim=1)
        return divergence * self.temperature**2

    def _distance(self, vectors: torch.Tensor, said: torch.Tensor) -> torch.Tensor:
        """(B,), mean squared difference of the fused vectors, the model's brought to the teacher's width."""
        return (self.extra["to_teacher"](vectors) - said).square().mean(dim=1)
