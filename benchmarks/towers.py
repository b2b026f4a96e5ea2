"""Which families of transformers can be the towers of a model, and what each of them can do there.

    python benchmarks/towers.py                                        # all families: some minutes on one core
    python benchmarks/towers.py --families bert,vit,wav2vec2
    python benchmarks/towers.py --markdown docs/towers.md              # writes the page, the table included

Each family is a tiny stand-in in the layout of its checkpoints, loaded as `train.py` loads a tower. It then trains two
steps, is run from cached features, trains with LoRA and with activation checkpointing, and has its rows alone compared
with the same rows in a batch. What cannot be a tower must be refused in a sentence. The last line of stdout is one
JSON object.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for our own files, from whatever folder this is run

from benchmarks.timing import print_report
from benchmarks.tiny_towers import FAMILIES, MAX_AUDIO_SECONDS, SAMPLING_RATE, VARIANTS, WORDS, save_stand_in
from cli.files import replacing

PAGE = Path(__file__).with_name("towers_page.md")
TOLERANCE = 1e-4  # of logits of a row alone and in a batch
NUM_ROWS = 4
PART_NAMES = {"text": "tokenizer", "image": "image_processor", "audio": "feature_extractor"}
CELL_NAMES = {"text": "text", "image": "images", "audio": "audio"}
COLUMNS = {
    "trains": "trains", "cached": "frozen + cached", "lora": "LoRA", "checkpointing": "activation checkpointing",
    "alone": "alone as in a batch", "note": "note",
}  # fmt: skip


# == One family =======================================================================================================


def examine(modality: str, model_type: str, folder: Path, **fields) -> dict:
    """Return what one family can do: "yes", or why not; `note` holds what else is to be known.

    Args:
        modality: Of the tower.
        model_type: The family.
        folder: An empty folder for its checkpoint.
        **fields: Of its configuration.
    """
    from training.towers import load_pretrained

    try:
        save_stand_in(folder, modality, model_type, **fields)
    except ImportError as error:
        return {"refused": " ".join(str(error).split())}
    try:
        part, tower, _ = load_pretrained(modality, str(folder))
    except ValueError as error:
        return {"refused": str(error).replace(f"{folder}", "DIR")}
    bench = Bench(modality, part, tower)
    result = {"refused": None, "width": bench.width, "tokens": bench.num_tokens, **bench.train()}
    result |= {"alone": bench.alone(), "cached": bench.cached(folder), "checkpointing": bench.checkpointed()}
    return result | {"lora": bench.with_lora()}


class Bench:
    """A model around one tower, and rows of unequal length for it.

    Args:
        modality, part, tower: As `load_pretrained` gives them.
    """

    def __init__(self, modality: str, part, tower):
        import torch

        from processing_mmfusion import MMFusionProcessor

        self.modality, self.tower = modality, tower
        self.state = {name: tensor.clone() for name, tensor in tower.state_dict().items()}
        limits = {"max_text_length": 24, "max_audio_seconds": MAX_AUDIO_SECONDS}
        self.processor = MMFusionProcessor(**{PART_NAMES[modality]: part}, **limits)
        self.cells, self.labels = cells_of(modality), torch.arange(NUM_ROWS) % 3
        self.batch = self.inputs(self.cells)
        with torch.no_grad():
            hidden, _ = self.model().mmfusion.run_towers(**self.batch)[0][modality]
        self.width = hidden.shape[1] if hidden.ndim == 4 else hidden.shape[2]
        self.num_tokens = hidden[0, 0].numel() if hidden.ndim == 4 else hidden.shape[1]

    def inputs(self, cells: list) -> dict:
        return dict(self.processor(**{CELL_NAMES[self.modality]: cells}, sampling_rate=SAMPLING_RATE))

    def model(self):
        """A classifier in eval mode around the tower as it was loaded, the same one each time."""
        from transformers import set_seed

        from modeling_mmfusion import MMFusionForSequenceClassification

        self.tower.load_state_dict(self.state)
        self.tower.requires_grad_(True)
        set_seed(0)
        sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 40, "num_fusion_queries": 3}
        options = {"initializer_range": 0.2, "num_labels": 3, "hidden_dropout_prob": 0.0, **sizes}
        return MMFusionForSequenceClassification.from_encoders(**{self.modality: self.tower}, **options).eval()

    def train(self) -> dict:
        """Two steps: the loss, and the parameters that no gradient reaches."""
        import torch

        model = self.model().train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for _ in range(2):
            loss = model(**self.batch, labels=self.labels).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        unused = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        said = "yes" if loss.isfinite() else f"no: loss {loss.item()}"
        note = f"{len(unused)} parameters without gradient ({short_names(unused)})" if unused else ""
        return {"trains": said, "unused": unused, "note": note.replace("1 parameters", "1 parameter")}

    def alone(self) -> str:
        """How far a row alone is from the same row in the batch."""
        import torch

        model = self.model()
        with torch.no_grad():
            together = model(**self.batch).logits
            apart = torch.cat([model(**self.inputs([cell])).logits for cell in self.cells])
        difference = (together - apart).abs().max().item()
        return "yes" if difference < TOLERANCE else f"no: {difference:.1e}"

    def cached(self, folder: Path) -> str:
        """Whether features that were cached give what the tower gives."""
        import torch
        from accelerate import Accelerator

        from data.table import Columns, read_table
        from training.features import CachedColumn, TowerCells, collated

        model = self.model()
        table = read_table(write_table(folder / "rows", self.modality, self.cells), columns=Columns(label="none"))
        args = SimpleNamespace(cache_dtype="float32", num_workers=0, dataloader_timeout=0, model_name_or_path=None)
        encoded = TowerCells(args, Accelerator(cpu=True), model, self.processor, self.modality, [table], folder / "c")
        (places,) = encoded.places()
        column = CachedColumn(encoded.store, places)
        outputs = {self.modality: collated([column[row] for row in range(NUM_ROWS)])}
        with torch.no_grad():
            given = model(tower_outputs=outputs, modality_mask=self.batch["modality_mask"]).logits
            difference = (given - model(**self.batch).logits).abs().max().item()
        return "yes" if difference < 100 * TOLERANCE else f"no: {difference:.1e}"  # files round samples and pixels

    def checkpointed(self) -> str:
        """Whether the gradients with activation checkpointing are those without."""
        import torch

        plain, gradients = self.model(), []
        for is_checkpointed in (False, True):
            if is_checkpointed:
                plain.activation_checkpointing_enable()
            plain.zero_grad()
            plain.train()
            silence_dropout(plain)
            torch.manual_seed(0)
            plain(**self.batch, labels=self.labels).loss.backward()
            gradients.append([p.grad.clone() for p in plain.parameters() if p.grad is not None])
        is_on = any(getattr(module, "gradient_checkpointing", False) for module in self.tower.modules())
        for module in plain.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = False
        plain.disable_input_require_grads()
        worst = max((a - b).abs().max().item() for a, b in zip(*gradients, strict=True))
        if worst > 1e-3:
            return f"no: gradients differ by {worst:.1e}"
        return "yes" if is_on else "left as it is"

    def with_lora(self) -> str:
        """Whether LoRA layers get gradients, and the merged model says what the model with them does."""
        import torch

        from training.adapters import add_lora, take_out

        model = self.model()
        args = SimpleNamespace(
            lora=(self.modality,), lora_rank=2, lora_alpha=4, lora_dropout=0.0, lora_target_modules=None,
            model_name_or_path=None, model_revision=None,
        )  # fmt: skip
        encoders = {self.modality: self.tower}
        try:
            add_lora(args, model, SimpleNamespace(encoders=encoders, pretrained=encoders))
        except ValueError as error:
            return f"no: {error}"
        layers = [p for name, p in model.named_parameters() if ".lora_" in name]
        optimizer = torch.optim.AdamW(layers, lr=1e-2)
        model.train()
        model(**self.batch, labels=self.labels).loss.backward()
        untouched = sum(p.grad is None for p in layers)
        optimizer.step()
        model.eval()
        with torch.no_grad():
            expected = model(**self.batch).logits
            take_out(model).merge()
            difference = (model(**self.batch).logits - expected).abs().max().item()
        if untouched == len(layers):
            return "no: no layer gets a gradient"
        return "yes" if difference < TOLERANCE else f"no: merged differs by {difference:.1e}"


def silence_dropout(model) -> None:
    """Leave out what is random in training, so that two passes can be compared."""
    for module in model.modules():
        if "drop" in type(module).__name__.lower():
            module.eval()
        for name in ("layerdrop", "drop_prob"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    model.modality_dropout = 0.0


def short_names(names: list[str]) -> str:
    """The last parts of some names, the first three of them."""
    parts = sorted({name.removesuffix(".weight").removesuffix(".bias").rsplit(".", 1)[-1] for name in names})
    return ", ".join(parts[:3]) + (" …" if len(parts) > 3 else "")


# == Rows =============================================================================================================


def cells_of(modality: str) -> list:
    """Four cells, of unequal length where there is a length."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    if modality == "text":
        return [" ".join(random.choice(WORDS, length)) for length in (2, 5, 9, 14)]
    if modality == "image":
        return [Image.fromarray(random.integers(0, 256, (40, 48, 3), dtype=np.uint8)) for _ in range(NUM_ROWS)]
    return [random.normal(0, 0.1, length).astype(np.float32) for length in (3_000, 6_500, 11_000, 15_000)]


def write_table(folder: Path, modality: str, cells: list) -> Path:
    """Write the cells as a table with one column, media beside it."""
    import json

    from scipy.io import wavfile

    folder.mkdir()
    values = []
    for number, cell in enumerate(cells):
        name = {"image": f"{number}.png", "audio": f"{number}.wav"}.get(modality)
        if modality == "image":
            cell.save(folder / name)
        elif modality == "audio":
            wavfile.write(folder / name, SAMPLING_RATE, cell)
        values.append(cell if name is None else name)
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({modality: value}) + "\n" for value in values), encoding="utf-8")
    return path


# == All of them ======================================================================================================


def chosen(names: str | None) -> list[tuple[str, str, str, dict]]:
    """(Modality, name, family, fields) of each family that is asked for, None: of all."""
    every = [(modality, name, name, {}) for modality, families in FAMILIES.items() for name in families]
    every += [("audio", name, family, fields) for name, (family, fields) in VARIANTS.items()]
    wanted = None if names is None else [name.strip() for name in names.split(",")]
    if unknown := set(wanted or ()) - {name for _, name, _, _ in every}:
        raise SystemExit(f"--families: {', '.join(sorted(unknown))} are not known; known are "
                         f"{', '.join(name for _, name, _, _ in every)}")  # fmt: skip
    return sorted((one for one in every if wanted is None or one[1] in wanted), key=lambda one: (one[0] != "text",
                  one[0] == "audio", one[1]))  # fmt: skip


def run(names: str | None = None) -> dict[str, dict]:
    """Return what each family can do, by its name; a crash is told as one."""
    results = {}
    for modality, name, family, fields in chosen(names):
        with tempfile.TemporaryDirectory() as folder:
            try:
                result = examine(modality, family, Path(folder), **fields)
            except Exception as error:
                result = {"crash": f"{type(error).__name__}: {error}"}
        results[name] = {"modality": modality, **result}
        print(f"{modality:<6}{name:<32}{describe(results[name])}", flush=True)
    return results


def describe(result: dict) -> str:
    """One line for people."""
    if "crash" in result:
        return f"CRASH {result['crash']}"
    if result["refused"]:
        return f"refused: {result['refused']}"
    return "  ".join(f"{name} {result[name]}" for name in COLUMNS if result[name])


def markdown(results: dict[str, dict]) -> str:
    """The tables of the page."""
    parts = []
    for modality in FAMILIES:
        rows = {name: one for name, one in results.items() if one["modality"] == modality}
        works = {name: one for name, one in rows.items() if one.get("refused") is None and "crash" not in one}
        parts += [f"## {modality.capitalize()}", "", f"| family | {' | '.join(COLUMNS.values())} |"]
        parts += ["| --- |" + " --- |" * len(COLUMNS)]
        parts += [f"| `{name}` | {' | '.join(one[column] for column in COLUMNS)} |" for name, one in works.items()]
        refused = {name: one for name, one in rows.items() if name not in works}
        if refused:
            parts += ["", "Refused:", ""]
            parts += [f"- `{name}`: {one.get('refused') or one['crash']}" for name, one in refused.items()]
        parts.append("")
    return "\n".join(parts)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", metavar="NAMES", help="with commas between them; default: all")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the page with the table")
    parser.add_argument("--output_file", type=Path, help="also write the JSON object there")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    results = run(args.families)
    if args.markdown is not None:
        page = PAGE.read_text(encoding="utf-8").replace("{version}", transformers.__version__)
        with replacing(args.markdown) as path:
            path.write_text(page.replace("{tables}", markdown(results).rstrip("\n")), encoding="utf-8")
    print_report({"transformers": transformers.__version__, "families": results}, args)


if __name__ == "__main__":
    main()
