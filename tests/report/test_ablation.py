"""The interfaces of the run next to the poster's."""

import pytest

from bitllm.report.ablation import POSTER, ablation_rows


def test_the_posters_figures_are_the_posters():
    assert POSTER["sft"].scores == {"BLEU-4": 9.57, "ROUGE-L": 35.96, "METEOR": 15.76, "CIDEr": 26.64}
    assert POSTER["prefix"].scores == {"BLEU-4": 9.45, "ROUGE-L": 34.99, "METEOR": 15.12, "CIDEr": 24.80}
    assert POSTER["prefix_mlp"].scores == {"BLEU-4": 7.69, "ROUGE-L": 33.59, "METEOR": 14.58, "CIDEr": 23.98}


def test_every_interface_of_the_run_has_a_row(results):
    results["differences"]["sft - prefix"] = {"CIDEr": {"difference": 6.9, "low": 1.0, "high": 12.0}}
    results["parameters"]["prefix"] = 4242
    rows = {row.name: row for row in ablation_rows(results)}
    assert list(rows) == [
        "prefix, projection only", "prefix, matched MLP", "cross-attention", "cross-attention, after rft"
    ]  # fmt: skip
    prefix = rows["prefix, projection only"]
    assert (prefix.n_trainable, prefix.scores["CIDEr"].value) == (4242, 61.3)
    assert prefix.sft_lead.low == 1.0
    assert rows["cross-attention"].over_permuted.value == pytest.approx(68.2 - 4.8)


def test_without_a_prefix_there_is_no_ablation(results):
    results["systems"] = {name: results["systems"][name] for name in ("sft", "rft")}
    assert ablation_rows(results) == []
