import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bitllm.errors import DataError
from bitllm.experiments.verdict import Arm, Claim, Effect, draw_differences, effect_of, mean_of, verdict_of
from bitllm.metrics.bleu import bleu_counts, bleu_from_counts
from bitllm.metrics.intervals import Estimate

CLAIM = Claim(text="a beats b", more=Arm(system="a"), less=Arm(system="b"), negligible=1.0, poster="2 / 1")


def made_rows(rng, *, effect, brain_sd=0.0, n_brains=3, n_models=3, n_images=40, noise=4.0):
    """Rows of two systems whose true difference is known; what images and brains have in common cancels."""
    rows = []
    for brain in range(n_brains):
        of_brain = effect + brain_sd * rng.standard_normal()
        of_image = 30 + 20 * rng.standard_normal(n_images)
        for model in range(n_models):
            for system, gain in (("a", of_brain), ("b", 0.0)):
                cider = of_image + gain + noise * rng.standard_normal(n_images)
                place = {"simulator_seed": brain, "model_seed": model, "system": system, "control": "real"}
                rows.append(pd.DataFrame({**place, "nsd_id": np.arange(n_images), "cider": cider}))
    return pd.concat(rows).sample(frac=1, random_state=0)


def an_effect(low, high, n_brains=3):
    return Effect(1.0, 0.0, Estimate((low + high) / 2, low, high, 0.5), n_brains, 3, 40)


def test_a_large_effect_is_borne_out_and_its_interval_holds_the_truth(rng):
    found = effect_of(CLAIM, made_rows(rng, effect=6.0))
    assert found.difference.low < 6.0 < found.difference.high
    assert found.difference.low > 0
    assert found.difference.p < 0.05
    assert found.difference.value == pytest.approx(found.more - found.less)
    assert (found.n_brains, found.n_models, found.n_images) == (3, 3, 40)
    assert verdict_of(found, CLAIM.negligible) == "borne out"


def test_an_effect_the_wrong_way_is_not_borne_out(rng):
    found = effect_of(CLAIM, made_rows(rng, effect=-6.0))
    assert found.difference.high < 0
    assert verdict_of(found, CLAIM.negligible) == "not borne out"


def test_the_difference_is_the_mean_of_the_paired_differences(rng):
    rows = made_rows(rng, effect=1.0)
    means = rows.groupby("system")["cider"].mean()
    assert effect_of(CLAIM, rows).difference.value == pytest.approx(means["a"] - means["b"])


def test_an_arm_may_be_the_difference_of_two_inputs_image_by_image(rng):
    rows = made_rows(rng, effect=2.0)
    floor = rows.assign(control="permuted", cider=rng.standard_normal(len(rows)))
    both = pd.concat([rows, floor])
    arms = {key: Arm(system=name, control="real - permuted") for key, name in (("more", "a"), ("less", "b"))}
    found = effect_of(CLAIM.model_copy(update=arms), both)
    means = both.groupby(["system", "control"])["cider"].mean()
    assert found.more == pytest.approx(means["a", "real"] - means["a", "permuted"])
    assert found.less == pytest.approx(means["b", "real"] - means["b", "permuted"])
    assert found.difference.low < found.more - found.less < found.difference.high


@pytest.mark.parametrize("shift", [1, 40])
def test_other_images_under_another_model_seed_are_refused(shift, rng):
    rows = made_rows(rng, effect=1.0)
    rows.loc[rows["model_seed"] == 2, "nsd_id"] += shift
    with pytest.raises(DataError, match="brain 0"):
        effect_of(CLAIM, rows)


def test_the_order_of_the_rows_changes_nothing(rng):
    rows = made_rows(rng, effect=1.0)
    assert effect_of(CLAIM, rows) == effect_of(CLAIM, rows.sample(frac=1, random_state=5))


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.1, 5.0, "borne out"),
        (-0.1, 5.0, "undecided"),
        (-2.0, 0.9, "not borne out"),
        (-2.0, 1.0, "undecided"),
        (0.1, 0.9, "borne out"),
    ],
)
def test_the_rule_of_the_verdict(low, high, verdict):
    assert verdict_of(an_effect(low, high), 1.0) == verdict


def test_fewer_than_three_brains_decide_nothing():
    assert verdict_of(an_effect(3.0, 4.0, n_brains=2), 1.0) == "undecided"


def test_intervals_leave_out_no_effect_about_one_time_in_twenty_when_brains_differ():
    """240 experiments without an effect but with brains that differ; images alone would call half of them effects."""
    missed = alone = 0
    for seed in range(240):
        rows = made_rows(np.random.default_rng(seed), effect=0.0, brain_sd=2.0, n_models=2, n_images=20)
        found = effect_of(CLAIM, rows, n_draws=400, seed=seed)
        missed += found.difference.low > 0 or found.difference.high < 0
        wide = rows.pivot_table(index=["simulator_seed", "nsd_id"], columns="system", values="cider")
        difference = wide["a"] - wide["b"]
        alone += abs(difference.mean()) > 1.96 * difference.std() / np.sqrt(len(difference))
    assert missed <= 24, "above ten percent"
    assert alone > 60, "the brains of this test do not differ enough to show it"


def test_the_draws_are_those_of_a_loop_written_out(rng):
    """Mean and standard deviation against models and images drawn one after another."""
    by_brain = [rng.normal(brain, 2.0, size=(3, 7)) for brain in range(3)]
    drawn = []
    for _ in range(6000):
        means = []
        for brain in range(3):
            models, images = rng.integers(0, 3, size=3), rng.integers(0, 7, size=7)
            means.append(by_brain[brain][models][:, images].mean())
        drawn.append(np.mean(means))
    pairs = [(values[..., None], np.zeros((3, 7, 1))) for values in by_brain]
    ours = draw_differences(pairs, mean_of, 1.0, n_draws=6000, seed=0)
    assert ours.mean() == pytest.approx(np.mean(drawn), abs=0.05)
    assert ours.std() == pytest.approx(np.std(drawn), rel=0.05)


def test_the_interval_is_that_of_a_t_test_over_brains_where_they_differ_much(rng):
    rows = made_rows(rng, effect=1.0, brain_sd=20.0, n_brains=5, n_images=80)
    means = rows.pivot_table(index="simulator_seed", columns="system", values="cider")
    test = stats.ttest_rel(means["a"], means["b"])
    found = effect_of(CLAIM, rows)
    assert (found.difference.low, found.difference.high) == pytest.approx(test.confidence_interval(0.95))
    assert found.difference.p == pytest.approx(test.pvalue)


def test_brains_that_agree_by_chance_do_not_make_the_interval_narrower_than_images_do(rng):
    rows = made_rows(rng, effect=1.0, n_brains=3)
    shift = rows.groupby(["simulator_seed", "system"])["cider"].transform("mean")
    nearly = 1 + 1e-3 * rows["simulator_seed"]
    rows["cider"] += np.where(rows["system"] == "a", nearly, 0.0) - shift
    found = effect_of(CLAIM, rows)
    assert found.difference.value == pytest.approx(1.001)
    assert found.difference.high - found.difference.low > 0.8
    assert 0 < found.difference.p < 0.2


def test_arms_without_rows_or_with_other_images_are_refused(rng):
    rows = made_rows(rng, effect=1.0)
    with pytest.raises(DataError, match="cider of b"):
        effect_of(CLAIM, rows[rows["system"] == "a"])
    with pytest.raises(DataError, match="for a and b"):
        effect_of(CLAIM, rows[(rows["system"] == "a") | (rows["nsd_id"] > 3)])


def test_a_claim_of_twice_as_much_is_tested_as_that(rng):
    rows = made_rows(rng, effect=6.0)
    means = rows.groupby("system")["cider"].mean()
    found = effect_of(CLAIM.model_copy(update={"factor": 2.0}), rows)
    assert found.difference.value == pytest.approx(means["a"] - 2 * means["b"])
    assert verdict_of(found, 0.0) == "not borne out"
    assert (found.more, found.less) == pytest.approx((means["a"], means["b"]))


def test_bleu_is_that_of_the_corpus_of_each_world(rng):
    words = [
        "a cat sits on a red mat",
        "a dog runs on the long beach",
        "two birds in the old tree",
        "a red boat",
    ]
    rows, expected = [], []
    for brain in range(3):
        for system in ("a", "b"):
            captions = [" ".join(rng.permutation(text.split())[: 4 + (system == "a")]) for text in words]
            captions[0] = words[0] if system == "a" else captions[0]
            counts = bleu_counts(captions, [[text] for text in words])
            place = {"simulator_seed": brain, "model_seed": 0, "system": system, "control": "real"}
            rows.append(pd.DataFrame({**place, "nsd_id": range(4), "bleu_counts": counts.tolist()}))
            expected.append(bleu_from_counts(counts.sum(axis=0))[3])
    found = effect_of(CLAIM.model_copy(update={"measure": "bleu_4"}), pd.concat(rows))
    assert found.more == pytest.approx(np.mean(expected[0::2]))
    assert found.less == pytest.approx(np.mean(expected[1::2]))
    assert found.by_brain == pytest.approx(np.subtract(expected[0::2], expected[1::2]))


def test_rows_without_the_measure_do_not_count(rng):
    rows = made_rows(rng, effect=1.0)
    more = rows.assign(system=rows["system"].where(rows["system"] != "b", "c"), cider=np.nan)
    assert effect_of(CLAIM, pd.concat([rows, more])) == effect_of(CLAIM, rows)
    with pytest.raises(DataError, match="bits of a"):
        effect_of(CLAIM.model_copy(update={"measure": "bits"}), rows)
