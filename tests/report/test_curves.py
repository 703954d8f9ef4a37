"""Every known key of a training log is drawn, and nothing else."""

import math

from bitllm.report.curves import PANELS, series_of, stage_curves


def test_stages_stand_in_the_order_of_training_and_baselines_after_them(curves):
    shuffled = dict(reversed(list(curves.items())))
    assert [stage.name for stage in stage_curves(shuffled)] == ["align", "sft", "rft", "prefix"]


def test_every_known_key_is_drawn():
    keys = [key for panel in PANELS for key in panel.keys]
    rows = [{"step": step, **dict.fromkeys(keys, step + 1.0)} for step in (1, 2)]
    charts = stage_curves({"rft": rows})[0].charts
    assert len(charts) == len(PANELS)
    assert sum(chart.count("<polyline") for chart in charts) == len(keys)


def test_the_reward_stands_with_its_parts_and_cider_with_its_control(curves):
    rft = next(stage for stage in stage_curves(curves) if stage.name == "rft")
    reward = next(chart for chart in rft.charts if "Sampled reward" in chart)
    assert reward.count("<polyline") == 4
    cider = next(chart for chart in rft.charts if "Greedy CIDEr" in chart)
    assert "real − other image" in cider


def test_rows_without_the_key_or_without_a_number_are_left_out():
    rows = [
        {"step": 2, "loss": 1.0},
        {"step": 1, "loss": 2.0},
        {"step": 3, "loss": math.nan},
        {"loss": 4.0},
        {},
    ]
    found = series_of(rows, "loss", "training")
    assert found.steps == (1.0, 2.0)
    assert found.values == (2.0, 1.0)


def test_a_stage_without_known_keys_is_left_out():
    assert stage_curves({"sft": [{"step": 1, "unheard_of": 2.0}], "rft": []}) == []
