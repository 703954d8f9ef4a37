"""``python -m bitllm.experiments.results``, in the project's folder: write the page and its figures anew."""

from pathlib import Path

from bitllm.experiments.results import write_page

if __name__ == "__main__":
    write_page(Path("experiments"), Path("docs") / "results.md")
