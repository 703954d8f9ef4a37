"""Where Java and the jars of pycocoevalcap are, and what a Java process said before it ended."""

import os
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

_VERSION = re.compile(r'^JAVA_VERSION="([^"]+)"', re.MULTILINE)


def java_command() -> str | None:
    """Path of the ``java`` to run: that of ``JAVA_HOME`` where it is set, else the one on the path."""
    home = os.environ.get("JAVA_HOME")
    return (shutil.which("java", path=str(Path(home) / "bin")) if home else None) or shutil.which("java")


def java_version() -> str | None:
    """Version of that Java, from the file ``release`` beside it; nothing where there is none."""
    java = java_command()
    release = Path(java).resolve().parent.parent / "release" if java else None
    if release is None or not release.is_file():
        return None
    found = _VERSION.search(release.read_text(encoding="utf-8", errors="replace"))
    return found[1] if found else None


def coco_folder(part: str) -> Path | None:
    """Folder of a part of pycocoevalcap ("meteor", say), without importing it; nothing where it is missing."""
    package = find_spec("pycocoevalcap")
    folders = list(package.submodule_search_locations or []) if package else []
    return next((Path(folder) / part for folder in folders if (Path(folder) / part).is_dir()), None)


def why_not(part: str, jar: str) -> str | None:
    """What keeps a jar of pycocoevalcap from running here, or nothing."""
    if java_command() is None:
        return "expected Java on the path, found none; install a Java runtime"
    folder = coco_folder(part)
    if folder is None or not (folder / jar).is_file():
        return f"expected {jar} of pycocoevalcap, found none; install `bitllm[eval]`"
    return None


def last_words(stderr: bytes) -> str:
    """The line of a Java process's stderr that says what went wrong."""
    lines = [line.strip() for line in stderr.decode("utf-8", errors="replace").splitlines() if line.strip()]
    # below "Exception in thread …" and "Error: …" come the places in the code, which tell a user nothing
    telling = [
        line for line in lines if re.search(r"(Exception|Error)\b", line) and not line.startswith("at ")
    ]
    return (telling or lines[-1:] or ["no message"])[0][:200]
