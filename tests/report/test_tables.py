"""The rows of the tables: every system with its controls."""

from bitllm.report.tables import between_systems, metrics_of, retrieval_rows, score_groups


def test_every_system_is_followed_by_its_own_controls(results):
    groups = {group.system: group.rows for group in score_groups(results)}
    assert list(groups) == ["rft", "sft", "prefix", "prefix_mlp", "no_align", ""]
    rft = groups["rft"]
    assert [row.kind for row in rft[:3]] == ["system", "single", "control"]
    assert {row.name for row in rft if row.kind in ("control", "rival")} == set(results["controls"]["rft"])
    assert next(row for row in rft if row.name == "zero").scores["CIDEr"].value == 10.4
    assert next(row for row in rft if row.name == "zero").n_distinct == 1


def test_the_nearest_training_caption_is_a_rival_and_not_a_null(results):
    rows = score_groups(results)[0].rows
    assert next(row for row in rows if row.name == "nearest").kind == "rival"


def test_a_system_without_controls_of_its_own_borrows_the_constant_caption(results):
    rows = next(group.rows for group in score_groups(results) if group.system == "no_align")
    assert [row.kind for row in rows] == ["system", "borrowed"]
    assert rows[1].scores["CIDEr"].value == 14.3


def test_the_system_carries_its_interval_and_its_controls_their_difference(results):
    rows = score_groups(results)[0].rows
    assert rows[0].scores["CIDEr"].low == results["intervals"]["rft"]["CIDEr"]["low"]
    zero = next(row for row in rows if row.name == "zero")
    assert zero.difference.value == results["differences"]["rft"]["zero"]["CIDEr"]["difference"]


def test_a_control_carries_its_own_interval_in_every_metric(results):
    zero = next(row for row in score_groups(results)[0].rows if row.name == "zero")
    for metric in ("CIDEr", "BLEU-4", "ROUGE-L"):
        ends = results["control_intervals"]["rft"]["zero"][metric]
        assert (zero.scores[metric].low, zero.scores[metric].high) == (ends["low"], ends["high"])
    del results["control_intervals"]
    assert not score_groups(results)[0].rows[2].scores["CIDEr"].has_interval


def test_single_trials_carry_their_own_interval(results):
    sft = next(group for group in score_groups(results) if group.system == "sft")
    single = next(row for row in sft.rows if row.kind == "single")
    assert single.scores["CIDEr"].low == results["single_trial"]["sft"]["intervals"]["CIDEr"]["low"]


def test_an_unknown_control_and_an_unknown_system_are_shown_under_their_keys(results):
    results["controls"]["rft"]["half_brain"] = {"CIDEr": 40.0}
    results["systems"]["new_one"] = {"CIDEr": 50.0}
    groups = score_groups(results)
    assert "half brain" in [row.label for row in groups[0].rows]
    assert "new_one" in [group.system for group in groups]


def test_metrics_are_those_that_exist_with_cider_first(results):
    assert metrics_of(results) == ["CIDEr", "BLEU-1", "BLEU-4", "ROUGE-L"]
    assert metrics_of({}) == []


def test_differences_between_systems_are_told_from_those_to_controls(results):
    found = between_systems(results)
    assert [(one.name, one.metric) for one in found] == [("rft − sft", "CIDEr"), ("rft − sft", "BLEU-4")]


def test_retrieval_starts_with_the_real_betas_and_keeps_chance_beside_each(results):
    rows = retrieval_rows(results)
    assert rows[0].name == "real"
    assert all(row.chance_r_at_10 is not None for row in rows)
    assert {row.name for row in rows} == set(results["retrieval"])


def test_empty_results_have_no_rows():
    assert score_groups({}) == []
    assert between_systems({}) == []
    assert retrieval_rows({}) == []


def test_single_trials_stand_beside_their_own_control(results):
    group = next(group for group in score_groups(results) if group.system == "sft")
    single = next(row for row in group.rows if row.kind == "single")
    assert single.difference is not None and single.difference.value == 44.2
    assert single.difference.is_above_zero
    assert "another image's single trials" in single.note


def test_single_trials_without_a_control_say_nothing_of_one(results):
    group = next(group for group in score_groups(results) if group.system == "rft")
    single = next(row for row in group.rows if row.kind == "single")
    assert single.difference is None
    assert single.note == "654 trials"
