"""The report of a run: one self-contained page and the terminal's table, no score without its control."""

from bitllm.report.gallery import GalleryItem
from bitllm.report.page import write_report
from bitllm.report.terminal import render_table

__all__ = ["GalleryItem", "render_table", "write_report"]
