"""SPICE's own jar is never run here (its parser is no part of pycocoevalcap): what is around it is."""

import pytest

from bitllm.errors import BitLlmError, DataError
from bitllm.metrics import java as module
from bitllm.metrics.java import spice, why_no_spice

ANSWER = '[{"image_id": 1, "scores": {"All": {"f": 0.5}}}, {"image_id": 0, "scores": {"All": {"f": 0.25}}}]'
# writes what it is told into the file behind -out
WRITES = 'while [ "$1" != "-out" ]; do shift; done; echo \'{answer}\' > "$2"'


@pytest.fixture
def jars(tmp_path, monkeypatch):
    """A folder with empty files in the place of all jars."""
    for name in ("spice-1.0.jar", *(f"lib/{jar}" for jar in module._PARSER_JARS)):
        path = tmp_path / "spice" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    monkeypatch.setattr(module, "_jar", lambda part, name: tmp_path / part / name)
    return tmp_path / "spice"


def test_the_answer_is_read_in_the_order_of_the_captions(jars, fake_java):
    fake_java(WRITES.format(answer=ANSWER))
    assert spice(["a", "b"], [["a"], ["b"]]).tolist() == [25, 50]


def test_newer_java_is_told_to_open_its_classes_and_older_need_not_know(jars, fake_java, tmp_path):
    fake_java(f'echo "$JDK_JAVA_OPTIONS" > {tmp_path}/options; ' + WRITES.format(answer=ANSWER))
    spice(["a", "b"], [["a"], ["b"]])
    assert "--add-opens java.base/java.lang=ALL-UNNAMED" in (tmp_path / "options").read_text()


@pytest.mark.parametrize("answer", ["", "[]", "{", '[{"image_id": 0, "scores": {"All": {"f": null}}}]'])
def test_an_answer_that_lacks_a_score_is_an_error_and_never_0(jars, fake_java, answer):
    fake_java(WRITES.format(answer=answer))
    with pytest.raises(BitLlmError, match="SPICE: expected a score for each of 1 captions from Java, found"):
        spice(["a"], [["a"]])


def test_a_java_that_fails_hangs_or_does_not_start_is_an_error(jars, fake_java, monkeypatch):
    java = fake_java("echo java.lang.OutOfMemoryError: heap >&2; exit 1")
    with pytest.raises(BitLlmError, match=r"found exit status 1: java.lang.OutOfMemoryError: heap; its auth"):
        spice(["a"], [["a"]])
    fake_java("sleep 30")  # a child of the script, which must die with it
    monkeypatch.setattr(module, "SPICE_TIMEOUT_S", 0.2)
    with pytest.raises(BitLlmError, match=r"within 0\.2 s"):
        spice(["a"], [["a"]])
    java.write_text("no program")
    with pytest.raises(BitLlmError, match="Java does not start"):
        spice(["a"], [["a"]])


def test_missing_parser_jars_are_named_with_how_to_get_them(jars):
    (jars / "lib" / module._PARSER_JARS[1]).unlink()
    assert "expected stanford-corenlp-3.6.0-models.jar in" in str(why_no_spice())
    with pytest.raises(BitLlmError, match=r"SPICE: expected .* found none; get them with"):
        spice(["a"], [["a"]])


def test_missing_java_and_missing_references_are_said(no_java):
    assert why_no_spice() == "expected Java on the path, found none; install a Java runtime"
    with pytest.raises(DataError, match="expected one set for each of 1 captions, found 0"):
        spice(["a"], [])
