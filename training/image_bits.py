"""How many bits the pictures of a table use: X-rays, microscopes and depth cameras store 10 or 12 in 16.

Scaled by all 16, such pictures are black and nothing is learnt from them. One number counts for all pictures of a
model, or their brightness could not be compared: it is estimated on some of the training rows, of which only the
headers are read where they are pictures of 8 bits, and recorded with the processor.
"""

import io
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image

from decoding_mmfusion import IMAGE_FORMATS, bits_needed, deep_colours
from training.resuming import together

NUM_PICTURES = 256  # that are looked at


def choose_image_bits(args, accelerator, rows, processor, teacher=None) -> str | None:
    """Set the processor's `image_bits`, in all processes alike; a line for people where there is something to say.

    Args:
        args: The flags of `train.py`: `--image_bits` decides where it is given.
        accelerator: Of the run; its main process estimates for all.
        rows: The training rows.
        processor: Of the model. That of a model that is gone on from keeps its bits.
        teacher: Whose pictures the model shares, with their bits.
    """
    if "image" not in rows.modalities:
        return None
    needed = together(accelerator, lambda: estimate_bits(rows.pictures(NUM_PICTURES)))
    fixed = processor if args.model_name_or_path is not None else getattr(teacher, "processor", None)
    if args.image_bits is not None:
        processor.image_bits = args.image_bits
    elif fixed is not None:
        processor.image_bits = getattr(fixed, "image_bits", 16)
    else:
        processor.image_bits = needed or 16
    return None if needed is None else _describe(args, needed, processor.image_bits)


def _describe(args, needed: int, bits: int) -> str:
    seen = f"the training rows have pictures of 16 bits, of which they use {needed}"
    if bits == needed:
        return f"{seen}: {2**bits - 1} is white (--image_bits)"
    if bits > needed:
        return (
            f"warning: {seen}, and {2**bits - 1} is white: they will be dark. --image_bits {needed} uses their range"
        )
    return f"note: {seen}, and {2**bits - 1} is white: what is brighter is white too. --image_bits {needed} keeps it"


def estimate_bits(pictures: Iterable[Any]) -> int | None:
    """Return the fewest bits that hold the brightest pixel of the pictures of 16 bits; None: there are none.

    Args:
        pictures: Paths and bytes of files; what cannot be read is passed over, for whoever opens it has more to say.
    """
    highest = [level for picture in pictures if (level := _highest(picture)) is not None]
    return bits_needed(max(highest)) if highest else None


def _highest(picture: Any) -> int | None:
    try:
        with io.BytesIO(picture) if isinstance(picture, bytes) else open(picture, "rb") as file:
            image = Image.open(file, formats=IMAGE_FORMATS)
            if image.width * image.height > Image.MAX_IMAGE_PIXELS:
                return None
            values = np.asarray(image) if image.mode.startswith("I") else deep_colours(image, file)
            if values is None:
                return None
    except Exception:  # Pillow's readers raise nearly anything
        return None
    low, high = int(values.min()), int(values.max())
    return high if low >= 0 and high <= 65535 else None  # beyond that, each picture is stretched by itself
