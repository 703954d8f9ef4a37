"""METEOR 1.5 by its authors' jar, in one Java process that is kept alive."""

import subprocess
import tempfile
import threading
from collections.abc import Sequence
from types import TracebackType

import numpy as np
from jaxtyping import Float, Shaped

from bitllm.errors import BitLlmError
from bitllm.metrics.bleu import require_references
from bitllm.metrics.java.runtime import coco_folder, java_command, last_words, why_not

_JAR = "meteor-1.5.jar"
_TIMEOUT_S = 600.0
_N_STATISTICS = 23
_LENGTHS, _CHUNKS, _MATCHED = slice(0, 2), 20, slice(21, 23)
# METEOR 1.5's parameters for English (task "rank"): weights of exact, stem, synonym and paraphrase matches, of
# content words against function words, of precision, and of the penalty for scattered matches
_MATCHERS = np.array([1.0, 0.6, 0.8, 0.6])
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75


class Meteor:
    """The jar of METEOR, used as a context: the process starts at once, ends with the context.

    Starting takes some seconds (a table of paraphrases is read) in which other work can go on; the first call
    waits for the rest.

    Raises
    ------
    BitLlmError
        If Java or the jar is missing, or Java does not start.

    References
    ----------
    Denkowski and Lavie (2014), "Meteor universal: language specific translation evaluation for any target
    language", WMT.
    """

    def __init__(self, timeout_s: float = _TIMEOUT_S) -> None:
        problem = why_no_meteor()
        if problem is not None:
            raise BitLlmError(f"METEOR: {problem}")
        self._timeout_s = timeout_s
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process
        command = [str(java_command()), "-Dfile.encoding=UTF-8", "-Xmx2G", "-jar", _JAR]
        command += ["-", "-", "-stdio", "-l", "en", "-norm"]
        try:
            self._process = subprocess.Popen(  # noqa: S603
                command,
                cwd=coco_folder("meteor"),  # the jar looks for its paraphrases there
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
            )
        except OSError as error:
            self._stderr.close()
            raise BitLlmError(
                f"METEOR: Java does not start ({error.strerror}); try `java -version`"
            ) from None

    def __enter__(self) -> "Meteor":
        """Give the running process."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process."""
        self.close()

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._stderr):
            try:
                pipe.close()  # type: ignore[union-attr]
            except BrokenPipeError:  # what was still to be written to a process that had died
                continue

    def statistics(
        self, captions: Sequence[str], references: Sequence[Sequence[str]]
    ) -> Float[np.ndarray, "n 23"]:
        """The jar's counts for each tokenised caption, of the reference that fits best.

        They may be summed over captions; :func:`meteor_from_statistics` makes a score of them.

        Raises
        ------
        DataError
            If there are not as many captions as sets of references, or a set is empty.
        BitLlmError
            If the process has died, does not answer in time or answers something else.
        """
        require_references(captions, references)
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
            try:
                stdin.write(content)
                stdin.flush()
            except (BrokenPipeError, ValueError):  # the process died: the reader says so
                return

        # written by a thread of its own, since both pipes fill up; killed when it takes too long
        writer = threading.Thread(target=write, daemon=True)
        alarm = threading.Timer(self._timeout_s, self._process.kill)
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


def why_no_meteor() -> str | None:
    """What keeps METEOR from running here, or nothing."""
    return why_not("meteor", _JAR)


def meteor_from_statistics(sums: Shaped[np.ndarray, "23"]) -> float:
    """METEOR in points (0 to 100) of one caption, or of a corpus from the sum of its captions' statistics.

    The jar's own arithmetic, so that a resampled corpus needs no Java: weighted precision and recall, their
    harmonic mean, and a penalty for matches that lie scattered.
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


def _one_field(text: str) -> str:
    return text.replace("|||", "").replace("\n", " ").replace("  ", " ")
