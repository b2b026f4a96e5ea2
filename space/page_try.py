"""The tab "Try it": three inputs, the answer, what decided, and what if one input were missing.

Unusual: the answer comes first, then the shares of the modalities, then what lies inside them; each step is slower
than the one before. The switches look up the answer of a subset among those that came with the shares, and run no
model.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from space import views_pictures
from space.inputs import MODALITIES, read_sample
from space.options import Options
from space.page_examples import Examples
from space.page_feedback import FeedbackForm
from space.page_gallery import GalleryRow, gallery_panel
from space.page_parts import RawAudio, RawImage, RawTextbox, Trouble, Words, both, refused
from space.page_visit import Visit, answer_panel, detail_panels, shares_panels
from space.service import Service
from space.texts import tell
from space.views import heading, note

NUM_STEPS = 16  # of integrated gradients: half as many as by default, for half the time; the check stays
# On a phone the answer lies below the inputs.
SHOW_ANSWER = "() => { if (innerWidth < 640) document.getElementById('answer').scrollIntoView(); }"
# Which methods are tried: the first needs `captum`, the second nothing.
METHODS = ("integrated_gradients", "attention")
OTHER_METHOD_HELPS = ("not_supported", "internal_error")  # and not when it takes too long


class TryTab:
    """Components of the tab, and what happens when they are used.

    Args:
        service: answers.
        options: the limits.
        info: from `model_info`.
        words: makes the components.
        feedback: the form below the answer; None: visitors are not asked.
    """

    def __init__(
        self, service: Service, options: Options, info: dict[str, Any], words: Words, feedback: FeedbackForm | None
    ):
        self.service, self.options, self.info, self.words, self.feedback = service, options, info, words, feedback
        self.gallery = None if service.gallery is None else GalleryRow(service)
        self.examples = Examples(info)

    # -- what is seen -------------------------------------------------------------------------------------------------

    def build(self) -> None:
        with gr.Row(elem_classes="mm-columns"):
            with gr.Column(scale=5, min_width=300):
                self._build_inputs()
                self.examples.build(self.words)
            with gr.Column(scale=6, min_width=300):
                self._build_answer()
                with gr.Column(visible=False) as self.result:
                    self._build_shares()
        with gr.Column(visible=False) as self.below:
            if self.gallery is not None:
                self.gallery.build()
            self._build_details()
            if self.feedback is not None:
                self.feedback.build(self.words)

    def _build_inputs(self) -> None:
        make, reads = self.words.make, self.info["modalities"]
        self.words.html(lambda language: heading(2, self.words.tell(language, "inputs")))
        self.text = make(
            RawTextbox, {"label": "text", "placeholder": "text.hint"}, lines=1, max_lines=8, elem_id="text-input",
            max_length=self.options.max_text_chars, visible="text" in reads,
        )  # fmt: skip
        self.image = make(
            RawImage, {"label": "image"}, type="filepath", sources=["upload", "clipboard", "webcam"], height=230,
            buttons=[], elem_id="image-input", visible="image" in reads,
        )  # fmt: skip
        self.audio = make(
            RawAudio, {"label": "audio"}, type="filepath", sources=["upload", "microphone"], buttons=[],
            elem_id="audio-input", visible="audio" in reads,
        )  # fmt: skip
        with gr.Row():
            self.classify = make(
                gr.Button, {"value": "classify"}, variant="primary", elem_id="classify-button", scale=3
            )
            self.clear = make(gr.Button, {"value": "clear"}, elem_id="clear-button", scale=1, min_width=90)

    def _build_answer(self) -> None:
        self.answer = self.words.html(
            lambda language: answer_panel(Visit(language), self.info), elem_id="answer",
            elem_classes="mm-card", padding=False,
        )  # fmt: skip
        self.disagreement = gr.HTML("", elem_id="disagreement")

    def _build_shares(self) -> None:
        with gr.Group(elem_classes="mm-plain", visible=len(self.info["modalities"]) > 1):
            self.words.html(
                lambda language: (
                    heading(3, self.words.tell(language, "whatif")) + note(self.words.tell(language, "whatif.hint"))
                )
            )
            with gr.Row(elem_classes="mm-switches"):
                self.switches = {
                    name: self.words.make(
                        gr.Checkbox, {"label": f"use.{name}"}, value=False, interactive=False, elem_id=f"use-{name}",
                        container=False, min_width=110, visible=name in self.info["modalities"],
                    )
                    for name in MODALITIES
                }  # fmt: skip
        self.label = self.words.make(
            gr.Dropdown, {"label": "explain.label", "info": "explain.label.hint"}, choices=self.info["labels"],
            value=None, elem_id="explain-label", visible=len(self.info["labels"]) > 1 and self.info["can_explain"],
        )  # fmt: skip
        self.contributions = gr.HTML("", elem_id="contributions", elem_classes="mm-card")
        self.alone = gr.HTML("", elem_id="alone", elem_classes="mm-card", visible=len(self.info["modalities"]) > 1)

    def _build_details(self) -> None:
        with gr.Column(elem_classes="mm-card"):
            self.inside = gr.HTML("", elem_id="inside")
            with gr.Row(elem_classes="mm-inside"):
                self.word_view, self.heat, self.wave = (
                    gr.HTML("", elem_id=name) for name in ("words", "heat", "wave")
                )

    # -- what happens -------------------------------------------------------------------------------------------------

    def wire(self, visit: gr.State) -> None:
        self.visit = visit
        inputs = [self.text, self.image, self.audio]
        shown = [*self.panels, *self.switches.values(), self.label, self.result, self.below, visit]
        shown += self.feedback.components if self.feedback else []
        private = {"api_visibility": "private", "concurrency_id": "page", "concurrency_limit": self._many}
        explaining = {**private, "concurrency_id": "why", "show_progress": "hidden", "trigger_mode": "multiple"}
        finding = {**explaining, "concurrency_id": "nearest"}

        def classified_by(event: Any, **more: Any) -> None:
            asked = event(self.on_classify, [visit, *inputs], shown, show_progress_on=[self.answer], **private, **more)
            asked.then(None, js=SHOW_ANSWER)
            asked.then(self.on_explain, [visit], shown, **explaining)
            if self.gallery is not None:
                asked.then(self.gallery.on_search, [visit], self.gallery.panel, **finding)

        classified_by(self.classify.click)
        classified_by(self.text.submit)
        for button, example in self.examples.buttons:
            filled = button.click(self.examples.filler(example), None, inputs, show_progress="hidden", **private)
            classified_by(filled.then)
        chosen = self.label.input(self.on_label, [visit, self.label], shown, **explaining)
        chosen.then(self.on_explain, [visit], shown, **explaining)
        quick = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        for switch in self.switches.values():
            turned = switch.input(self.on_switch, [visit, *self.switches.values()], self.answer, **quick)
            if self.gallery is not None:
                turned.then(self.gallery.on_search, [visit], self.gallery.panel, **finding)
        self.clear.click(self.on_clear, [visit], [*inputs, *shown], **quick)
        if self.feedback is not None:
            self.feedback.wire(visit)

    @property
    def _many(self) -> int:
        return self.options.max_batch_size

    @property
    def panels(self) -> list[gr.HTML]:
        return [
            self.answer, self.disagreement, self.contributions, self.alone,
            self.inside, self.word_view, self.heat, self.wave, *([] if self.gallery is None else [self.gallery.panel]),
        ]  # fmt: skip

    async def on_classify(self, visit: Visit, text: Any, image: Any, audio: Any) -> dict:
        run = visit.begin({"text": text, "image": image, "audio": audio})
        (ranked, vectors), refusal = await self._answer(visit.given)
        if visit.run != run:
            return self.unchanged
        visit.ranked, visit.vectors, visit.refusal = ranked, vectors, refusal and refusal.said
        return (
            self.shown(visit) | self.start_of(visit) | {self.visit: visit}
        )  # given back, so that its time starts anew

    async def _answer(self, given: dict[str, Any]) -> tuple[tuple[list[dict] | None, dict], Trouble | None]:
        """Give the ranked labels, with vectors where there is an index to look in, or why there are none."""
        if self.gallery is None:
            ranked, refusal = await refused(self.service.ask(given))
            return (ranked, {}), refusal
        answer, refusal = await refused(self.service.ask(given, "predict_with_vectors"))
        return answer or (None, {}), refusal

    async def on_explain(self, visit: Visit) -> AsyncIterator[dict]:
        """Give the shares, then the details; a newer run ends this one.

        At the end Gradio gives the last of it once more, and empties everything where nothing was given. So the last
        is always the visit as it is then, which may be another sample's.
        """
        run = visit.run
        if visit.ranked is None:
            yield self.unchanged
            return
        if not self.info["can_explain"]:
            visit.trouble = both("cannot")
            yield self.shown(visit)
            return
        asked = self.service.ask(visit.given, "explain", details=False, label=visit.label)
        explanation, trouble = await refused(asked)
        if visit.run != run:
            yield self.shown(visit)
            return
        visit.explanation, visit.trouble, visit.is_looking = explanation, trouble and trouble.said, trouble is None
        yield self.shown(visit) | self.switched(visit)
        if trouble is None:
            await self._look_inside(visit, run)
            yield self.shown(visit)

    async def _look_inside(self, visit: Visit, run: int) -> None:
        for method in METHODS:
            asked = self.service.ask(
                visit.given, "explain", details=True, label=visit.label, method=method, num_steps=NUM_STEPS
            )
            explanation, trouble = await refused(asked)
            if explanation is not None:
                pictures, trouble = await refused(asyncio.to_thread(self._draw, visit.given, explanation))
            if visit.run != run:
                return
            if trouble is None:
                visit.explanation, (visit.heat, visit.peaks) = explanation, pictures
                visit.trouble, visit.is_looking = None, False
                return
            said = {language: tell(language, "not_inside", reason=why) for language, why in trouble.said.items()}
            visit.trouble, visit.is_looking = said, False
            if trouble.code not in OTHER_METHOD_HELPS:
                return

    def _draw(self, given: dict[str, Any], explanation: dict[str, Any]) -> tuple[str | None, list[float]]:
        """Open the sample once more, for its pixels and samples; in a thread."""
        sample = read_sample(given, self.service.pipeline.processor, self.options)
        heat, peaks, image = None, [], explanation["image"]
        if image and image["box"] is not None:
            picture = views_pictures.heat_picture(sample["image"], image["scores"], image["box"])
            heat = views_pictures.data_of(picture)
        if explanation["audio"]:
            peaks = views_pictures.peaks_of(sample["audio"]["array"])
        return heat, peaks

    def on_label(self, visit: Visit, label: str | None) -> dict:
        visit.explain(label)
        return self.shown(visit)

    def on_switch(self, visit: Visit, *is_on: bool) -> str:
        visit.off = {name for name, on in zip(MODALITIES, is_on, strict=True) if not on}
        return answer_panel(visit, self.info)

    def on_clear(self, visit: Visit) -> dict:
        visit.begin({})
        return {self.text: "", self.image: None, self.audio: None} | self.shown(visit) | self.start_of(visit)

    @property
    def unchanged(self) -> dict:
        return {self.answer: gr.skip()}

    # -- what is shown then -------------------------------------------------------------------------------------------

    def shown(self, visit: Visit) -> dict:
        """Give all panels as the visit is now."""
        told = shares_panels(visit) | detail_panels(visit)
        return {
            self.answer: answer_panel(visit, self.info),
            self.disagreement: told["disagreement"],
            self.contributions: told["contributions"],
            self.alone: told["alone"],
            self.inside: told["inside"],
            self.word_view: told["words"],
            self.heat: told["heat"],
            self.wave: told["wave"],
        }

    def start_of(self, visit: Visit) -> dict:
        """Give the controls below a new answer: nothing to switch yet, the best label, an empty form."""
        best = visit.ranked[0]["label"] if visit.ranked else None
        off = {switch: gr.update(value=False, interactive=False) for switch in self.switches.values()}
        form = self.feedback.start_of(visit) if self.feedback else {}
        seen = gr.update(visible=visit.ranked is not None)
        return {self.result: seen, self.below: seen, self.label: best, **off, **form, **self.found(visit)}

    def found(self, visit: Visit) -> dict:
        """Give the rows of the index; not among the panels that an explanation brings, for it may overtake them."""
        return {} if self.gallery is None else {self.gallery.panel: gallery_panel(visit)}

    def switched(self, visit: Visit) -> dict:
        """Give the switches of what the sample has, turned on."""
        return {
            switch: gr.update(value=name in visit.present and name not in visit.off, interactive=name in visit.present)
            for name, switch in self.switches.items()
        }
