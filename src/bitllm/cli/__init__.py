"""The command line: one module for each group of commands."""

from bitllm.cli.program import main

__all__ = ["main"]
