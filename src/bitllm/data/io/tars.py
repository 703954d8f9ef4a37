"""Samples from webdataset tars, without trusting the archive."""

import io
import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path, PurePosixPath

import numpy as np

from bitllm.errors import DataError
from bitllm.files import require_file

MEMBER_BYTES = 512 * 2**20
"""Larger than any member of the known tars (a whole brain with three repetitions has 150 MB)."""

KEPT_BYTES = 8 * 2**30
"""Limit of what is read from one tar into memory; the known ones need 0.1 GB (500 images, three repetitions)."""

_MOST_UNPACKED = 200
"""Limit of the ratio of unpacked to packed size; a larger ratio suggests a decompression bomb."""

_ALWAYS_UNPACKED = 64 * 2**20

Sample = dict[str, bytes]


def read_samples(
    path: Path, wanted: tuple[str, ...], *, member_bytes: int = MEMBER_BYTES, kept_bytes: int = KEPT_BYTES
) -> Iterator[Sample]:
    """The samples of a tar in its order, each as ``{extension: bytes}``; nothing is unpacked to disk.

    Members of one sample have the same name up to the first dot. Extensions other than ``wanted`` are skipped. A
    member may have at most ``member_bytes``, all wanted members together at most ``kept_bytes``.
    """
    require_file(path, "a webdataset tar")
    try:
        # "r|*" reads the tar as a stream: members are checked before any of them is decompressed as a whole.
        with tarfile.open(path, "r|*") as archive:
            members = _within(path, _safe_files(path, archive, member_bytes), wanted, kept_bytes)
            for of_sample in _grouped(path, members):
                found = ((_name_parts(member)[1], member) for member in of_sample)
                sample = {kind: _content(archive, member) for kind, member in found if kind in wanted}
                yield from [sample] if sample else []
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(
            f"{path}: expected a whole tar, found one that is damaged or cut off ({error}); download it again"
        ) from None


def _grouped(path: Path, members: Iterator[tarfile.TarInfo]) -> Iterator[Iterator[tarfile.TarInfo]]:
    """The members of each sample, which must be adjacent."""
    seen: set[str] = set()
    for key, of_sample in groupby(members, key=_sample_of):
        if key in seen:
            raise DataError(
                f"{path}: expected the members of a sample next to each other, found more of `{key}` later; sort "
                "the members by name, as with tar --sort=name"
            )
        seen.add(key)
        yield of_sample


def _safe_files(path: Path, archive: tarfile.TarFile, member_bytes: int) -> Iterator[tarfile.TarInfo]:
    for member in archive:
        _require_safe(path, member, member_bytes)
        if not member.isdir() and not PurePosixPath(member.name).name.startswith("."):  # macOS adds ._name
            yield member


def _within(
    path: Path, members: Iterator[tarfile.TarInfo], wanted: tuple[str, ...], kept_bytes: int
) -> Iterator[tarfile.TarInfo]:
    """The same members; stops with an error when they are too large together."""
    on_disk = path.stat().st_size
    unpacked = kept = 0
    for member in members:
        unpacked += member.size
        kept += member.size if _name_parts(member)[1] in wanted else 0
        if kept > kept_bytes:
            raise DataError(
                f"{path}: expected at most {kept_bytes:,} bytes of {', '.join(wanted)}, found more up to the member "
                f"`{member.name}`; do not use this archive, download it from its source again"
            )
        if unpacked > max(_ALWAYS_UNPACKED, _MOST_UNPACKED * on_disk):
            raise DataError(
                f"{path}: expected an archive of {on_disk:,} bytes to unpack to at most {_MOST_UNPACKED} times as "
                f"much, found more up to the member `{member.name}`; do not use this archive, download it from its "
                "source again"
            )
        yield member


def _sample_of(member: tarfile.TarInfo) -> str:
    """Path of a member up to the first dot of its name; samples of several folders may have the same name."""
    return str(PurePosixPath(member.name).parent / _name_parts(member)[0])


def _name_parts(member: tarfile.TarInfo) -> tuple[str, str]:
    name, _, extension = PurePosixPath(member.name).name.partition(".")
    return name, extension.lower()  # as webdataset does


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(member)
    assert stream is not None, "a regular file has content"
    return stream.read()


def array_of(path: Path, sample: Sample, extension: str) -> np.ndarray:
    """The array in a member of a sample."""
    if extension not in sample:
        raise DataError(
            f"{path}: expected a member .{extension} in every sample, found a sample with "
            f"{', '.join(sorted(sample)) or 'none'}; download the tar again"
        )
    try:
        return np.load(io.BytesIO(sample[extension]), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(
            f"{path}: expected a plain array in .{extension}, found none ({error}); download the tar again"
        ) from None


def _require_safe(path: Path, member: tarfile.TarInfo, member_bytes: int) -> None:
    place = PurePosixPath(member.name)
    problem = ""
    if place.is_absolute() or ".." in place.parts or "\\" in member.name:
        problem = "a path that leads out of the archive"
    elif not (member.isfile() or member.isdir()):
        problem = "a link or a device"
    elif member.size > member_bytes:
        problem = f"{member.size:,} bytes (at most {member_bytes:,})"
    if problem:
        raise DataError(
            f"{path}: expected plain files of moderate size, found {problem} in the member `{member.name}`; "
            "do not use this archive, download it from its source again"
        )
