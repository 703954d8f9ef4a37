"""``python -m bitllm.experiments.results``, in the project's folder: write the page and its figures anew."""

import sys
from pathlib import Path

from bitllm.errors import BitLlmError
from bitllm.experiments.results import write_page

if __name__ == "__main__":
    try:
        write_page(Path("experiments"), Path("docs") / "results.md")
    except BitLlmError as error:
        sys.exit(str(error))
