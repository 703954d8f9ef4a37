"""Every way in which `transformers`, peft and torch run a model gives the result of the plainest one."""

import copy
import re
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from bitllm.errors import ConfigError, DataError
from bitllm.model.build import build_bit_llm, train_interface
from bitllm.model.interface import INTERFACES
from bitllm.model.modeling import BitLlmForCausalLM
from bitllm.model.voxels import Anatomy
from bitllm.stages.rft import LORA_TARGETS

GREEDY = {"max_new_tokens": 8, "do_sample": False}


@pytest.fixture(params=INTERFACES)
def interface_model(request, llm, encoder_sizes) -> BitLlmForCausalLM:
    """A model of each interface whose brain says something, with peaky logits so that ties are rare."""
    torch.manual_seed(1)
    llm = copy.deepcopy(llm)
    with torch.no_grad():
        llm.lm_head.weight.mul_(20)
    model = build_bit_llm(
        llm,
        encoder=encoder_sizes,
        interface=request.param,
        adapter_layers=[0, 2],
        prefix_hidden_width=9,
        brain_token_id=3,
    ).eval()
    for name, parameter in model.named_parameters():
        if ".adapter.o_proj" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return model


@pytest.fixture
def prompt(interface_model) -> torch.Tensor:
    """Three different prompts, with placeholders where the interface is a prefix."""
    ids = torch.randint(4, 50, (3, 6), generator=torch.Generator().manual_seed(5))
    if interface_model.config.interface == "cross_attention":
        return ids
    return torch.cat([torch.full((3, 5), 3), ids], dim=1)


def answer(model: Any, prompt: torch.Tensor, brain: dict[str, Any], **more: Any) -> torch.Tensor:
    out = model.generate(input_ids=prompt, **brain, **{**GREEDY, "pad_token_id": 0, **more})
    return out[:, prompt.shape[1] :]


@pytest.mark.parametrize(
    "way",
    [
        {"use_cache": True},
        {"cache_implementation": "static"},
        {"prompt_lookup_num_tokens": 2},
        {"num_beams": 1, "num_return_sequences": 1},
    ],
)
def test_greedy_decoding_is_the_same_in_every_way(interface_model, prompt, brain, way):
    if "prompt_lookup_num_tokens" in way:  # transformers does it for one prompt at a time
        one = {**brain, "betas": brain["betas"][:1], "subject_index": brain["subject_index"][:1]}
        plain = answer(interface_model, prompt[:1], one, use_cache=False)
        assert torch.equal(plain, answer(interface_model, prompt[:1], one, **way))
        return
    plain = answer(interface_model, prompt, brain, use_cache=False)
    assert torch.equal(plain, answer(interface_model, prompt, brain, **way))


def test_beams_and_their_sequences_share_one_memory(interface_model, prompt, brain):
    more = {"num_beams": 3, "num_return_sequences": 2}
    plain = answer(interface_model, prompt, brain, use_cache=False, **more)
    assert torch.equal(plain, answer(interface_model, prompt, brain, **more))
    assert torch.equal(plain, answer(interface_model, prompt, brain, cache_implementation="static", **more))


def test_samples_are_those_of_uncached_decoding(interface_model, prompt, brain):
    found = []
    for use_cache in (False, True):
        torch.manual_seed(7)
        more = {"do_sample": True, "num_return_sequences": 4, "top_k": 0}
        found.append(answer(interface_model, prompt, brain, use_cache=use_cache, **more))
    assert torch.equal(*found)
    assert len({tuple(row) for row in found[0].tolist()}) > 1


def test_a_left_padded_batch_says_what_each_prompt_alone_says(interface_model, prompt, brain):
    short = prompt[:, :-2]
    padded = torch.cat([torch.zeros(3, 2, dtype=torch.long), short], dim=1)
    batch = torch.cat([padded, prompt])
    mask = torch.ones_like(batch)
    mask[:3, :2] = 0
    twice = {
        **brain,
        "betas": brain["betas"].repeat(2, 1),
        "subject_index": brain["subject_index"].repeat(2),
    }
    together = answer(interface_model, batch, twice, attention_mask=mask)
    alone = torch.cat([answer(interface_model, short, brain), answer(interface_model, prompt, brain)])
    assert torch.equal(together, alone)


def test_an_anatomy_is_as_good_as_its_three_tensors(interface_model, prompt, brain):
    anatomy = Anatomy(brain["coords_mm"], brain["atlas_labels"], brain["voxel_mask"])
    whole = {"betas": brain["betas"], "subject_index": brain["subject_index"], "anatomy": anatomy}
    assert torch.equal(answer(interface_model, prompt, brain), answer(interface_model, prompt, whole))
    first = Anatomy.of_subject(brain["coords_mm"][0], brain["atlas_labels"][0])
    alone = answer(interface_model, prompt[:1], {"betas": brain["betas"][:1], "anatomy": first})
    assert torch.equal(alone, answer(interface_model, prompt, brain)[:1])


def test_a_misspelt_argument_of_generate_is_refused(interface_model, prompt, brain):
    with pytest.raises(ValueError, match="betaz"):
        interface_model.generate(input_ids=prompt, betaz=brain["betas"], **GREEDY)


def test_lora_starts_as_the_model_changes_it_and_can_be_switched_off(
    interface_model, prompt, brain, tmp_path
):
    before = answer(interface_model, prompt, brain)
    lora = LoraConfig(r=2, lora_alpha=4, target_modules=LORA_TARGETS["llm"], init_lora_weights=True)
    policy = get_peft_model(interface_model, lora)
    learning = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert learning and all("lora_" in name and "language_model.layers" in name for name in learning)
    assert not any("adapter." in name.split("language_model")[1] for name in learning)
    assert torch.equal(before, answer(policy, prompt, brain))
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=2.0)
    changed = answer(policy, prompt, brain)
    assert not torch.equal(before, changed)
    with policy.disable_adapter():
        assert torch.equal(before, answer(policy, prompt, brain))
    policy.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(policy.unload(), str(tmp_path))
    assert torch.equal(changed, answer(again, prompt, brain))
    assert torch.equal(changed, answer(again.merge_and_unload(), prompt, brain))


@pytest.mark.parametrize(
    ("backend", "interface"),
    [
        ("aot_eager", "cross_attention"),
        *(pytest.param("inductor", name, marks=pytest.mark.slow) for name in ("cross_attention", "prefix")),
    ],
)
def test_the_compiled_forward_is_one_graph_and_compiled_layers_have_equal_gradients(
    backend, interface, run_program
):
    """float32, the order of sums is the compiler's: 1e-5 of the largest logit."""
    said = run_program("compiled.py", backend, interface)
    differences = dict(line.split() for line in said.splitlines())
    assert set(differences) == {"logits", "gradients"}
    assert all(float(value) < 1e-5 for value in differences.values()), said


@pytest.fixture(scope="module")
def sharded(run_program, tmp_path_factory):
    """What two processes with sharded weights print. Without the variable, glibc keeps freed memory for later."""
    folder = str(tmp_path_factory.mktemp("sharded") / "llm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
        together = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
        return run_program(*together, "sharded.py", folder)


def test_no_process_holds_as_much_as_the_weights_that_are_sharded(sharded):
    found = re.search(r"own memory: (\d+) of (\d+) MB", sharded)
    assert found, sharded
    assert int(found[1]) < 0.9 * int(found[2])


def test_two_processes_with_sharded_weights_equal_one(sharded):
    found = re.search(r"differ by (\S+) of their largest; captions equal on (\d) of (\d)", sharded)
    assert found, sharded
    assert float(found[1]) < 1e-5
    assert found[2] == found[3] == "2"
    moved = re.search(r"weights after a step of Muon and AdamW differ by (\S+)", sharded)
    assert moved and float(moved[1]) < 1e-3, sharded  # of steps of about 0.1


def test_re_entrant_checkpointing_is_refused(interface_model):
    with pytest.raises(ConfigError, match="expected use_reentrant=False, found True"):
        interface_model.gradient_checkpointing_enable({"use_reentrant": True})


def test_bf16_decodes_and_learns_without_autocast(interface_model, prompt, brain):
    for name, parameter in interface_model.named_parameters():
        if name.startswith(("model.language_model", "lm_head")) and ".adapter." not in name:
            parameter.data = parameter.data.to(torch.bfloat16)
    train_interface(interface_model)
    out = interface_model(input_ids=prompt, labels=prompt, **brain)
    assert out.logits.dtype is torch.bfloat16
    out.loss.backward()
    for name, parameter in interface_model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.dtype is torch.float32, name
    assert answer(interface_model, prompt, brain).shape == (3, 8)


def test_eager_attention_says_the_same(interface_model, prompt, brain):
    plain = answer(interface_model, prompt, brain)
    interface_model.set_attn_implementation("eager")
    assert torch.equal(plain, answer(interface_model, prompt, brain))


def test_betas_without_their_anatomy_are_refused(interface_model, prompt, brain):
    with pytest.raises(DataError, match="expected the anatomy of their voxels with them, found none"):
        interface_model(input_ids=prompt, betas=brain["betas"])
