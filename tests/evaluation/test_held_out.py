import numpy as np
import pytest

from bitllm.data.dataset import select_trials
from bitllm.errors import DataError, SplitError
from bitllm.evaluation.held_out import betas_of, read_held_out


def test_held_out_trials_are_those_of_the_test_subject_and_test_images(easy, held_out):
    assert held_out.subject == "subj08"
    assert set(held_out.nsd_id.tolist()) <= easy.split.test_images
    single = read_held_out(easy.store, easy.split, averaged=False)
    assert len(single.trials) > len(held_out.trials) == len(set(held_out.nsd_id.tolist()))
    own = single.betas[single.nsd_id == held_out.nsd_id[0]]
    assert np.allclose(own.mean(axis=0), held_out.betas[0], atol=1e-5)
    assert held_out.references[0] == easy.store.captions[int(held_out.nsd_id[0])]


def test_betas_of_a_subject_are_those_of_its_trials(easy):
    chosen = select_trials(easy.store, easy.split, "test", averaged=True)
    betas = betas_of(chosen)
    assert betas.shape == (len(chosen), easy.store.subject("subj08").betas.shape[1])
    assert np.array_equal(betas[3], chosen.betas(3))


def test_validation_images_of_one_training_subject_can_be_held_out(easy):
    chosen = read_held_out(easy.store, easy.split, averaged=True, part="validation", subject="subj02")
    assert chosen.subject == "subj02"
    assert set(chosen.nsd_id.tolist()) <= easy.split.validation_images


def test_a_part_with_several_subjects_asks_for_one(easy):
    with pytest.raises(SplitError, match=r"expected one validation subject, found subj01, .* with --subject"):
        read_held_out(easy.store, easy.split, averaged=True, part="validation")


def test_a_subject_without_test_images_is_refused(easy):
    with pytest.raises(SplitError, match=r"expected test subjects \(subj08\), found `subj01`"):
        read_held_out(easy.store, easy.split, averaged=True, subject="subj01")


def test_one_image_is_refused(easy, resealed):
    one = resealed(easy.split, test_images=frozenset(sorted(easy.split.test_images)[:1]))
    with pytest.raises(DataError, match="expected at least 2 images, found 1"):
        read_held_out(easy.store, one, averaged=True)


def test_records_carry_references_repetitions_and_the_control(held_out):
    captions = [f"caption {row}" for row in range(len(held_out.trials))]
    records = held_out.records(captions, control="zero")
    assert [record.caption for record in records] == captions
    assert {record.control for record in records} == {"zero"}
    assert records[2].n_repetitions == held_out.trials.n_repetitions(2)
