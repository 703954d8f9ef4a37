"""sft on a mixture of tasks: the loss is that of the answers of every turn, and captions alone are as before."""

import json
from dataclasses import replace

import numpy as np
import pytest

from bitllm.data.batch import pad_answers
from bitllm.data.dataset import select_trials
from bitllm.data.prompt import INSTRUCTIONS, choose, plain_caption
from bitllm.data.tasks import exchanges
from bitllm.data.tasks.exchange import turns_of
from bitllm.errors import ConfigError, DataError
from bitllm.files import read_record
from bitllm.model.build import CARD, load_trained
from bitllm.model.checkpoint.base import load_llm
from bitllm.pipeline.recipe import Recipe
from bitllm.stages.examples import InstructedTrials
from bitllm.stages.sft import SftConfig, sft_fingerprint
from bitllm.toy_models import SmallLlmConfig, _document, train_small_llm
from bitllm.training.loop import OptimizerConfig

MIXTURE = {"caption": 1.0, "category": 1.0, "visdial": 1.0}
PAIRS = [(epoch, index) for epoch in (0, 1) for index in range(0, 60, 2)]


@pytest.fixture(scope="module")
def examples_of(easy):
    """Validation examples of the trained sft: ``examples_of(tasks=…)``."""
    base = load_llm(easy.folder / "llm")
    model = load_trained(easy.folder / "sft", base)
    trials = select_trials(easy.store, easy.split, "validation", averaged=False)

    def make(**how):
        return InstructedTrials.of(trials, model, base.tokenizer, atlases=easy.encoder.atlases, seed=3, **how)

    return make


@pytest.mark.parametrize("tasks", [{"caption": 1.0}, {"caption": 0.5, "presence": 0.0}])
def test_captions_alone_are_the_instruction_and_the_caption_of_today(easy, examples_of, tasks):
    examples = examples_of(tasks=tasks)
    prompts, answers = [], []
    for epoch, index in PAIRS:
        where = {"seed": 3, "epoch": epoch, "index": index}
        captions = easy.store.captions[int(examples.trials.nsd_id[index])]
        instruction = INSTRUCTIONS[choose(len(INSTRUCTIONS), purpose="prompt", **where)]
        prompts.append(examples.prompter.prompt_ids(instruction))
        caption = captions[choose(len(captions), purpose="caption", **where)]
        answers.append(examples.prompter.answer_ids(plain_caption(caption)))
    expected = pad_answers(prompts, answers, examples.prompter.tokenizer.pad_token_id)
    batch = examples.batch(PAIRS)
    assert batch["input_ids"].equal(expected["input_ids"]) and batch["labels"].equal(expected["labels"])


@pytest.mark.parametrize(
    ("how", "turns"),
    [
        ({"tasks": MIXTURE}, {1, 10}),
        ({"tasks": {"caption": 1.0, "presence": 1.0}, "questions_each": 3}, {1, 2, 3}),
    ],
)
def test_labels_are_due_on_the_answers_of_all_turns(examples_of, how, turns):
    examples = examples_of(**how)
    tokenizer = examples.prompter.tokenizer
    n_turns = set()
    for pair in PAIRS:
        batch = examples.batch([pair])
        ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
        words = tokenizer.convert_ids_to_tokens([one for one in labels if one != -100])
        answers = " ".join(words).removesuffix(" <eos>").split(" <eos> ")
        n_turns.add(len(answers))
        assert all(label in (-100, token) for label, token in zip(labels, ids, strict=True))
        assert ids.count(tokenizer.convert_tokens_to_ids("<user>")) == len(answers)
        assert ids[labels.index(next(one for one in labels if one != -100)) - 1] == (
            tokenizer.convert_tokens_to_ids("<assistant>")
        )
    assert n_turns == turns


def test_the_length_of_an_example_is_that_of_its_batch(examples_of):
    examples = examples_of(tasks=MIXTURE)
    lengths = examples.lengths(1)
    for index in range(0, len(lengths), 11):
        assert examples.batch([(1, index)])["input_ids"].shape[1] == lengths[index]


def test_later_turns_that_do_not_fit_the_context_are_left_out(examples_of):
    whole = examples_of(tasks={"visdial": 1.0})
    short = replace(whole, context=40)
    for pair in PAIRS[:5]:
        long, cut = whole.batch([pair]), short.batch([pair])
        n = cut["input_ids"].shape[1]
        assert 20 < n <= 40 < long["input_ids"].shape[1]
        assert cut["input_ids"][0].equal(long["input_ids"][0, :n])
        assert int(cut["labels"][0, -1]) == whole.prompter.tokenizer.eos_token_id
    with pytest.raises(DataError, match="visdial:"):
        replace(whole, context=8).batch(PAIRS[:1])


def test_sft_on_a_mixture_learns_and_records_tasks_and_licenses(easy, easy_sft, tmp_path):
    config = SftConfig(
        adapter_layers=(0, 1),
        optimizer=OptimizerConfig(steps=30, batch_size=16, learning_rate=5e-3, warmup_steps=2, log_every=1),
        validate_every=30,
        group_by_length=True,
        tasks={"caption": 1.0, "category": 1.0},
    )
    easy_sft(easy, tmp_path / "sft", config)
    rows = [json.loads(line) for line in (tmp_path / "sft" / "log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.5
    tasks = read_record(tmp_path / "sft" / CARD)["tasks"]
    assert tasks == {"weights": config.tasks, "licenses": {"derived": "none needed (simulated)"}}
    assert "tasks" not in read_record(easy.folder / "sft" / CARD)


def test_only_stages_with_questions_depend_on_the_questions_of_the_store(easy, tmp_path):
    parts = {"start": easy.folder / "sft", "llm_sha256": "", "seed": 0}
    plain, mixed = (
        sft_fingerprint(easy.store, easy.split, config=SftConfig(tasks=tasks), **parts)
        for tasks in ({"caption": 1.0}, MIXTURE)
    )
    assert plain == sft_fingerprint(easy.store, easy.split, config=SftConfig(), **parts)
    assert "tasks" not in plain and "tasks" not in plain["sft"]
    assert (mixed["tasks"], mixed["sft"]["tasks"]) == (easy.store.tasks_sha256, MIXTURE)


@pytest.mark.parametrize("tasks", [{}, {"caption": 0.0}, {"caption": 1.0, "count": -1.0}])
def test_a_mixture_without_a_task_is_refused(tasks):
    with pytest.raises(ConfigError, match="tasks"):
        SftConfig.parse({"tasks": tasks})


def test_the_tasks_of_a_recipe_are_those_of_all_its_systems():
    assert Recipe().tasks == {"caption": 1.0}
    variants = {"more": {"sft": {"tasks": {"count": 2.0}}}, "other": {"sft": {"tasks": {"count": 1.0}}}}
    recipe = Recipe.parse({"sft": {"tasks": {"caption": 1.0, "presence": 0.5}}, "variants": variants})
    assert recipe.tasks == {"caption": 1.0, "presence": 0.5, "count": 2.0}
    assert recipe.questions_each == 1
    variants["more"]["sft"]["questions_each"] = 4
    assert Recipe.parse({"variants": variants}).questions_each == 4


def test_the_small_llm_knows_the_words_of_questions_only_if_the_recipe_asks_them(easy, tmp_path):
    few = OptimizerConfig(steps=2, batch_size=8, learning_rate=1e-3, warmup_steps=0)
    config = SmallLlmConfig(width=32, layers=1, heads=2, optimizer=few)
    for name, how in (("plain", {}), ("alone", {"tasks": {"caption": 1.0}}), ("mixed", {"tasks": MIXTURE})):
        train_small_llm(easy.store, tmp_path / name, config, seed=2, **how)
    files = {"model.safetensors", "tokenizer.json"}
    for file in files:
        assert (tmp_path / "plain" / file).read_bytes() == (tmp_path / "alone" / file).read_bytes()
    words = [load_llm(tmp_path / name).tokenizer.get_vocab() for name in ("plain", "mixed")]
    assert {"kinds", "color"} & set(words[0]) == set() and {"kinds", "color"} <= set(words[1])


def test_a_document_of_questions_has_all_keywords_before_the_first_one(easy):
    talk = exchanges(easy.store, tasks=["visdial"])[0]
    config = SmallLlmConfig(keyword_share=1.0, keyword_keep=0.0)
    turns = _document(["a brown dog"], turns_of([talk]), config, np.random.default_rng(0))
    assert len(turns) == 10
    assert set(turns[0][0].removesuffix(talk.prompts[0]).split()) == {"brown", "dog"}
    assert turns[1:] == list(zip(talk.prompts, talk.targets, strict=True))[1:]
