"""Whether a store's files are still, byte for byte, what was written."""

from bitllm.data.store import Store
from bitllm.errors import DataError
from bitllm.files import sha256_of_file


def verify_store(store: Store) -> int:
    """Compare the checksum of every file with the manifest; returns how many files were compared.

    Raises
    ------
    DataError
        If a file was changed or damaged after it was written.
    """
    expected = {store.path / file: checksum for file, checksum in store.manifest.sha256.items()}
    for subject, record in store.manifest.subjects.items():
        folder = store.path / "subjects" / subject
        expected |= {folder / file: checksum for file, checksum in record.sha256.items()}
    for path, checksum in expected.items():
        found = sha256_of_file(path)
        if found != checksum:
            raise DataError(
                f"{path}: expected the checksum {checksum[:12]} (manifest.json), found {found[:12]}; the "
                "file was changed or damaged, make the store again"
            )
    return len(expected)
