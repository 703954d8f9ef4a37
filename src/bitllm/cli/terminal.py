"""Output of the commands."""

import json
from typing import Any

from rich.console import Console

OUT = Console()


def print_json(content: Any) -> None:
    """Print ``content`` as JSON, and nothing else."""
    print(json.dumps(content, indent=2, ensure_ascii=False))
