from pathlib import Path

import pytest

from bitllm.errors import BitLlmError
from bitllm.metrics import java as module
from bitllm.metrics.java import ptb_tokenize_by_jar, why_no_ptb

needs_java = pytest.mark.skipif(why_no_ptb() is not None, reason=f"Java tokenizer: {why_no_ptb()}")

# beside what the Python tokenizer follows (test_tokenize.py): text on which only the jar is right
HARDER = [
    "1 1/2 pizzas, 3/4 eaten, at 100°C",
    "it's 5'10\" tall",
    "see http://a.b/c?d=e or write to a@b.com",
    "a ||| b &amp; c",
    "the '90s, C++ and a \\slash",
    "a 😀 dog",
]


@needs_java
def test_words_are_those_of_the_coco_tools(monkeypatch, tmp_path):
    wrapper = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer", reason="in the extra `eval`")
    # theirs writes beside the jar, which may be read-only: give it a folder of links
    for jar in Path(wrapper.__file__).parent.glob("*.jar"):
        (tmp_path / jar.name).symlink_to(jar)
    monkeypatch.setattr(wrapper, "__file__", str(tmp_path / "ptbtokenizer.py"))
    theirs = wrapper.PTBTokenizer().tokenize(
        {place: [{"caption": text}] for place, text in enumerate(HARDER)}
    )
    assert ptb_tokenize_by_jar(HARDER) == [theirs[place][0] for place in range(len(HARDER))]


@needs_java
def test_java_keeps_line_by_line_with_empty_lines_and_line_breaks():
    assert ptb_tokenize_by_jar(["", "A\ndog.", "a\u2028cat\u0085\r", ""]) == ["", "a dog", "a cat", ""]


@needs_java
def test_half_of_a_surrogate_pair_does_not_stop_java():
    assert ptb_tokenize_by_jar(["a dog \ud83d"])[0].startswith("a dog")


def test_missing_java_is_an_error_that_says_so(no_java):
    with pytest.raises(BitLlmError, match="PTB tokenizer: expected Java on the path, found none"):
        ptb_tokenize_by_jar(["a"])


def test_java_that_crashes_is_an_error_with_its_last_words(fake_java):
    fake_java("echo one; echo out of memory >&2; exit 1")
    with pytest.raises(BitLlmError, match=r"expected 2 lines .* found 1 \(exit status 1: out of memory\)"):
        ptb_tokenize_by_jar(["a", "b"])


def test_java_that_says_too_little_is_an_error(fake_java):
    fake_java("exit 0")
    with pytest.raises(BitLlmError, match=r"expected 2 lines from Java, found 0 \(no error\)"):
        ptb_tokenize_by_jar(["a", "b"])


def test_java_that_hangs_or_does_not_start_is_an_error(fake_java, monkeypatch):
    java = fake_java("sleep 30")  # a child of the script, which must die with it
    monkeypatch.setattr(module, "PTB_TIMEOUT_S", 0.2)
    with pytest.raises(BitLlmError, match=r"no answer within 0\.2 s"):
        ptb_tokenize_by_jar(["a"])
    java.write_text("not a program")
    with pytest.raises(BitLlmError, match="Java does not start"):
        ptb_tokenize_by_jar(["a"])
