import numpy as np
import pytest
import torch

from bitllm.data.dataset import select_trials
from bitllm.errors import SplitError
from bitllm.evaluation.grounding.ground import control_tokens, ground, interval_rows, read_held_out, score_row
from bitllm.evaluation.grounding.system import load_system
from bitllm.model.checkpoint.base import load_llm
from bitllm.training.decode import greedy_captions


@pytest.fixture(scope="module")
def held_out(easy):
    """The test trials of the easy brain, averaged over repetitions."""
    return read_held_out(easy.store, easy.split, averaged=True)


@pytest.fixture(scope="module")
def system(easy):
    """An sft system whose adapters are made louder, so that its captions differ from image to image."""
    system = load_system("sft", easy.folder / "sft", load_llm(easy.folder / "llm"))
    with torch.no_grad():
        for name, parameter in system.model.named_parameters():
            if ".adapter.o_proj" in name:
                parameter.mul_(6)
    return system


@pytest.fixture(scope="module")
def grounding(system, held_out):
    """Everything that is decoded and scored, and the inputs in the order they were decoded."""
    n, told = len(held_out.trials), []
    found = ground(
        system,
        held_out,
        baselines={"constant": ["a dog"] * n},
        seed=0,
        max_new_tokens=12,
        on_decoded=told.append,
    )
    return found, told


def test_real_and_every_control_are_decoded_and_scored(grounding, held_out):
    found, told = grounding
    names = ["real", "zero", "shuffle", "permuted", "constant", "llm_alone"]
    assert list(found.captions) == list(found.scores) == names
    assert told == names[:4]
    assert all(len(captions) == len(held_out.trials) for captions in found.captions.values())
    assert set(found.differences) == set(names) - {"real"}


def test_zero_is_one_caption_where_real_and_permuted_are_many(grounding):
    distinct = {control: scores.distinct for control, scores in grounding[0].scores.items()}
    assert distinct["real"] > 5
    assert distinct["permuted"] > 5
    assert (distinct["zero"], distinct["llm_alone"], distinct["constant"]) == (1, 1, 1)


def test_inputs_that_are_equal_are_decoded_as_if_one_by_one(grounding, system, held_out):
    found, _ = grounding
    one = control_tokens(system, held_out, "zero", seed=0)[:2]
    captions = greedy_captions(system.model, system.prompter, one, max_new_tokens=12)
    assert captions == found.captions["zero"][:2]


def test_a_difference_is_real_less_control(grounding):
    found, _ = grounding
    for control in ("zero", "permuted", "constant"):
        real, other = found.scores["real"].metrics, found.scores[control].metrics
        for metric, row in found.differences[control].items():
            assert row["difference"] == pytest.approx(real[metric] - other[metric], abs=1e-6)
            assert row["low"] <= row["difference"] <= row["high"]


def test_bits_have_their_mean_and_interval(grounding):
    found, _ = grounding
    assert set(found.bits) == {"per_caption", "per_token"}
    row = found.bits["per_caption"]
    assert row["mean"] == pytest.approx(found.bits_per_image.mean())
    assert row["low"] < row["mean"] < row["high"]


def test_control_tokens_of_real_betas_are_the_encoders_own(system, held_out):
    real = control_tokens(system, held_out, "real", seed=0)
    zero = control_tokens(system, held_out, "zero", seed=0)
    assert real.shape == (len(held_out.trials), 4, 32)
    assert torch.equal(zero, zero[:1].expand_as(zero))
    permuted = control_tokens(system, held_out, "permuted", seed=0)
    distance = torch.cdist(permuted.flatten(1), real.flatten(1))
    assert (distance.min(dim=1).values < 1e-3).all()
    assert (distance.diagonal() > 1e-2).all()


def test_held_out_trials_are_those_of_the_test_subject_and_test_images(easy, held_out):
    assert held_out.subject == "subj08"
    assert set(held_out.nsd_id.tolist()) <= easy.split.test_images
    single = read_held_out(easy.store, easy.split, averaged=False)
    assert len(single.trials) > len(held_out.trials) == len(set(held_out.nsd_id.tolist()))
    image = int(held_out.nsd_id[0])
    own = single.betas[single.nsd_id == image]
    assert np.allclose(own.mean(axis=0), held_out.betas[0], atol=1e-5)
    assert held_out.references[0] == easy.store.captions[image]


def test_records_carry_references_repetitions_and_the_control(held_out):
    captions = [f"caption {row}" for row in range(len(held_out.trials))]
    records = held_out.records(captions, control="zero")
    assert [record.caption for record in records] == captions
    assert {record.control for record in records} == {"zero"}
    assert records[2].nsd_id == int(held_out.nsd_id[2])
    assert records[2].n_repetitions == held_out.trials.n_repetitions(2)


def test_a_split_with_two_test_subjects_is_refused(easy, resealed):
    split = resealed(
        easy.split, test_subjects=("subj07", "subj08"), train_subjects=easy.split.train_subjects[:-1]
    )
    assert len(select_trials(easy.store, split, "test", averaged=True)) > 0
    with pytest.raises(SplitError, match="expected one test subject, found subj07, subj08; ground them one"):
        read_held_out(easy.store, split, averaged=True)


def test_rows_are_plain_json_numbers(grounding):
    scores = grounding[0].scores["real"]
    row = score_row(scores)
    assert row["distinct"] == scores.distinct
    assert {"CIDEr", "BLEU-4", "ROUGE-L", "mean_length"} <= set(row)
    assert interval_rows(scores)["CIDEr"]["low"] == scores.intervals["CIDEr"].low
