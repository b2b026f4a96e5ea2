"""The form below an answer: right or wrong, the right label, and what may be kept.

Unusual: the browser sends the verdict alone. What it is about, the sample and the answer, is what the server remembers
of the visit, so nobody can store an answer that was never given.
"""

import asyncio
from typing import Any

import gradio as gr

from space.feedback import FeedbackStore
from space.inputs import read_sample
from space.page_parts import Words, refused
from space.page_visit import Visit
from space.service import Service
from space.texts import tell
from space.views import heading, note


class FeedbackForm:
    """Components of the form, and what happens when it is sent.

    Args:
        store: where feedback goes.
        service: its pipeline opens files.
        info: from `model_info`.
    """

    def __init__(self, store: FeedbackStore, service: Service, info: dict[str, Any]):
        self.store, self.service, self.info = store, service, info

    def build(self, words: Words) -> None:
        with gr.Column(elem_id="feedback", elem_classes="mm-card"):
            words.html(lambda language: heading(3, tell(language, "feedback")) + note(tell(language, "feedback.hint")))
            self.verdict = words.make(
                gr.Radio, {"label": "feedback.verdict"}, choices=verdicts("en"), elem_id="feedback-verdict"
            )
            words.follow(self.verdict, lambda language: {"choices": verdicts(language)})
            self.label = self._label_input(words)
            make = words.make
            self.consent = make(gr.Checkbox, {"label": "feedback.consent"}, elem_id="feedback-consent")
            self.media_consent = make(
                gr.Checkbox, {"label": "feedback.media_consent"}, elem_id="feedback-media-consent", visible=False
            )
            self.send = make(gr.Button, {"value": "feedback.send"}, elem_id="feedback-send", size="sm")
            self.thanks = gr.HTML("", elem_id="feedback-thanks")

    def _label_input(self, words: Words) -> Any:
        """Make what the right answer is given with, as the model's problem is; it is asked for after "wrong"."""
        common = {"elem_id": "feedback-label", "visible": False}
        if self.info["problem_type"] != "regression":
            is_several = self.info["problem_type"] == "multi_label_classification"
            return words.make(
                gr.Dropdown, {"label": "feedback.label"}, choices=self.info["labels"], multiselect=is_several,
                value=self._empty, **common,
            )  # fmt: skip
        if len(self.info["labels"]) == 1:
            return words.make(gr.Number, {"label": "feedback.label"}, value=None, **common)
        return words.make(gr.Textbox, {"label": "feedback.numbers"}, **common)

    @property
    def components(self) -> list:
        return [self.verdict, self.label, self.consent, self.media_consent, self.send, self.thanks]

    def start_of(self, visit: Visit) -> dict:
        """Give an empty form for a new answer."""
        has_media = any(visit.given.get(name) for name in ("image", "audio"))
        return {
            self.verdict: gr.update(value=None, choices=verdicts(visit.language)),
            self.label: gr.update(value=self._empty, visible=False),
            self.consent: False,
            self.media_consent: gr.update(value=False, visible=has_media and self.store.keep_media),
            self.send: gr.update(interactive=True),
            self.thanks: "",
        }

    @property
    def _empty(self) -> list | None:
        return [] if self.info["problem_type"] == "multi_label_classification" else None

    def wire(self, visit: gr.State) -> None:
        quick = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        self.verdict.input(self.on_verdict, self.verdict, self.label, **quick)
        self.send.click(
            self.on_send, [visit, self.verdict, self.label, self.consent, self.media_consent],
            [self.thanks, self.send], api_visibility="private", show_progress="hidden",
        )  # fmt: skip

    def on_verdict(self, verdict: str | None) -> dict:
        return gr.update(visible=verdict == "wrong")

    async def on_send(self, visit: Visit, verdict: Any, label: Any, consent: Any, media_consent: Any) -> tuple:
        """Store it once; an answer that is not there any more cannot be judged."""
        sentence = self._missing(visit, verdict, consent)
        if sentence is None:
            told = (visit.given, visit.ranked, verdict, self._right_label(verdict, label), consent, media_consent)
            _, trouble = await refused(asyncio.to_thread(self._store, *told))
            sentence = trouble and trouble.said[visit.language]
        if sentence is not None:
            return note(sentence, "error"), gr.skip()
        return note(visit.tell("feedback.thanks"), "thanks"), gr.update(interactive=False)

    def _missing(self, visit: Visit, verdict: Any, consent: Any) -> str | None:
        if visit.ranked is None:
            return visit.tell("gone")
        if verdict is None:
            return visit.tell("feedback.verdict_missing")
        return None if consent is True else visit.tell("feedback.consent_missing")

    def _right_label(self, verdict: Any, label: Any) -> Any:
        """Give what the store takes; None: the visitor does not know."""
        if verdict != "wrong" or label is None or label == "" or label == []:
            return None
        is_line = self.info["problem_type"] == "regression" and isinstance(label, str)
        return label.replace(",", " ").split() if is_line else label

    def _store(self, given: dict, ranked: list, verdict: Any, label: Any, consent: Any, media_consent: Any) -> None:
        sample = read_sample(given, self.service.pipeline.processor, self.service.options)
        self.store.add(sample, ranked, verdict, label, consent=consent, media_consent=media_consent is True)


def verdicts(language: str) -> list[tuple[str, str]]:
    return [(tell(language, f"feedback.{verdict}"), verdict) for verdict in ("right", "wrong")]
