"""Penn-Treebank words of captions as the COCO caption tools count them: in Python, or by their Java jar."""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from nltk.tokenize import TreebankWordTokenizer

from bitllm.errors import BitLlmError

PYTHON_TOKENIZER = "ptb-python"
JAVA_TOKENIZER = "ptb-java (stanford-corenlp 3.4.1)"

# The list of the COCO caption tools. They remove brackets only in upper case, after lower-casing, so that
# "-lrb-" and "-rrb-" stay in as words; so do runs such as "!!".
_PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)
_TREEBANK = TreebankWordTokenizer()
# Where the Stanford tokenizer differs from nltk's: what it writes in ASCII, ...
_ASCII = str.maketrans(
    {"—": " -- ", "–": " -- ", "…": " ... ", "“": '"', "”": '"', "‘": " ` ", "’": "'", "`": " ` "}
)
# ... what it keeps in one piece (runs of ! and ?, AT&T, <b>, @name, 'n'), ...
_KEPT_WHOLE = re.compile(r"([?!]{2,}|\b\w+&\w+\b|<[^<>\s]+>|(?<!\S)@\w+|(?<!\S)'n'(?!\S))")
# ... the full stops that it splits off inside a caption (not those of initials and abbreviations), ...
_FULL_STOP = re.compile(
    r"(?<=\w\w)(?<!\b[Mm]r)(?<!\b[Dd]r)(?<!\b[Ss]t)(?<!\b[Mm]rs)(?<!\betc)(?<!\bvs)(\.+)(?=\s)"
)
_LAST_FULL_STOPS = re.compile(r"\.{2}\s*$")
# ... and a single quote that opens a word without being a clitic.
_OPENING_QUOTE = re.compile(r"(?<!\S)'(?=\w)(?!(?:s|re|ve|ll|d|m|em|tis|twas)\b)")
_BEYOND_BASIC_PLANE = re.compile("[\U00010000-\U0010ffff]")

_JAR = "stanford-corenlp-3.4.1.jar"
_JAVA_TIMEOUT_S = 300


def ptb_tokenize(captions: Sequence[str]) -> list[str]:
    """Lower-case Penn-Treebank words of each caption without punctuation, joined by spaces.

    Pure Python: nltk's Treebank tokenizer, brought nearer to the Stanford tokenizer of the COCO tools where
    the two differ on captions. Numbers to be published should use :func:`ptb_tokenize_by_jar`.

    Parameters
    ----------
    captions
        Raw text, one caption each; line breaks count as spaces.

    Returns
    -------
    list of str
        One tokenised caption each; the empty string where no word is left.
    """
    return [_tokenize(caption) for caption in captions]


def ptb_tokenize_by_jar(captions: Sequence[str]) -> list[str]:
    """Do the same with the Stanford tokenizer that the COCO tools use (Java, extra ``[eval]``).

    Raises
    ------
    BitLlmError
        If Java or the jar is missing, or Java fails.
    """
    problem = why_no_jar()
    if problem is not None:
        raise BitLlmError(f"PTB tokenizer: {problem}; or use the tokenizer `python`")
    lines = [" ".join(caption.split()) for caption in captions]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "captions.txt"
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        command = ["java", "-Dfile.encoding=UTF-8", "-cp", str(_jar())]
        command += ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase", str(file)]
        run = subprocess.run(command, capture_output=True, timeout=_JAVA_TIMEOUT_S, check=False)  # noqa: S603
    found = run.stdout.decode("utf-8", errors="replace").split("\n")[:-1]
    if run.returncode != 0 or len(found) != len(lines):
        last_words = run.stderr.decode("utf-8", errors="replace").strip().splitlines()[-1:] or ["no message"]
        raise BitLlmError(
            f"PTB tokenizer: expected {len(lines)} lines from Java, found {len(found)} and exit status "
            f"{run.returncode} ({last_words[0]}); try `java -version`, or use the tokenizer `python`"
        )
    return [_without_punctuation(line.split()) for line in found]


def why_no_jar() -> str | None:
    """What keeps the Java tokenizer from running here, or nothing."""
    if shutil.which("java") is None:
        return "expected Java on the path, found none; install a Java runtime"
    if _jar() is None:
        return f"expected {_JAR} of pycocoevalcap, found none; install `bitllm[eval]`"
    return None


def _jar() -> Path | None:
    package = find_spec("pycocoevalcap")
    folders = list(package.submodule_search_locations or []) if package else []
    jars = [Path(folder) / "tokenizer" / _JAR for folder in folders]
    return next((jar for jar in jars if jar.is_file()), None)


def _tokenize(caption: str) -> str:
    text = _BEYOND_BASIC_PLANE.sub(" ", caption.translate(_ASCII))
    text = _FULL_STOP.sub(r" \1 ", _LAST_FULL_STOPS.sub(" ", text))
    words: list[str] = []
    for place, piece in enumerate(_KEPT_WHOLE.split(text)):
        if place % 2 == 1:
            words.append(piece.lower())
        else:
            unquoted = _OPENING_QUOTE.sub("", piece)
            words += [word.lower() for word in _TREEBANK.tokenize(unquoted, convert_parentheses=True)]
    return _without_punctuation(words)


def _without_punctuation(words: Sequence[str]) -> str:
    return " ".join(word for word in words if word not in _PUNCTUATION)
