"""A list of objects in a JSON file, checked column by column."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from bitllm.errors import DataError


@dataclass(frozen=True)
class Entries:
    """A list of objects in a JSON file.

    Parameters
    ----------
    path
        The file.
    rows
        The objects.
    where
        The list in words, such as `` of `annotations` ``; empty if it is the whole file.
    advice
        What to do about an error.
    """

    path: Path
    rows: list[dict[str, Any]]
    where: str
    advice: str

    @classmethod
    def of(cls, path: Path, content: Any, key: str | None, *, what: str, advice: str) -> "Entries":
        """The list ``content[key]``, or ``content`` itself; refused if it is no list of objects."""
        found = content if key is None else content.get(key) if isinstance(content, dict) else None
        if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
            kind = type(found if isinstance(content, dict) else content).__name__
            named = "" if key is None else f" `{key}`"
            raise DataError(f"{path}: expected {what} with a list of objects{named}, found {kind}; {advice}")
        return cls(path, found, "" if key is None else f" of `{key}`", advice)

    def values(self, key: str, is_right: Callable[[Any], bool], expected: str) -> list[Any]:
        """The value of a key in every entry; refused where it is missing or not ``expected``."""
        values = [entry.get(key) for entry in self.rows]
        wrong = next((place for place, value in enumerate(values) if not is_right(value)), None)
        if wrong is not None:
            found = f"{values[wrong]!r}"[:60] if key in self.rows[wrong] else "nothing"
            raise DataError(
                f"{self.path}: expected {expected} as `{key}` in every entry{self.where}, found {found} in number "
                f"{wrong + 1}; {self.advice}"
            )
        return values

    def unique(self, key: str, found: list[Any]) -> list[Any]:
        """The same values of a key, refused if one occurs twice."""
        values = pd.Series(found, dtype=object)
        twice = values[values.duplicated()]
        if len(twice):
            raise DataError(
                f"{self.path}: expected every `{key}`{self.where} once, found {twice.iloc[0]!r} twice ({len(twice)} in "
                f"all); {self.advice}"
            )
        return values.tolist()

    def numbers(self, key: str) -> list[int]:
        """Whole numbers."""
        return self.values(key, is_whole, "a whole number")

    def texts(self, key: str) -> list[str]:
        """Texts that are not empty."""
        return self.values(key, is_text, "a text")


def is_whole(value: object) -> bool:
    """Whether a value of JSON is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_text(value: object) -> bool:
    """Whether a value of JSON is a text that is not empty."""
    return isinstance(value, str) and bool(value.strip())
