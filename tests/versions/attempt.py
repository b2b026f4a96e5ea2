"""What is tried in one version of transformers, as a user without the repository would (`matrix.py` starts it).

Every step writes what came of it into a JSON file: "yes", or the error.
"""

import json
import platform
import sys
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoProcessor, pipeline

AUTO_CLASSES = (AutoConfig, AutoProcessor, AutoModel, AutoModelForSequenceClassification)
TOLERANCE = 1e-5


def reference(folder: Path) -> None:
    """Save models of several kinds of towers, each with its logits; run with the tests' own modules."""
    sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]
    from conftest import CONFIGS, make_inputs, make_model, model_config
    from test_evaluation import make_processor

    torch.save(make_inputs(), folder / "inputs.pt")
    configs = {**CONFIGS, "no picture": lambda: model_config(vision_config=None)}
    for name, config in configs.items():
        model = make_model(config())
        model.config.temperatures = {"text+image+audio": 0.5, "text": 2.0}
        model.save_pretrained(folder / name)
        make_processor().save_pretrained(folder / name)
        torch.save(logits_of(model, make_inputs()), folder / name / "logits.pt")


@torch.no_grad()
def logits_of(model, inputs: dict) -> torch.Tensor:
    """Logits (7 + 1, B, L) of every subset of modalities, and of the rows as they are."""
    if model.config.vision_config is None:
        inputs = {key: value for key, value in inputs.items() if key != "pixel_values"}
    encoded = model.encode(**inputs)
    masks = torch.tensor([[int(digit) for digit in f"{subset:03b}"] for subset in range(1, 8)])
    logits = [
        model(encoder_outputs=encoded, modality_mask=mask.expand(len(inputs["input_ids"]), 3)).logits for mask in masks
    ]
    return torch.stack([*logits, model(**inputs).logits])


def check_logits(model, folder: Path, name: str) -> None:
    logits = logits_of(model, torch.load(folder / "inputs.pt"))
    difference = (logits - torch.load(folder / name / "logits.pt")).abs().max().item()
    if not difference <= TOLERANCE:
        raise ValueError(f"logits of {name} differ by {difference}")


def stranger(folder: Path, work: Path, results: dict) -> None:
    names = sorted(path.parent.name for path in folder.glob("*/config.json"))
    keys = {"trust_remote_code": True}
    for name in names:
        for auto in AUTO_CLASSES:
            loaded = auto.from_pretrained(folder / name, **keys)
    results["load"] = "yes"
    for name in names:
        check_logits(AutoModelForSequenceClassification.from_pretrained(folder / name, **keys).eval(), folder, name)
    results["logits"] = "yes"
    name = names[0]
    classify = pipeline(model=str(folder / name), **keys)
    sample = {"text": "a small animal", "audio": {"array": [0.1, -0.1] * 400, "sampling_rate": 16_000}}
    answer = classify(sample)
    assert len(answer) == classify.model.config.num_labels and "score" in answer[0], answer
    assert len(classify([sample, {"text": "a"}], batch_size=2)) == 2
    results["predict"] = "yes"
    explanation = classify.explain(sample, method="attention")
    total = sum(share for share in explanation["modalities"].values() if share is not None)
    assert abs(total - (explanation["score"] - explanation["baseline"])) < 1e-4, explanation
    assert explanation["text"]["words"], explanation
    results["explain"] = "yes"
    for name in names:
        loaded = AutoModelForSequenceClassification.from_pretrained(folder / name, **keys)
        loaded.save_pretrained(work / name)
        AutoProcessor.from_pretrained(folder / name, **keys).save_pretrained(work / name)
    results["save"] = "yes"
    for name in names:
        again = AutoModelForSequenceClassification.from_pretrained(work / name, **keys).eval()
        check_logits(again, folder, name)
    assert pipeline(model=str(work / name), **keys)(sample)
    results["reload"] = "yes"
    train(folder / names[0], work)
    results["train"] = "yes"


def train(source: Path, work: Path) -> None:
    """Two steps with `Trainer`, after which the weights are others."""
    from transformers import Trainer, TrainingArguments

    model = AutoModelForSequenceClassification.from_pretrained(source, trust_remote_code=True)
    before = model.classifier.weight.detach().clone()
    processor = AutoProcessor.from_pretrained(source, trust_remote_code=True)
    sound = {"array": torch.randn(800).numpy(), "sampling_rate": 16_000}
    row = {key: value[0] for key, value in processor(text="a small animal", audio=sound).items()}
    rows = [{**row, "labels": number % model.config.num_labels} for number in range(8)]
    arguments = TrainingArguments(
        output_dir=str(work / "trained"), max_steps=2, per_device_train_batch_size=4, learning_rate=1e-2,
        use_cpu=True, report_to=[],
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    assert trainer.train().global_step == 2
    assert not torch.equal(before, model.classifier.weight.detach())
    trainer.save_model(str(work / "trained"))
    AutoModelForSequenceClassification.from_pretrained(work / "trained", trust_remote_code=True)


def installed(folder: Path, results: dict) -> None:
    """After `import mmfusion`, without remote code."""
    import mmfusion  # noqa: F401

    name = min(path.parent.name for path in folder.glob("*/config.json"))
    for auto in AUTO_CLASSES:
        loaded = auto.from_pretrained(folder / name)
        assert not type(loaded).__module__.startswith("transformers_modules"), type(loaded)
    check_logits(loaded.eval(), folder, name)
    assert pipeline(model=str(folder / name))({"text": "a small animal"})
    assert not any(module.startswith("transformers_modules.") for module in sys.modules)
    results["installed"] = "yes"


def below(folder: Path, results: dict) -> None:
    """Have every way of loading say what it says below the range."""
    name, results["refusals"] = str(min(path.parent for path in folder.glob("*/config.json"))), []
    ways = [auto.from_pretrained for auto in AUTO_CLASSES]
    for load in (*ways, lambda model, **keys: pipeline(model=model, **keys)):
        try:
            load(name, trust_remote_code=True)
        except ImportError as error:
            results["refusals"].append(str(error))


def main(step: str, folder: str, *rest: str) -> None:
    if step == "reference":
        return reference(Path(folder))
    file, work = map(Path, rest)
    results = json.loads(file.read_text()) if file.exists() else {}
    results["versions"] = [transformers.__version__, platform.python_version(), torch.__version__.split("+")[0]]
    try:
        if step == "stranger":
            stranger(Path(folder), work, results)
        elif step == "below":
            below(Path(folder), results)
        else:
            installed(Path(folder), results)
    except Exception as error:
        results[f"error of {step}"] = f"{type(error).__name__}: {error}"
    file.write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
