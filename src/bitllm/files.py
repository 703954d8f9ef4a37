"""Files that are written completely or not at all, and their checksums.

A file or folder is written under a temporary name in its folder, and renamed when it is complete. What a killed
process leaves has the temporary name; the next process removes it.
"""

import codecs
import errno
import hashlib
import json
import os
import re
import shutil
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from bitllm.errors import DataError, OutputError

_UNFINISHED = ".unfinished"
_PLAIN_NAME = re.compile(r"\w(?:[\w .+@=-]{0,98}[\w+@=-])?")
_INVISIBLE = (
    "\u200b\u200c\u200d\u2060\ufeff"  # zero-width characters, which spreadsheets and web pages insert
)
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


@contextmanager
def folder_written_whole(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``path`` when the block ends without an error.

    Parameters
    ----------
    path
        The folder to make.
    replace
        Whether to replace an existing folder at the end.
    """
    path = Path(path)
    if not replace:
        require_empty(path)
    unfinished = path.with_name(path.name + _UNFINISHED)
    with _disk_errors_named(path):
        if unfinished.exists():
            shutil.rmtree(unfinished)
        unfinished.mkdir(parents=True)
    try:
        with _disk_errors_named(path):
            yield unfinished
            if path.exists():
                shutil.rmtree(path)
            unfinished.rename(path)
    # Also on Ctrl-C: a partial folder is never useful here, unlike in folder_gone_on_with.
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


@contextmanager
def folder_gone_on_with(path: Path, fingerprint: str) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``path`` at the end; after a kill it still has its contents.

    A temporary folder with another ``fingerprint`` is emptied. An error removes it; only a kill or an interruption
    leaves it.
    """
    path = Path(path)
    require_empty(path)
    unfinished = path.with_name(path.name + _UNFINISHED)
    mark = unfinished / "fingerprint"
    try:
        with _disk_errors_named(path):
            if not (mark.is_file() and mark.read_text() == fingerprint):
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir(parents=True)
                mark.write_text(fingerprint)
            yield unfinished
            mark.unlink()
            if path.exists():
                shutil.rmtree(path)
            unfinished.rename(path)
    except Exception:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


@contextmanager
def file_written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary file name that becomes ``path`` when the block ends without an error."""
    path = Path(path)
    require_place(path)
    unfinished = path.with_name(path.name + _UNFINISHED)
    try:
        with _disk_errors_named(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield unfinished
            unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def require_empty(path: Path) -> None:
    """Refuse an output folder that is not empty."""
    if not path.name:
        raise OutputError(f"{path}: expected the name of a new folder, found none; name a folder in it")
    if (blocked := _file_above(path)) is not None:
        raise OutputError(
            f"{path}: expected a place for a folder, found the file {blocked} in its way; name another folder"
        )
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise OutputError(
            f"{path}: expected an empty or a new folder, found files in it; name another folder or empty it"
        )


def require_place(path: Path) -> None:
    """Refuse a file that cannot be written, before anything is computed for it."""
    blocked = path if path.is_dir() else _file_above(path)
    if blocked is not None:
        what = "a folder" if blocked == path else f"the file {blocked} in its way"
        raise OutputError(f"{path}: expected a place for a file, found {what}; name another file")


def _file_above(path: Path) -> Path | None:
    """A file at a position where ``path`` needs a folder; None if there is none."""
    return next((parent for parent in path.absolute().parents if parent.is_file()), None)


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as indented JSON, completely or not at all."""
    with file_written_whole(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def require_file(path: Path, what: str) -> Path:
    """Return ``path`` if it is a readable file (not a git-lfs pointer)."""
    path = Path(path)
    try:
        is_file = path.is_file()
    except PermissionError:
        is_file = False
    if not is_file:
        raise DataError(f"{path}: expected {what}, found no file; check the path, or download it")
    if not os.access(path, os.R_OK):
        raise DataError(
            f"{path}: expected {what}, found a file without read permission; change its permissions"
        )
    with path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise DataError(f"{path}: expected {what}, found a git-lfs pointer to it; run `git lfs pull`")
    return path


def read_text(path: Path, what: str) -> str:
    """Read a text file in UTF-8, with or without a byte order mark."""
    return decoded_text(require_file(path, what).read_bytes(), path, what)


def decoded_text(content: bytes, path: Path, what: str) -> str:
    """The text of bytes in UTF-8, with or without a byte order mark."""
    # UTF-16 without its mark shows by zero bytes, which no text in UTF-8 has
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in content[:2]:
        raise DataError(f"{path}: expected {what} in UTF-8, found UTF-16; save it as UTF-8")
    if b"\0" in content:
        raise DataError(f"{path}: expected {what} in UTF-8, found a binary file; name the right file")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: expected {what} in UTF-8, found another encoding at byte {error.start}; save it as UTF-8"
        ) from None


def normalized_name(text: str) -> str:
    """A name as it is compared and stored: Unicode's composed form (NFC), without surrounding spaces.

    macOS writes file names in the decomposed form, and spreadsheets leave spaces: ``café `` is ``café``.
    """
    if text.isascii():
        return text.strip()
    before = None
    while before != text:  # spaces and invisible characters may alternate
        before, text = text, text.strip().strip(_INVISIBLE)
    return unicodedata.normalize("NFC", text)


def require_plain_name(name: str, where: object, what: str, *, error: type[Exception] = DataError) -> str:
    """Return a name that is safe as a part of a path.

    Plain names consist of letters, digits, ``_ . + @ = -``, and spaces inside; ``..`` and slashes could leave the
    folder.
    """
    if not _PLAIN_NAME.fullmatch(name):
        raise error(
            f"{where}: expected a plain name of {what} (letters, digits, _ . + @ = -), found {name!r}; rename it"
        )
    return name


def read_json(path: Path, what: str = "a JSON file") -> Any:
    """Read a JSON file in UTF-8.

    Raises
    ------
    DataError
        If the file is missing, is not UTF-8 or not JSON, or has a key twice in one object (Python's parser
        would drop the first value without a word).
    """
    return parse_json(read_text(path, what), path)


def read_record(path: Path, *keys: str) -> dict[str, Any]:
    """Read a JSON object with these keys, such as a card that we wrote."""
    content = read_json(path)
    missing = [key for key in keys if key not in content] if isinstance(content, dict) else []
    if missing or not isinstance(content, dict):
        found = f"none of the key {missing[0]}" if missing else f"{type(content).__name__}"
        expected = f"a JSON object with {', '.join(keys)}" if keys else "a JSON object"
        raise DataError(f"{path}: expected {expected}, found {found}; make or copy the file again")
    return content


def parse_json(text: str, where: object, *, without: Collection[str] = ()) -> Any:
    """The value of a JSON text; errors name ``where``.

    Keys in ``without`` are dropped from every object during parsing, so that their values take no memory.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
            raise DataError(
                f"{where}: expected each key once, found {len(twice)} keys twice "
                f"({', '.join(map(repr, twice[:3]))}); remove the duplicates"
            )
        return {key: value for key, value in pairs if key not in without} if without else found

    try:
        return json.loads(text, object_pairs_hook=unique)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(
            f"{where}: expected JSON, found text that does not parse ({error}); fetch or make it again"
        ) from None


def sha256_of_file(path: Path) -> str:
    """Checksum of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_json(content: Any) -> str:
    """Checksum of a JSON value, independent of spaces and the order of keys."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


@contextmanager
def _disk_errors_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = _error_number(error)
        if number in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(_nearest_folder(path)).free / 1e9
            raise OutputError(
                f"{path}: the disk is full ({free:.2f} GB free); no incomplete file was left, "
                "free some space or name a folder on another disk"
            ) from None
        if number in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise OutputError(
                f"{path}: no permission to write here ({os.strerror(number)}); name another folder"
            ) from None
        raise


def _error_number(error: Exception) -> int:
    """The system's error number; safetensors has it only in its message, as ``(os error 28)``."""
    if isinstance(error, OSError):
        return error.errno or 0
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found.group(1)) if found else 0


def _nearest_folder(path: Path) -> Path:
    return next(parent for parent in [path.absolute(), *path.absolute().parents] if parent.is_dir())
