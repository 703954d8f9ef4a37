import threading

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


def wait_for(*events):
    """Wait for events that stay set; the bound only ends a test that would hang."""
    assert all(event.wait(60) for event in events)


def test_jobs_are_done_one_at_a_time_in_their_order(queue_of):
    all_wait, running, most, order = threading.Event(), [], [], []

    def work(job):
        running.append(job)
        wait_for(all_wait)  # none ends before all could have started
        most.append(len(running))
        order.append(job.ask.nsd_id)
        running.remove(job)

    queue = queue_of(work)
    jobs = [queue.submit(ASK.model_copy(update={"nsd_id": number})) for number in range(5)]
    all_wait.set()
    wait_for(*(job.over for job in jobs))
    assert [job.state for job in jobs] == ["done"] * 5
    assert most == [1] * 5
    assert order == [0, 1, 2, 3, 4]


def test_a_full_queue_refuses_at_once(queue_of):
    started, release = threading.Event(), threading.Event()

    def work(job):
        started.set()
        wait_for(release)

    queue = queue_of(work)
    first = queue.submit(ASK)
    wait_for(started)
    assert first.state == "running"
    waiting = [queue.submit(ASK) for _ in range(MAX_WAITING)]
    with pytest.raises(QueueFullError):
        queue.submit(ASK)
    assert [queue.info(job).n_ahead for job in waiting] == list(range(1, MAX_WAITING + 1))
    release.set()
    wait_for(*(job.over for job in [first, *waiting]))


def test_a_job_that_waits_or_runs_can_be_cancelled(queue_of):
    started = threading.Event()

    def work(job):
        started.set()
        wait_for(job.cancelled)
        job.tell("text", text="…")

    queue = queue_of(work)
    running, waiting = queue.submit(ASK), queue.submit(ASK)
    wait_for(started)
    queue.cancel(waiting)
    assert waiting.state == "cancelled"
    queue.cancel(running)
    wait_for(running.over)
    assert running.state == "cancelled"
    assert [event["kind"] for event in running.events] == ["running", "cancelled"]
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
    wait_for(*(job.over for job in jobs))
    assert [job.state for job in jobs] == ["failed", "failed", "done"]
    assert jobs[0].events[-1]["message"] == "no such thing"
    assert "private" not in jobs[1].events[-1]["message"]
    assert "ZeroDivisionError" in caplog.text


def test_old_jobs_are_forgotten(queue_of):
    queue = queue_of(lambda job: None)
    first = queue.submit(ASK)
    for _ in range(MAX_KEPT):
        last = queue.submit(ASK)
        wait_for(last.over)
    assert queue.get(first.id) is None
    assert queue.get(last.id) is last


def test_a_closed_queue_takes_nothing(queue_of):
    queue = queue_of(lambda job: None)
    queue.close()
    with pytest.raises(QueueFullError):
        queue.submit(ASK)
