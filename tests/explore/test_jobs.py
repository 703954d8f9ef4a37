import threading
import time

import pytest

from bitllm.errors import DataError
from bitllm.explore.jobs import MAX_KEPT, MAX_WAITING, DecodeQueue, QueueFullError
from bitllm.explore.schemas import Ask

ASK = Ask(system="sft", subject="subj08", nsd_id=1)


@pytest.fixture
def queue_of():
    """A queue around some work, closed at the end."""
    made = []

    def make(work):
        made.append(DecodeQueue(work))
        return made[-1]

    yield make
    for queue in made:
        queue.close()


def until(condition, timeout_s=5.0):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def test_jobs_are_done_one_at_a_time_in_their_order(queue_of):
    running, most, order = [], [], []

    def work(job):
        running.append(job)
        most.append(len(running))
        order.append(job.ask.nsd_id)
        time.sleep(0.01)
        running.remove(job)

    queue = queue_of(work)
    jobs = [queue.submit(ASK.model_copy(update={"nsd_id": number})) for number in range(5)]
    until(lambda: all(job.state == "done" for job in jobs))
    assert max(most) == 1
    assert order == [0, 1, 2, 3, 4]


def test_a_full_queue_refuses_at_once(queue_of):
    release = threading.Event()
    queue = queue_of(lambda job: release.wait(5))
    first = queue.submit(ASK)
    until(lambda: first.state == "running")
    waiting = [queue.submit(ASK) for _ in range(MAX_WAITING)]
    with pytest.raises(QueueFullError):
        queue.submit(ASK)
    assert [queue.info(job).n_ahead for job in waiting] == list(range(1, MAX_WAITING + 1))
    release.set()
    until(lambda: all(job.is_over for job in [first, *waiting]))


def test_a_job_that_waits_or_runs_can_be_cancelled(queue_of):
    def work(job):
        while True:
            job.tell("text", text="…")
            time.sleep(0.005)

    queue = queue_of(work)
    running, waiting = queue.submit(ASK), queue.submit(ASK)
    until(lambda: running.state == "running")
    queue.cancel(waiting)
    assert waiting.state == "cancelled"
    queue.cancel(running)
    until(lambda: running.state == "cancelled")
    assert running.events[-1] == {"kind": "cancelled"}
    queue.cancel(running)
    assert queue.get(running.id) is running


def test_work_that_fails_is_told_and_the_next_job_is_done(queue_of, caplog):
    def work(job):
        if job.ask.nsd_id == 0:
            raise DataError("no such thing")
        if job.ask.nsd_id == 1:
            raise ZeroDivisionError("private details")

    queue = queue_of(work)
    jobs = [queue.submit(ASK.model_copy(update={"nsd_id": number})) for number in range(3)]
    until(lambda: all(job.is_over for job in jobs))
    assert [job.state for job in jobs] == ["failed", "failed", "done"]
    assert jobs[0].events[-1]["message"] == "no such thing"
    assert "private" not in jobs[1].events[-1]["message"]
    assert "ZeroDivisionError" in caplog.text


def test_old_jobs_are_forgotten(queue_of):
    queue = queue_of(lambda job: None)
    first = queue.submit(ASK)
    for _ in range(MAX_KEPT):
        last = queue.submit(ASK)
        until(lambda job=last: job.is_over)
    assert queue.get(first.id) is None
    assert queue.get(last.id) is last


def test_a_closed_queue_takes_nothing(queue_of):
    queue = queue_of(lambda job: None)
    queue.close()
    with pytest.raises(QueueFullError):
        queue.submit(ASK)
