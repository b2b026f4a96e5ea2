"""Rows changed at random, so that a model meets more than the table holds; never in evaluation.

What is unusual: a change is decided by the seed, the epoch and the row alone. So neither workers nor the number of
processes nor an interruption can alter it, and no generator of the training moves. Pictures and sounds are changed
after they were opened and kept; what is kept stays as it is.

The changes of pictures are those of Pillow: the usual libraries for them bring torchvision or OpenCV, and those for
sounds librosa, for what are a few lines each.
"""

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from processing_mmfusion import MIN_SECONDS, MODALITIES
from training.flags import STRENGTHS

MAX_SNR_DB = 40.0  # noise that nobody hears
GREY = (128, 128, 128)


# == Pictures =========================================================================================================


def cropped(image: Image.Image, largest_cut: float, rng: np.random.Generator) -> Image.Image:
    """A part of the picture, at its old size.

    Args:
        image: The picture.
        largest_cut: Of its area, in [0, 1).
        rng: Draws the part: its area, its shape (sides 3:4 to 4:3 of the picture's), its place.

    Source: Szegedy et al. 2015, arXiv:1409.4842, section 6.
    """
    area, stretch = rng.uniform(1 - largest_cut, 1), math.exp(rng.uniform(-1, 1) * math.log(4 / 3))
    width, height = min(1, math.sqrt(area * stretch)), min(1, math.sqrt(area / stretch))
    left, top = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
    box = (left * image.width, top * image.height, (left + width) * image.width, (top + height) * image.height)
    return image.resize(image.size, Image.Resampling.BILINEAR, box=box)


def _moved(image: Image.Image, *matrix: float) -> Image.Image:
    data = (*matrix[:2], matrix[2] * image.width, *matrix[3:5], matrix[5] * image.height)
    return image.transform(image.size, Image.Transform.AFFINE, data, Image.Resampling.BILINEAR, fillcolor=GREY)


# What RandAugment draws from: a picture and a strength in [-1, 1], where 0 changes nothing.
RAND_OPERATIONS: tuple[Callable[[Image.Image, float], Image.Image], ...] = (
    lambda image, strength: image,
    lambda image, strength: ImageOps.autocontrast(image),
    lambda image, strength: ImageOps.equalize(image),
    lambda image, strength: image.rotate(30 * strength, Image.Resampling.BILINEAR, fillcolor=GREY),
    lambda image, strength: ImageOps.solarize(image, round(256 - 256 * abs(strength))),
    lambda image, strength: ImageOps.posterize(image, 8 - round(4 * abs(strength))),
    lambda image, strength: ImageEnhance.Color(image).enhance(1 + 0.9 * strength),
    lambda image, strength: ImageEnhance.Contrast(image).enhance(1 + 0.9 * strength),
    lambda image, strength: ImageEnhance.Brightness(image).enhance(1 + 0.9 * strength),
    lambda image, strength: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * strength),
    lambda image, strength: _moved(image, 1, 0.3 * strength, 0, 0, 1, 0),
    lambda image, strength: _moved(image, 1, 0, 0, 0.3 * strength, 1, 0),
    lambda image, strength: _moved(image, 1, 0, 0.45 * strength, 0, 1, 0),
    lambda image, strength: _moved(image, 1, 0, 0, 0, 1, 0.45 * strength),
)


def randaugment(image: Image.Image, num_operations: int, magnitude: float, rng: np.random.Generator) -> Image.Image:
    """So many changes one after the other, each drawn from all with the same probability and made to one strength.

    Args:
        image: The picture.
        num_operations: How many.
        magnitude: Of all of them, from 0 (nearly none) to 30.
        rng: Draws the changes and their directions.

    Source: Cubuk et al. 2020, arXiv:1909.13719, section 3.
    """
    for index in rng.integers(len(RAND_OPERATIONS), size=num_operations):
        image = RAND_OPERATIONS[index](image, rng.choice((-1, 1)) * magnitude / 30)
    return image


def changed_image(image: Image.Image, args: argparse.Namespace, rng: np.random.Generator) -> Image.Image:
    """The picture as the training sees it this time."""
    if args.image_crop:
        image = cropped(image, args.image_crop, rng)
    if args.image_flip and rng.random() < 0.5:
        image = ImageOps.mirror(image)
    if args.randaugment_num_ops:
        image = randaugment(image, args.randaugment_num_ops, args.randaugment_magnitude, rng)
    return image


# == Sounds ===========================================================================================================


def sped(sound: np.ndarray, rate: int, largest: float, rng: np.random.Generator) -> np.ndarray:
    """Played up to so much faster or slower, higher or lower with it.

    Source: Ko et al. 2015, Audio Augmentation for Speech Recognition; any factor instead of three.
    """
    import soxr

    factor = math.exp(rng.uniform(-1, 1) * math.log1p(largest))
    return soxr.resample(sound, rate * factor, rate)


def filtered(sound: np.ndarray, largest_db: float, rng: np.random.Generator) -> np.ndarray:
    """Heard by another microphone in another room: a smooth random curve over the frequencies, of ± so many dB."""
    spectrum = np.fft.rfft(sound)
    points = rng.uniform(-largest_db, largest_db, size=8)
    curve = np.interp(np.linspace(0, 7, len(spectrum)), np.arange(8), points)
    return np.fft.irfft(spectrum * 10 ** (curve / 20), len(sound)).astype(np.float32)


def shifted(sound: np.ndarray, rate: int, largest_seconds: float, rng: np.random.Generator) -> np.ndarray:
    """Begun earlier or later; what leaves at one end comes in at the other, so that no silence is made."""
    most = min(largest_seconds * rate, len(sound) / 2)
    return np.roll(sound, round(rng.uniform(-most, most)))


def faded(sound: np.ndarray, largest_db: float, rng: np.random.Generator) -> np.ndarray:
    """Made louder or softer, from one random gain at the start to another at the end.

    One gain for all of it would be lost on the models whose feature extractor brings each clip to the same loudness.
    """
    start, end = rng.uniform(-largest_db, largest_db, size=2)
    return sound * (10 ** (np.linspace(start, end, len(sound), dtype=np.float32) / 20))


def noisy(sound: np.ndarray, lowest_snr_db: float, rng: np.random.Generator) -> np.ndarray:
    """With noise of any colour between white and brown, at a ratio of signal to noise from the lowest to 40 dB."""
    snr, colour = rng.uniform(lowest_snr_db, MAX_SNR_DB), rng.uniform(0, 1)
    spectrum = np.fft.rfft(rng.standard_normal(len(sound), dtype=np.float32))
    spectrum *= np.maximum(np.arange(len(spectrum)), 1.0) ** -colour
    noise = np.fft.irfft(spectrum, len(sound)).astype(np.float32)
    power = float(np.mean(noise**2))
    if power == 0:
        return sound
    return sound + noise * math.sqrt(float(np.mean(sound**2)) / power / 10 ** (snr / 10))


def changed_audio(sound: np.ndarray, rate: int, args: argparse.Namespace, rng: np.random.Generator) -> np.ndarray:
    """The sound (N,) at `rate` Hz as the training hears it this time; its peak may be above 1."""
    if args.audio_speed:
        sound = sped(sound, rate, args.audio_speed, rng)
    if args.audio_filter_db:
        sound = filtered(sound, args.audio_filter_db, rng)
    if args.audio_shift_seconds:
        sound = shifted(sound, rate, args.audio_shift_seconds, rng)
    if args.audio_gain_db:
        sound = faded(sound, args.audio_gain_db, rng)
    if args.audio_noise_snr_db < MAX_SNR_DB:
        sound = noisy(sound, args.audio_noise_snr_db, rng)
    return np.ascontiguousarray(sound, dtype=np.float32)


# == Text =============================================================================================================


def with_typos(text: str, share: float, rng: np.random.Generator) -> str:
    """Of the words so many with one slip: two letters swapped, one left out, one twice, one from elsewhere in it.

    Letters come from the text itself, so that the slips are in its own script.
    """
    words, letters = text.split(" "), [letter for letter in text if letter.isalpha()]
    for index in np.flatnonzero(rng.random(len(words)) < share):
        words[index] = _slip(words[index], letters, rng)
    return " ".join(words)


def _slip(word: str, letters: Sequence[str], rng: np.random.Generator) -> str:
    kind = rng.integers(4)
    if len(word) < 2 or not letters:  # what is left of it must still be a word
        return word
    at = int(rng.integers(len(word) - 1))
    if kind == 0:
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    if kind == 1:
        return word[:at] + word[at + 1 :]
    put = word[at] if kind == 2 else letters[rng.integers(len(letters))]
    return word[:at] + put + word[at:]


def drop_tokens(
    input_ids: torch.Tensor, mask: torch.Tensor, tokenizer, share: float, rng: np.random.Generator
) -> None:
    """Replace so many of one text's tokens, special ones never, by the tokenizer's mask (or its unknown) token.

    Args:
        input_ids: (T,), changed in place.
        mask: (T,), 1 = token, 0 = padding.
        tokenizer: Of the model.
        share: Probability of each token, in [0, 1].
        rng: Draws one number a token, so that the padding changes nothing.
    """
    places = mask.nonzero().squeeze(1)
    drawn = torch.from_numpy(rng.random(len(places))) < share
    is_special = torch.isin(input_ids[places], torch.tensor(tokenizer.all_special_ids))
    input_ids[places[drawn & ~is_special]] = stand_in(tokenizer)


def stand_in(tokenizer) -> int:
    """The token that takes the place of a dropped one.

    Raises:
        ValueError: The tokenizer has none.
    """
    for token in (tokenizer.mask_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id):
        if token is not None:
            return token
    raise ValueError("--text_token_dropout: the tokenizer has no mask, unknown or padding token; leave the flag out")


# == Rows =============================================================================================================


class Augmenter:
    """Changes the cells of a row, each by random numbers of its own.

    Args:
        args: The flags of `train.py`.
        sampling_rate: Of the sounds, in Hz; None where there are none.
    """

    def __init__(self, args, sampling_rate: int | None):
        # Not the whole of the flags: what is here goes to every process that opens rows.
        self.seed, self.modalities, self.sampling_rate = args.seed, args.augment, sampling_rate
        self.strengths = argparse.Namespace(**{name: getattr(args, name) for name in STRENGTHS})

    def __call__(self, row: dict[str, Any], epoch: int, process: int = 0) -> dict[str, Any]:
        """The row with other cells; the old ones are left as they are."""
        changed = dict(row)
        for name in MODALITIES:
            if name in self.modalities and row[name] is not None:
                rng = self.generator(epoch, row["row"], name, process)
                changed[name] = self._changed(name, row[name], rng)
        return changed

    def generator(self, epoch: int, row: int, modality: str, process: int = 0, *more: int) -> np.random.Generator:
        """Random numbers for a cell in an epoch."""
        return np.random.default_rng((self.seed, epoch, row, MODALITIES.index(modality), process, *more))

    def _changed(self, modality: str, cell: Any, rng: np.random.Generator) -> Any:
        if modality == "text":
            share = self.strengths.text_word_noise
            return with_typos(cell, share, rng) if share else cell
        if modality == "image":
            return changed_image(cell, self.strengths, rng)
        sound = changed_audio(cell, self.sampling_rate, self.strengths, rng)
        # Played faster, a clip of hardly more than the shortest that can be heard would be too short.
        return sound if len(sound) >= math.ceil(MIN_SECONDS * self.sampling_rate) else cell


class Epoch:
    """The number of the epoch, where all processes that open rows see it, those that were started long before too."""

    def __init__(self):
        self.memory = torch.zeros(1, dtype=torch.long).share_memory_()

    @property
    def number(self) -> int:
        return int(self.memory[0])

    @number.setter
    def number(self, value: int) -> None:
        self.memory[0] = value


class AugmentedRows(Dataset):
    """The rows of a table, changed in each epoch in another way.

    Args:
        dataset: The rows as they are, each with its place in the source as `row`.
        augment: Changes them.
        epoch: Which one it is; see `begin_epoch`.
    """

    def __init__(self, dataset: Dataset, augment: Augmenter, epoch: Epoch):
        self.dataset, self.augment, self.epoch = dataset, augment, epoch

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.augment(self.dataset[index], self.epoch.number)


class AugmentedStream(IterableDataset):
    """The same for the rows of a stream, which have no place but the one at which they came to this process."""

    def __init__(self, dataset: IterableDataset, augment: Augmenter, epoch: Epoch, process_index: int):
        self.dataset, self.augment, self.epoch, self.process_index = dataset, augment, epoch, process_index

    def __len__(self) -> int:
        return len(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        """Called by the prepared DataLoader at the start of each epoch."""
        self.dataset.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        process = self.process_index if worker is None else self.process_index * worker.num_workers + worker.id
        return (self.augment(row, self.epoch.number, process) for row in self.dataset)


class AugmentedCollator:
    """Puts rows together, then drops tokens of their texts.

    Args:
        collate: Puts rows together.
        processor: An MMFusionProcessor, whose tokenizer made the tokens.
        augment: Says how the tokens are drawn, and how many.
        epoch: Which one it is.
    """

    def __init__(self, collate: Callable, processor: Any, augment: Augmenter, epoch: Epoch):
        self.collate, self.tokenizer, self.augment, self.epoch = collate, processor.tokenizer, augment, epoch
        stand_in(self.tokenizer)  # that there is none is said now

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch, share = self.collate(rows), self.augment.strengths.text_token_dropout
        if "input_ids" in batch:
            for index, row in enumerate(rows):
                rng = self.augment.generator(self.epoch.number, row["row"], "text", 0, 1)
                drop_tokens(batch["input_ids"][index], batch["attention_mask"][index], self.tokenizer, share, rng)
        return batch


def augmented_rows(args, dataset: Dataset, epoch: Epoch, process_index: int = 0) -> Dataset:
    """The rows with the changes that `--augment` asks for; as they are without it.

    Args:
        args: The flags of `train.py`.
        dataset: A `FusionDataset` or a `StreamedDataset`.
        epoch: Which one it is.
        process_index: Which process this is; counts in a stream only, where each has rows of its own.
    """
    if not set(args.augment) & set(dataset.modalities):
        return dataset
    augment = Augmenter(args, dataset.sampling_rate)
    if isinstance(dataset, IterableDataset):
        return AugmentedStream(dataset, augment, epoch, process_index)
    return AugmentedRows(dataset, augment, epoch)


def augmented_collator(args, collate: Callable, dataset: Dataset, processor: Any, epoch: Epoch) -> Callable:
    """The same for what is done with the tokens of a batch.

    Raises:
        ValueError: The tokenizer has nothing to put in a token's place.
    """
    if "text" not in args.augment or "text" not in dataset.modalities or not args.text_token_dropout:
        return collate
    return AugmentedCollator(collate, processor, Augmenter(args, None), epoch)


def begin_epoch(loader: DataLoader, epoch: int) -> None:
    """Tell the rows of a loader, through whatever they are wrapped in, which epoch begins."""
    dataset = loader.dataset
    while dataset is not None:
        if isinstance(dataset, AugmentedRows | AugmentedStream):
            dataset.epoch.number = epoch
        dataset = getattr(dataset, "dataset", None)
