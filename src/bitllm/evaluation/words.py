"""Categories of words in the references: animals, colors, numbers, places, …

For a simulated store these come from the simulation's vocabulary. For real data the user gives a JSON file
``{"animals": ["dog", "dogs", …], "colors": ["red", …]}``.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from bitllm.data.prompt import plain_caption
from bitllm.data.store import Store
from bitllm.errors import DataError
from bitllm.evaluation.bits import ReferenceTokens
from bitllm.files import read_json
from bitllm.simulation import vocabulary

_NOT_CONTENT = frozenset(("a", "an", "the", "of", "in", "on", "at", "to", "by", "inside", "large", "having", "meal",
                          "back", "modern"))  # fmt: skip
"""Words in the simulation's phrases without a category: function words and ambiguous ones."""


@dataclass(frozen=True)
class WordCategories:
    """Words by category."""

    source: str
    """``simulation``, or the name of the user's file."""
    words: dict[str, frozenset[str]]
    """Lower-case words of each category; no word is in two categories."""
    nouns: tuple[str, ...]
    """Categories for groups of images."""

    def tokens_of(self, category: str, tokens: ReferenceTokens) -> Bool[np.ndarray, "R L"]:
        """Which tokens belong to words of a category."""
        chosen = np.zeros(tokens.word.shape, dtype=bool)
        for place, words in enumerate(tokens.words):
            wanted = [number for number, word in enumerate(words) if _bare(word) in self.words[category]]
            chosen[place] = np.isin(tokens.word[place], wanted)
        return chosen

    def images_of(self, category: str, references: Sequence[Sequence[str]]) -> Bool[np.ndarray, " n"]:
        """Which rows have a word of the category in at least half of their references."""
        return np.array(
            [np.mean([self._names(category, text) for text in group]) >= 0.5 for group in references]
        )

    def _names(self, category: str, text: str) -> bool:
        return any(_bare(word) in self.words[category] for word in plain_caption(text).split())


def word_categories(store: Store, path: Path | None) -> WordCategories | None:
    """Categories from the user's file, else from the vocabulary of a simulated store, else None."""
    if path is not None:
        return read_words(path)
    return simulated_words() if store.manifest.source == "simulated" else None


def read_words(path: Path) -> WordCategories:
    """Read ``{"category": ["word", …]}``."""
    content = read_json(path)
    is_lists = isinstance(content, dict) and all(
        isinstance(words, list) and words and all(isinstance(word, str) for word in words)
        for words in content.values()
    )
    if not content or not is_lists:
        raise DataError(f'{path}: expected {{"category": ["word", …]}}, found another form; correct it')
    words = {name: frozenset(_bare(word) for word in of_name) for name, of_name in content.items()}
    owner: dict[str, str] = {}
    for name, of_name in words.items():
        for word in sorted(of_name):
            if owner.setdefault(word, name) != name:
                raise DataError(
                    f"{path}: expected every word in one category, found `{word}` in {owner[word]} and {name}; "
                    "remove it from one"
                )
    return WordCategories(str(path.name), words, tuple(words))


def simulated_words() -> WordCategories:
    """The simulation's vocabulary: ten categories of things, and colors, counts, settings, actions, relations."""
    words: dict[str, set[str]] = {category: set() for category in vocabulary.CATEGORIES}
    for thing in vocabulary.THINGS.values():
        words[thing.category] |= {name for pair in thing.names for name in pair}
    nouns = tuple(words)
    phrases = {
        "colours": list(vocabulary.COLOURS),
        "counts": [text for pair in vocabulary.COUNTS.values() for text in pair],
        "settings": [text for pair in vocabulary.SETTINGS.values() for text in pair],
        "actions": [text for pair in vocabulary.ACTIONS.values() for text in pair],
        "relations": [text for pair in vocabulary.RELATIONS.values() for text in pair],
    }
    taken = set().union(*words.values()) | _NOT_CONTENT
    for name, texts in phrases.items():  # a word belongs to the first category that has it: green is a color
        words[name] = {word for text in texts for word in text.split()} - taken
        taken |= words[name]
    return WordCategories("simulation", {name: frozenset(of_name) for name, of_name in words.items()}, nouns)


def _bare(word: str) -> str:
    return re.sub(r"^\W+|\W+$", "", word.lower())
