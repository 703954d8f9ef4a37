"""Rows of the tables: every system with its controls; numbers as they are written."""

from dataclasses import replace

import pytest

from bitllm.evaluation.results import WITHOUT_ALIGN, InputResult, Results, SystemResult
from bitllm.evaluation.verdict import label
from bitllm.metrics.intervals import Estimate
from bitllm.report import tables
from bitllm.report.tables import POSTER, ablation_rows, facts, metrics_of, retrieval_rows, score_groups


def rows_of(results, system):
    return next(group.rows for group in score_groups(results) if group.system == system)


def row_of(results, system, short):
    return next(row for row in rows_of(results, system) if row.short == short)


def test_every_system_is_followed_by_its_own_controls(results):
    assert [group.system for group in score_groups(results)] == [
        "rft",
        "sft",
        "prefix",
        "prefix_mlp",
        "no_align",
        "",
    ]
    rft = rows_of(results, "rft")
    assert [row.kind for row in rft[:3]] == ["system", "single", "control"]
    assert {row.short for row in rft[2:]} == {
        label(name, is_short=True) for name in results.systems["rft"].controls
    }


def test_a_row_has_the_interval_the_difference_and_the_counts_of_its_input(results):
    zero, own = row_of(results, "rft", "zero betas"), results.systems["rft"].averaged["zero"]
    assert zero.scores == own.scores
    assert zero.scores["CIDEr"].value == 10.4
    assert zero.difference == own.real_minus_this["CIDEr"]
    assert (zero.n_distinct, zero.mean_length) == (1, 8.0)
    assert rows_of(results, "rft")[0].difference is None


def test_an_sft_without_an_align_stage_is_not_called_two_stages(results):
    alone = replace(results, encoder=replace(results.encoder, embedding=WITHOUT_ALIGN))
    assert [rows_of(some, "sft")[0].note for some in (results, alone)] == [
        "two stages: align, sft",
        "sft; no align stage in this run",
    ]


@pytest.mark.parametrize("short", ["nearest caption", "another subject"])
def test_an_input_with_betas_of_the_image_is_a_comparison_and_not_a_control(results, short):
    row = row_of(results, "rft", short)
    assert (row.kind, row.note) == ("comparison", tables.COMPARISON)


def test_single_trials_have_the_difference_to_single_trials_of_another_image(results):
    sft, rft = (row_of(results, name, "single trials") for name in ("sft", "rft"))
    assert sft.difference.value == 44.2
    assert "another image's single trials" in sft.note
    assert (rft.difference, rft.note) == (None, "654 trials")


def test_an_unknown_control_and_an_unknown_system_are_shown_under_their_keys(results):
    odd = InputResult({"CIDEr": Estimate(40.0)}, 1, 0, 1.0, 1)
    systems = {**results.systems, "new_one": SystemResult({"real": odd, "half_brain": odd})}
    assert [row.label for row in rows_of(replace(results, systems=systems), "new_one")] == [
        "new_one",
        "half brain",
    ]


def test_metrics_are_those_that_exist_with_cider_first(results):
    assert metrics_of(results) == ["CIDEr", "BLEU-1", "BLEU-4", "ROUGE-L"]


def test_retrieval_starts_with_the_real_betas_and_holds_every_input(results):
    rows = retrieval_rows(results)
    assert [row.name for row in rows[:3]] == ["real", "single_trial", "permuted"]
    assert {row.name: row.found for row in rows} == results.encoder.retrieval


def test_empty_results_have_no_rows(about):
    empty = Results(about, {})
    assert (score_groups(empty), retrieval_rows(empty), metrics_of(empty), ablation_rows(empty)) == (
        [],
        [],
        [],
        [],
    )


@pytest.mark.parametrize(
    ("name", "numbers"),
    [("sft", (9.57, 35.96, 15.76, 26.64)), ("prefix", (9.45, 34.99, 15.12, 24.80)),
     ("prefix_mlp", (7.69, 33.59, 14.58, 23.98))],
)  # fmt: skip
def test_the_posters_numbers_are_those_of_the_poster(name, numbers):
    assert POSTER[name].scores == dict(zip(("BLEU-4", "ROUGE-L", "METEOR", "CIDEr"), numbers, strict=True))


def test_every_interface_of_the_run_has_a_row(results):
    rows = {row.poster.name: row for row in ablation_rows(results)}
    assert list(rows) == [
        "prefix, projection only", "prefix, matched MLP", "cross-attention", "cross-attention, after rft"
    ]  # fmt: skip
    prefix = rows["prefix, projection only"]
    assert (prefix.system.n_trainable, prefix.system.real.scores["CIDEr"].value) == (49_344, 61.3)
    assert prefix.sft_lead.low == 1.0
    assert rows["cross-attention"].over_permuted.value == pytest.approx(68.2 - 4.8)
    without = {name: results.systems[name] for name in ("sft", "rft")}
    assert ablation_rows(replace(results, systems=without)) == []


@pytest.mark.parametrize(
    ("value", "digits", "written"),
    [(59.44, 1, "59.4"), (-5.36, 1, "−5.4"), (-0.04, 1, "0.0"), (None, 1, "–"), (3148800.0, 0, "3,148,800")],
)
def test_numbers_have_a_true_minus_and_no_negative_zero(value, digits, written):
    assert tables.number(value, digits) == written


def test_an_estimate_is_written_with_its_interval():
    assert tables.shown(Estimate(45.0, 40.06, 50.2), sign=True) == "+45.0 [40.1, 50.2]"
    assert tables.interval(Estimate(-1.0, -3.0, 0.5)) == "[−3.0, 0.5]"
    assert (tables.shown(None), tables.interval(Estimate(7.0))) == ("–", "")


@pytest.mark.parametrize(("seconds", "said"), [(8.94, "8.9 s"), (61.0, "1 min 1 s"), (3700.0, "1 h 1 min")])
def test_durations_are_in_hours_minutes_and_seconds(seconds, said):
    assert tables.duration(seconds) == said


@pytest.mark.parametrize(("p", "written"), [(0.0, "p < 0.001"), (0.0421, "p = 0.042"), (None, "")])
def test_p_values_are_never_written_as_zero(p, written):
    assert tables.p_value(p) == written


def test_only_simulated_data_have_the_warning(about):
    assert "nothing about NSD" in tables.data_sentence(about)
    assert tables.data_sentence(replace(about, data="NSD b3", is_simulated=False)) == "Data: NSD b3."


@pytest.mark.parametrize(
    ("known", "subject", "images"),
    [
        ({}, "Subject, not in the training data", "Images, not in the training data"),
        ({"is_subject_trained_on": True, "part": "validation"}, "Subject, in the training data",
         "Images, of the validation part, used to choose settings"),
        ({"is_subject_trained_on": None, "is_store_of_training": False}, "Subject",
         "Images, from a store or split that was not used for training"),
    ],
)  # fmt: skip
def test_the_facts_say_what_is_known_of_subject_and_images(about, known, subject, images):
    assert facts(replace(about, **known)).keys() >= {subject, images}
