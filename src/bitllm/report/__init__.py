"""The report of an evaluated run: a self-contained HTML page, the model card and the terminal's tables."""

from bitllm.report.page import write_comparison, write_report
from bitllm.report.run import RunFiles, read_run
from bitllm.report.terminal import render_table

__all__ = ["RunFiles", "read_run", "render_table", "write_comparison", "write_report"]
