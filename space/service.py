"""One model and its callers: from what a stranger gave to an answer or a `Refusal`, for page and API alike.

Files are opened in a few threads, then samples meet in a batch (`batching.py`). The number of samples inside is
bounded: who comes beyond it is told at once to come again. Everything else happens on the event loop, so nothing is
locked. Explanations with details take hundreds of times longer than answers and have a thread of their own.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from space.batching import Batcher
from space.errors import Refusal
from space.inputs import check_sample, open_sample
from space.options import Options
from space.tasks import TASKS, is_slow, warm_up_sample
from space.telemetry import Telemetry

if TYPE_CHECKING:
    import numpy as np

    from space.gallery import Card, Gallery

log = logging.getLogger("mmfusion")

# Threads that open files. A large picture keeps its opener until it is answered: many of them, each hundreds of times
# larger than its file, must never lie in memory together.
NUM_OPENERS = 2
LARGE_PIXELS = 1_000_000


class Service:
    """Answers samples with one model; to be used as `async with Service(...) as service`.

    Args:
        pipeline: the loaded pipeline; its processor opens files.
        options: limits, batch size, window, time.
        telemetry: where numbers go; None: a new one.
        gallery: the rows of the model's index; None: there is none.

    Attributes:
        is_draining: the gate takes no new work; what has passed it is answered.
        broken: why this process can answer nothing any more; None while it can.
        num_requests: open requests of HTTP, counted by the gate.
        last_request: when the gate saw one end, by `time.monotonic`.
        num_inside: samples that wait or run.
    """

    def __init__(
        self, pipeline, options: Options, telemetry: Telemetry | None = None, *, gallery: "Gallery | None" = None
    ):
        self.pipeline, self.options, self.gallery = pipeline, options, gallery
        self.telemetry = telemetry or Telemetry()
        self.is_warm = self.is_draining = False
        self.broken: str | None = None
        self.num_requests = self.num_inside = self._num_opening = 0
        self.last_request = 0.0

    @property
    def is_ready(self) -> bool:
        return self.is_warm and not self.is_draining and self.broken is None

    async def __aenter__(self) -> "Service":
        self.loop = asyncio.get_running_loop()
        self._openers = ThreadPoolExecutor(NUM_OPENERS, "opener")
        self._opener_slots = asyncio.Semaphore(NUM_OPENERS)
        self._finder = ThreadPoolExecutor(1, "finder")  # starts no thread as long as nothing is looked for
        self._fast = self._make_batcher(self.options.max_batch_size)
        self._slow = self._make_batcher(1)  # row by row in any case: together, all would wait for the last one
        # The first call pays for what is made lazily, and no visitor does.
        sample = warm_up_sample(self.pipeline.processor)
        await self.loop.run_in_executor(self._openers, TASKS["predict"], self.pipeline, [sample])
        self.is_warm = True
        return self

    async def __aexit__(self, *_: object) -> None:
        self.is_draining = True
        self._fast.close()
        self._slow.close()
        self._openers.shutdown(wait=False, cancel_futures=True)
        self._finder.shutdown(wait=False, cancel_futures=True)

    def _make_batcher(self, max_batch_size: int) -> Batcher:
        return Batcher(
            self._call,
            max_batch_size=max_batch_size,
            window_seconds=self.options.batch_window_ms / 1000,
            are_others_coming=lambda: self._num_opening > 0,
            on_error=self._notice,
        )

    # -- asking -------------------------------------------------------------------------------------------------------

    async def ask(self, given: Mapping[str, Any], task: str = "predict", **options: Any) -> Any:
        """Answer one sample.

        Args:
            given: as for `inputs.check_sample`.
            task: one of `tasks.TASKS`.
            **options: of the task, hashable.

        Raises:
            Refusal: The input is bad, the server is full, or it took too long.
        """
        (answer,) = await self.ask_all([given], task, **options)
        if isinstance(answer, Refusal):
            raise answer
        return answer

    async def ask_all(self, rows: list[Mapping[str, Any] | Refusal], task: str = "predict", **options: Any) -> list:
        """Answer several samples; a refused one has its `Refusal` in its place, and the others do not suffer.

        Args:
            rows: samples, as for `ask`; a `Refusal` in place of a row stays there.
            task: as for `ask`.
            **options: as for `ask`.

        Raises:
            Refusal: The server is full.
        """
        self._admit(len(rows))
        try:
            answers = await asyncio.gather(
                *(self._ask_one(row, task, options) for row in rows), return_exceptions=True
            )
        finally:
            self._change(-len(rows))
        for answer in answers:
            if isinstance(answer, Refusal):
                self.telemetry.refusals.labels(answer.code).inc()
            elif isinstance(answer, BaseException):
                raise answer
        return answers

    def ask_blocking(self, given: Mapping[str, Any], task: str = "predict", **options: Any) -> Any:
        """`ask`, for a caller in another thread."""
        return asyncio.run_coroutine_threadsafe(self.ask(given, task, **options), self.loop).result()

    def _admit(self, num_rows: int) -> None:
        is_idle = self.num_inside == 0  # then even a list that is longer than the limit is taken
        if not is_idle and self.num_inside + num_rows > self.options.max_waiting:
            self.telemetry.refusals.labels("overloaded").inc()
            raise Refusal("overloaded", f"{self.num_inside} samples are waiting already: try again in a second.")
        self._change(num_rows)

    def _change(self, num_rows: int) -> None:
        self.num_inside += num_rows
        self.telemetry.waiting.set(self.num_inside)

    async def _ask_one(self, given: Mapping[str, Any] | Refusal, task: str, options: dict[str, Any]) -> Any:
        if isinstance(given, Refusal):
            return given
        async with self._in_time():
            return await self._answer(given, task, options)

    @contextlib.asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self.options.timeout_seconds):
                yield
        except TimeoutError:
            told = f"no answer within {self.options.timeout_seconds:g} s: try again, or send less."
            raise Refusal("timeout", told) from None

    async def _answer(self, given: Mapping[str, Any], task: str, options: dict[str, Any]) -> Any:
        present = check_sample(given, self.pipeline.processor.modalities, self.options)
        async with contextlib.AsyncExitStack() as slot:
            sample = await self._open(present, slot)
            if not is_large(sample):
                await slot.aclose()
            batcher = self._slow if is_slow(task, options) else self._fast
            return await batcher.ask((task, tuple(sorted(options.items()))), sample)

    async def _open(self, present: dict[str, Any], slot: contextlib.AsyncExitStack) -> dict[str, Any]:
        if present.keys() == {"text"}:
            return present  # nothing to open
        processor = self.pipeline.processor
        self._num_opening += 1
        try:
            await slot.enter_async_context(self._opener_slots)
            return await self.loop.run_in_executor(self._openers, open_sample, present, processor, self.options)
        finally:
            self._num_opening -= 1

    # -- the rows of an index -----------------------------------------------------------------------------------------

    async def find(self, vector: "np.ndarray", top_k: int) -> list[dict[str, Any]]:
        """Give the rows of the index that are nearest to a vector; see `Gallery.find`.

        Raises:
            Refusal: It took too long.
        """
        return await self._in_gallery(self.gallery.find, vector, top_k)

    async def find_cards(self, vector: "np.ndarray") -> "list[Card]":
        """Give what the page shows of these rows; see `Gallery.cards`, and `find`."""
        return await self._in_gallery(self.gallery.cards, vector)

    async def _in_gallery(self, call: Callable[..., list], *args: Any) -> list:
        try:
            async with self._in_time():
                return await self.loop.run_in_executor(self._finder, call, *args)
        except Refusal as refusal:
            self.telemetry.refusals.labels(refusal.code).inc()
            raise

    # -- in the model's thread ----------------------------------------------------------------------------------------

    def _call(self, key: tuple[str, tuple], samples: list[dict[str, Any]]) -> list[Any]:
        task, options = key
        start = time.perf_counter()
        answers = TASKS[task](self.pipeline, samples, **dict(options))
        self.telemetry.batch_sizes.observe(len(samples))
        self.telemetry.model_seconds.labels(task).observe(time.perf_counter() - start)
        return answers

    def _notice(self, error: Exception) -> None:
        """After a fault of the accelerator itself, every later call in this process fails: it has to be restarted."""
        import torch

        if isinstance(error, torch.AcceleratorError) and not isinstance(error, torch.OutOfMemoryError):
            self.broken = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            log.critical("the accelerator failed, this process stops: %s", self.broken)


def is_large(sample: dict[str, Any]) -> bool:
    image = sample.get("image")
    return image is not None and image.width * image.height > LARGE_PIXELS
