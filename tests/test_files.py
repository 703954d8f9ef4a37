"""Names as they are compared, names that become paths, and text files in odd encodings."""

import pytest

from bitllm.errors import ConfigError, DataError
from bitllm.files import normalized_name, read_json, require_plain_name


@pytest.mark.parametrize(
    ("written", "name"),
    [
        (" p00 ", "p00"),
        ("\tp00\r\n", "p00"),
        ("\u00a0caf\u00e9\u200b \ufeff", "caf\u00e9"),
        ("cafe\u0301", "caf\u00e9"),
        ("01", "01"),
        ("a b", "a b"),
        ("", ""),
    ],
)
def test_a_name_has_no_spaces_around_it_and_is_composed(written, name):
    assert normalized_name(written) == name


@pytest.mark.parametrize(
    "name", ["s1", "subj01", "01", "sub-01", "Zo\u00eb", "s 1", "prf.eccrois", "a+b", "_x", "1"]
)
def test_a_plain_name_may_become_a_path(name):
    assert require_plain_name(name, "header.yaml", "a subject") == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../../out", "a/b", "a\\b", "/etc", ".x", "x.", " x", "x ", "a\nb", "a\0b", "C:x", "-x", "x" * 101],
)  # fmt: skip
def test_a_name_that_would_lead_elsewhere_is_refused(name):
    with pytest.raises(DataError, match=r"header\.yaml: .*a subject"):
        require_plain_name(name, "header.yaml", "a subject")
    with pytest.raises(ConfigError):
        require_plain_name(name, "header.yaml", "a subject", error=ConfigError)


def test_utf16_without_its_mark_is_named_too(tmp_path):
    (tmp_path / "a.json").write_bytes('{"a": 1}'.encode("utf-16-le"))
    with pytest.raises(DataError, match=r"a\.json: .*UTF-16"):
        read_json(tmp_path / "a.json")
