"""Penn Treebank tokenization of captions as in the COCO caption tools, in Python."""

import re
from collections.abc import Callable, Sequence
from functools import cache

PYTHON_TOKENIZER = "ptb-python"

# The list of the COCO caption tools. They remove brackets only in upper case, after lower-casing, so that
# "-lrb-" and "-rrb-" stay in as words; so do runs such as "!!".
_PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)
# Where the Stanford tokenizer differs from nltk's: what it writes in ASCII, ...
_ASCII = str.maketrans(
    {"—": " -- ", "–": " -- ", "…": " ... ", "“": '"', "”": '"', "‘": " ` ", "’": "'", "`": " ` "}
)
# ... what it keeps in one piece (runs of ! and ?, AT&T, <b>, @name, 'n'), ...
_KEPT_WHOLE = re.compile(
    r"([?!]{2,}|\b\w+&\w+\b|<[^<>\s]+>|(?<!\S)@\w+|(?<!\S)'n'(?!\S)"
    # initials and abbreviations at the end of a caption: nltk would split off their period as that of the sentence
    r"|(?<!\S)(?:(?:[A-Za-z]\.)+|(?:[MJS]r|Mrs|Dr|St|etc|vs)\.)(?=\s*$))"
)
# ... the full stops that it splits off inside a caption (not those of initials and abbreviations), ...
_FULL_STOP = re.compile(
    r"(?<=\w\w)(?<!\b[Mm]r)(?<!\b[Dd]r)(?<!\b[Ss]t)(?<!\b[Mm]rs)(?<!\betc)(?<!\bvs)(\.+)(?=\s)"
)
_LAST_FULL_STOPS = re.compile(r"\.{2}\s*$")
# ... and a single quote that opens a word without being a clitic.
_OPENING_QUOTE = re.compile(r"(?<!\S)'(?=\w)(?!(?:s|re|ve|ll|d|m|em|tis|twas)\b)")
# Signs that take no room (byte order mark, joiners, soft hyphen, the choice of an emoji's look) are dropped.
_NO_WIDTH = re.compile("[\ufeff\u200b-\u200d\u00ad\ufe0f]")
_BEYOND_BASIC_PLANE = re.compile("[\U00010000-\U0010ffff]")

# Most captions are words and spaces with a full stop at the end: to split them needs no rules, but for words that the
# Treebank splits. A short last word may be an abbreviation.
_PLAIN = re.compile(r"(?:[a-z]+ )*(?:[a-z]+|[a-z]{4,}\.)")
_SPLIT_IN_TWO = re.compile(r"\b(?:cannot|gimme|gonna|gotta|lemme|wanna)\b")


def ptb_tokenize(captions: Sequence[str]) -> list[str]:
    """Lower-case Penn Treebank words of each caption without punctuation, joined by spaces.

    Pure Python: nltk's Treebank tokenizer, adapted to the Stanford tokenizer of the COCO tools where the two differ
    on captions. For numbers to be published use :func:`bitllm.metrics.java.ptb_tokenize_by_jar`.

    Parameters
    ----------
    captions
        Raw text, one caption each; line breaks count as spaces.

    Returns
    -------
    list of str
        Tokenized captions; an empty string if no word is left.
    """
    return [_tokenize(caption) for caption in captions]


@cache
def _treebank() -> Callable[..., list[str]]:
    # nltk takes a second to import, and where the jar runs it is not needed
    from nltk.tokenize import TreebankWordTokenizer

    return TreebankWordTokenizer().tokenize


def _tokenize(caption: str) -> str:
    lower = caption.lower()
    if caption.isascii() and _PLAIN.fullmatch(lower) and not _SPLIT_IN_TWO.search(lower):
        return lower.removesuffix(".")
    return _by_rules(caption)


def _by_rules(caption: str) -> str:
    treebank = _treebank()
    text = _BEYOND_BASIC_PLANE.sub(" ", _NO_WIDTH.sub("", caption).translate(_ASCII))
    text = _FULL_STOP.sub(r" \1 ", _LAST_FULL_STOPS.sub(" ", text))
    words: list[str] = []
    for place, piece in enumerate(_KEPT_WHOLE.split(text)):
        if place % 2 == 1:
            words.append(piece.lower())
        else:
            unquoted = _OPENING_QUOTE.sub("", piece)
            words += [word.lower() for word in treebank(unquoted, convert_parentheses=True)]
    return without_punctuation(words)


def without_punctuation(words: Sequence[str]) -> str:
    """Join words by spaces, without those that the COCO tools treat as punctuation."""
    return " ".join(word for word in words if word not in _PUNCTUATION)
