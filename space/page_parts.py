"""What all tabs of the page share: inputs that hand over what came, words in two languages, refusals as sentences.

Gradio's own inputs open a stranger's file before any limit is looked at, and turn numbers and dicts into strings. Ours
hand over what came, and `inputs.py` judges it, as it does for the HTTP API.
"""

import logging
import uuid
from abc import ABCMeta
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
from gradio.i18n import I18nData

from space.errors import Refusal
from space.gate import internal_error
from space.texts import LANGUAGES, refusal_in, tell

log = logging.getLogger("mmfusion")

# Names under which browsers ask for Chinese; for all others Gradio falls back to English.
CHINESE_TAGS = ("zh-CN", "zh-TW")
PREFIX = "mmfusion:"  # Gradio has words of its own, "image" for one


def uploaded(payload: Any) -> Path | str | None:
    """Give the file that Gradio has put into its cache; anything else stays text, which is refused as no file."""
    if payload is None or not (payload.path or payload.url):
        return None
    return Path(payload.path) if payload.path else payload.url


def raw(component: type, preprocess: Callable[[Any, Any], Any]) -> type:
    """Derive a component that hands over what came.

    Not by `class`: Gradio's metaclass would then write a stub file beside this one, at import.
    """
    content = {"preprocess": preprocess, "is_template": True, "__module__": __name__}
    return ABCMeta.__new__(type(component), component.__name__, (component,), content)


RawTextbox = raw(gr.Textbox, lambda self, payload: payload)
RawImage = raw(gr.Image, lambda self, payload: uploaded(payload))
RawAudio = raw(gr.Audio, lambda self, payload: uploaded(payload))
RawFile = raw(gr.File, lambda self, payload: uploaded(payload))


class Words:
    """Makes components whose words are known in both languages, and says them anew when the language changes.

    The first language is chosen in the browser (`translations`), so that nothing is seen to change; what is HTML, and
    a change of language later, come from `said_in`.

    Args:
        **values: what stands in the braces of a sentence, by its key.
    """

    def __init__(self, **values: dict[str, Any]):
        self.values = values
        self._parts: list[tuple[Any, Callable[[str], dict[str, Any]]]] = []
        self._keys: set[str] = set()

    def make(self, component: type, keys: dict[str, str], **properties: Any) -> Any:
        """Make a component; `keys` maps its properties (label, info, value, placeholder) to keys of the texts."""
        self._keys |= set(keys.values())
        made = component(**{name: I18nData(PREFIX + key) for name, key in keys.items()}, **properties)
        return self.follow(made, lambda language: {name: self.tell(language, key) for name, key in keys.items()})

    def html(self, view: Callable[[str], str], **properties: Any) -> gr.HTML:
        """Make a piece of HTML that a function of the language gives."""
        return self.follow(gr.HTML(view("en"), **properties), lambda language: {"value": view(language)})

    def follow(self, component: Any, properties: Callable[[str], dict[str, Any]]) -> Any:
        self._parts.append((component, properties))
        return component

    def tell(self, language: str, key: str) -> str:
        return tell(language, key, **self.values.get(key, {}))

    @property
    def components(self) -> list:
        return [component for component, _ in self._parts]

    def said_in(self, language: str) -> dict[Any, dict]:
        """Give what changes all components to a language."""
        return {component: gr.update(**properties(language)) for component, properties in self._parts}

    def translations(self) -> gr.I18n:
        """Give the words of all components made so far, for the browser."""
        tables = {tag: "zh" for tag in CHINESE_TAGS} | {"en": "en"}
        return gr.I18n(
            **{
                tag: {PREFIX + key: self.tell(language, key) for key in sorted(self._keys)}
                for tag, language in tables.items()
            }
        )


class Trouble(NamedTuple):
    """Why there is no answer: a code of `errors.CODES`, and a sentence in each language."""

    code: str
    said: dict[str, str]


async def refused(answer: Awaitable) -> tuple[Any, Trouble | None]:
    """Wait for an answer; every fault becomes a sentence that a visitor may see.

    Returns:
        The answer and None, or None and the trouble; that of an unexpected fault holds the id under which the log has
        it.
    """
    try:
        return await answer, None
    except Refusal as refusal:
        return None, trouble(refusal)
    except FileNotFoundError:  # Gradio clears its cache of uploads after a while
        return None, Trouble("not_a_file", both("gone"))
    except Exception:  # the last place where a fault can be told to the log and kept from the visitor
        fault_id = uuid.uuid4().hex
        log.exception("request %s from the page failed", fault_id)
        return None, trouble(internal_error(), f" ({fault_id})")


def trouble(refusal: Refusal, more: str = "") -> Trouble:
    said = {language: refusal_in(language, refusal.code, refusal.message) + more for language in LANGUAGES}
    return Trouble(refusal.code, said)


def both(key: str, **values: Any) -> dict[str, str]:
    """Give a sentence in each language."""
    return {language: tell(language, key, **values) for language in LANGUAGES}
