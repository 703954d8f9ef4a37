import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitllm.data.batch import pad_answers
from bitllm.data.prompt import (
    INSTRUCTIONS,
    Prompter,
    choose,
    plain_caption,
    plain_question,
)
from bitllm.errors import ModelError
from bitllm.toy_models import make_word_tokenizer

small = st.integers(0, 10_000)


@pytest.fixture(scope="module")
def tokenizer():
    """Words of two captions and of the instructions, with a chat template."""
    return make_word_tokenizer(["A dog on a bench.", "two boats , far away"], wrap=False)


@given(small, small, small)
def test_a_choice_is_a_pure_function_of_seed_epoch_and_index(seed, epoch, index):
    where = {"seed": seed, "epoch": epoch, "index": index, "purpose": "caption"}
    np.random.seed(index % 7)  # noqa: NPY002 - whatever the global state is
    first = choose(5, **where)
    assert 0 <= first < 5
    assert choose(5, **where) == first


def test_choices_are_uniform_and_depend_on_each_of_their_arguments():
    where = {"seed": 0, "epoch": 0, "purpose": "caption"}
    drawn = np.array([choose(5, index=index, **where) for index in range(2000)])
    counts = np.bincount(drawn, minlength=5)
    assert np.abs(counts - 400).max() < 4 * np.sqrt(2000 * 0.2 * 0.8)
    for change in ({"seed": 1}, {"epoch": 1}, {"purpose": "prompt"}):
        other = np.array([choose(5, index=index, **(where | change)) for index in range(2000)])
        assert abs((other == drawn).mean() - 0.2) < 4 * np.sqrt(0.2 * 0.8 / 2000)  # as if independent


def test_a_prompt_is_the_instruction_in_the_chat_template(tokenizer):
    ids = Prompter(tokenizer).prompt_ids("describe the image .")
    assert tokenizer.convert_ids_to_tokens(ids) == [
        *("<bos>", "<user>", "describe", "the", "image", ".", "<assistant>"),
    ]


def test_without_a_chat_template_the_prompt_is_the_bare_instruction(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", None)
    ids = Prompter(tokenizer).prompt_ids("describe the image .")
    assert tokenizer.convert_ids_to_tokens(ids) == ["describe", "the", "image", "."]


def test_a_template_that_tells_the_date_gives_the_same_prompt_every_day(tokenizer, monkeypatch):
    """As that of Llama 3, which takes the clock's date where none is given."""
    template = (
        "{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}"
        "{{- 'today date : ' + date_string + ' ' }}{{- messages[-1]['content'] }}"
    )
    monkeypatch.setattr(tokenizer, "chat_template", template)
    words = []
    monkeypatch.setattr(
        type(tokenizer),
        "__call__",
        lambda self, text, **_: words.append(text) or {"input_ids": [0]},
    )
    Prompter(tokenizer).prompt_ids("describe the image .")
    assert "today date : 26 Jul 2024" in str(words)


@pytest.mark.parametrize("n", [1, 7, 128])
def test_placeholders_stand_before_the_instruction_as_often_as_asked(tokenizer, n):
    token = tokenizer.convert_tokens_to_ids("<brain>")
    prompter = Prompter(tokenizer, n, token)
    for instruction in INSTRUCTIONS:
        ids = prompter.prompt_ids(instruction)
        assert ids.count(token) == n
        first = ids.index(token)
        assert ids[first : first + n] == [token] * n
        plain = Prompter(tokenizer).prompt_ids(instruction)
        assert ids[:first] + ids[first + n :] == plain
        assert prompter.without_brain().prompt_ids(instruction) == plain


def test_an_answer_is_the_caption_and_the_end_token(tokenizer):
    ids = Prompter(tokenizer).answer_ids("a dog")
    assert tokenizer.convert_ids_to_tokens(ids) == ["a", "dog", "<eos>"]


def test_the_words_of_every_instruction_are_known(tokenizer):
    for instruction in INSTRUCTIONS:
        assert tokenizer.unk_token_id not in Prompter(tokenizer).prompt_ids(instruction)


rows = st.lists(st.integers(3, 90), min_size=1, max_size=6)


@given(st.lists(st.tuples(rows, rows), min_size=1, max_size=5))
def test_labels_are_due_exactly_on_the_answers(pairs):
    batch = pad_answers([prompt for prompt, _ in pairs], [answer for _, answer in pairs], 0)
    width = max(len(prompt) + len(answer) for prompt, answer in pairs)
    for row, (prompt, answer) in enumerate(pairs):
        n, rest = len(prompt) + len(answer), width - len(prompt) - len(answer)
        assert batch["input_ids"][row].tolist() == prompt + answer + [0] * rest
        assert batch["attention_mask"][row].tolist() == [1] * n + [0] * rest
        assert batch["labels"][row].tolist() == [-100] * len(prompt) + answer + [-100] * rest


def test_prompts_and_answers_of_different_number_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        pad_answers([[1], [2]], [[3]], 0)


@pytest.mark.parametrize(
    ("caption", "plain"),
    [(" A Dog  on\na bench. \n", "a dog on a bench"), ("Two boats...", "two boats"), ("", ""), (".", "")],
)
def test_a_caption_is_said_in_lower_case_without_its_full_stop(caption, plain):
    assert plain_caption(caption) == plain
    assert plain_caption(plain) == plain


TALK = (("what is it ?", "a dog"), ("where is the dog ?", "on a bench"))
CHATML = (
    "{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }} <eos> <bos> {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
"""As ChatML: every message ends with the end token, and something stands between two messages."""


def test_a_conversation_is_every_turn_with_its_end_token(tokenizer):
    ids = Prompter(tokenizer).prompt_ids("two boats ?", history=TALK[:1])
    assert tokenizer.convert_ids_to_tokens(ids) == [
        *("<bos>", "<user>", "what", "is", "<unk>", "?", "<assistant>", "a", "dog", "<eos>"),
        *("<user>", "two", "boats", "?", "<assistant>"),
    ]


def test_a_conversation_is_what_a_template_with_end_tokens_writes(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", CHATML)
    messages = [
        {"role": role, "content": text}
        for turn in TALK
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    messages.append({"role": "user", "content": "a dog ?"})
    whole = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    assert Prompter(tokenizer).prompt_ids("a dog ?", history=TALK) == whole["input_ids"]


@pytest.mark.parametrize("template", [None, CHATML, "its own"])
def test_the_prompt_of_a_turn_begins_with_the_turns_before(tokenizer, monkeypatch, template):
    if template != "its own":
        monkeypatch.setattr(tokenizer, "chat_template", template)
    prompter = Prompter(tokenizer, 3, tokenizer.convert_tokens_to_ids("<brain>"))
    for n in range(len(TALK)):
        question, answer = TALK[n]
        begun = [*prompter.prompt_ids(question, history=TALK[:n]), *prompter.answer_ids(answer)]
        whole = prompter.prompt_ids("a dog ?", history=TALK[: n + 1])
        assert whole[: len(begun)] == begun and len(whole) > len(begun)
        assert whole.count(prompter.placeholder_id) == 3


def test_a_conversation_turn_by_turn_is_the_prompt_and_answer_of_its_last_turn(tokenizer):
    prompter = Prompter(tokenizer, 2, tokenizer.convert_tokens_to_ids("<brain>"))
    turns = prompter.conversation([*TALK, TALK[0]])  # a question that is asked again
    tokens = [token for turn in turns for part in turn for token in part]
    last, answer = TALK[0]
    assert tokens == [*prompter.prompt_ids(last, history=TALK), *prompter.answer_ids(answer)]
    assert [part for _, part in turns] == prompter.answers_ids([text for _, text in [*TALK, TALK[0]]])


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", "{{ messages | length }} {{ messages[-1]['content'] }}")
    with pytest.raises(ModelError, match="chat template"):
        Prompter(tokenizer).prompt_ids("a dog ?", history=TALK)


@pytest.mark.parametrize(
    ("question", "plain"),
    [
        ("Is there a dog?", "is there a dog ?"),
        ("How many  people,\nand where?!", "how many people , and where ? !"),
        ("At 1.5 m. or 3,000 ft.", "at 1.5 m . or 3,000 ft ."),
        ("", ""),
    ],
)
def test_a_question_is_asked_in_lower_case_with_separate_punctuation(question, plain):
    assert plain_question(question) == plain
    assert plain_question(plain) == plain


def test_instructions_are_plain_questions():
    assert [plain_question(text) for text in INSTRUCTIONS] == list(INSTRUCTIONS)
