"""The Java parts of the COCO caption tools: the Penn Treebank tokenizer, METEOR and SPICE (extra ``[eval]``).

The jars are those of pycocoevalcap. Its Python wrappers are not used, because they wait for Java without a timeout,
write next to their jars (often a read-only folder), ignore ``JAVA_HOME``, download SPICE's parser on first use, and
return only scores of METEOR, while the bootstrap needs the counts of each caption. The tests compare the results
with those of the wrappers.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from bitllm.errors import BitLlmError
from bitllm.metrics.bleu import require_references
from bitllm.metrics.tokenize import without_punctuation

JAVA_TOKENIZER = "ptb-java (stanford-corenlp 3.4.1)"
PTB_TIMEOUT_S, METEOR_TIMEOUT_S, SPICE_TIMEOUT_S = 300.0, 600.0, 3600.0
MAX_METEOR_WORDS = 1000
"""METEOR aligns all pairs of words: 15,000 words take minutes or fill Java's heap."""

_PTB_JAR, _METEOR_JAR, _SPICE_JAR = "stanford-corenlp-3.4.1.jar", "meteor-1.5.jar", "spice-1.0.jar"
# pycocoevalcap downloads these on the first use of its own wrapper; we download nothing
_PARSER_JARS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
# A library of 2016 in SPICE accesses internal classes of Java, which Java 16 and later allow only with these options.
# Java 8 does not know the option, and does not read this variable.
_OPENED = " ".join(
    f"--add-opens java.base/{package}=ALL-UNNAMED"
    for package in ("java.lang", "java.util", "java.util.concurrent", "java.math", "java.net", "java.text")
)

_N_STATISTICS = 23
_LENGTHS, _CHUNKS, _MATCHED = slice(0, 2), 20, slice(21, 23)
# METEOR 1.5's parameters for English (task "rank"): weights of exact, stem, synonym and paraphrase matches, of
# content words against function words, of precision, and of the penalty for scattered matches
_MATCHERS = np.array([1.0, 0.6, 0.8, 0.6])
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75


def ptb_tokenize_by_jar(captions: Sequence[str]) -> list[str]:
    """Lower-case Penn Treebank words of each caption without punctuation, joined by spaces.

    One Java process tokenizes all captions. Only the temporary folder is written to.

    Parameters
    ----------
    captions
        Raw text, one caption each; line breaks count as spaces.
    """
    problem = why_no_ptb()
    if problem is not None:
        raise BitLlmError(f"PTB tokenizer: {problem}; or use the tokenizer `python`")
    lines = [" ".join(caption.split()) for caption in captions]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "captions.txt"
        file.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="replace", newline="\n")
        arguments = ["-cp", str(_jar("tokenizer", _PTB_JAR)), "edu.stanford.nlp.process.PTBTokenizer"]
        stdout, problem = _run_java([*arguments, "-preserveLines", "-lowerCase", str(file)], PTB_TIMEOUT_S)
    found = stdout.decode("utf-8", errors="replace").split("\n")[:-1]
    if problem is not None or len(found) != len(lines):
        raise BitLlmError(
            f"PTB tokenizer: expected {len(lines)} lines from Java, found {len(found)} "
            f"({problem or 'no error'}); try `java -version`, or use the tokenizer `python`"
        )
    # split at spaces alone, as the COCO tools do: "1 1/2" is one word of theirs, with a no-break space in it
    return [without_punctuation(line.rstrip().split(" ")) for line in found]


class Meteor:
    """METEOR 1.5 with its authors' jar, in one Java process for the duration of the context.

    Java needs some seconds to read its table of paraphrases; only the first call waits for it. This class uses the
    jar's line protocol to get the counts of each caption: a resampled corpus is scored from the sum of the counts of
    its captions, which pycocoevalcap does not return.

    References
    ----------
    Denkowski and Lavie (2014), "Meteor universal: language specific translation evaluation for any target
    language", WMT.
    """

    def __init__(self, timeout_s: float = METEOR_TIMEOUT_S) -> None:
        problem = why_no_meteor()
        if problem is not None:
            raise BitLlmError(f"METEOR: {problem}")
        self._timeout_s = timeout_s
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process
        try:
            self._process = _start_java(
                ["-Xmx2G", "-jar", _METEOR_JAR, "-", "-", "-stdio", "-l", "en", "-norm"],
                cwd=_jar("meteor", _METEOR_JAR).parent,  # the jar looks for its paraphrases there
                stdin=subprocess.PIPE,
                stderr=self._stderr,
            )
        except OSError as error:
            self._stderr.close()
            raise BitLlmError(
                f"METEOR: expected Java to run, found that Java does not start ({error.strerror}); try `java -version`"
            ) from None

    def __enter__(self) -> "Meteor":
        """Return the running process."""
        return self

    def __exit__(self, *_: object) -> None:
        """Kill the process, whatever it is doing."""
        _kill(self._process)
        for pipe in (self._process.stdin, self._process.stdout, self._stderr):
            with suppress(BrokenPipeError):  # what was still to be written to a process that had died
                pipe.close()  # type: ignore[union-attr]

    def statistics(
        self, captions: Sequence[str], references: Sequence[Sequence[str]]
    ) -> Float[np.ndarray, "n 23"]:
        """The jar's counts for each tokenized caption, with the best-matching reference.

        They can be summed over captions; :func:`meteor_from_statistics` computes a score from them.
        """
        require_references(captions, references)
        _require_short("caption", captions)
        _require_short("reference", [text for texts in references for text in texts])
        lines = [
            " ||| ".join(["SCORE", *map(_one_field, texts), _one_field(caption)])
            for caption, texts in zip(captions, references, strict=True)
        ]
        rows = np.zeros((len(lines), _N_STATISTICS))
        for place, answer in enumerate(self._ask(lines)):
            numbers = answer.split()
            if len(numbers) != _N_STATISTICS:
                raise self._failed(f"{_N_STATISTICS} numbers for a caption", answer.strip()[:80] or "none")
            rows[place] = [float(number) for number in numbers]
        # matches in one piece that cover both sides are not scattered at all: the jar counts no piece for them
        # when it sums, and so neither the caption nor the corpus pays for one
        whole = (rows[:, _CHUNKS] == 1) & (rows[:, _MATCHED] == rows[:, _LENGTHS]).all(axis=1)
        rows[whole, _CHUNKS] = 0
        return rows

    def _ask(self, lines: Sequence[str]) -> list[str]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        content = "".join(f"{line}\n" for line in lines).encode("utf-8", errors="replace")

        def write() -> None:
            with suppress(BrokenPipeError, ValueError):  # the process died: the reader reports it
                stdin.write(content)
                stdin.flush()

        # a thread writes, since both pipes fill up; the process is killed when it takes too long
        writer = threading.Thread(target=write, daemon=True)
        alarm = threading.Timer(self._timeout_s, _kill, [self._process])
        writer.start()
        alarm.start()
        try:
            return [stdout.readline().decode("utf-8", errors="replace") for _ in lines]
        finally:
            alarm.cancel()
            writer.join(timeout=5)

    def _failed(self, expected: str, found: str) -> BitLlmError:
        try:
            status: int | None = self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            status = None
        self._stderr.seek(0)
        ended = "still running" if status is None else f"exit status {status}"
        return BitLlmError(
            f"METEOR: expected {expected} from Java, found {found} ({ended}: "
            f"{last_words(self._stderr.read())}); try `java -version`"
        )


def meteor_from_statistics(sums: Shaped[np.ndarray, "23"]) -> float:
    """METEOR in points (0 to 100) of a caption, or of a corpus from the sum of its captions' statistics.

    This is the arithmetic of the jar, so that a resampled corpus needs no Java: weighted precision and recall, their
    harmonic mean, and a penalty for fragmented matches.
    """
    lengths, function_words = sums[_LENGTHS], sums[2:4]
    stages = sums[4:20].reshape(4, 4)  # a row for each matcher: content words of both sides, function words
    weighted = _DELTA * _MATCHERS @ stages[:, :2] + (1 - _DELTA) * _MATCHERS @ stages[:, 2:]
    total = _DELTA * (lengths - function_words) + (1 - _DELTA) * function_words
    if (total <= 0).any() or (weighted <= 0).any():
        return 0.0
    precision, recall = weighted / total
    mean = 1 / ((1 - _ALPHA) / precision + _ALPHA / recall)
    n_matched = float(sums[_MATCHED].sum()) / 2
    return 100 * float(mean) * (1 - _GAMMA * float(sums[_CHUNKS] / n_matched) ** _BETA)


def spice(captions: Sequence[str], references: Sequence[Sequence[str]]) -> Float[np.ndarray, " n"]:
    """SPICE (F-score of scene-graph tuples) of each tokenized caption, in points (0 to 100).

    Every text is parsed, so a thousand captions with references take minutes. Only the temporary folder is written
    to.

    References
    ----------
    Anderson et al. (2016), "SPICE: semantic propositional image caption evaluation", ECCV.
    """
    require_references(captions, references)
    problem = why_no_spice()
    if problem is not None:
        raise BitLlmError(f"SPICE: {problem}")
    items = [
        {"image_id": place, "test": caption, "refs": list(texts)}
        for place, (caption, texts) in enumerate(zip(captions, references, strict=True))
    ]
    options = " ".join([os.environ.get("JDK_JAVA_OPTIONS", ""), _OPENED]).strip()
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder) / "captions.json", Path(folder) / "scores.json"
        asked.write_text(json.dumps(items), encoding="utf-8")
        arguments = ["-Xmx8G", "-jar", str(_jar("spice", _SPICE_JAR)), str(asked), "-out", str(answered)]
        environment = {**os.environ, "JDK_JAVA_OPTIONS": options}
        _, problem = _run_java([*arguments, "-silent"], SPICE_TIMEOUT_S, env=environment)
        answer = answered.read_text(encoding="utf-8") if answered.is_file() else ""
    if problem is not None:
        raise BitLlmError(
            f"SPICE: expected scores from Java, found {problem}; its authors ran it with Java 8"
        )
    return 100 * _f_scores(answer, len(items))


def why_no_ptb() -> str | None:
    """Reason why the Java tokenizer cannot run here, or None."""
    return _why_not("tokenizer", _PTB_JAR)


def why_no_meteor() -> str | None:
    """Reason why METEOR cannot run here, or None."""
    return _why_not("meteor", _METEOR_JAR)


def why_no_spice() -> str | None:
    """Reason why SPICE cannot run here, or None."""
    problem = _why_not("spice", _SPICE_JAR)
    if problem is not None:
        return problem
    library = _jar("spice", _SPICE_JAR).parent / "lib"
    missing = [jar for jar in _PARSER_JARS if not (library / jar).is_file()]
    if missing:
        return (
            f"expected {' and '.join(missing)} in {library}, found none; get them with "
            "`python -m pycocoevalcap.spice.get_stanford_models`"
        )
    return None


def java_command() -> str | None:
    """Path of ``java``: that in ``JAVA_HOME`` if it is set, else the one on the path."""
    home = os.environ.get("JAVA_HOME")
    return (shutil.which("java", path=str(Path(home) / "bin")) if home else None) or shutil.which("java")


def java_version() -> str | None:
    """Java's version, from the file ``release`` of its installation; None without that file."""
    java = java_command()
    release = Path(java).resolve().parent.parent / "release" if java else None
    if release is None or not release.is_file():
        return None
    text = release.read_text(encoding="utf-8", errors="replace")
    found = re.search(r'^JAVA_VERSION="([^"]+)"', text, re.MULTILINE)
    return found[1] if found else None


def last_words(stderr: bytes) -> str:
    """The line of a Java process's stderr that names the failure."""
    lines = [line.strip() for line in stderr.decode("utf-8", errors="replace").splitlines() if line.strip()]
    # the lines after "Exception in thread …" and "Error: …" are a stack trace, which does not help a user
    telling = [
        line for line in lines if re.search(r"(Exception|Error)\b", line) and not line.startswith("at ")
    ]
    return (telling or lines[-1:] or ["no message"])[0][:200]


def _jar(part: str, name: str) -> Path:
    """Expected path of a jar of pycocoevalcap, without importing the package."""
    package = find_spec("pycocoevalcap")
    folders = list(package.submodule_search_locations or []) if package else []
    return Path(*folders[:1]) / part / name


def _why_not(part: str, jar: str) -> str | None:
    if java_command() is None:
        return "expected Java on the path, found none; install a Java runtime"
    if not _jar(part, jar).is_file():
        return f"expected {jar} of pycocoevalcap, found none; install `bitllm[eval]`"
    return None


def _start_java(arguments: Sequence[str], **pipes: Any) -> subprocess.Popen[bytes]:
    # in a new session, so that a kill reaches all processes if `java` is a wrapper script
    command = [str(java_command()), "-Dfile.encoding=UTF-8", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True, **pipes)  # noqa: S603


def _run_java(arguments: Sequence[str], timeout_s: float, **options: Any) -> tuple[bytes, str | None]:
    """What Java printed, and a description of the failure if there was one."""
    try:
        process = _start_java(arguments, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, **options)
    except OSError as error:
        return b"", f"Java does not start: {error.strerror}"
    with process:
        try:
            stdout, stderr = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            return b"", f"no answer within {timeout_s:g} s"
        finally:
            _kill(process)
    if process.returncode != 0:
        return stdout, f"exit status {process.returncode}: {last_words(stderr)}"
    return stdout, None


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process (if it still runs) and everything that it started, and collect its exit status."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _require_short(kind: str, texts: Sequence[str]) -> None:
    n_words = max((text.count(" ") + 1 for text in texts), default=0)
    if n_words > MAX_METEOR_WORDS:
        raise BitLlmError(
            f"METEOR: expected at most {MAX_METEOR_WORDS:,} words, found {kind} of {n_words:,} words; shorten it"
        )


def _one_field(text: str) -> str:
    # METEOR's line protocol separates fields by |||; pycocoevalcap cleans texts in the same way.
    return text.replace("|||", "").replace("\n", " ").replace("  ", " ")


def _f_scores(answer: str, n: int) -> Float[np.ndarray, " n"]:
    try:
        scores = {int(item["image_id"]): float(item["scores"]["All"]["f"]) for item in json.loads(answer)}
        found = np.array([scores[place] for place in range(n)])
    except (ValueError, KeyError, TypeError):
        found = np.full(n, np.nan)
    if not np.isfinite(found).all():
        raise BitLlmError(
            f"SPICE: expected a score for each of {n} captions from Java, found "
            f"{answer[:80]!r}; try `java -version`"
        )
    return found
