"""Sft with an encoder that learns from the captions together with the interface."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer

from bitllm.data.batch import BrainInput
from bitllm.data.dataset import select_trials
from bitllm.files import read_json
from bitllm.model.aligner import load_aligner
from bitllm.model.build import load_trained, train_interface
from bitllm.model.captioner import load_captioner
from bitllm.model.checkpoint.base import load_llm
from bitllm.model.embed import encode
from bitllm.model.voxels import Anatomy
from bitllm.stages import sft
from bitllm.stages.align import make_encoder
from bitllm.stages.examples import InstructedTrials
from bitllm.stages.sft import SftConfig, answer_loss, sft_fingerprint, train_sft
from bitllm.training.loop import OptimizerConfig, RunContext, TrainerSettings

FEW_STEPS = SftConfig(
    adapter_layers=(0, 1),
    encoder="trained",
    optimizer=OptimizerConfig(steps=4, batch_size=8, learning_rate=5e-3, warmup_steps=0, log_every=1),
    validate_every=2,
)
PAIRS = [(0, 3), (0, 40), (1, 7), (1, 90), (2, 120)]


class Killed(BaseException):
    """A kill: not even ``except Exception`` sees it."""


def train(easy, folder, config, **more):
    more = {"start": load_aligner(easy.folder / "align").eval().encoder} | more
    train_sft(
        easy.store,
        easy.split,
        folder,
        encoder_arguments=easy.encoder.arguments(easy.store),
        atlases=easy.encoder.atlases,
        llm_path=easy.folder / "llm",
        config=config,
        seed=0,
        **more,
    )


@pytest.fixture(scope="module")
def trained(easy, tmp_path_factory):
    """A few steps of encoder and interface together."""
    folder = tmp_path_factory.mktemp("trained") / "sft"
    train(easy, folder, FEW_STEPS)
    return folder


def examples_of(easy, model, base, part="train", **more):
    trials = select_trials(easy.store, easy.split, part, averaged=False)
    return InstructedTrials.of(trials, model, base.tokenizer, atlases=easy.encoder.atlases, seed=0, **more)


@pytest.fixture(params=["cross_attention", "prefix"])
def learner(request, easy, tmp_path):
    """A model all of whose encoder and interface learn, without dropout, and one batch of betas."""
    base = load_llm(easy.folder / "llm")
    few = FEW_STEPS.model_copy(update={"interface": request.param, "encoder": "frozen"})
    train(easy, tmp_path / "sft", few)
    model = load_trained(tmp_path / "sft", base)
    train_interface(model, with_encoder=True)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.train(), examples_of(easy, model, base, train_encoder=True).batch(PAIRS)


def plain_loss(model, batch, brain_tokens):
    """Cross-entropy of the answers by torch, over the logits of the whole text."""
    logits = model(input_ids=batch["input_ids"], brain_tokens=brain_tokens).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())


def test_encoder_and_interface_move_and_the_llm_does_not(easy, trained):
    before = load_aligner(easy.folder / "align").encoder.state_dict()
    saved, frozen = load_file(trained / "model.safetensors"), load_file(easy.folder / "sft/model.safetensors")
    assert set(saved) == set(frozen)  # the same tensors, whatever learns
    learns = {name for name, _ in load_aligner(easy.folder / "align").encoder.named_parameters()}
    moved = {name for name in before if not torch.equal(before[name], saved[f"model.encoder.{name}"])}
    assert moved == learns  # every parameter, and no place of a voxel
    base = load_llm(easy.folder / "llm")
    model = load_trained(trained, base)
    of_llm = model.model.language_model.state_dict()
    assert all(torch.equal(of_llm[name], tensor) for name, tensor in base.llm.model.state_dict().items())
    own = [p for name, p in model.named_parameters() if model.is_ours(name)]
    assert read_json(trained / "bitllm.json")["n_trainable"] == sum(p.numel() for p in own)


def test_what_is_loaded_decodes_by_the_encoder_that_was_trained(trained, easy):
    system = load_captioner(trained, load_llm(easy.folder / "llm"))
    saved = load_file(trained / "model.safetensors")
    assert torch.equal(system.encoder.queries, saved["model.encoder.queries"])


def test_the_loss_of_betas_is_that_of_the_brain_tokens_encoded_first(learner):
    model, batch = learner
    with torch.no_grad():
        brain = BrainInput(**{name: batch[name] for name in BrainInput._fields})
        expected = plain_loss(model, batch, encode(model.model.encoder, brain))
        assert answer_loss(model, batch).item() == pytest.approx(expected.item(), abs=1e-6)
        brain = brain._replace(betas=brain.betas.roll(1, 0))
        other = plain_loss(model, batch, encode(model.model.encoder, brain))
    assert abs(other - expected) > 1e-4  # the betas of another trial are another loss


def test_the_gradient_of_the_encoder_is_that_of_the_plain_chain(learner):
    model, batch = learner
    encoder = model.model.encoder
    answer_loss(model, batch).backward()
    found = {name: p.grad.clone() for name, p in encoder.named_parameters()}
    model.zero_grad(set_to_none=True)
    anatomy = Anatomy(*(batch[name] for name in Anatomy._fields))
    plain_loss(model, batch, encoder(batch["betas"], batch["subject_index"], anatomy)).backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad.norm() > 0, name
        assert (found[name] - parameter.grad).norm() <= 1e-6 * (1 + parameter.grad.norm()), name
    assert all(p.grad is None for name, p in model.named_parameters() if not model.is_ours(name))


def test_dropout_is_on_in_training_and_off_in_validation(easy, trained, monkeypatch):
    base = load_llm(easy.folder / "llm")
    model = load_trained(trained, base).train()
    examples = examples_of(easy, model, base, "validation", train_encoder=True)
    batch = examples.batch([(0, 0), (0, 1), (0, 2)])
    with torch.no_grad():
        assert len({answer_loss(model, batch).item() for _ in range(3)}) == 3
    first, second = (sft.validation_loss(model, examples)["validation_loss"] for _ in range(2))
    assert first == second and model.training
    encoded = examples_of(easy, model, base, "validation")
    assert sft.validation_loss(model, encoded)["validation_loss"] == pytest.approx(first, abs=1e-5)


def test_with_a_frozen_encoder_the_loss_is_that_of_its_brain_tokens(easy):
    base = load_llm(easy.folder / "llm")
    model = load_trained(easy.folder / "sft", base)
    train_interface(model)
    examples = examples_of(easy, model, base)
    batch = examples.batch(PAIRS)
    assert set(batch) == {"input_ids", "labels", "due", "pooled", "nsd_id"}
    whole = model.model.encoder.eval().tokens(examples.pooled)
    memory = model.model.interface(whole[[index for _, index in PAIRS]].detach())
    text = {name: batch[name] for name in ("input_ids", "labels")}
    log_probs, label_mask = sft.token_log_probs(model, **text, brain_memory=memory)
    loss = answer_loss(model, batch)
    assert loss.item() == pytest.approx((-log_probs.sum() / label_mask.sum()).item(), abs=1e-6)
    loss.backward()
    assert all(parameter.grad is None for parameter in model.model.encoder.parameters())


def test_records_name_the_encoder_only_where_it_was_set(easy):
    def record(config):
        encoder = load_aligner(easy.folder / "align").encoder
        return sft_fingerprint(easy.store, easy.split, start=encoder, llm_sha256="", config=config, seed=0)[
            "sft"
        ]

    plain = FEW_STEPS.model_copy(update={"encoder": "frozen"})
    assert {"encoder", "encoder_learning_rate"} & set(record(plain)) == set()
    assert record(FEW_STEPS) == record(plain) | {"encoder": "trained"}
    both = SftConfig.parse({"encoder": "trained", "encoder_learning_rate": 1e-3})
    assert SftConfig.parse(both.model_dump(mode="json")) == both


def test_of_the_encoder_decays_what_decays_in_align_at_a_rate_of_its_own(easy):
    model = load_trained(easy.folder / "sft", load_llm(easy.folder / "llm"))
    train_interface(model)
    before = sft.sft_optimizers(model, FEW_STEPS)[0].param_groups
    train_interface(model, with_encoder=True)
    (optimizer,) = sft.sft_optimizers(model, FEW_STEPS.model_copy(update={"encoder_learning_rate": 1e-4}))
    groups = optimizer.param_groups
    assert [list(map(id, g["params"])) for g in groups[:3]] == [list(map(id, g["params"])) for g in before]
    assert [group["lr"] for group in groups] == [5e-3] * 3 + [1e-4] * 2
    names = {id(p): name for name, p in model.model.encoder.named_parameters()}
    found = {names[id(p)]: bool(group["weight_decay"]) for group in groups[3:] for p in group["params"]}
    decaying = set(Trainer.get_decay_parameter_names(None, model.model.encoder))
    assert found == {name: name in decaying for name in names.values()}
    assert [group["lr"] for group in sft.sft_optimizers(model, FEW_STEPS)[0].param_groups] == [5e-3] * 5


def test_an_untrained_encoder_overfits_four_images_and_reads_which_one_it_is(
    easy, resealed, tmp_path, monkeypatch
):
    of_subject = set(easy.store.subject("subj01").trials["nsd_id"].tolist())
    four = frozenset(sorted(easy.split.train_images & of_subject)[:4])
    split = resealed(easy.split, train_images=four, train_subjects=("subj01", "subj02", "subj03"))
    first_captions = {nsd_id: group[:1] for nsd_id, group in easy.store.captions.items()}
    monkeypatch.setattr(easy.store, "captions", first_captions)
    few = easy._replace(split=split)
    steps = OptimizerConfig(steps=100, batch_size=12, learning_rate=1e-2, warmup_steps=5, weight_decay=0.0)
    config = FEW_STEPS.model_copy(update={"optimizer": steps, "validate_every": 1000})
    encoder = make_encoder(easy.store, split, easy.encoder, seed=0)
    train(few, tmp_path / "sft", config, start=encoder)
    right, wrong = right_and_wrong(few, tmp_path / "sft", "train")
    assert right < min(wrong) - 0.3  # .82 against 1.81 when this was written


def right_and_wrong(easy, folder, part):
    """Loss under the trials' own brain tokens, and under those of 19 permutations."""
    base = load_llm(easy.folder / "llm")
    model = load_trained(folder, base).eval()
    examples = examples_of(easy, model, base, part)
    right, wrong = sft.validation_loss(model, examples)["validation_loss"], []
    for seed in range(19):
        order = np.random.default_rng(seed).permutation(len(examples.trials))
        other = replace(examples, pooled=examples.pooled[order])
        wrong.append(sft.validation_loss(model, other)["validation_loss"])
    return right, wrong


def test_on_shuffled_pairs_an_encoder_that_learns_does_not_learn_to_read_the_brain(
    easy, tmp_path, monkeypatch
):
    images = sorted(easy.store.captions)
    others = np.random.default_rng(0).permutation(images)
    shuffled = {image: easy.store.captions[int(other)] for image, other in zip(images, others, strict=True)}
    steps = OptimizerConfig(steps=60, batch_size=16, learning_rate=5e-3, warmup_steps=5)
    config = FEW_STEPS.model_copy(update={"optimizer": steps, "validate_every": 1000})
    margins = {}
    for name, captions in (("honest", easy.store.captions), ("shuffled", shuffled)):
        with monkeypatch.context() as patch:
            patch.setattr(easy.store, "captions", captions)
            train(easy, tmp_path / name, config)
        right, wrong = right_and_wrong(easy, tmp_path / name, "validation")
        margins[name] = min(wrong) - right
    assert margins["shuffled"] < 0.002  # -.003 when this was written
    assert margins["honest"] > 0.02  # .040


@pytest.mark.parametrize("stop_at", [2, 6])
def test_a_killed_run_goes_on_bit_by_bit(easy, tmp_path, trained, monkeypatch, stop_at):
    context = RunContext(TrainerSettings(save_every=1, if_changed="refuse", report_to=()))
    original, calls = answer_loss, []

    def killed(model, inputs):
        calls.append(len(inputs))
        if len(calls) == stop_at:
            raise Killed
        return original(model, inputs)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(sft, "answer_loss", killed)
        train(easy, tmp_path / "sft", FEW_STEPS, context=context)
    assert (tmp_path / "sft.training" / "checkpoints").is_dir()
    torch.manual_seed(stop_at)  # another process draws from elsewhere
    train(easy, tmp_path / "sft", FEW_STEPS, context=context)
    weights, whole = (load_file(folder / "model.safetensors") for folder in (tmp_path / "sft", trained))
    assert all(torch.equal(weights[name], tensor) for name, tensor in whole.items())
    assert (tmp_path / "sft" / "log.jsonl").read_text() == (trained / "log.jsonl").read_text()
