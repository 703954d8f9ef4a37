import numpy as np
import pytest
import torch

from bitllm.data.prompt import INSTRUCTIONS
from bitllm.evaluation.captions import NO_EVIDENCE, caption_rows, score_inputs, verdict
from bitllm.evaluation.controls import control_betas
from bitllm.evaluation.diagnostics import nearest_training_captions
from bitllm.evaluation.pairing import other_images


def judged(held_out, captions):
    """The verdict on a decoder, from its captions alone."""
    order = other_images(held_out, seed=0).order
    dealt = {"real": captions, "permuted": [captions[row] for row in order]}
    _, differences = score_inputs(held_out, dealt, seed=0)
    return verdict(captions, differences["permuted"]["CIDEr"])


def test_a_decoder_that_names_what_people_saw_depends_on_the_betas(held_out):
    found = judged(held_out, [group[0] for group in held_out.references])
    assert found.is_evidence
    assert found.sentence.startswith("the captions depend on the betas: CIDEr real − permuted +")


def test_a_constant_decoder_is_called_out(held_out):
    found = judged(held_out, ["a dog on a bench"] * len(held_out.trials))
    assert not found.is_evidence
    assert (
        found.sentence == f"{NO_EVIDENCE}: CIDEr real − permuted +0.0 [0.0, 0.0]; every caption is the same"
    )


def test_a_decoder_that_speaks_from_the_prior_of_its_llm_is_called_out(system, held_out):
    prompter = system.prompter.without_brain()
    ids = torch.tensor([prompter.prompt_ids(INSTRUCTIONS[0])] * len(held_out.trials))
    torch.manual_seed(0)
    out = system.model.generate(
        input_ids=ids,
        do_sample=True,
        max_new_tokens=10,
        pad_token_id=prompter.tokenizer.pad_token_id,
        eos_token_id=prompter.tokenizer.eos_token_id,
    )
    captions = prompter.tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
    found = judged(held_out, captions)
    assert len(set(captions)) > 5
    assert not found.is_evidence
    assert found.sentence.startswith(NO_EVIDENCE)


def test_a_decoder_that_copies_training_captions_by_shuffled_betas_is_called_out(easy, system, held_out):
    betas = control_betas("shuffle", held_out, seed=0).betas
    tokens = held_out.brain_tokens(system.encoder, system.atlases, betas)
    queries = tokens.mean(dim=1).numpy()
    captions = nearest_training_captions(
        system.encoder, None, easy.store, easy.split, system.atlases, queries=queries
    )
    found = judged(held_out, captions)
    assert len(set(captions)) > 2
    assert not found.is_evidence
    assert found.sentence.startswith(NO_EVIDENCE)


def test_empty_captions_are_counted_and_called_out(held_out):
    captions = {name: [""] * len(held_out.trials) for name in ("real", "permuted")}
    scores, differences = score_inputs(held_out, captions, seed=0)
    rows = caption_rows(captions, scores, differences)
    assert rows["real"]["n_empty"] == len(held_out.trials)
    assert rows["real"]["metrics"]["CIDEr"] == 0
    found = verdict(captions["real"], differences["permuted"]["CIDEr"])
    assert found.sentence.startswith(NO_EVIDENCE)
    assert found.sentence.endswith("all are empty")


def test_bits_beside_captions_without_evidence_are_told(held_out):
    none = {"difference": 1.0, "low": -1.0, "high": 3.0}
    found = verdict(["a", "b"], none, {"mean": 0.2, "low": 0.1, "high": 0.3})
    assert (
        "yet the references are more probable under the right betas, +0.200 [0.100, 0.300]" in found.sentence
    )


def test_real_and_every_control_are_decoded_and_scored(found, held_out):
    names = ["real", "permuted", "zero", "shuffle", "noise", "other_subject", "llm_alone"]
    assert list(found.captions) == names
    assert list(found.log2_probs) == names
    assert [len(set(found.captions[name])) for name in ("zero", "llm_alone")] == [1, 1]
    assert found.captions["permuted"] == [found.captions["real"][row] for row in found.order]
    scores, differences = score_inputs(held_out, found.captions, seed=0)
    for metric, row in differences["zero"].items():
        assert row["difference"] == pytest.approx(
            scores["real"].metrics[metric] - scores["zero"].metrics[metric], abs=1e-6
        )
        assert row["low"] <= row["difference"] <= row["high"]
    assert np.isfinite(list(scores["real"].metrics.values())).all()
