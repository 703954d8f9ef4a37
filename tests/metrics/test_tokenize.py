import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitllm.metrics.java import ptb_tokenize_by_jar, why_no_ptb
from bitllm.metrics.tokenize import _by_rules, ptb_tokenize

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
    "a flag of the U.S.",
    "at 5 p.m.",
    "a sign with Mr. Smith Jr.",
    "\ufeffA MAN IN UPPER CASE\n",
    "a soft\u00adhyphen and a \u2764\ufe0f",
    "cafe\u0301, \u72ac \u3068 \u732b",
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


WORDS = ("A", "dog", "DOG", "cannot", "gonna", "Mr", "etc", "vs", "e", "a's", "U.S.", "is", "wanna", "tis")


@given(st.lists(st.sampled_from(WORDS), max_size=6), st.sampled_from(["", ".", "..", " .", "!", "\n"]))
def test_plain_captions_have_the_words_that_the_rules_give(words, end):
    caption = " ".join(words) + end
    assert ptb_tokenize([caption]) == [_by_rules(caption)]


@pytest.mark.skipif(why_no_ptb() is not None, reason=f"Java tokenizer: {why_no_ptb()}")
def test_python_and_java_agree_on_hard_text():
    assert ptb_tokenize(HARD) == ptb_tokenize_by_jar(HARD)
