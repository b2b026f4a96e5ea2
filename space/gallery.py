"""The rows of an index that are nearest to what a visitor gave: found, and made small enough to be shown.

Unusual: no model runs here. The vectors come with the visitor's answer, the index comes from `search.py build`, and
what its rows name is shown only from one folder: as a thumbnail and as the first seconds of a sound, never as the file
itself. A cell that leads out of that folder, or is a URL, stays the text that it is.
"""

import base64
import functools
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from data.table import checked_path
from searching.identity import check_model
from searching.nearest import import_faiss, nearest, ranked
from searching.store import Index, open_index
from space.errors import Refusal
from space.inputs import read_sample
from space.options import Options
from space.views_pictures import data_of, fitted

if TYPE_CHECKING:
    import numpy as np

NUM_SHOWN = 8
THUMBNAIL_SIDE = 224  # pixels of the longer side: twice what it takes on the page
HEARD_SECONDS = 5.0
MP3_RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)  # Hz
NUM_KEPT = 256  # pictures and sounds that are not made anew, some 10 kB each


class Card(NamedTuple):
    """What the page shows of a row.

    Attributes:
        row: its number in its file, from 1.
        score: cosine.
        cells: of text, label, image and audio, as far as the table has them; None: an empty cell.
        picture, sound: `data:` addresses of what may be seen and heard; None where only the name may be shown.
    """

    row: int
    score: float
    cells: dict[str, Any]
    picture: str | None
    sound: str | None


def open_gallery(pipeline, options: Options, name: str) -> "Gallery":
    """Open `--index` whole, before anybody is let in.

    Args:
        pipeline: the served model, for all its tasks.
        options: which index, where its media lie, and the limits.
        name: folder or Hub id of the model.

    Raises:
        FileNotFoundError: There is no such index, or no folder of media.
        ValueError: It is damaged, no index, or of another model.
        ImportError: FAISS is not installed.
    """
    import_faiss()
    index = open_index(Path(options.index))
    check_model(index, name, pipeline.model, pipeline.processor)
    if options.index_media is not None and not Path(options.index_media).is_dir():
        raise FileNotFoundError(
            f"`--index_media {options.index_media}` is no folder: give the one that the paths of the index are "
            "relative to, or leave it out, and only names are shown."
        )  # fmt: skip
    return Gallery(index, pipeline.processor, options)


class Gallery:
    """The rows of an index, with what they are found by.

    Args:
        index: of the served model.
        processor: opens pictures and sounds.
        options: the folder of these, and the limits.
    """

    def __init__(self, index: Index, processor, options: Options):
        self.index, self.processor, self.options = index, processor, options
        self.view = index.view()
        index.rows([0])  # read now, so that a damaged file is told at the start
        self.columns = index.manifest["table"].get("columns", {})
        self.media = None if options.index_media is None else Path(options.index_media).resolve()
        self._small = functools.lru_cache(NUM_KEPT)(self._made_small)

    def __len__(self) -> int:
        return self.index.manifest["table"]["num_rows"]

    def find(self, vector: "np.ndarray", top_k: int) -> list[dict[str, Any]]:
        """Give the rows nearest to a vector (D,), best first, as `search.py query` gives them."""
        scores, places = nearest(self.view, vector[None], top_k)
        return ranked(self.index, self.view, scores[0], places[0])

    def cards(self, vector: "np.ndarray", top_k: int = NUM_SHOWN) -> list[Card]:
        """Give what the page shows of the nearest rows."""
        return [self._card(found) for found in self.find(vector, top_k)]

    def _card(self, found: dict[str, Any]) -> Card:
        own = found["cells"] or {}
        cells = {kind: own[name] for kind, name in self.columns.items() if name in own}
        named = {kind: cell for kind, cell in cells.items() if isinstance(cell, str)}
        picture, sound = (self._small(kind, named.get(kind, "")) for kind in ("image", "audio"))
        return Card(found["row"], found["score"], cells, picture, sound)

    def _made_small(self, kind: str, cell: str) -> str | None:
        """Give the address of a small copy of a file; None where it may not or cannot be shown."""
        path = self._path(cell)
        if path is None:
            return None
        try:
            opened = read_sample({kind: path}, self.processor, self.options)[kind]
        except (Refusal, OSError):  # the row stands in the index all the same, and its name is shown
            return None
        return data_of(fitted(opened, THUMBNAIL_SIDE)) if kind == "image" else data_of_sound(**opened)

    def _path(self, cell: str) -> Path | None:
        """Give the file that a cell names inside the folder of media."""
        if self.media is None:
            return None
        try:
            path = checked_path(cell.strip(), self.media)
            return path if path.is_file() else None
        except (OSError, ValueError):  # it leads out of the folder, is a URL, or no path: it stays text
            return None


def data_of_sound(array: "np.ndarray", sampling_rate: int) -> str | None:
    """Write the beginning of a sound into an address that holds it; None for a rate that no browser plays."""
    import soundfile

    if sampling_rate not in MP3_RATES:
        return None
    file = io.BytesIO()
    heard = array[: round(HEARD_SECONDS * sampling_rate)]
    soundfile.write(file, heard, sampling_rate, format="MP3", compression_level=0.8)
    return f"data:audio/mpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
