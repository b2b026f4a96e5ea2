"""Samples that arrive together are answered together: one thread, one call of the model for all that are waiting.

Everything but the call itself happens on the event loop, so nothing here is locked. When a call fails, its samples are
tried one by one, so that a bad one has no part in its neighbours' fate.
"""

import asyncio
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Job:
    """One sample and the place where its answer goes; samples of one key may share a call."""

    key: Hashable
    sample: Any
    answer: asyncio.Future = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Batcher:
    """Runs calls in one thread, with as many samples as have come; to be made on a running event loop.

    Args:
        call: takes (key, samples) and gives one answer a sample; runs in the thread.
        max_batch_size: samples of one call; 1: no batching.
        window_seconds: how long the first sample waits for others, when others are to be expected.
        are_others_coming: says whether samples are on their way here.
        on_error: is told every failure.
    """

    def __init__(
        self,
        call: Callable[[Hashable, list], list],
        *,
        max_batch_size: int,
        window_seconds: float,
        are_others_coming: Callable[[], bool],
        on_error: Callable[[Exception], None],
    ):
        self._call, self._are_others_coming, self._on_error = call, are_others_coming, on_error
        self._max_batch_size, self._window = max_batch_size, window_seconds
        self._last_size = 0
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Queue[Job] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, "model")
        self._worker = asyncio.create_task(self._work())

    async def ask(self, key: Hashable, sample: Any) -> Any:
        """Give the answer for one sample, or raise what its call raised."""
        job = Job(key, sample)
        self._ready.put_nowait(job)
        return await job.answer

    def close(self) -> None:
        self._worker.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _work(self) -> None:
        while True:
            groups: dict[Hashable, list[Job]] = {}
            for job in await self._gather():
                groups.setdefault(job.key, []).append(job)
            for group in groups.values():
                await self._run(group)

    async def _gather(self) -> list[Job]:
        """Wait for a job, and then a short while for more; a lone caller does not wait."""
        batch = [await self._ready.get()]
        expects_more = self._last_size > 1 or self._are_others_coming()
        end = self._loop.time() + (self._window if expects_more else 0)
        while len(batch) < self._max_batch_size:
            try:
                if self._ready.empty():
                    async with asyncio.timeout_at(end):
                        batch.append(await self._ready.get())
                else:
                    batch.append(self._ready.get_nowait())
            except TimeoutError:
                break
        self._last_size = len(batch)
        return batch

    async def _run(self, group: list[Job]) -> None:
        group = [job for job in group if not job.answer.done()]  # others gave up
        if not group:
            return
        samples = [job.sample for job in group]
        try:
            answers = await self._loop.run_in_executor(self._thread, self._call, group[0].key, samples)
        except Exception as error:  # whatever the model raised belongs to these jobs, and the next ones must still run
            self._on_error(error)
            if len(group) > 1:
                for job in group:
                    await self._run([job])
            elif not group[0].answer.done():
                group[0].answer.set_exception(error)
            return
        for job, answer in zip(group, answers, strict=True):
            if not job.answer.done():
                job.answer.set_result(answer)
