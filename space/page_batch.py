"""The tab for whole tables: a CSV or a zip in, a bar while it runs, the first rows and two files out.

Unusual: "Stop" ends a batch after the rows that are with the model, and what is done is kept. Who closes the page ends
the batch, too.
"""

import asyncio
import functools
import tempfile
import threading
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import gradio as gr

from space import views
from space.batch import BatchLimits, BatchResult, ModelFacts, run_batch
from space.inputs import MODALITIES
from space.options import MIB, Options
from space.page_parts import RawFile, RawTextbox, Trouble, Words, refused
from space.page_visit import Visit
from space.service import Service
from space.texts import tell

NUM_SHOWN_ROWS = 20
POLL_SECONDS = 0.2
MAX_BATCHES = 2  # at once; others wait in the queue


class BatchTab:
    """Components of the tab, and what happens when they are used.

    Args:
        service: answers.
        options: the limits.
        info: from `model_info`.
        words: makes the components.
    """

    def __init__(self, service: Service, options: Options, info: dict[str, Any], words: Words):
        self.service, self.options, self.info, self.words = service, options, info, words
        self.facts = ModelFacts(info["modalities"], info["labels"], info["problem_type"], info["thresholds"])
        self.limits = BatchLimits(max_rows=options.max_table_rows, max_shown_rows=NUM_SHOWN_ROWS)
        self.folder: Path | None = None
        self.running: dict[str, threading.Event] = {}

    def build(self) -> None:
        make = self.words.make
        self.words.html(self._head)
        self.file = make(RawFile, {"label": "batch.file"}, file_types=[".csv", ".tsv", ".zip"], elem_id="batch-file")
        with gr.Accordion(label="", open=False) as columns:
            self.words.html(lambda language: views.note(tell(language, "batch.columns.hint")))
            with gr.Row():
                self.columns = [self._column_input(name) for name in MODALITIES]
        self.words.follow(columns, lambda language: {"label": tell(language, "batch.columns")})
        columns.label = tell("en", "batch.columns")
        with gr.Row():
            self.run = make(gr.Button, {"value": "batch.run"}, variant="primary", elem_id="batch-run", scale=3)
            self.cancel = make(
                gr.Button, {"value": "batch.cancel"}, interactive=False, elem_id="batch-cancel", scale=1, min_width=90
            )
        self.progress = gr.HTML("", elem_id="batch-progress")
        with gr.Row():
            self.csv, self.parquet = (
                make(gr.DownloadButton, {"label": f"batch.{kind}"}, elem_id=f"batch-{kind}", visible=False)
                for kind in ("csv", "parquet")
            )
        self.table = gr.HTML("", elem_id="batch-table")

    def _head(self, language: str) -> str:
        size = f"{self.options.max_body_bytes / MIB:g}"
        hint = tell(language, "batch.hint", rows=f"{self.limits.max_rows:,}", size=size)
        return views.heading(2, tell(language, "batch")) + views.note(hint)

    def _column_input(self, name: str) -> gr.Textbox:
        return self.words.make(
            RawTextbox, {"label": f"batch.column.{name}"}, placeholder=name, elem_id=f"batch-column-{name}", lines=1,
            max_lines=1, visible=name in self.info["modalities"],
        )  # fmt: skip

    def wire(self, visit: gr.State) -> None:
        outputs = [self.progress, self.table, self.csv, self.parquet, self.run, self.cancel]
        self.run.click(
            self.on_run, [visit, self.file, *self.columns], outputs, api_visibility="private",
            concurrency_limit=MAX_BATCHES, concurrency_id="batch", show_progress="hidden",
        )  # fmt: skip
        self.cancel.click(
            self.on_cancel, visit, [self.progress, self.cancel], api_visibility="private", queue=False,
            show_progress="hidden",
        )  # fmt: skip

    # -- what happens -------------------------------------------------------------------------------------------------

    async def on_run(self, visit: Visit, file: Any, *columns: Any) -> AsyncIterator[dict]:
        """Run a batch in a thread, and tell how far it is."""
        if not isinstance(file, Path):  # a path that the browser made up is text
            yield {self.progress: views.note(visit.tell("batch.missing"), "error")}
            return
        state = {"done": 0, "total": 0}
        cancelled = visit.batch = threading.Event()
        self.running[id(cancelled)] = cancelled
        task = asyncio.ensure_future(refused(self._in_thread(file, columns, state, cancelled)))
        try:
            yield self._started(visit)
            while not task.done():
                await asyncio.wait([task], timeout=POLL_SECONDS)
                if not cancelled.is_set():
                    yield {self.progress: progress_view(visit.language, **state)}
            yield self._finished(visit, *task.result())
        finally:
            cancelled.set()
            self.running.pop(id(cancelled), None)

    def _in_thread(self, file: Any, columns: tuple, state: dict[str, int], cancelled: threading.Event) -> Coroutine:
        def on_progress(done: int, total: int) -> None:
            state.update(done=done, total=total)

        names = {f"{name}_column": column for name, column in zip(MODALITIES, columns, strict=True)}
        call = functools.partial(
            run_batch, file, self._folder(), self._predict, self.facts, **names, limits=self.limits,
            progress=on_progress, cancelled=cancelled,
        )  # fmt: skip
        return asyncio.to_thread(call)

    def _predict(self, rows: list) -> list:
        return asyncio.run_coroutine_threadsafe(self.service.ask_all(rows), self.service.loop).result()

    def _folder(self) -> Path:
        """Give a folder of this process alone, where Gradio may serve files from."""
        if self.folder is None:
            self.folder = Path(tempfile.mkdtemp(prefix="mmfusion-batches-"))
        return self.folder

    def on_cancel(self, visit: Visit) -> tuple[Any, dict]:
        if visit.batch is None or visit.batch.is_set():
            return gr.skip(), gr.skip()
        visit.batch.set()
        return views.note(visit.tell("batch.stopping"), "pending"), gr.update(interactive=False)

    def close(self) -> None:
        """End all batches, and remove what they left."""
        import shutil

        for cancelled in list(self.running.values()):
            cancelled.set()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    # -- what is shown then -------------------------------------------------------------------------------------------

    def _started(self, visit: Visit) -> dict:
        hidden = gr.update(visible=False)
        return {
            self.progress: views.note(visit.tell("batch.opening"), "pending"), self.table: "", self.csv: hidden,
            self.parquet: hidden, self.run: gr.update(interactive=False), self.cancel: gr.update(interactive=True),
        }  # fmt: skip

    def _finished(self, visit: Visit, result: BatchResult | None, trouble: Trouble | None) -> dict:
        buttons = {self.run: gr.update(interactive=True), self.cancel: gr.update(interactive=False)}
        if trouble is not None:
            return {self.progress: views.note(trouble.said[visit.language], "error"), **buttons}
        return {
            self.progress: outcome_view(visit.language, result),
            self.table: result_view(visit.language, result),
            self.csv: gr.update(value=str(result.csv_file), visible=True),
            self.parquet: gr.update(value=str(result.parquet_file), visible=True),
            **buttons,
        }


def progress_view(language: str, done: int, total: int) -> str:
    """Give a bar that a screen reader reads, too."""
    if not total:
        return views.note(tell(language, "batch.opening"), "pending")
    told = views.safe(tell(language, "batch.progress", done=f"{done:,}", total=f"{total:,}"))
    return f'<p class="mm-note">{told}</p><progress aria-label="{told}" max="{total}" value="{done}"></progress>'


def outcome_view(language: str, result: BatchResult) -> str:
    counts = {"done": f"{result.num_done:,}", "failed": f"{result.num_failed:,}", "total": f"{result.num_rows:,}"}
    return views.note(tell(language, "batch.done" if result.is_complete else "batch.stopped", **counts), "thanks")


def result_view(language: str, result: BatchResult) -> str:
    if not result.rows:
        return ""
    caption = tell(language, "batch.rows", shown=len(result.rows))
    kept = [place for place, name in enumerate(result.columns) if not name.startswith("probability_")]
    rows = ([number, *(row[place] for place in kept)] for number, row in enumerate(result.rows, 1))
    columns = [tell(language, "batch.row"), *(result.columns[place] for place in kept)]
    return views.table(columns, rows, caption, is_wide=True)
