"""What a model says of made-up rows when a stranger loads it: run by its path, in a process without files of ours.

    python -P hub/probe.py MODEL OUTPUT.safetensors [--revision SHA]

The rows are noise and words from a fixed seed, one row for each subset of the modalities: they have no meaning, but
two copies of a model say the same of them to the last bit, and a copy with a wrong or missing file does not. One call
of `pipeline` loads all that can be missing: configuration, weights, processor, tokenizer, their code and its own.
"""

import argparse
import itertools

WORDS = ("one small model reads text picture and sound", "not four but three", "x", "Übermut 是 42 %")
TASK = "multimodal-classification"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model", help="folder or Hub id")
    parser.add_argument("output", help="where the logits go: a safetensors file")
    parser.add_argument("--revision", help="commit on the Hub")
    return parser.parse_args(argv)


def made_up_rows(modalities, sampling_rate: int | None) -> dict[str, list]:
    """One row for each non-empty subset of the modalities, as the processor takes them."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    subsets = [s for size in range(1, len(modalities) + 1) for s in itertools.combinations(modalities, size)]
    cells: dict[str, list] = {name: [] for name in modalities}
    for number, subset in enumerate(subsets):
        num_samples = (sampling_rate or 16_000) // 2 + 97 * number  # none of the first at 1 Hz
        made = {
            "text": WORDS[number % len(WORDS)],
            "image": Image.fromarray(random.integers(0, 256, (40 + number, 64, 3), dtype=np.uint8)),
            "audio": random.uniform(-0.5, 0.5, max(1, num_samples)).astype(np.float32),
        }
        for name in modalities:
            cells[name].append(made[name] if name in subset else None)
    if "image" in cells:
        cells["images"] = cells.pop("image")
    return cells


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    import torch
    from safetensors.torch import save_file
    from transformers import pipeline

    torch.set_num_threads(1)  # the same order of additions everywhere
    loaded = pipeline(
        TASK, model=args.model, revision=args.revision, trust_remote_code=True, device="cpu",
        model_kwargs={"use_safetensors": True},
    )  # fmt: skip
    processor, model = loaded.processor, loaded.model
    rate = processor.audio_sampling_rate
    with torch.no_grad():
        logits = model(**processor(**made_up_rows(processor.modalities, rate), sampling_rate=rate)).logits
    if not logits.isfinite().all():
        raise SystemExit("it answers with NaN or infinite numbers: its weights are damaged, or its run diverged")
    save_file({"logits": logits.float().contiguous()}, args.output)


if __name__ == "__main__":
    main()
