"""The public API: five lines from a finished run to captions, and an `import bitllm` that loads no torch."""

import json
import subprocess
import sys

import numpy as np
import pytest

import bitllm
from bitllm.errors import CheckpointError, ConfigError, SplitError


@pytest.fixture(scope="module")
def run(demo_folder):
    return bitllm.Run.open(demo_folder)


@pytest.mark.parametrize("name", ["sft", "rft", "prefix"])
def test_a_run_captions_its_trials_as_its_evaluation_did(run, demo_folder, name):
    captioner, length = run.captioner(name), run.recipe.evaluation.max_new_tokens
    captions = captioner.caption(run.trials("subj08", "test")[:8], max_new_tokens=length)
    lines = (demo_folder / "captions" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    assert captions == [json.loads(line)["caption"] for line in lines[:8]]


def test_each_trial_gets_its_own_caption(easy):
    run = bitllm.Run(easy.folder, bitllm.Recipe.parse({"data": {"store": str(easy.store.path)}}))
    captioner, trials = run.captioner("sft"), run.trials("subj08", "test")
    captions = captioner.caption(trials)
    assert len(set(captions)) > 3
    for item in (0, 5, len(trials) - 1):
        assert captioner.caption(trials[item]) == [captions[item]]
    assert captioner.caption(trials[::-1]) == captions[::-1]
    betas = np.stack([trials.betas(item) for item in range(4)])
    assert captioner.brain_tokens(trials, betas).equal(captioner.brain_tokens(trials[:4]))


def test_another_instruction_is_another_prompt(run):
    captioner, trials = run.captioner("sft"), run.trials("subj08", "test")[:2]
    prompts = []
    captioner.model.model.register_forward_pre_hook(
        lambda _, args, kwargs: prompts.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    captioner.caption(trials, max_new_tokens=1)
    captioner.caption(trials, instruction="a photo of a dog on a table ?", max_new_tokens=1)
    assert prompts[0] != prompts[1]


def test_trials_are_those_of_the_subject_and_part(run):
    averaged, single = (run.trials("subj08", "test", averaged=one) for one in (True, False))
    assert set(averaged.nsd_id) == set(single.nsd_id) <= run.split.test_images
    assert len(averaged) == len(set(averaged.nsd_id)) < len(single)
    part = averaged[[5, 2]]
    np.testing.assert_array_equal(part.betas(1), averaged.betas(2))
    assert part.nsd_id.tolist() == averaged.nsd_id[[5, 2]].tolist()
    assert [len(averaged[3]), len(averaged[:-1])] == [1, len(averaged) - 1]
    assert len(averaged[averaged.nsd_id == averaged.nsd_id[0]]) == 1


def test_what_a_run_does_not_have_is_named(run, demo_folder, tmp_path):
    with pytest.raises(ConfigError, match="`rtf`"):
        run.captioner("rtf")
    with pytest.raises(SplitError, match="`subj01`"):
        run.trials("subj01", "test")
    unfinished = bitllm.Run(tmp_path, run.recipe)
    (tmp_path / "llm").symlink_to(demo_folder / "llm")
    with pytest.raises(CheckpointError, match="sft"):
        unfinished.captioner("sft")


def test_every_public_name_can_be_imported_and_listed():
    for name in bitllm.__all__:
        assert getattr(bitllm, name) is not None
    assert set(bitllm.__all__) <= set(dir(bitllm))
    with pytest.raises(AttributeError, match="Captionner"):
        _ = bitllm.Captionner


def test_importing_the_package_loads_no_torch():
    heavy = ("torch", "transformers", "numpy")
    program = f"import sys, bitllm; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
