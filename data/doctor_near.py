"""Doubles that are nearly the same, found without comparing everything with everything.

Pictures and sounds: two marks of 64 bits that differ in at most six agree wholly in at least one of seven parts, so
only those that share a part are compared. Texts: MinHash, where each of 16 bands of 5 minima puts texts side by side
that share it; for texts that have four fifths of their pieces in common, one in a few hundred pairs is missed.
Candidates are then judged: pictures and sounds by their miniatures, texts by their pieces.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from data.doctor_media import SKETCH_SIDE, Content

MAX_BITS = 6
MIN_LIKENESS = {"image": 0.995, "audio": 0.9925}  # correlation of the miniatures
_MAX_COLOUR = 12.0  # mean difference of the colours, of 255, apart from brightness
_MAX_SECONDS = 0.01  # as a share of the longer clip
MIN_SHARED_PIECES = 0.8
_PARTS = (9, 9, 9, 9, 9, 9, 10)
_MAX_PARTNERS = 8  # of one content in one place, so that a thousand nearly equal ones are not a million pairs
_BLOCK = 1024
_NUM_BANDS, _BAND_SIZE = 16, 5
_TEXTS_AT_ONCE = 2_000
_PRIME = (1 << 31) - 1


# --- Pictures and sounds


def near_media(contents: Sequence[Content], modality: str) -> list[tuple[int, int]]:
    """Pairs (earlier, later) of different contents that are nearly the same."""
    numbers = [number for number, content in enumerate(contents) if content.mark is not None]
    if len(numbers) < 2:
        return []
    marks = np.array([contents[number].mark for number in numbers], dtype=np.uint64)
    pairs = {tuple(sorted((numbers[a], numbers[b]))) for a, b in _candidates(marks)}
    return sorted(pair for pair in pairs if _are_near(*(contents[number] for number in pair), modality))


def _candidates(marks: np.ndarray) -> Iterator[tuple[int, int]]:
    distinct, first, inverse = np.unique(marks, return_index=True, return_inverse=True)
    yield from ((int(first[group]), at) for at, group in enumerate(inverse) if first[group] != at)
    shift = 0
    for bits in _PARTS:
        part = (distinct >> np.uint64(shift)) & np.uint64((1 << bits) - 1)
        shift += bits
        order = np.argsort(part, kind="stable")
        for bucket in np.split(order, np.flatnonzero(np.diff(part[order])) + 1):
            if len(bucket) > 1:
                yield from ((int(first[a]), int(first[b])) for a, b in _alike(distinct, bucket))


def _alike(marks: np.ndarray, bucket: np.ndarray) -> Iterator[tuple[int, int]]:
    for start in range(0, len(bucket), _BLOCK):
        block = bucket[start : start + _BLOCK]
        alike = np.bitwise_count(marks[block][:, None] ^ marks[bucket][None]) <= MAX_BITS
        alike &= np.arange(len(bucket))[None] > np.arange(start, start + len(block))[:, None]
        alike &= np.cumsum(alike, axis=1) <= _MAX_PARTNERS
        for a, b in zip(*np.nonzero(alike), strict=True):
            yield block[a], bucket[b]


def _are_near(a: Content, b: Content, modality: str) -> bool:
    if modality == "audio":
        lengths = a.facts["seconds"], b.facts["seconds"]
        if abs(lengths[0] - lengths[1]) > _MAX_SECONDS * max(lengths):
            return False
    elif _colour_distance(a, b) > _MAX_COLOUR:
        return False
    return likeness(a, b) >= MIN_LIKENESS[modality]


def likeness(a: Content, b: Content) -> float:
    """Correlation of two miniatures: 1 where they are the same up to brightness and contrast."""
    a, b = (content.sketch[: SKETCH_SIDE**2].astype(np.float64) for content in (a, b))
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b / max(np.sqrt((a @ a) * (b @ b)), 1e-9))


def _colour_distance(a: Content, b: Content) -> float:
    a, b = (content.sketch[SKETCH_SIDE**2 :].reshape(-1, 3).astype(np.float64) for content in (a, b))
    a, b = (colours - colours.mean(axis=1, keepdims=True) for colours in (a, b))
    return float(np.abs(a - b).mean())


# --- Texts


def near_texts(num_texts: int, text_of: Callable[[int], str]) -> list[tuple[int, int]]:
    """Pairs (earlier, later) of texts that share at least four fifths of their pieces.

    Args:
        num_texts: How many there are.
        text_of: Gives a text by its number; it is called again for the candidates.
    """
    if num_texts < 2:
        return []
    minima = np.concatenate([*_minima(num_texts, text_of)])
    pairs: set[tuple[int, int]] = set()
    for band in np.split(minima, _NUM_BANDS, axis=1):
        key = np.ascontiguousarray(band).view([("", band.dtype)] * _BAND_SIZE).ravel()
        order = np.argsort(key, kind="stable")
        for step in range(1, min(_MAX_PARTNERS, num_texts - 1) + 1):
            same = np.flatnonzero(key[order[:-step]] == key[order[step:]])
            pairs |= {(int(order[at]), int(order[at + step])) for at in same}
    return sorted({tuple(sorted(pair)) for pair in pairs if _share_pieces(*map(text_of, pair))})


def _minima(num_texts: int, text_of: Callable[[int], str]) -> Iterator[np.ndarray]:
    """For each text the least of its pieces under each of 80 orders, (texts, 80)."""
    from sklearn.feature_extraction.text import HashingVectorizer

    hashing = HashingVectorizer(analyzer=pieces, n_features=2**30, norm=None, binary=True, alternate_sign=False)
    rng = np.random.default_rng(0)
    factors, terms = (rng.integers(1, _PRIME, _NUM_BANDS * _BAND_SIZE, dtype=np.int64) for _ in range(2))
    for start in range(0, num_texts, _TEXTS_AT_ONCE):
        rows = hashing.transform(map(text_of, range(start, min(start + _TEXTS_AT_ONCE, num_texts))))
        hashes = rows.indices.astype(np.int64)
        # Each text has pieces, so that no row is empty, which `reduceat` would fill from its neighbour.
        columns = [
            np.minimum.reduceat((hashes * factor + term) % _PRIME, rows.indptr[:-1])
            for factor, term in zip(factors, terms, strict=True)
        ]
        yield np.stack(columns, axis=1)


def pieces(text: str) -> set[str]:
    """All stretches of five letters of a normalised text."""
    return {text[at : at + 5] for at in range(max(len(text) - 4, 1))}


def _share_pieces(a: str, b: str) -> bool:
    a, b = pieces(a), pieces(b)
    return len(a & b) >= MIN_SHARED_PIECES * len(a | b)
