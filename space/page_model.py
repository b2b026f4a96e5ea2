"""The tab about the model: its card, and how good it is with every subset of its inputs.

Unusual: a card is written by a stranger. Gradio makes its HTML harmless, and here pictures of other sites become
links, so that the page asks nobody else for anything; those that lie beside the card are put into the page.
"""

import base64
import html
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from space.page_parts import Words
from space.texts import tell
from space.views import subsets_view

MAX_PICTURE_BYTES = 500_000
MAX_CARD_CHARS = 200_000
MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
METADATA = re.compile(r"\A---\s*\n.*?\n---\s*\n", re.DOTALL)
PICTURE = re.compile(r"!\[([^\]]*)\]\(\s*<?([^)\s>]+)>?(?:\s+[^)]*)?\)")
REFERENCE_PICTURE = re.compile(r"!(?=\[[^\]]*\]\s*(?:\[|[^(\[]|$))")
LOADING_TAG = re.compile(
    r"<\s*(?:img|picture|source|video|audio|iframe|object|embed|link|svg|image|input)\b[^>]*>", re.I
)


class ModelTab:
    """Components of the tab.

    Args:
        card: from `read_card`; None: there is none.
        info: from `model_info`.
        words: makes the components.
    """

    def __init__(self, card: str | None, info: dict[str, Any], words: Words):
        self.card, self.info, self.words = card, info, words

    def build(self) -> None:
        if self.info["task"] is not None:
            self.words.html(self._task, elem_id="task", elem_classes="mm-card")
        self.words.html(
            lambda language: subsets_view(language, self.info["metrics"]), elem_id="subset-table",
            elem_classes="mm-card",
        )  # fmt: skip
        card = gr.Markdown(self._text("en"), elem_id="model-card", elem_classes="mm-card", latex_delimiters=[])
        if self.card is None:
            self.words.follow(card, lambda language: {"value": self._text(language)})

    def _task(self, language: str) -> str:
        told = tell(language, "card.task", names=", ".join(self.info["tasks"]), task=self.info["task"])
        return f"<p>{html.escape(told)}</p>"

    def _text(self, language: str) -> str:
        """Give the card, or what is known of a model without one."""
        if self.card is not None:
            return self.card
        names = ", ".join(tell(language, name) for name in self.info["modalities"])
        labels = ", ".join(plain(label) for label in self.info["labels"][:50])
        lines = [
            f"## {tell(language, 'card')}",
            tell(language, "card.none"),
            tell(language, "card.reads", names=names),
            tell(language, "card.labels", names=labels + (" …" if len(self.info["labels"]) > 50 else "")),
        ]
        return "\n\n".join(lines)


def plain(text: str) -> str:
    """Write a name so that Markdown takes no letter of it for a sign."""
    return re.sub(r"([\\`*_{}\[\]()#+\-.!|<>~$&:])", r"\\\1", " ".join(text.split()))


def read_card(name: str, revision: str | None) -> str | None:
    """Give the text of a model's card, fit for the page; None where there is none.

    Args:
        name: folder or Hub id.
        revision: on the Hub.
    """
    path = file_beside(name, revision, "README.md")
    if path is None:
        return None
    text = path.read_text(encoding="utf-8", errors="replace")[:MAX_CARD_CHARS]
    return fit_card(text, lambda file: file_beside(name, revision, file))


def file_beside(name: str, revision: str | None, file: str) -> Path | None:
    from transformers.utils import cached_file

    path = cached_file(
        name, file, revision=revision,
        _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False,
    )  # fmt: skip
    return None if path is None else Path(path)


def fit_card(text: str, find: Callable[[str], Path | None]) -> str:
    """Take the metadata off, put the card's headings below the page's, and no foreign picture in.

    Args:
        text: Markdown.
        find: gives the path of a file that lies beside the card, or None.
    """
    text = METADATA.sub("", text)
    text = PICTURE.sub(lambda match: picture_of(match[1], match[2], find), text)
    text = LOADING_TAG.sub("", REFERENCE_PICTURE.sub("", text))
    parts = re.split(r"(^```.*?^```[^\n]*$)", text, flags=re.DOTALL | re.MULTILINE)  # a `#` in code is no heading
    parts[::2] = [re.sub(r"^(#{1,5})(?=\s)", r"#\1", part, flags=re.MULTILINE) for part in parts[::2]]
    return "".join(parts).strip()


def picture_of(alt: str, target: str, find: Callable[[str], Path | None]) -> str:
    """Give the picture itself where it lies beside the card, else its description, as a link to another site's."""
    if re.match(r"https?://", target, re.I):
        return f"[{alt or target}]({target})"
    kind = MEDIA_TYPES.get(Path(target).suffix.lower())
    path = find(target) if kind and re.fullmatch(r"[\w][\w.-]*", target) else None
    if path is None or path.stat().st_size > MAX_PICTURE_BYTES:
        return alt
    return f"![{alt}](data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()})"
