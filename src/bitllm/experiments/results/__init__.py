"""From the Parquet files of the experiments to ``docs/results.md`` and its figures: ``make results``.

An experiment's full results lie beside its question, as ``experiments/NAME/results.parquet`` and ``results.json``;
``make publish`` puts them there. What has none is listed with its claims and says so.
"""

from bitllm.experiments.results.page import make_page, sentences, write_page
from bitllm.experiments.results.read import read_results

__all__ = ["make_page", "read_results", "sentences", "write_page"]
