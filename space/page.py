"""The page: three inputs, ranked labels.

Gradio's own inputs open a stranger's file before any limit is looked at, and turn numbers and dicts into strings. Ours
hand over what came, and `inputs.py` judges it, as it does for the HTTP API.
"""

import logging
import uuid
from abc import ABCMeta
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from space.errors import Refusal
from space.gate import internal_error
from space.options import Options
from space.service import Service

log = logging.getLogger("mmfusion")


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


async def ask_for_page(service: Service, given: dict[str, Any], task: str = "predict", **options: Any) -> Any:
    """Ask the service; every fault becomes a message that a visitor may see.

    Raises:
        gr.Error: With the refusal's sentence, or with the id under which the log has an unexpected fault.
    """
    try:
        return await service.ask(given, task, **options)
    except Refusal as refusal:
        raise gr.Error(refusal.message, print_exception=False) from None
    except Exception:  # the last place where a fault can be told to the log and kept from the visitor
        fault_id = uuid.uuid4().hex
        log.exception("request %s from the page failed", fault_id)
        raise gr.Error(f"{internal_error().message} ({fault_id})", print_exception=False) from None


def build_page(service: Service, options: Options, info: dict[str, Any]) -> gr.Blocks:
    """Give the page.

    Args:
        service: answers.
        options: the limits.
        info: from `model_info`.
    """

    async def predict(text: str | None = None, image: str | None = None, audio: str | None = None):
        """Rank the labels of a text, a picture, a sound, or any subset of them."""
        ranked = await ask_for_page(service, {"text": text, "image": image, "audio": audio})
        return shown_answer(ranked, info["problem_type"])

    with gr.Blocks(title="MMFusion", analytics_enabled=False, delete_cache=(600, 600)) as page:
        gr.Markdown("# MMFusion\nGive a text, a picture, a sound, or any of them.")
        with gr.Row():
            with gr.Column():
                inputs = make_inputs(info["modalities"], options)
                button = gr.Button("Classify", variant="primary")
            label = gr.Label(label="Answer")
        button.click(
            predict, inputs, label, api_name="predict", api_visibility="public",
            concurrency_limit=options.max_batch_size, concurrency_id="model",
        )  # fmt: skip
    return page.queue(max_size=options.max_waiting)


def make_inputs(modalities: list[str], options: Options) -> list:
    """Give the three inputs; one that the model does not read is there for programs, unseen."""
    return [
        RawTextbox(label="Text", lines=3, max_length=options.max_text_chars, visible="text" in modalities),
        RawImage(
            label="Picture", type="filepath", sources=["upload", "clipboard", "webcam"], visible="image" in modalities
        ),
        RawAudio(label="Sound", type="filepath", sources=["upload", "microphone"], visible="audio" in modalities),
    ]


def shown_answer(ranked: list[dict], problem_type: str) -> dict[str, float] | str:
    """Give what `gr.Label` shows: bars of probabilities, or the plain numbers of a regression."""
    if problem_type != "regression":
        return {entry["label"]: entry["score"] for entry in ranked}
    if len(ranked) == 1:
        return f"{ranked[0]['score']:.4g}"
    return ", ".join(f"{entry['label']}: {entry['score']:.4g}" for entry in ranked)
