"""An actor between the workers of a trial and its Tune trial; it imports nothing, so that it starts at once."""

from __future__ import annotations

import asyncio


class Reports:
    """What rank 0 reports waits here for the Tune trial, and rank 0 for the answer."""

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[tuple[dict[str, float], asyncio.Future[bool]]] = asyncio.Queue()
        self._taken: asyncio.Future[bool] | None = None

    async def ask(self, report: dict[str, float]) -> bool:
        """Hand in a report; returns whether the trial is to stop, once its scheduler has seen the report."""
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        await self._waiting.put((report, answer))
        return await answer

    async def take(self) -> dict[str, float]:
        """Return the next report, once there is one."""
        report, self._taken = await self._waiting.get()
        return report

    async def answer(self, stop: bool) -> None:
        """Answer the report that was taken last."""
        assert self._taken is not None, "a report is taken first"
        self._taken.set_result(stop)
