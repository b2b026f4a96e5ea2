"""LoRA: small matrices learn beside the weights of a tower, which stand still; kept as an adapter, and merged.

What is unusual: the layers are put into the model without a `PeftModel` around it, so every path in it stays what it
was, and whatever is trained outside of these towers (projectors, fusion, head, towers without LoRA) goes into the
adapter under `modules_to_save`. So the base and the adapter together say what the merged model folder says.

Source: Hu et al. 2021, arXiv:2106.09685.
"""

import json
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import is_parametrized

from cli.files import assembled
from modeling_mmfusion import TOWERS
from training.arguments import beside

KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding)  # of layers that LoRA can go into, and out of again
FORWARDS = {kind.forward for kind in KINDS}
# Layers that some towers never call: they hand the weights themselves to a function, which would not see LoRA's.
UNCALLED = {
    "wavlm": ("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.out_proj"),
    **dict.fromkeys(("mobilenet_v1", "mobilenet_v2"), ("convolution",)),
}
ALL_LINEAR = "all-linear"
KEY_PREFIX = "base_model.model."  # of every name in the file of an adapter


# == Before the training ==============================================================================================


def add_lora(args, model, towers) -> None:
    """Freeze the towers of `--lora` and put LoRA layers into them; all else is trained as it would be without.

    Args:
        args: The flags of `train.py`.
        model: The classifier, in which frozen towers are frozen already.
        towers: Its `training.towers.Towers`.

    Raises:
        ValueError: A tower is not there or knows nothing yet, or no layer is called as `--lora_target_modules` says.
    """
    from peft import LoraConfig, inject_adapter_in_model

    _refuse_towers(args.lora, towers)
    base = _hub_name(args.model_name_or_path)
    config = LoraConfig(
        r=args.lora_rank,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=target_pattern(model, args.lora, args.lora_target_modules),
        base_model_name_or_path=base,
        revision=None if base is None else _commit(base, args.model_revision),
    )
    wrapped = [getattr(model.mmfusion, TOWERS[modality]) for modality in args.lora]
    of_wrapped = {id(parameter) for tower in wrapped for parameter in tower.parameters()}
    trained = [p for p in model.parameters() if p.requires_grad and id(p) not in of_wrapped]
    for module in (module for tower in wrapped for module in tower.modules()):
        if hasattr(module, "_freeze_parameters"):  # else Wav2Vec2's convolutions ask for the gradient of the sound
            module._freeze_parameters()
    inject_adapter_in_model(config, model)  # freezes everything but its own
    for parameter in trained:
        parameter.requires_grad_(True)


def _refuse_towers(modalities: tuple[str, ...], towers) -> None:
    for modality in modalities:
        if modality not in towers.encoders:
            raise ValueError(
                f"--lora {modality}: the model has no {modality} tower, it reads {', '.join(towers.encoders)}; leave "
                f"`{modality}` out, or give rows and a model that have it"
            )
        if modality not in towers.pretrained:
            raise ValueError(
                f"--lora {modality}: the {modality} tower starts from scratch, and LoRA keeps such random weights as "
                f"they are; give a pretrained one with --{modality}_model_name_or_path or a whole model with "
                f"--model_name_or_path, or leave `{modality}` out"
            )


def _hub_name(name: str | None) -> str | None:
    """A Hub id as it is; a folder is nothing that others could know, and its name might be that of another's model."""
    return None if name is None or Path(name).exists() else name


def _commit(name: str, revision: str | None) -> str | None:
    """What the revision stands for now, so that the base stays the one that the adapter knows."""
    from transformers.utils.hub import resolve_revision

    found = resolve_revision(name, revision)
    return getattr(found, "resolved", found)


def keep_statistics(tower: nn.Module) -> None:
    """Let a batch norm whose weights are frozen use the statistics it came with, and leave them as they are."""
    for module in tower.modules():
        if isinstance(module, _BatchNorm) and module.weight is not None and not module.weight.requires_grad:
            module.eval()


# -- which layers -----------------------------------------------------------------------------------------------------


def target_pattern(model, modalities: tuple[str, ...], asked: str | None) -> str:
    """The regular expression by which `peft` finds the layers, here and wherever the adapter is loaded.

    Args:
        model: The classifier.
        modalities: Whose towers get LoRA.
        asked: The value of `--lora_target_modules`: names or ends of names with commas between them, `all-linear`, or
            a regular expression over whole names, which starts with `mmfusion`; None: as `peft` does by default for
            an architecture that it knows, else all linear layers, and where there are none, all convolutions.

    Raises:
        ValueError: A tower has no such layer; the message names those that it has.
    """
    candidates = {modality: _candidates(model, modality) for modality in modalities}
    if asked is not None and asked.startswith("mmfusion"):
        _check_expression(model, asked, candidates)
        return asked
    if asked is None or asked == ALL_LINEAR:
        chosen = {m: _by_default(model, m, layers, asked) for m, layers in candidates.items()}
    else:
        chosen = _by_name([name.strip() for name in asked.split(",")], candidates)
    names = [name for modality in modalities for name in chosen[modality]]
    return _expression(names, [name for name, _ in model.named_modules()])


def _candidates(model, modality: str) -> dict[str, nn.Module]:
    """The layers of a tower that LoRA can go into, by their names in the whole model."""
    tower = getattr(model.mmfusion, TOWERS[modality])
    uncalled = UNCALLED.get(tower.config.model_type, ())
    return {
        f"mmfusion.{TOWERS[modality]}.{name}": module
        for name, module in tower.named_modules()
        if type(module).forward in FORWARDS  # one that makes something else of its weights would not be merged rightly
        and not is_parametrized(module)  # what is merged into such a weight is lost
        and getattr(module, "groups", 1) == 1
        and not name.endswith(uncalled)
    }


def _by_default(model, modality: str, layers: dict[str, nn.Module], asked: str | None) -> list[str]:
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    names = KNOWN.get(getattr(model.mmfusion, TOWERS[modality]).config.model_type) if asked is None else None
    if isinstance(names, list) and (found := _ending(layers, names)):
        return found
    for kind in (nn.Linear,) if asked == ALL_LINEAR else (nn.Linear, nn.Conv2d):
        if found := [name for name, layer in layers.items() if isinstance(layer, kind)]:
            return found
    flag = "--lora" if asked is None else f"--lora_target_modules {asked}"
    raise ValueError(f"{flag}: {_without_layer(modality, 'linear layer', layers)}")


def _by_name(names: list[str], candidates: dict[str, dict[str, nn.Module]]) -> dict[str, list[str]]:
    flag = f"--lora_target_modules {','.join(names)}"
    everywhere = {name: layer for layers in candidates.values() for name, layer in layers.items()}
    for name in names:
        if not name or not _ending(everywhere, [name]):
            raise ValueError(f"{flag}: {_without_layer(' and the '.join(candidates), f'layer `{name}`', everywhere)}")
    chosen = {modality: _ending(layers, names) for modality, layers in candidates.items()}
    for modality in (modality for modality, found in chosen.items() if not found):
        raise ValueError(f"{flag}: {_without_layer(modality, 'layer of these names', candidates[modality])}")
    return chosen


def _ending(layers: dict[str, nn.Module], names: list[str]) -> list[str]:
    return [layer for layer in layers if any(layer.endswith(f".{name}") for name in names)]


def _without_layer(which: str, what: str, layers: dict[str, nn.Module]) -> str:
    names = sorted({name.rsplit(".", 1)[-1] for name in layers})
    return f"there is no {what} in the {which} tower for LoRA to go into; it can go into {', '.join(names) or 'none'}"


def _check_expression(model, asked: str, candidates: dict[str, dict[str, nn.Module]]) -> None:
    flag = f"--lora_target_modules {asked}"
    try:
        matches = [name for name, _ in model.named_modules() if re.fullmatch(asked, name)]
    except re.error as error:
        raise ValueError(f"{flag}: this is no regular expression ({error})") from None
    allowed = {name for layers in candidates.values() for name in layers}
    if strange := sorted(set(matches) - allowed):
        kind = type(model.get_submodule(strange[0])).__name__
        raise ValueError(
            f"{flag}: it also matches `{strange[0]}` ({kind}), and LoRA can only go into linear layers, convolutions "
            f"and embeddings of the towers that --lora names, {', '.join(candidates)}, where they are called; make "
            "the expression narrower"
        )
    for modality, layers in candidates.items():
        if not set(matches) & set(layers):
            raise ValueError(f"{flag}: {_without_layer(modality, 'layer of such a name', layers)}")


def _expression(names: list[str], all_names: list[str]) -> str:
    """A regular expression for these names and no other; any number in one stands for all where that is the same."""
    parts = [[r"\d+" if part.isdigit() else re.escape(part) for part in name.split(".")] for name in names]
    short = "|".join(dict.fromkeys(r"\.".join(part) for part in parts))
    if {name for name in all_names if re.fullmatch(short, name)} == set(names):
        return short
    return "|".join(re.escape(name) for name in names)


# == After the training ===============================================================================================


@dataclass
class Adapter:
    """What was learnt, taken out of a model whose towers then are as they were.

    Args:
        config: A `peft.LoraConfig`.
        layers: The LoRA layers, by the names of the layers that they stood around.
        tensors: What the file of the adapter holds.
    """

    config: object
    layers: dict[str, nn.Module]
    tensors: dict[str, torch.Tensor]

    def merge(self) -> None:
        """Add what LoRA has learnt to the weights of the model."""
        for layer in self.layers.values():
            layer.merge(safe_merge=True)

    def save(self, folder: Path, card: str) -> None:
        """Write the adapter as `peft` does.

        Raises:
            OSError: It cannot be written; what stood there is as it was.
        """
        with assembled(folder) as partial:
            try:
                save_file(self.tensors, partial / "adapter_model.safetensors", metadata={"format": "pt"})
            except SafetensorError as error:  # how a full disk shows itself here
                raise OSError(f"the adapter cannot be written to `{folder}`: {error}") from error
            self.config.save_pretrained(partial)
            (partial / "adapter_model.safetensors").chmod((partial / "adapter_config.json").stat().st_mode)
            (partial / "README.md").write_text(card, encoding="utf-8")


def take_out(model) -> Adapter:
    """Take the LoRA layers out of a model; the adapter, whose `merge` puts their effect into the weights."""
    from peft import get_peft_model_state_dict
    from peft.tuners.tuners_utils import BaseTunerLayer

    config = model.peft_config["default"]
    tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    config.modules_to_save, config.inference_mode = list(trained_modules(model)), True
    prefixes = tuple(f"{name}." for name in config.modules_to_save)
    tensors |= {name: tensor for name, tensor in model.state_dict().items() if name.startswith(prefixes)}
    layers = {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    for name, layer in layers.items():
        model.set_submodule(name, layer.get_base_layer())
    del model.peft_config
    tensors = {f"{KEY_PREFIX}{name}": tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return Adapter(config, layers, tensors)


def trained_modules(model) -> Iterator[str]:
    """The names of the modules that are trained as a whole, each as large as `peft` can replace it."""
    parts = [*model.named_children()]
    while parts:
        name, module = parts.pop(0)
        if _is_trained(module):
            if name == "mmfusion" or isinstance(module, nn.ModuleDict | nn.ModuleList):
                parts += [(f"{name}.{child}", part) for child, part in module.named_children()]
            else:
                yield name


def _is_trained(module: nn.Module) -> bool:
    """Whether anything but LoRA is trained in it."""
    return any(p.requires_grad for name, p in module.named_parameters() if ".lora_" not in name)


def finish_adapter(args, accelerator, model, save: Callable[[Path, dict], None]) -> None:
    """Save the adapter beside the model folder, and merge it into the model.

    Args:
        args: The flags of `train.py`.
        accelerator: Of the run; every process merges, the main one saves.
        model: The classifier with LoRA layers and the weights that shall stay.
        save: Saves the model as it is, called with a folder and metrics.
    """
    adapter = take_out(model)
    if accelerator.is_main_process:
        base = args.model_name_or_path
        if base is None:
            base = beside(args.output_dir, "base")
            save(base, {})
        folder = beside(args.output_dir, "adapter")
        adapter.save(folder, adapter_card(args, model.config, adapter.config))
        size = sum(tensor.numel() for tensor in adapter.tensors.values()) / 1e6
        options = _base_options(args, adapter.config, model.config, num_labels=model.config.num_labels)
        code = textwrap.indent(loading_code(str(base), str(folder), options), "  ")
        print(f"the adapter ({size:.2f} M parameters) is in {folder}; load it with\n{code}")
    adapter.merge()


def loading_code(base: str, adapter: str, options: dict) -> str:
    """The Python that loads an adapter onto its base, both given as Hub id or folder.

    Args:
        base: What the adapter was trained on.
        adapter: Where the adapter is.
        options: What `from_pretrained` of the base is told besides.
    """
    words = [json.dumps(base), *(f"{name}={value!r}" for name, value in options.items()), "trust_remote_code=True"]
    return (
        f"base = AutoModelForSequenceClassification.from_pretrained({', '.join(words)})\n"
        f"model = PeftModel.from_pretrained(base, {json.dumps(adapter)})"
    )


def _base_options(args, config, model_config, **labels) -> dict:
    """What loads the base as the adapter expects it; the head of a given model may be one for other labels.

    Args:
        args: The flags of `train.py`.
        config: Of the adapter.
        model_config: Of the model that was trained.
        **labels: What says which labels that has, where it has one task.
    """
    revision = {} if config.revision is None else {"revision": config.revision}
    if args.model_name_or_path is None:
        return revision
    from training.continuing import load_config

    names = ("tasks", "id2label", "label2id")
    if model_config.tasks is not None:
        labels = {name: getattr(model_config, name) for name in names}
    elif load_config(args.model_name_or_path, args.model_revision).tasks is not None:
        labels |= {"tasks": None, "problem_type": model_config.problem_type}
    return {**revision, **labels, "ignore_mismatched_sizes": True, "temperatures": None}


CARD = """---
{data}
---

# {name}: LoRA adapter

For `{base}`, which reads {modalities}. LoRA of rank {config.r} (alpha {config.lora_alpha:g}, dropout \
{config.lora_dropout:g}) in the towers for {towers}; trained as a whole and in here, too: {parts}. Once loaded it \
says what the model folder `{name}` says, where it is merged and its confidence is calibrated, too.

```python
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

{code}
```
"""


def adapter_card(args, model_config, config) -> str:
    """The README of an adapter: what it is, what it holds, and how it is loaded; no path of this machine."""
    from huggingface_hub import ModelCardData

    base, name = config.base_model_name_or_path, args.output_dir.resolve().name
    tags = ["lora", "mmfusion", *([] if base is None else [f"base_model:adapter:{base}"])]
    data = ModelCardData(base_model=base, library_name="peft", license=args.license, tags=tags)
    labels = {"id2label": model_config.id2label, "label2id": model_config.label2id}
    is_new = args.model_name_or_path is None
    base = f"{name}-base" if is_new else base or Path(args.model_name_or_path).resolve().name
    return CARD.format(
        data=data.to_yaml(),
        name=name,
        base=base,
        modalities=", ".join(model_config.modalities),
        config=config,
        towers=", ".join(args.lora),
        parts=", ".join(f"`{part}`" for part in config.modules_to_save),
        code=loading_code(base, f"{name}-adapter", _base_options(args, config, model_config, **labels)),
    )
