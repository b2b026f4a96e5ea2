"""Heat over the visitor's picture, and the waveform of the visitor's sound in the colours of what weighed.

Unusual: both are small pictures inside the HTML (`data:`), so that they come with a sentence for those who do not see
them, and nothing of a visitor lies in a file on the server. The waveform is drawn as vectors, which stay sharp.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from space.texts import tell
from space.views import heading, note, safe

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

HEAT_SIDE = 480  # pixels of the longer side
MAX_ALPHA = 0.8
NUM_PEAKS = 180
WAVE_WIDTH, WAVE_HEIGHT = 720, 120
# The same as in `static/page.css`: they can be told apart by those who do not tell red from green.
COLOURS = {"for": (13, 148, 136), "against": (217, 84, 20), "neutral": (128, 134, 145)}
IS_FLAT = 1e-9


# -- the picture ------------------------------------------------------------------------------------------------------


def heat_picture(picture: "Image.Image", scores: Sequence[Sequence[float]], box: Sequence[float]) -> "Image.Image":
    """Lay the scores over the picture: one colour for, one against, the stronger the less transparent.

    Args:
        picture: upright, RGB.
        scores: rows of a grid.
        box: (left, top, right, bottom) of the grid in fractions of the picture; what lies outside of it is cut off.
    """
    import numpy as np
    from PIL import Image

    shown = fitted(picture)
    heat = heat_map(np.array(scores, np.float32), box, shown.size)
    alpha = np.abs(heat)[..., None] ** 0.8 * MAX_ALPHA
    colour = np.where(heat[..., None] >= 0, COLOURS["for"], COLOURS["against"])
    # Grey below, so that the colours are those of the scores; and neither black nor white, where they would drown.
    ground = 50 + np.asarray(shown.convert("L").convert("RGB"), np.float32) * 0.7
    return Image.fromarray((ground * (1 - alpha) + colour * alpha).round().astype(np.uint8))


def fitted(picture: "Image.Image", side: int = HEAT_SIDE) -> "Image.Image":
    """Bring a picture to the size in which it is shown; a tiny one is enlarged without being smoothed away.

    Args:
        picture: of any size.
        side: pixels of the longer side.
    """
    from PIL import Image

    scale = side / max(picture.size)
    size = [max(1, round(length * scale)) for length in picture.size]
    return picture.convert("RGB").resize(size, Image.Resampling.BICUBIC if scale < 4 else Image.Resampling.NEAREST)


def heat_map(scores: "np.ndarray", box: Sequence[float], size: tuple[int, int]) -> "np.ndarray":
    """Give (height, width) in -1 to 1: the grid, smoothed, where it lies over a picture of that size; 0 elsewhere."""
    import numpy as np

    largest = np.abs(scores).max()
    width, height = size
    left, top, right, bottom = box
    if largest < IS_FLAT or right <= left or bottom <= top:
        return np.zeros((height, width), np.float32)
    rows, columns = scores.shape
    # Where each pixel lies on the grid, in cells; a cell's score stands in its middle.
    x = ((np.arange(width) + 0.5) / width - left) / (right - left) * columns
    y = ((np.arange(height) + 0.5) / height - top) / (bottom - top) * rows
    along_y = np.array([np.interp(y - 0.5, np.arange(rows), column) for column in scores.T / largest]).T
    smooth = np.array([np.interp(x - 0.5, np.arange(columns), row) for row in along_y])
    is_inside = np.outer((y >= 0) & (y <= rows), (x >= 0) & (x <= columns))
    return (smooth * is_inside).astype(np.float32)


def heat_view(language: str, picture: str | None, explanation: Mapping[str, Any]) -> str:
    """Give the picture with its heat, from `data_of` of `heat_picture`; None: its place is not known."""
    title = heading(4, tell(language, "heat"))
    if picture is None:
        return title + note(tell(language, "heat.unknown"))
    place = strongest_place(language, explanation["image"]["scores"], explanation["image"]["box"])
    if place is None:
        return title + note(tell(language, "flat"))
    return title + image(picture, tell(language, "heat.alt", label=explanation["label"], place=place))


def strongest_place(language: str, scores: Sequence[Sequence[float]], box: Sequence[float]) -> str | None:
    """Say in words where the strongest cell lies in the picture; None where no cell stands out."""
    cells = [(abs(score), y, x) for y, row in enumerate(scores) for x, score in enumerate(row)]
    weight, y, x = max(cells)
    if weight < IS_FLAT:
        return None
    left, top, right, bottom = box
    x = left + (x + 0.5) / len(scores[0]) * (right - left)
    y = top + (y + 0.5) / len(scores) * (bottom - top)
    vertical, horizontal = ("top", "middle", "bottom")[third(y)], ("left", "centre", "right")[third(x)]
    names = {"vertical": tell(language, f"place.{vertical}"), "horizontal": tell(language, f"place.{horizontal}")}
    return tell(language, "place", **names)


def third(fraction: float) -> int:
    return min(2, max(0, int(fraction * 3)))


def data_of(picture: "Image.Image") -> str:
    """Write a picture into an address that holds it."""
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def image(address: str, alt: str) -> str:
    return f'<img class="mm-picture" src="{safe(address)}" alt="{safe(alt)}">'


# -- the sound --------------------------------------------------------------------------------------------------------


def peaks_of(array: "np.ndarray", num_peaks: int = NUM_PEAKS) -> list[float]:
    """Give the loudest sample of each of some equal stretches, the loudest of all as 1."""
    import numpy as np

    stretches = np.array_split(np.abs(np.asarray(array, np.float32)), min(num_peaks, len(array)))
    peaks = np.array([stretch.max() for stretch in stretches])
    return (peaks / max(peaks.max(), 1e-9)).round(3).tolist()


def wave_view(
    language: str, peaks: Sequence[float], explanation: Mapping[str, Any], heard: float | None = None
) -> str:
    """Give the waveform, each stretch in the colour of what it weighs, and where the strongest is.

    Args:
        language: of the sentences.
        peaks: from `peaks_of`.
        explanation: with details.
        heard: seconds after which the model stops listening; None: not known.
    """
    sound = explanation["audio"]
    strongest = max(sound["segments"], key=lambda segment: abs(segment["score"]), default=None)
    title = heading(4, tell(language, "wave"))
    if strongest is None or abs(strongest["score"]) < IS_FLAT:
        return title + note(tell(language, "flat"))
    times = {"start": f"{strongest['start']:.2f}", "end": f"{strongest['end']:.2f}"}
    alt = tell(language, "wave.alt", label=explanation["label"], **times)
    caption = note(tell(language, "wave.caption", seconds=f"{sound['seconds']:.2f}", **times))
    is_cut = heard is not None and sound["seconds"] > heard - 0.01
    cut = note(tell(language, "wave.cut", seconds=f"{heard:g}")) if is_cut else ""
    return title + image(data_of_svg(wave_svg(peaks, sound)), alt) + caption + cut


def wave_svg(peaks: Sequence[float], sound: Mapping[str, Any]) -> str:
    """Draw one bar for each peak."""
    step = WAVE_WIDTH / len(peaks)
    largest = max(abs(segment["score"]) for segment in sound["segments"])
    bars = []
    for place, peak in enumerate(peaks):
        score = score_at((place + 0.5) / len(peaks) * sound["seconds"], sound["segments"]) / largest
        height = max(3.0, peak * (WAVE_HEIGHT - 8))
        bars.append(
            f'<rect x="{place * step:.1f}" y="{(WAVE_HEIGHT - height) / 2:.1f}" width="{0.72 * step:.1f}" '
            f'height="{height:.1f}" rx="1" fill="{blended(score)}"/>'
        )
    view = f'viewBox="0 0 {WAVE_WIDTH} {WAVE_HEIGHT}" width="{WAVE_WIDTH}" height="{WAVE_HEIGHT}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {view}>{"".join(bars)}</svg>'


def score_at(seconds: float, segments: Sequence[Mapping[str, float]]) -> float:
    return next((segment["score"] for segment in segments if seconds < segment["end"]), segments[-1]["score"])


def blended(weight: float) -> str:
    """Give a colour between neutral and for (weight 1) or against (weight -1)."""
    target, share = COLOURS["for" if weight >= 0 else "against"], min(1.0, abs(weight)) ** 0.7
    mixed = (round(n + (t - n) * share) for n, t in zip(COLOURS["neutral"], target, strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def data_of_svg(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
