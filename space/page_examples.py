"""One example for every subset of the modalities, filled in by one click.

The picture is a handwritten digit and the sound the tones of a telephone key, both of the demo set. For a model that
was made for something else they show only the form, and the page says so.
"""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache
from gradio.utils import get_upload_folder

from space.page_parts import Words
from space.texts import tell
from space.views import heading, note

STATIC = Path(__file__).with_name("static")
DIGITS = {"zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"}
CELLS = {"text": "the number is seven", "image": "example.png", "audio": "example.wav"}
CONFLICT = "the number is three"


class Examples:
    """Buttons that fill in an example.

    Args:
        info: from `model_info`.

    Attributes:
        buttons: (button, what it fills in) pairs.
    """

    def __init__(self, info: dict[str, Any]):
        self.modalities, self.is_demo = info["modalities"], set(info["labels"]) == DIGITS
        self.buttons: list[tuple[gr.Button, dict[str, str]]] = []

    def build(self, words: Words) -> None:
        with gr.Column(elem_id="examples", elem_classes="mm-examples"):
            words.html(self._head)
            with gr.Row():
                for example in self.examples():
                    button = gr.Button(self._name("en", example), size="sm", min_width=80, scale=0)
                    words.follow(button, lambda language, example=example: {"value": self._name(language, example)})
                    self.buttons.append((button, example))

    def examples(self) -> list[dict[str, str]]:
        """Give all subsets of what the model reads, small ones first; then one whose parts contradict each other."""
        sizes = range(1, len(self.modalities) + 1)
        subsets = [subset for size in sizes for subset in combinations(self.modalities, size)]
        examples = [{name: CELLS[name] for name in subset} for subset in subsets]
        has_conflict = self.is_demo and len(self.modalities) > 1 and "text" in self.modalities
        return examples + ([{**examples[-1], "text": CONFLICT}] if has_conflict else [])

    def _head(self, language: str) -> str:
        told = "examples.hint" if self.is_demo else "examples.form"
        return heading(2, tell(language, "examples")) + note(tell(language, told))

    def _name(self, language: str, example: dict[str, str]) -> str:
        if example.get("text") == CONFLICT:
            return tell(language, "examples.conflict")
        return " + ".join(tell(language, name) for name in example)

    def filler(self, example: dict[str, str]) -> Callable[[], tuple]:
        """Give a function that gives the three inputs; files are put where Gradio serves uploads from."""

        def fill() -> tuple[str, str | None, str | None]:
            return example.get("text", ""), served(example.get("image")), served(example.get("audio"))

        return fill


def served(name: str | None) -> str | None:
    if name is None:
        return None
    return save_bytes_to_cache((STATIC / name).read_bytes(), name, get_upload_folder())
