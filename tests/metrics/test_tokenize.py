import subprocess

import pytest

from bitllm.errors import BitLlmError
from bitllm.metrics import tokenize
from bitllm.metrics.tokenize import ptb_tokenize, ptb_tokenize_by_jar, why_no_jar

HARD = [
    "A man riding a wave on top of a surfboard.",
    'He said "go" to me.',
    "Stop!!! what?!",
    "a 😀 dog",
    "the U.S. flag",
    "a well-known man - with his dog",
    "an AT&T sign",
    "a man's hat and the dogs' toys",
    "a pole 3.5 m (high), a [sign]",
    "1,000 sheep; a/b: cats",
    "Mr. Smith, etc. and so on",
    "they don't and cannot, gonna go",
    "one -- two — three… four",
    "'single' quoted, rock 'n' roll",
    "two. sentences here. ok..",
    "a $5 bill, 50% off",
    "a caf\u00e9, na\u00efve",
    "a `back` and “smart” ‘quotes’",
    "#1 dad",
    "<b>bold</b>",
    "...",
    "",
]


def test_words_are_lower_case_without_punctuation():
    assert ptb_tokenize(["A dog's Toy, on the grass."]) == ["a dog 's toy on the grass"]


def test_brackets_stay_as_words_as_in_the_coco_tools():
    assert ptb_tokenize(["a bus (red)"]) == ["a bus -lrb- red -rrb-"]


def test_empty_captions_and_bare_punctuation_have_no_words():
    assert ptb_tokenize(["", "...", " \n "]) == ["", "", ""]


def test_a_full_stop_inside_a_caption_ends_a_word_but_not_initials():
    assert ptb_tokenize(["two. cats at p.m. there.."]) == ["two cats at p.m. there"]


@pytest.mark.skipif(why_no_jar() is not None, reason=f"Java tokenizer: {why_no_jar()}")
def test_python_and_java_agree_on_hard_text():
    assert ptb_tokenize(HARD) == ptb_tokenize_by_jar(HARD)


@pytest.mark.skipif(why_no_jar() is not None, reason=f"Java tokenizer: {why_no_jar()}")
def test_java_keeps_line_by_line_with_empty_lines_and_line_breaks():
    assert ptb_tokenize_by_jar(["", "A\ndog.", ""]) == ["", "a dog", ""]


def test_missing_java_is_an_error_that_says_so(monkeypatch):
    monkeypatch.setattr(tokenize.shutil, "which", lambda _: None)
    with pytest.raises(BitLlmError, match="PTB tokenizer: expected Java on the path, found none"):
        ptb_tokenize_by_jar(["a"])


def test_missing_jar_is_an_error_that_names_the_extra(monkeypatch):
    monkeypatch.setattr(tokenize.shutil, "which", lambda _: "java")
    monkeypatch.setattr(tokenize, "find_spec", lambda _: None)
    with pytest.raises(BitLlmError, match=r"found none; install `bitllm\[eval\]`"):
        ptb_tokenize_by_jar(["a"])


def test_java_that_crashes_is_an_error_with_its_last_words(monkeypatch):
    monkeypatch.setattr(tokenize, "why_no_jar", lambda: None)
    crash = subprocess.CompletedProcess([], 1, stdout=b"", stderr=b"one\nout of memory\n")
    monkeypatch.setattr(tokenize.subprocess, "run", lambda *_, **__: crash)
    with pytest.raises(
        BitLlmError, match=r"expected 2 lines from Java, found 0 and exit status 1 \(out of mem"
    ):
        ptb_tokenize_by_jar(["a", "b"])
