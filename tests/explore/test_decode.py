"""Decodes on a brain that can be decoded: the caption is the evaluation's own, and the betas matter."""

import numpy as np
import pytest

from bitllm.explore.jobs import CancelledError, Job
from bitllm.explore.schemas import Ask
from bitllm.explore.work import Decoder

N_IMAGES = 20


@pytest.fixture(scope="module")
def decoder(easy_session):
    return Decoder(easy_session, max_new_tokens=12)


@pytest.fixture(scope="module")
def panels(decoder, easy_session):
    """Panels of a decode by name: ``panels(image=3, perturbation="zero")``."""
    images = easy_session.images("subj08", "test", offset=0, limit=1000).images

    def decode(image=0, **changed):
        job = Job(Ask(system="sft", subject="subj08", nsd_id=images[image].nsd_id, **changed))
        decoder(job)
        return {event["panel"]: event for event in job.events if event["kind"] == "panel"}

    return decode


def test_the_caption_is_that_of_the_evaluation(easy_session, held_out_captions):
    system = easy_session.system("sft")
    nsd_ids, expected, tokens = held_out_captions
    for row in range(0, len(nsd_ids), 7):
        said = []
        (caption,) = system.greedy(tokens[row : row + 1], on_text=said.append, max_new_tokens=12)
        assert caption == expected[row]
        assert said[-1] == caption
        assert all(caption.startswith(part) for part in said)


@pytest.fixture(scope="module")
def held_out_captions(easy_session):
    """Images, captions and brain tokens as `bitllm ground` makes them."""
    from bitllm.evaluation.held_out import read_held_out

    system = easy_session.system("sft")
    held_out = read_held_out(easy_session.store, easy_session.split, averaged=True)
    tokens = held_out.brain_tokens(system.encoder, system.atlases)
    return held_out.nsd_id, system.greedy(tokens, n=len(tokens), max_new_tokens=12), tokens


def test_zero_betas_give_one_caption_for_every_image(panels):
    assert len({panels(image, perturbation="zero")["perturbed"]["caption"] for image in range(6)}) == 1
    assert len({panels(image)["real"]["caption"] for image in range(6)}) > 1


def test_real_words_have_more_bits_than_those_of_the_control(panels):
    def bits(name):
        return np.array([sum(one["bits"] for one in panels(n)[name]["words"]) for n in range(N_IMAGES)])

    real, control = bits("real"), bits("control")
    assert real.mean() > 0
    assert real.mean() > control.mean()


def test_what_changes_nothing_loses_nothing(panels):
    found = panels(0, perturbation="scale", factor=1.0)
    assert found["perturbed"]["caption"] == found["real"]["caption"]
    assert [one["bits"] for one in found["perturbed"]["lost"]] == pytest.approx(
        [0] * len(found["real"]["words"])
    )


def test_silencing_everything_is_zero(panels):
    zero, silent = panels(1, perturbation="zero"), panels(1, perturbation="silence", roi="streams")
    assert zero["perturbed"] == silent["perturbed"]
    assert [one["bits"] for one in zero["perturbed"]["lost"]] != [0] * len(zero["real"]["words"])


def test_a_cancelled_decode_ends_at_its_next_word(decoder, easy_session):
    image = easy_session.images("subj08", "test", offset=20, limit=1).images[0]
    job = Job(Ask(system="sft", subject="subj08", nsd_id=image.nsd_id, repetition=1))
    job.tell = _cancelling_after(job, 2)
    with pytest.raises(CancelledError):
        decoder(job)
    assert [event["kind"] for event in job.events].count("text") == 2


def _cancelling_after(job, n_texts):
    tell = job.tell

    def told(kind, **content):
        tell(kind, **content)
        if [event["kind"] for event in job.events].count("text") == n_texts:
            job.cancelled.set()

    return told
