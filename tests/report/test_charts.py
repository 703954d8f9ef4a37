"""The charts of the page: every key of a training log is drawn, and retrieval next to chance."""

import math
from xml.etree import ElementTree

from bitllm.evaluation.results import Results
from bitllm.report.charts import PANELS, logged_curve, retrieval_charts, stage_curves
from bitllm.report.run import read_curves


def marks(chart):
    return [title.text for title in ElementTree.fromstring(chart).findall(".//g/title")]


def test_the_keys_drawn_are_those_that_the_stages_log(demo_folder):
    logged = {key for rows in read_curves(demo_folder).values() for row in rows for key in row}
    parts = ("bertscore", "objects", "contrast", "neural_rank")  # not rewarded in the demo for tests
    optional = {f"{what}_{part}" for what in ("reward", "spread") for part in parts}
    assert {key for panel in PANELS for key in panel.keys} == (logged - {"step", "epoch"}) | optional


def test_stages_are_in_the_order_of_training_and_baselines_last(curves):
    shuffled = dict(reversed(list(curves.items())))
    assert [stage.name for stage in stage_curves(shuffled)] == ["align", "sft", "rft", "prefix"]


def test_every_known_key_is_drawn():
    keys = [key for panel in PANELS for key in panel.keys]
    rows = [{"step": step, **dict.fromkeys(keys, step + 1.0)} for step in (1, 2)]
    charts = stage_curves({"rft": rows})[0].charts
    assert len(charts) == len(PANELS)
    assert sum(len(marks(chart)) for chart in charts) == len(keys)


def test_the_reward_has_its_parts_and_cider_its_control(curves):
    rft = next(stage for stage in stage_curves(curves) if stage.name == "rft")
    reward = next(chart for chart in rft.charts if "Sampled reward" in chart)
    assert len(marks(reward)) == 4
    cider = next(chart for chart in rft.charts if "Greedy CIDEr" in chart)
    assert "real − another image" in cider


def test_rows_without_the_key_or_without_a_number_are_left_out():
    rows = [
        {"step": 2, "loss": 1.0},
        {"step": 1, "loss": 2.0},
        {"step": 3, "loss": math.nan},
        {"loss": 4.0},
        {},
    ]
    found = logged_curve(rows, "loss", "training")
    assert found.x == (1.0, 2.0)
    assert found.y == (2.0, 1.0)


def test_a_stage_without_known_keys_is_left_out():
    assert stage_curves({"sft": [{"step": 1, "unheard_of": 2.0}], "rft": []}) == []


def test_retrieval_is_drawn_by_k_with_chance_and_among_n(results, about):
    bars, by_k, identified = retrieval_charts(results)
    assert "chance 0.046" in bars
    assert "chance: 0.00459 → 0.0459" in by_k
    assert "real betas: 0.118 → 0.541" in by_k
    assert "1 of 2: 0.93 [0.90, 0.95]" in identified
    assert retrieval_charts(Results(about, {})) == []
