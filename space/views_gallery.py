"""The rows of an index as cards on the page: picture, label, similarity, text and sound, as far as a row has them.

Unusual: what a row holds was written by strangers, as a visitor's text was. It passes `safe`, and the only addresses
are `data:` ones that `gallery.py` has made.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from space.texts import tell
from space.views import cell_text, heading, note, safe
from space.views_pictures import image

if TYPE_CHECKING:
    from space.gallery import Card

MEDIA = ("image", "audio")


def gallery_view(language: str, cards: "Sequence[Card]", without: Sequence[str] = ()) -> str:
    """Give the rows in a row, nearest first.

    Args:
        language: of the sentences.
        cards: what is shown of each.
        without: modalities that were turned off.
    """
    hint = tell(language, "nearest.hint")
    if without:
        names = tell(language, "and").join(tell(language, name).lower() for name in without)
        hint += " " + tell(language, "nearest.without", names=names)
    items = "".join(f"<li>{card_view(language, card)}</li>" for card in cards)
    return f'{heading(3, tell(language, "nearest"))}{note(hint)}<ol class="mm-nearest">{items}</ol>'


def card_view(language: str, card: "Card") -> str:
    """Give one row; of a picture or a sound that cannot be shown its name."""
    told = {kind: cell_text(card.cells.get(kind)) for kind in ("label", "text", *MEDIA)}
    number = f"{card.row:,}"
    parts = []
    if card.picture is not None:
        parts.append(image(card.picture, tell(language, "nearest.picture", row=number)))
    if told["label"]:
        parts.append(f'<strong dir="auto">{safe(told["label"])}</strong>')
    if told["text"]:
        parts.append(f'<p class="mm-quote" dir="auto">{safe(told["text"])}</p>')
    if card.sound is not None:
        parts.append(player(card.sound, tell(language, "nearest.sound", row=number)))
    shown = {"image": card.picture, "audio": card.sound}
    parts += [named_file(language, kind, told[kind]) for kind in MEDIA if told[kind] and shown[kind] is None]
    score = f"{card.score:.3f}".replace("-", "\u2212")
    return "".join(parts) + note(tell(language, "nearest.row", score=score, row=number))


def player(address: str, name: str) -> str:
    """Give a player without a menu: what it plays is an excerpt, and not worth a download."""
    options = 'controls controlslist="nodownload noplaybackrate" preload="metadata"'
    return f'<audio {options} src="{safe(address)}" aria-label="{safe(name)}"></audio>'


def named_file(language: str, kind: str, name: str) -> str:
    return f'<p class="mm-file">{safe(tell(language, kind))} <span dir="auto">{safe(name)}</span></p>'
