import numpy as np
import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from bitllm.data.prompt import Prompt, Prompter
from bitllm.model.build import build_bit_llm
from bitllm.model.captioner import Captioner, load_captioner
from bitllm.model.checkpoint.base import load_llm, placeholder_token_id
from bitllm.model.rollout import GumbelSampling


@pytest.fixture(scope="module")
def system(easy):
    """The sft system of the easy brain."""
    return load_captioner(easy.folder / "sft", load_llm(easy.folder / "llm"))


def sample(system, n_inputs=3, n_captions=4, **more):
    torch.manual_seed(7)
    brain_tokens = torch.randn(n_inputs, 4, 32)
    settings = {"n_captions": n_captions, "max_new_tokens": 12, "seeds": range(n_inputs)} | more
    return system.sample(brain_tokens, **settings)


def test_labels_are_the_sampled_tokens_up_to_the_first_end_token(system):
    rollout = sample(system)
    eos = system.prompter.tokenizer.eos_token_id
    start = len(system.prompter.prompt_ids("describe the image ."))
    assert len(rollout.captions) == 12
    assert rollout.has_ended.any()
    for row in range(12):
        answer = rollout.input_ids[row, start:].tolist()
        kept = answer[: answer.index(eos) + 1] if eos in answer else answer
        expected = [-100] * start + kept + [-100] * (len(answer) - len(kept))
        assert rollout.labels[row].tolist() == expected
        assert bool(rollout.has_ended[row]) == (eos in answer)


def test_captions_are_the_words_of_the_labels_without_special_tokens(system):
    rollout = sample(system)
    tokenizer = system.prompter.tokenizer
    for row, caption in enumerate(rollout.captions):
        words = [int(token) for token in rollout.labels[row] if token != -100]
        assert caption == tokenizer.decode(words, skip_special_tokens=True).strip()
        assert "<" not in caption


def test_log_probs_are_those_of_a_loop_over_each_caption_alone(system):
    rollout = sample(system, n_inputs=2, n_captions=2, temperature=0.7)
    found = rollout.log_probs(system.model, temperature=0.7)
    for row in range(4):
        with torch.no_grad():
            real = slice(int((rollout.labels[row] != -100).nonzero()[-1]) + 1)
            ids = rollout.input_ids[row, real][None]
            logits = system.model(input_ids=ids, brain_tokens=rollout.brain_tokens[row // 2][None]).logits[0]
        labels = rollout.labels[row, real]
        expected = [
            (logits[place - 1] / 0.7).log_softmax(-1)[labels[place]].item()
            for place in range(1, len(labels))
            if labels[place] != -100
        ]
        assert found.log_probs[row, found.label_mask[row]].tolist() == pytest.approx(expected, abs=2e-5)


def test_sampling_follows_the_policy_and_not_a_truncated_one(system):
    """First tokens of 4000 samples against the softmax; TV distance of honest samples is below .05."""
    rollout = sample(system, n_inputs=1, n_captions=4000, max_new_tokens=1)
    prompt = torch.tensor([system.prompter.prompt_ids("describe the image .")])
    with torch.no_grad():
        logits = system.model(input_ids=prompt, brain_tokens=rollout.brain_tokens).logits[0, -1]
    counts = np.bincount(rollout.input_ids[:, -1].numpy(), minlength=len(logits)) / 4000
    assert np.abs(counts - logits.softmax(-1).numpy()).sum() / 2 < 0.05


def test_sampling_gives_the_model_back_in_the_mode_it_had(system):
    system.model.train()
    sample(system, max_new_tokens=1)
    assert system.model.training
    system.model.eval()
    sample(system, max_new_tokens=1)
    assert not system.model.training


def test_prompts_of_the_rollout_are_those_of_the_prompter(system):
    rollout = sample(system, max_new_tokens=2)
    ids = Prompter(system.prompter.tokenizer).prompt_ids("describe the image .")
    assert all(row[: len(ids)] == ids for row in rollout.input_ids.tolist())


def test_a_prefix_policy_that_would_say_a_placeholder_is_not_stopped_by_it(easy):
    """With all tokens equally likely, some of 1,536 sampled ones would be the placeholder of brain tokens."""
    base = load_llm(easy.folder / "llm")
    token = placeholder_token_id(base.tokenizer)
    encoder = easy.encoder.arguments(easy.store)
    model = build_bit_llm(base.llm, interface="prefix", encoder=encoder, brain_token_id=token)
    model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
    captioner = Captioner.of(model.eval(), base.tokenizer)
    torch.manual_seed(0)
    rollout = captioner.sample(torch.randn(4, 4, 32), n_captions=64, max_new_tokens=6, seeds=range(4))
    assert rollout.log_probs(model).log_probs.isfinite().all()


class Drawn(LogitsProcessor):
    """All but the sampled token ruled out, for `generate` of transformers."""

    def __init__(self, *seeds, n_captions):
        settings = {"temperature": 0.8, "device": torch.device("cpu")}
        self.choose = GumbelSampling(seeds, n_captions=n_captions, **settings)

    def __call__(self, input_ids, scores):
        return torch.full_like(scores, -torch.inf).scatter(1, self.choose(scores)[:, None], 0.0)


@pytest.mark.parametrize("interface", ["cross_attention", "prefix"])
def test_decoding_is_that_of_generate_of_transformers(easy, system, interface):
    """Greedy and sampled, ends and padding included."""
    if interface == "prefix":
        base = load_llm(easy.folder / "llm")
        encoder, token = easy.encoder.arguments(easy.store), placeholder_token_id(base.tokenizer)
        torch.manual_seed(1)
        model = build_bit_llm(base.llm, interface="prefix", encoder=encoder, brain_token_id=token).eval()
        system = Captioner.of(model, base.tokenizer)
    tokenizer, brain_tokens = system.prompter.tokenizer, torch.randn(3, 4, 32)
    prompt = torch.tensor([system.prompter.prompt_ids("describe the image .")])

    def generated(n_captions, *processors):
        ids = prompt.expand(3 * n_captions, -1)
        return system.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            brain_tokens=brain_tokens.repeat_interleave(n_captions, 0),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            suppress_tokens=system.prompter.never_said,
            logits_processor=LogitsProcessorList(processors),
        )

    sampled = system.sample(brain_tokens, n_captions=4, max_new_tokens=12, seeds=(5, 6, 7), temperature=0.8)
    assert torch.equal(sampled.input_ids, generated(4, Drawn(5, 6, 7, n_captions=4)))
    greedy = tokenizer.batch_decode(generated(1)[:, prompt.shape[1] :], skip_special_tokens=True)
    assert system.greedy(brain_tokens, max_new_tokens=12) == [text.strip() for text in greedy]


def test_decoding_does_not_copy_the_language_head_for_each_row(system):
    """torch does for a slice of three axes: 14 GB for 256 rows of SmolLM2."""
    is_cheap = []

    def look(head, given):
        is_cheap.append(given[0].dim() == 2 or given[0].is_contiguous())

    hook = system.model.lm_head.register_forward_pre_hook(look)
    system.greedy(torch.randn(3, 4, 32), max_new_tokens=3)
    sample(system, max_new_tokens=3)
    hook.remove()
    assert len(is_cheap) >= 2
    assert all(is_cheap)


def test_log2_probs_of_many_answers_are_those_of_each_one_alone(system):
    brain_tokens = torch.randn(3, 4, 32)
    answers = [[9, 12, 3], [7, 3], [3], [11, 10, 8, 6, 3], [9, 3]]
    owner = np.array([2, 0, 2, 1, 0])
    found = system.log2_probs(answers, owner, brain_tokens)
    assert found.shape == (5, 5)
    for row, answer in enumerate(answers):
        memory = system.model.model.brain_memory(brain_tokens=brain_tokens[owner[row]][None])
        alone = system.log_probs([answer], memory)[0].detach().numpy() / np.log(2)
        assert found[row].tolist() == pytest.approx([*alone, *[0.0] * (5 - len(answer))], abs=2e-5)


def test_what_is_sampled_for_an_input_depends_on_its_seed_alone(system):
    """Neither on the other inputs of the batch, nor on their order, nor on the global generator."""
    brain_tokens = torch.randn(4, 4, 32, generator=torch.Generator().manual_seed(1))

    def draw(rows, seeds):
        torch.manual_seed(len(rows))
        return system.sample(brain_tokens[rows], n_captions=3, max_new_tokens=10, seeds=seeds).captions

    whole = draw([0, 1, 2, 3], [10, 11, 12, 13])
    assert draw([2, 0], [12, 10]) == whole[6:9] + whole[0:3]
    assert draw([1], [11]) == whole[3:6]
    assert draw([1], [99]) != whole[3:6]
    assert len(set(whole[0:3])) > 1


PROMPTS = [
    Prompt("describe the image ."),
    Prompt("what is in the image ?"),
    Prompt("describe the image ."),
    Prompt("what is in the image ?", (("describe the image .", "a dog"),)),
    Prompt("a dog"),
]
"""Different lengths, one of them twice, one with a turn before it."""


@pytest.mark.parametrize("with_brain", [True, False])
def test_answers_to_a_prompt_for_each_row_are_those_of_each_row_alone(system, with_brain):
    brain_tokens = torch.randn(5, 4, 32, generator=torch.Generator().manual_seed(3)) if with_brain else None
    together = system.greedy(brain_tokens, instruction=PROMPTS, max_new_tokens=8)
    answers = [[9, 12, 3], [7, 3], [3], [11, 10, 3], [9, 3], [8, 3]]
    owner = np.array([3, 0, 4, 1, 3, 2])
    scored = system.log2_probs(answers, owner, brain_tokens, instruction=PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        part = None if brain_tokens is None else brain_tokens[row : row + 1]
        assert together[row : row + 1] == system.greedy(part, instruction=[prompt], max_new_tokens=8)
        for place in np.flatnonzero(owner == row):
            alone = system.log2_probs([answers[place]], np.array([0]), part, instruction=[prompt])[0]
            assert scored[place, : len(alone)] == pytest.approx(alone, abs=2e-5)
    assert len(set(together)) > 1 or not with_brain


def test_the_prompt_of_a_row_holds_its_earlier_turns(system):
    """The likelihood after a dialogue is that of the model after the tokens of the whole dialogue."""
    brain_tokens, answer = torch.randn(1, 4, 32), [9, 12, 3]
    ids = [*system.prompter.prompt_ids(PROMPTS[3].instruction, PROMPTS[3].history), *answer]
    with torch.no_grad():
        logits = system.model(input_ids=torch.tensor([ids]), brain_tokens=brain_tokens).logits[0]
    expected = [
        logits[len(ids) - 4 + n].log_softmax(-1)[token].item() / np.log(2) for n, token in enumerate(answer)
    ]
    found = system.log2_probs([answer], np.array([0]), brain_tokens, instruction=PROMPTS[3:4])[0]
    assert found.tolist() == pytest.approx(expected, abs=2e-5)


def test_one_brain_input_and_zero_betas_serve_several_prompts(system):
    one = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(4))
    assert system.greedy(one.expand(5, -1, -1), instruction=PROMPTS, max_new_tokens=8) == [
        system.greedy(one, instruction=[prompt], max_new_tokens=8)[0] for prompt in PROMPTS
    ]
    answers, owner = [[9, 3]] * 5, np.arange(5)
    shared = system.log2_probs(answers, owner, one, instruction=PROMPTS)
    each = system.log2_probs(answers, owner, one.expand(5, -1, -1), instruction=PROMPTS)
    assert shared == pytest.approx(each, abs=2e-5)
    assert shared[0] == pytest.approx(shared[2])
