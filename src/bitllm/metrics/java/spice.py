"""SPICE by its authors' jar, where that and the parser it needs are there."""

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from bitllm.errors import BitLlmError
from bitllm.metrics.bleu import require_references
from bitllm.metrics.java.runtime import coco_folder, java_command, last_words, why_not

_JAR = "spice-1.0.jar"
# pycocoevalcap downloads these on the first use of its own wrapper; we download nothing
_PARSER_JARS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
_TIMEOUT_S = 3600
# A library of 2016 in SPICE reaches into Java's own classes, which Java 16 and later forbid unless told so.
# Java 8 does not know the option; this variable it does not read.
_OPENED = " ".join(
    f"--add-opens java.base/{package}=ALL-UNNAMED"
    for package in ("java.lang", "java.util", "java.util.concurrent", "java.math", "java.net", "java.text")
)


def spice(captions: Sequence[str], references: Sequence[Sequence[str]]) -> Float[np.ndarray, " n"]:
    """SPICE (F-score of scene-graph tuples) of each tokenised caption, in points (0 to 100).

    Every text is parsed, so a thousand captions with their references take minutes. Only the temporary folder
    is written to.

    Raises
    ------
    DataError
        If there are not as many captions as sets of references, or a set is empty.
    BitLlmError
        If Java or a jar is missing, or Java fails.

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
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder) / "captions.json", Path(folder) / "scores.json"
        asked.write_text(json.dumps(items), encoding="utf-8")
        problem = _run(asked, answered)
        answer = answered.read_text(encoding="utf-8") if answered.is_file() else ""
    if problem is not None:
        raise BitLlmError(f"SPICE: {problem}; its authors ran it with Java 8")
    return 100 * _f_scores(answer, len(items))


def why_no_spice() -> str | None:
    """What keeps SPICE from running here, or nothing."""
    problem = why_not("spice", _JAR)
    if problem is not None:
        return problem
    library = Path(str(coco_folder("spice"))) / "lib"
    missing = [jar for jar in _PARSER_JARS if not (library / jar).is_file()]
    if missing:
        return (
            f"expected {' and '.join(missing)} beside the jars of pycocoevalcap's SPICE, found none; get them with "
            "`python -m pycocoevalcap.spice.get_stanford_models`"
        )
    return None


def _run(asked: Path, answered: Path) -> str | None:
    """Run the jar; what went wrong, or nothing."""
    folder = Path(str(coco_folder("spice")))
    options = " ".join([os.environ.get("JDK_JAVA_OPTIONS", ""), _OPENED]).strip()
    command = [str(java_command()), "-Xmx8G", "-Dfile.encoding=UTF-8", "-jar", str(folder / _JAR), str(asked)]
    command += ["-out", str(answered), "-silent"]
    try:
        run = subprocess.run(  # noqa: S603
            command,
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=False,
            env={**os.environ, "JDK_JAVA_OPTIONS": options},
        )
    except subprocess.TimeoutExpired:
        return f"expected an answer within {_TIMEOUT_S} s, found none"
    except OSError as error:
        return f"Java does not start ({error.strerror})"
    if run.returncode != 0:
        return f"expected an answer from Java, found exit status {run.returncode}: {last_words(run.stderr)}"
    return None


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
