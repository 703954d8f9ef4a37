"""Numbers of answers for each image, against a loop."""

import numpy as np
import pandas as pd
import pytest

from bitllm.experiments.answers import numbers_of_answers
from bitllm.experiments.verdict import Arm, Claim, effect_of

INPUTS = ("real", "permuted", "zero", "llm_alone", "most_frequent")


@pytest.fixture
def rows(rng):
    """Questions of two tasks under every input: one without options, one a dialogue with both histories."""
    found = []
    for given in INPUTS:
        for task, histories in (("count", ["gold"]), ("visdial", ["gold", "own"])):
            for history in histories:
                for row in range(12):
                    options = task == "visdial"
                    found.append(
                        {
                            "input": given,
                            "task": task,
                            "history": history,
                            "row": row,
                            "nsd_id": 7 + row // (3 if options else 2),
                            "log2_p": np.nan if given == "most_frequent" else -5 * rng.random(),
                            "score": rng.random(),
                            "option_score": float(rng.integers(2)) if options else np.nan,
                        }
                    )
    return pd.DataFrame(found)


def test_the_numbers_of_an_image_are_the_means_over_its_questions(rows):
    found = numbers_of_answers(rows).set_index(["control", "nsd_id"])
    assert set(found.index.get_level_values("control")) == set(INPUTS) - {"most_frequent"}
    for (given, image), numbers in found.iterrows():
        for task in ("count", "visdial"):
            scores, bits = [], []
            for one in rows.itertuples():
                if (one.input, one.nsd_id, one.task, one.history) != (given, image, task, "gold"):
                    continue
                scores.append(100 * (one.option_score if task == "visdial" else one.score))
                (other,) = [
                    two.log2_p
                    for two in rows.itertuples()
                    if (two.input, two.task, two.history, two.row) == ("permuted", task, "gold", one.row)
                ]
                bits.append(one.log2_p - other)
            expected = np.mean(scores) if scores else np.nan
            assert numbers[f"accuracy {task}"] == pytest.approx(expected, nan_ok=True)
            of_real = np.mean(bits) if scores and given == "real" else np.nan
            assert numbers[f"answer_bits {task}"] == pytest.approx(of_real, nan_ok=True)


def test_a_claim_about_a_task_reads_the_column_of_the_task_alone(rows):
    numbers = numbers_of_answers(rows).assign(system="asked", simulator_seed=3, model_seed=0)
    arm = Arm(system="asked")
    claim = Claim(
        text="counts", more=arm, less=Arm(system="asked", control="permuted"), measure="accuracy", task="count",
        poster="none",
    )  # fmt: skip
    effect = effect_of(claim, numbers, n_draws=20)
    by_input = numbers[numbers["accuracy count"].notna()].groupby("control")["accuracy count"].mean()
    assert effect.difference.value == pytest.approx(by_input["real"] - by_input["permuted"])
    assert effect.n_images == 6


@pytest.mark.parametrize(("measure", "task"), [("accuracy", None), ("answer_bits", None), ("cider", "count")])
def test_a_task_belongs_to_measures_of_answers(measure, task):
    arms = {"more": {"system": "a"}, "less": {"system": "b"}}
    with pytest.raises(ValueError, match="`task`: expected a task"):
        Claim.model_validate({"text": "", "poster": "", "measure": measure, "task": task} | arms)
