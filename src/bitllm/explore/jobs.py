"""Decodes run one at a time in their own thread, with a short queue.

A request adds a job and returns at once, or is refused if the queue is full; the events of a job report its
progress.
"""

import logging
import secrets
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bitllm.errors import BitLlmError
from bitllm.explore.schemas import Ask, JobInfo, JobState

MAX_WAITING, MAX_KEPT = 8, 200
"""Jobs that can wait, and jobs that can still be asked for."""
_LOG = logging.getLogger(__name__)


class QueueFullError(Exception):
    """The queue is full."""


class CancelledError(Exception):
    """The client cancelled the request."""


@dataclass
class Job:
    """A requested decode with its events so far."""

    ask: Ask
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    state: JobState = "waiting"
    events: list[dict[str, Any]] = field(default_factory=list)
    """Only appended to, so that a reader can continue where it stopped."""
    cancelled: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)
    """Set after the last event."""

    @property
    def is_over(self) -> bool:
        """Whether the last event was sent."""
        return self.over.is_set()

    def tell(self, kind: str, **content: Any) -> None:
        """Add an event; raises `CancelledError` if the job was cancelled."""
        if self.cancelled.is_set():
            raise CancelledError
        self.events.append({"kind": kind, **content})

    def end(self, state: JobState, **content: Any) -> None:
        """Add the last event."""
        self.events.append({"kind": state, **content})
        self.state = state
        self.over.set()


class DecodeQueue:
    """Runs jobs one at a time in its own thread; ``work`` computes a job and emits its events."""

    def __init__(self, work: Callable[[Job], None]) -> None:
        self._work = work
        self._jobs: dict[str, Job] = {}
        self._waiting: deque[Job] = deque()
        self._change = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="decodes", daemon=True)
        self._thread.start()

    def submit(self, ask: Ask) -> Job:
        """Add a decode; raises `QueueFullError` if `MAX_WAITING` jobs are waiting."""
        with self._change:
            if len(self._waiting) >= MAX_WAITING or self._is_closed:
                raise QueueFullError
            job = Job(ask)
            self._forget_old()
            self._jobs[job.id] = job
            self._waiting.append(job)
            self._change.notify()
            return job

    def get(self, job_id: str) -> Job | None:
        """A job by its id; None if it was dropped."""
        return self._jobs.get(job_id)

    def cancel(self, job: Job) -> None:
        """End a job: at once if it is waiting, at its next token if it is running."""
        with self._change:
            job.cancelled.set()
            if job in self._waiting:
                self._waiting.remove(job)
                job.end("cancelled")

    def info(self, job: Job) -> JobInfo:
        """The state of a job."""
        with self._change:
            ahead = self._waiting.index(job) + 1 if job in self._waiting else 0
        return JobInfo(id=job.id, state=job.state, n_ahead=ahead)

    def close(self, timeout_s: float = 10.0) -> None:
        """Cancel everything and end the thread."""
        with self._change:
            self._is_closed = True
            for job in self._jobs.values():
                job.cancelled.set()
            self._change.notify()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (job := self._next()) is not None:
            self._do(job)

    def _next(self) -> Job | None:
        with self._change:
            self._change.wait_for(lambda: self._waiting or self._is_closed)
            if self._is_closed:
                return None
            job = self._waiting.popleft()
            job.state = "running"
            return job

    def _do(self, job: Job) -> None:
        try:
            job.tell("running")
            self._work(job)
            job.end("done")
        except CancelledError:
            job.end("cancelled")
        except BitLlmError as error:
            job.end("failed", message=str(error))
        except Exception:  # noqa: BLE001 - an error in one decode must not stop the queue
            _LOG.exception("decode %s failed", job.id)
            job.end("failed", message="the decode failed; the terminal of bitllm explore says why")

    def _forget_old(self) -> None:
        """Drop the oldest finished jobs."""
        over = [job.id for job in self._jobs.values() if job.is_over]
        for job_id in over[: max(0, len(self._jobs) - MAX_KEPT + 1)]:
            del self._jobs[job_id]
