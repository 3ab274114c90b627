"""Files are encoded and written by a thread, while the next pictures are made."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from types import TracebackType

AHEAD = 32  # jobs that may wait


class Writer:
    """Does jobs in order, in the background; leaving the block waits for them.

    What goes wrong in a job ends the block: at the next `do`, or when it is left.
    """

    def __init__(self) -> None:
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue(AHEAD)
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if error is not None:
            self._failed = self._failed or error  # the rest is not done
        self._jobs.put(None)
        self._thread.join()
        if error is None:
            self._check()

    def do(self, job: Callable[[], None]) -> None:
        """Queue a job; waits while too many are waiting."""
        self._check()
        self._jobs.put(job)

    def _check(self) -> None:
        if self._failed is not None:
            raise self._failed

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if self._failed is None:
                try:
                    job()
                except BaseException as e:  # to be raised where it is seen
                    self._failed = e
