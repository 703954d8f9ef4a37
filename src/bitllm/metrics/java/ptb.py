"""Penn-Treebank words by the Stanford tokenizer that the COCO caption tools use."""

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bitllm.errors import BitLlmError
from bitllm.metrics.java.runtime import coco_folder, java_command, last_words, why_not
from bitllm.metrics.tokenize import without_punctuation

JAVA_TOKENIZER = "ptb-java (stanford-corenlp 3.4.1)"

_JAR = "stanford-corenlp-3.4.1.jar"
_TIMEOUT_S = 300


def ptb_tokenize_by_jar(captions: Sequence[str]) -> list[str]:
    """Lower-case Penn-Treebank words of each caption without punctuation, joined by spaces.

    One Java process for all captions; only the temporary folder is written to.

    Parameters
    ----------
    captions
        Raw text, one caption each; line breaks count as spaces.

    Raises
    ------
    BitLlmError
        If Java or the jar is missing, or Java fails.
    """
    problem = why_no_ptb()
    if problem is not None:
        raise BitLlmError(f"PTB tokenizer: {problem}; or use the tokenizer `python`")
    lines = [" ".join(caption.split()) for caption in captions]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "captions.txt"
        file.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="replace", newline="\n")
        stdout, problem = _run(file)
    found = stdout.decode("utf-8", errors="replace").split("\n")[:-1]
    if problem is not None or len(found) != len(lines):
        raise BitLlmError(
            f"PTB tokenizer: expected {len(lines)} lines from Java, found {len(found)} "
            f"({problem or 'no error'}); try `java -version`, or use the tokenizer `python`"
        )
    # split at spaces alone, as the COCO tools do: "1 1/2" is one word of theirs, with a no-break space in it
    return [without_punctuation(line.rstrip().split(" ")) for line in found]


def why_no_ptb() -> str | None:
    """What keeps the Java tokenizer from running here, or nothing."""
    return why_not("tokenizer", _JAR)


def _run(file: Path) -> tuple[bytes, str | None]:
    """What Java printed, and what went wrong if something did."""
    command = [
        str(java_command()),
        "-Dfile.encoding=UTF-8",
        "-cp",
        str(coco_folder("tokenizer")) + f"/{_JAR}",
    ]
    command += ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase", str(file)]
    try:
        run = subprocess.run(command, capture_output=True, timeout=_TIMEOUT_S, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        return b"", f"no answer within {_TIMEOUT_S} s"
    except OSError as error:
        return b"", f"Java does not start: {error.strerror}"
    if run.returncode != 0:
        return run.stdout, f"exit status {run.returncode}: {last_words(run.stderr)}"
    return run.stdout, None
