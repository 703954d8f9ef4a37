"""``python -m bitllm``."""

from bitllm.cli import main

main()
