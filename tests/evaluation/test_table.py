import numpy as np
import pandas as pd
import pytest

from bitllm.errors import DataError
from bitllm.evaluation.bits import ReferenceTokens
from bitllm.evaluation.held_out import HeldOut
from bitllm.evaluation.outcomes import Outcomes
from bitllm.evaluation.results import About, Results, from_json, to_json
from bitllm.evaluation.scoring.caption_scorer import CaptionScorer, score_differences, score_estimates
from bitllm.evaluation.table import (
    Evaluation,
    encoder_rows,
    read_evaluation,
    results_of,
    rows_of,
    write_evaluation,
)
from bitllm.metrics.intervals import paired_difference
from bitllm.metrics.retrieval import retrieval, target_ranks

SEED = 3


class Trials:
    """As many rows as images."""

    def __init__(self, nsd_id):
        self.nsd_id = nsd_id

    def __len__(self):
        return len(self.nsd_id)


@pytest.fixture(scope="module")
def held_out():
    """Twelve images with three references each, without a store."""
    rng = np.random.default_rng(1)
    words = ["a", "dog", "cat", "red", "two", "tree", "on", "grass"]
    made = object.__new__(HeldOut)
    references = [tuple(" ".join(rng.choice(words, 6)) for _ in range(3)) for _ in range(12)]
    nsd_id = np.arange(12) * 5 + 3
    fields = {
        "subject": "subj08",
        "trials": Trials(nsd_id),
        "references": references,
        "scorer": CaptionScorer(references, image_ids=nsd_id.tolist()),
        "n_repetitions": np.full(12, 3),
    }
    made.__dict__.update(fields)
    return made


@pytest.fixture(scope="module")
def found(held_out):
    """Captions that are references of the same or of the next image, and random probabilities."""
    rng = np.random.default_rng(2)
    row = np.repeat(np.arange(12), 3)
    answers = [[1] * int(n) for n in rng.integers(4, 7, 36)]
    word = np.full((36, 6), -1)
    tokens = ReferenceTokens(row, answers, [["w"] * (len(one) - 1) for one in answers], word)
    order = np.roll(np.arange(12), 1)
    real = [group[0] for group in held_out.references]
    captions = {
        "real": [text if row % 3 else "a dog" for row, text in enumerate(real)],
        "permuted": [real[row] for row in order],
        "zero": ["a dog on grass"] * 12,
    }
    log2 = {name: -rng.random((36, 6)) for name in ("real", "permuted", "llm_alone")}
    return Outcomes(held_out, order, tokens, captions | {"llm_alone": [""] * 12}, log2)


@pytest.fixture(scope="module")
def constant(held_out):
    """One caption for every image."""
    return [held_out.references[0][0]] * len(held_out.trials)


@pytest.fixture(scope="module")
def embedded(held_out):
    """Random embeddings of three draws of a control, and of the images."""
    rng = np.random.default_rng(0)
    n = len(held_out.trials)
    return rng.normal(size=(3, n, 5)), rng.normal(size=(n, 5))


@pytest.fixture(scope="module")
def evaluation(found, held_out, constant, embedded):
    """The easy brain's sft system, with an encoder whose embeddings are random."""
    queries, gallery = embedded
    n = len(held_out.trials)
    tied = [target_ranks(rows @ gallery.T, np.arange(n), np.random.default_rng(0)) for rows in queries]
    about = About(
        "simulated brain", True, held_out.subject, False, "test", True, "poster", "a" * 64, "b" * 64, n, n, SEED,
        "small", 12, held_out.scorer.references_sha256, held_out.scorer.tokenizer,
    )  # fmt: skip
    rows = [
        rows_of(found, system="sft", baselines={"constant": constant}),
        encoder_rows(held_out, "real", ranks=np.array(tied[:1]).T, cosine_zero=np.linspace(0, 1, n)),
        encoder_rows(held_out, "permuted", ranks=np.array(tied).T),
    ]
    groups = [
        {"kind": "category", "name": "animals", "nsd_ids": held_out.nsd_id[:5].tolist()},
        {"kind": "category", "name": "food", "nsd_ids": held_out.nsd_id[:1].tolist()},
    ]
    return Evaluation(
        pd.concat(rows),
        {"about": to_json(about), "n_pictures": n, "groups": groups, "n_trainable": {"sft": 7}},
    )


@pytest.fixture(scope="module")
def results(evaluation, tmp_path_factory):
    """Results of the table as it was read back from the disk."""
    folder = tmp_path_factory.mktemp("evaluation")
    write_evaluation(folder, evaluation)
    return results_of(read_evaluation(folder))


def test_scores_are_those_of_the_scorer_with_its_intervals(results, found, held_out, constant):
    captions = found.captions | {"constant": constant}
    own = {name: held_out.scorer.per_caption(texts) for name, texts in captions.items()}
    averaged = results.systems["sft"].averaged
    assert list(averaged) == list(captions)
    for name, numbers in own.items():
        scored = score_estimates(numbers, seed=SEED)
        for metric, one in averaged[name].scores.items():
            assert one[:3] == pytest.approx(scored[metric][:3])
        assert averaged[name].n_distinct == len(set(captions[name]))
    assert averaged["zero"].mean_length == 4
    expected = score_differences(own["real"], own["constant"], seed=SEED)
    for name, one in averaged["constant"].real_minus_this.items():
        assert tuple(one) == pytest.approx(tuple(expected[name])), name
    assert averaged["real"].real_minus_this == {}


def test_bits_are_those_of_the_tokens(results, found, held_out):
    """Per unit the difference of sums over all references, and its interval over images."""
    rows = found.tokens.row
    for name in ("permuted", "llm_alone"):
        gains = (found.log2_probs["real"] - found.log2_probs[name]).sum(axis=1)
        got = results.systems["sft"].averaged[name].bits
        per_image = np.array([gains[rows == row].mean() for row in range(12)])
        assert tuple(got["per_caption"]) == pytest.approx(
            tuple(paired_difference(per_image, np.zeros(12), seed=SEED))
        )
        assert got["per_token"].value == pytest.approx(gains.sum() / sum(map(len, found.tokens.answers)))
        assert got["per_word"].value == pytest.approx(gains.sum() / sum(map(len, found.tokens.words)))
    assert results.systems["sft"].averaged["zero"].bits == {}, "no likelihood was computed"


def test_retrieval_pools_the_draws_of_a_control(results, held_out, embedded):
    queries, gallery = embedded
    n = len(held_out.trials)
    similarity = queries.reshape(-1, 5) @ gallery.T
    expected = retrieval(similarity, np.tile(np.arange(n), 3), np.random.default_rng(0))
    got = results.encoder.retrieval["permuted"]
    assert got.r_at == {
        1: pytest.approx(expected.r_at_1),
        5: pytest.approx(expected.r_at_5),
        10: pytest.approx(expected.r_at_10),
    }
    assert got.r_at_10[:3] == pytest.approx(expected.r_at_10_interval[:3])
    assert (got.median_rank, got.n_queries) == (expected.median_rank, expected.n_queries)
    assert (got.chance_r_at_10, got.chance_median_rank) == (10 / n, (n + 1) / 2)
    assert results.encoder.identification[-1].correct.value == pytest.approx(
        results.encoder.retrieval["real"].r_at[1]
    )
    assert results.encoder.cosine_real_zero == (
        pytest.approx(0.5),
        pytest.approx(np.linspace(0, 1, n).std(ddof=1)),
    )


def test_groups_have_the_numbers_of_their_images(results, evaluation):
    animals, food = results.groups
    own = evaluation.rows[(evaluation.rows["system"] == "sft") & (evaluation.rows["row"] < 5)]
    real, permuted = (own[own["input"] == name] for name in ("real", "permuted"))
    assert animals.cider.value == pytest.approx(real["cider"].mean())
    assert animals.real_minus_permuted.value == pytest.approx(real["cider"].mean() - permuted["cider"].mean())
    bits = (real["log2_p"].sum() - permuted["log2_p"].sum()) / real["n_words"].sum()
    assert animals.bits_per_word.value == pytest.approx(bits)
    assert (food.n_images, food.cider) == (1, None)


def test_results_survive_their_json(results):
    content = to_json(results)
    assert from_json(Results, content, "results.json") == results
    content["systems"]["sft"]["averaged"]["real"]["n_distinkt"] = 3
    with pytest.raises(DataError, match=r"results\.json\.systems\.sft\.averaged\.real.*n_distinkt"):
        from_json(Results, content, "results.json")


def test_a_damaged_table_is_named(evaluation, tmp_path):
    write_evaluation(tmp_path, evaluation)
    (tmp_path / "evaluation.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"evaluation\.parquet"):
        read_evaluation(tmp_path)
