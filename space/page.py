"""The page: try it, classify a whole table, read about the model; in English and Chinese.

Unusual: programs have one named call, `/predict`, which stands apart from what the page itself does and has no memory.
"""

from pathlib import Path
from typing import Any

import gradio as gr

from space.feedback import FeedbackStore
from space.options import Options
from space.page_batch import BatchTab
from space.page_feedback import FeedbackForm
from space.page_model import ModelTab
from space.page_parts import Words, refused
from space.page_try import TryTab
from space.page_visit import Visit
from space.service import Service
from space.texts import LANGUAGES, language_of, tell
from space.views import safe

STATIC = Path(__file__).with_name("static")
MAX_SESSIONS = 500  # whose last sample is remembered
VISIT_SECONDS = 3600
FONTS = [
    "system-ui",
    "-apple-system",
    "Segoe UI",
    "Roboto",
    "Noto Sans",
    "PingFang SC",
    "Microsoft YaHei",
    "sans-serif",
]
MONOSPACE = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
# The page loads nothing from elsewhere; should a model's card try to, the browser refuses.
HEAD = (
    '<meta http-equiv="Content-Security-Policy" content="img-src \'self\' data: blob:; '
    "media-src 'self' data: blob:; font-src 'self' data:; frame-src 'self'; object-src 'none'; form-action 'self'\">"
    '<meta name="color-scheme" content="light dark">'
)


class Page:
    """The page, and what it has to leave tidy.

    Args:
        service: answers.
        options: the limits.
        info: from `model_info`.
        card: from `page_model.read_card`.
        store: where feedback goes; None: visitors are not asked.
    """

    def __init__(
        self, service: Service, options: Options, info: dict[str, Any], card: str | None, store: FeedbackStore | None
    ):
        self.service, self.options, self.info, self.store = service, options, info, store
        self.words = Words(**{"feedback.numbers": {"names": ", ".join(info["labels"])}})
        feedback = FeedbackForm(store, service, info) if store is not None else None
        self.try_tab = TryTab(service, options, info, self.words, feedback)
        self.batch_tab = BatchTab(service, options, info, self.words)
        self.model_tab = ModelTab(card, info, self.words)
        self.blocks = self._build()

    def _build(self) -> gr.Blocks:
        with gr.Blocks(title="MMFusion", analytics_enabled=False, delete_cache=(600, 600)) as blocks:
            visit = gr.State(Visit(heard=self.info["limits"]["heard_audio_seconds"]), time_to_live=VISIT_SECONDS)
            with gr.Row(elem_classes="mm-head"):
                self.words.html(self._head, elem_classes="mm-title")
                language = gr.Button(
                    tell("en", "other_language"), size="sm", elem_id="language", scale=0, min_width=90
                )
                self.words.follow(language, lambda chosen: {"value": tell(chosen, "other_language")})
            with gr.Tabs(elem_id="tabs"):
                for name, tab in (("try", self.try_tab), ("batch", self.batch_tab), ("model", self.model_tab)):
                    with self.words.make(gr.Tab, {"label": f"tab.{name}"}, id=name, elem_id=f"tab-{name}"):
                        tab.build()
            self._wire_named_call()
            self.try_tab.wire(visit)
            self.batch_tab.wire(visit)
            self._wire_language(visit, language, blocks)
        blocks.state_session_capacity = MAX_SESSIONS
        return blocks.queue(max_size=self.options.max_waiting)

    def _head(self, language: str) -> str:
        told = {key: safe(tell(language, key)) for key in ("title", "intro")}
        name = safe(tell(language, "model", name=self.info["id"]))
        return f'<h1>{told["title"]}</h1><p>{told["intro"]}</p><p class="mm-model">{name}</p>'

    def _wire_named_call(self) -> None:
        """Give programs their call; its button and its output are not on the page."""
        button, output = gr.Button(visible=False), gr.Label(visible=False)
        inputs = [self.try_tab.text, self.try_tab.image, self.try_tab.audio]
        button.click(
            self.predict, inputs, output, api_name="predict", api_visibility="public",
            concurrency_limit=self.options.max_batch_size, concurrency_id="model",
        )  # fmt: skip

    async def predict(self, text: str | None = None, image: str | None = None, audio: str | None = None):
        """Rank the labels of a text, a picture, a sound, or any subset of them."""
        ranked, refusal = await refused(self.service.ask({"text": text, "image": image, "audio": audio}))
        if refusal is not None:
            raise gr.Error(refusal.said["en"], print_exception=False)
        return named_answer(ranked, self.info["problem_type"])

    # -- language -----------------------------------------------------------------------------------------------------

    def _wire_language(self, visit: gr.State, button: gr.Button, blocks: gr.Blocks) -> None:
        outputs = [*dict.fromkeys([*self.words.components, *self.try_tab.panels])]
        quick = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        blocks.load(self.on_load, visit, outputs, **quick)
        button.click(self.on_language, visit, outputs, **quick)

    def on_load(self, visit: Visit, request: gr.Request) -> dict:
        visit.language = language_of(request.headers.get("accept-language"))
        return {self.try_tab.answer: gr.skip()} if visit.language == LANGUAGES[0] else self.said_in(visit)

    def on_language(self, visit: Visit) -> dict:
        visit.language = LANGUAGES[1 - LANGUAGES.index(visit.language)]
        return self.said_in(visit)

    def said_in(self, visit: Visit) -> dict:
        """Say everything in the visit's language, what was answered, too."""
        return self.words.said_in(visit.language) | self.try_tab.shown(visit) | self.try_tab.found(visit)

    # -- serving ------------------------------------------------------------------------------------------------------

    def mounting(self) -> dict[str, Any]:
        """Give what Gradio wants to know when the page is mounted."""
        return {
            "theme": theme(), "css_paths": STATIC / "page.css", "js": (STATIC / "page.js").read_text(encoding="utf-8"),
            "head": HEAD, "i18n": self.words.translations(),
        }  # fmt: skip

    def close(self) -> None:
        """End what runs, and bring feedback home."""
        self.batch_tab.close()
        if self.store is not None:
            self.store.close()


def theme() -> gr.themes.Base:
    """Give a theme with the fonts of the visitor's system, and colours that can be read."""
    return gr.themes.Default(
        primary_hue="teal",
        secondary_hue="teal",
        neutral_hue="slate",
        font=FONTS,
        font_mono=MONOSPACE,
        radius_size="lg",
    ).set(
        body_background_fill="*neutral_50",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        input_border_color="*neutral_400",
        input_border_color_dark="*neutral_500",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        checkbox_border_color="*neutral_500",
        checkbox_border_color_dark="*neutral_400",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_800",
        link_text_color="*primary_700",
        link_text_color_dark="*primary_300",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
        button_secondary_border_color="*neutral_300",
        button_secondary_border_color_dark="*neutral_500",
    )


def named_answer(ranked: list[dict], problem_type: str) -> dict[str, float] | str:
    """Give what `gr.Label` takes: bars of probabilities, or the plain numbers of a regression."""
    if problem_type != "regression":
        return {entry["label"]: entry["score"] for entry in ranked}
    if len(ranked) == 1:
        return f"{ranked[0]['score']:.4g}"
    return ", ".join(f"{entry['label']}: {entry['score']:.4g}" for entry in ranked)
