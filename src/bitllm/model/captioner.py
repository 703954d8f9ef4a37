"""A trained model with its prompts: the only place that generates and scores text.

    load_captioner(folder, base) → Captioner ─ caption(trials)            fMRI trials → text
                                             ─ greedy(brain_tokens)       brain tokens → text, temperature 0
                                             ─ sample(brain_tokens)       brain tokens → `Rollout` for rft
                                             ─ log_probs(answers, memory) log p of the tokens of given answers

Validation, rollouts, evaluation and the local page all use it, so they decode and score in the same way.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from peft import PeftModel
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from bitllm.data.batch import Anatomies
from bitllm.data.dataset import TrialSet
from bitllm.data.io.models import model_loading
from bitllm.data.prompt import INSTRUCTIONS, Prompter, pad_answers, pad_left
from bitllm.errors import CheckpointError
from bitllm.files import read_record
from bitllm.model.build import CARD, load_trained
from bitllm.model.checkpoint.base import BaseLlm, before_end, end_token_ids
from bitllm.model.checkpoint.weights import RFT_CARD, sft_beneath
from bitllm.model.embed import brain_tokens_of, brain_tokens_of_betas
from bitllm.model.encoder import BrainEncoder
from bitllm.model.likelihood import Due, TokenLogProbs, token_log_probs
from bitllm.model.precision import Precision, base_dtype, computing

_GENERATED_AT_ONCE = 256
_SCORED_AT_ONCE = 128


@dataclass(frozen=True)
class Captioner:
    """A `BitLlmForCausalLM` that generates and scores captions of brain input.

    Parameters
    ----------
    model
        The model; `sample` and `greedy` switch it to evaluation mode and restore its mode afterwards.
    prompter
        Turns an instruction into token ids.
    atlases
        Atlases of the encoder, in the order of its labels.
    name
        Name of the system, e.g. ``rft``.
    split_sha256
        Checksum of the split that the model was trained on.
    """

    model: Any
    prompter: Prompter
    atlases: tuple[str, ...] = ()
    name: str = ""
    split_sha256: str = ""

    @classmethod
    def of(cls, model: Any, tokenizer: Any, **about: Any) -> "Captioner":
        """A captioner for a model; for a prefix interface its prompts contain one placeholder per brain token."""
        if model.config.interface == "cross_attention":
            return cls(model, Prompter(tokenizer), **about)
        prompter = Prompter(tokenizer, model.model.encoder.n_brain_tokens, model.config.brain_token_id)
        return cls(model, prompter, **about)

    @property
    def encoder(self) -> BrainEncoder:
        """The brain encoder."""
        return self.model.model.encoder

    def caption(
        self, trials: TrialSet, *, instruction: str = INSTRUCTIONS[0], max_new_tokens: int = 24
    ) -> list[str]:
        """One caption for each trial.

        Parameters
        ----------
        trials
            Trials of one or more subjects of a store (`bitllm.Run.trials`).
        instruction
            Instruction in the prompt.
        max_new_tokens
            Longest caption, in tokens.
        """
        brain_tokens = self.brain_tokens(trials)
        return self.greedy(brain_tokens, instruction=instruction, max_new_tokens=max_new_tokens)

    def brain_tokens(
        self, trials: TrialSet, betas: Float[np.ndarray, "n voxels"] | None = None
    ) -> Float[Tensor, "n N width"]:
        """Output of the encoder for trials, or for other betas (such as changed ones) of their one subject."""
        anatomies = Anatomies.of(trials.store, trials.subjects, self.atlases)
        if betas is None:
            return brain_tokens_of(self.encoder, trials, anatomies)
        (subject,) = trials.subjects
        return brain_tokens_of_betas(self.encoder, list(betas), subject, anatomies)

    def greedy(
        self,
        brain_tokens: Float[Tensor, "n N width"] | None,
        *,
        n: int = 1,
        instruction: str = INSTRUCTIONS[0],
        max_new_tokens: int = 24,
        on_batch: Callable[[int], None] | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> list[str]:
        """Captions by greedy decoding, in batches: the same input always gives the same text.

        Parameters
        ----------
        brain_tokens
            Output of the encoder; None for the LLM without brain input.
        n
            Number of captions if ``brain_tokens`` is None. They are all equal, so only one is decoded.
        instruction
            Instruction in the prompt.
        max_new_tokens
            Longest caption, in tokens.
        on_batch
            Called with the number of captions decoded so far.
        on_text
            Called after each token of a single input with the text so far; if it raises, decoding stops.
        """
        if brain_tokens is not None:
            n = len(brain_tokens)
            # Equal inputs (such as the zero control) give equal captions: decode one.
            if n > 1 and bool((brain_tokens == brain_tokens[:1]).all()):
                brain_tokens = brain_tokens[:1]
        rows = 1 if brain_tokens is None else len(brain_tokens)
        prompter = self.prompter if brain_tokens is not None else self.prompter.without_brain()
        captions: list[str] = []
        for start in range(0, rows, _GENERATED_AT_ONCE):
            part = (
                None
                if brain_tokens is None
                else brain_tokens[start : start + _GENERATED_AT_ONCE].to(self.model.device)
            )
            prompts = [prompter.prompt_ids(instruction)] * (1 if part is None else len(part))
            brain: dict[str, Any] = {} if part is None else {"brain_tokens": part}
            if on_text is not None:
                brain["streamer"] = _Streamer(self, on_text)
            ids, out = self._generate(prompts, max_new_tokens=max_new_tokens, **brain)
            captions += self._texts(out[:, ids.shape[1] :])
            if on_batch is not None:
                on_batch(len(captions))
        return captions * n if rows == 1 else captions

    @torch.no_grad()
    def sample(
        self,
        brain_tokens: Float[Tensor, "B N width"],
        *,
        n_captions: int,
        seeds: Sequence[int],
        instruction: str = INSTRUCTIONS[0],
        max_new_tokens: int = 24,
        temperature: float = 1.0,
        synced_gpus: bool = False,
    ) -> "Rollout":
        """Sample ``n_captions`` captions for each brain input.

        Parameters
        ----------
        seeds
            One seed for each brain input; it determines the captions of that input.
        temperature
            Temperature of the softmax.
        synced_gpus
            Whether every process runs as many steps as the slowest one; needed with sharded weights.
        """
        prompts = [self.prompter.prompt_ids(instruction)] * (len(brain_tokens) * n_captions)
        sampling = GumbelSampling(
            seeds, n_captions=n_captions, temperature=temperature, device=brain_tokens.device
        )
        with computing(self.model):
            memory = self.model.model.brain_memory(
                brain_tokens=brain_tokens
            )  # once for all captions of an input
        ids, out = self._generate(
            prompts,
            max_new_tokens=max_new_tokens,
            brain_memory=memory.repeat_interleave(n_captions, 0),
            logits_processor=LogitsProcessorList([sampling]),
            synced_gpus=synced_gpus,
        )
        out_ids = out.cpu()  # a single transfer: labels, captions and end tokens are found on the CPU
        answer = out_ids[:, ids.shape[1] :]
        is_end = torch.isin(answer, torch.tensor(self._ends))
        # Labels are the tokens up to and including the first end token. The padding token may itself be an end token,
        # so count the end tokens before each position instead of looking for padding.
        is_label = is_end.cumsum(-1) - is_end.long() == 0
        labels = torch.full_like(out_ids, -100)
        labels[:, ids.shape[1] :] = answer.masked_fill(~is_label, -100)
        return Rollout(out, labels, brain_tokens, self._texts(answer), is_end.any(-1))

    def log_probs(
        self,
        answers: Sequence[Sequence[int]],
        brain_memory: Float[Tensor, "B ..."] | None,
        *,
        instruction: str = INSTRUCTIONS[0],
    ) -> Float[Tensor, "B L"]:
        """Natural log p of every token of given answers after the prompt; 0 beyond the end. Differentiable.

        Parameters
        ----------
        answers
            Token ids (`Prompter.answer_ids`), one answer for each row.
        brain_memory
            Keys and values for the adapters, one row for each answer; None for the LLM without brain input.
        """
        prompter = self.prompter if brain_memory is not None else self.prompter.without_brain()
        prompts = [prompter.prompt_ids(instruction)] * len(answers)
        text = pad_answers(prompts, answers, prompter.tokenizer.pad_token_id)
        device = self.model.device
        return token_log_probs(
            self.model,
            input_ids=text["input_ids"].to(device),
            labels=text["labels"].to(device),
            due=Due.of(text["labels"]).to(device),
            brain_memory=brain_memory,
        ).log_probs

    @torch.no_grad()
    def log2_probs(
        self,
        answers: Sequence[Sequence[int]],
        input_of_answer: Int[np.ndarray, " R"],
        brain_tokens: Float[Tensor, "n N width"] | None,
        *,
        instruction: str = INSTRUCTIONS[0],
        on_batch: Callable[[int, int], None] | None = None,
    ) -> Float[np.ndarray, "R L"]:
        """log2 p of every token of many answers, in batches of similar length; 0 beyond the end.

        Parameters
        ----------
        answers
            Token ids of each answer.
        input_of_answer
            Row of ``brain_tokens`` that each answer is conditioned on.
        brain_tokens
            A single row serves all answers; None is the LLM without brain input.
        on_batch
            Called with the number of answers done and of all.
        """
        lengths = np.array([len(answer) for answer in answers])
        found = np.zeros((len(answers), int(lengths.max())))
        # Batches of similar length contain little padding.
        order = np.argsort(lengths, kind="stable")
        for start in range(0, len(answers), _SCORED_AT_ONCE):
            chosen = order[start : start + _SCORED_AT_ONCE]
            memory = None
            if brain_tokens is not None:
                rows = (
                    input_of_answer[chosen]
                    if len(brain_tokens) > 1
                    else np.zeros(len(chosen), dtype=np.int64)
                )
                part = brain_tokens[torch.from_numpy(rows)].to(self.model.device)
                with computing(self.model):
                    memory = self.model.model.brain_memory(brain_tokens=part)
            part_log_probs = self.log_probs(
                [answers[place] for place in chosen], memory, instruction=instruction
            )
            found[chosen, : part_log_probs.shape[1]] = part_log_probs.cpu().numpy() / np.log(2)
            if on_batch is not None:
                on_batch(start + len(chosen), len(answers))
        return found

    @property
    def _ends(self) -> list[int]:
        return end_token_ids(self.model, self.prompter.tokenizer)

    @torch.no_grad()
    def _generate(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """Prompts padded on the left, and the same prompts with their continuations."""
        pad = self.prompter.tokenizer.pad_token_id
        ids, mask = pad_left(prompts, pad)
        was_training = self.model.training
        self.model.eval()
        with computing(self.model):
            out = self.model.generate(
                input_ids=ids.to(self.model.device),
                attention_mask=mask.to(self.model.device),
                do_sample=False,  # also for samples: `GumbelSampling` makes the argmax a sample
                use_cache=True,
                max_new_tokens=max_new_tokens,
                pad_token_id=pad,
                eos_token_id=self._ends,
                suppress_tokens=self.prompter.never_said,
                **options,
            )
        self.model.train(was_training)
        return ids, out

    def _texts(self, answers: Int[Tensor, "B L"]) -> list[str]:
        rows = [before_end(row, self._ends) for row in answers.tolist()]
        return [text.strip() for text in self.prompter.tokenizer.batch_decode(rows, skip_special_tokens=True)]


@dataclass(frozen=True)
class Rollout:
    """G captions for each of B brain inputs; the rows of one input are adjacent.

    Legend: R = B · G rows, T tokens of prompt and caption, L caption tokens.
    """

    input_ids: Int[Tensor, "R T"]
    labels: Int[Tensor, "R T"]
    """On the CPU, like ``has_ended``."""
    brain_tokens: Float[Tensor, "B N width"]
    captions: list[str]
    has_ended: Bool[Tensor, " R"]
    """Whether the caption has an end token within ``max_new_tokens``."""

    def log_probs(self, model: Any, *, temperature: float = 1.0) -> TokenLogProbs:
        """Log-probabilities of the sampled tokens under ``model``."""
        with computing(model):
            memory = model.model.brain_memory(brain_tokens=self.brain_tokens)
        memory = memory.repeat_interleave(len(self.captions) // len(memory), 0)
        return token_log_probs(
            model,
            input_ids=self.input_ids,
            labels=self.labels.to(self.input_ids.device),
            due=Due.of(self.labels).to(self.input_ids.device),
            brain_memory=memory,
            temperature=temperature,
        )


class GumbelSampling(LogitsProcessor):
    """Noise that turns argmax into sampling from the softmax, with one random generator for each brain input.

    argmax(logits / T + g) with g = −log(−log u) is distributed as softmax(logits / T) (Gumbel 1954; Maddison et al.
    2014). The captions of an input therefore depend only on its seed: not on the batch, the number of processes, or
    where a run was resumed.
    """

    def __init__(
        self, seeds: Sequence[int], *, n_captions: int, temperature: float, device: torch.device
    ) -> None:
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        self.n_captions, self.temperature = n_captions, temperature

    def __call__(
        self, input_ids: Int[Tensor, "R T"], scores: Float[Tensor, "R vocabulary"]
    ) -> Float[Tensor, "R vocabulary"]:
        noise = torch.empty_like(scores, dtype=torch.float32)
        for rows, generator in zip(noise.split(self.n_captions), self.generators, strict=True):
            # If e is exponential, −log e is Gumbel distributed. This is why the noise is subtracted below.
            rows.exponential_(generator=generator)
        return scores / self.temperature - noise.log_()


class _Streamer:
    """Receives every new token from `generate`; the first call is the prompt."""

    def __init__(self, captioner: Captioner, on_text: Callable[[str], None]) -> None:
        self.captioner, self.on_text = captioner, on_text
        self.ids: list[int] | None = None

    def put(self, value: Tensor) -> None:
        if self.ids is None:
            self.ids = []
            return
        self.ids += value.flatten().tolist()
        self.on_text(self.captioner._texts(torch.tensor([self.ids]))[0])

    def end(self) -> None:
        """Part of the interface of `generate`."""


def load_captioner(
    folder: Path | str, base: BaseLlm, *, name: str | None = None, precision: Precision = "fp32"
) -> Captioner:
    """Load a checkpoint of sft, or of rft on top of its sft checkpoint."""
    folder = Path(folder)
    name = folder.name if name is None else name
    if (folder / RFT_CARD).is_file():
        sft = load_captioner(sft_beneath(folder), base, precision=precision)
        model = with_lora_weights(sft.model, folder).get_base_model().eval()
        split = read_record(folder / RFT_CARD, "split")["split"]
        return Captioner(model, sft.prompter, sft.atlases, name, split)
    if not (folder / CARD).is_file():
        raise CheckpointError(
            f"{folder}: expected a checkpoint of sft ({CARD}) or rft ({RFT_CARD}), found neither; train the stage first"
        )
    card = read_record(folder / CARD, "atlases", "split")
    model = load_trained(folder, base, base_dtype=base_dtype(precision)).eval()
    return Captioner.of(
        model, base.tokenizer, atlases=tuple(card["atlases"]), name=name, split_sha256=card["split"]
    )


def with_lora_weights(model: Any, folder: Path) -> Any:
    """The model of an sft checkpoint with the LoRA weights from the rft checkpoint in ``folder``."""
    with model_loading(folder, "the LoRA weights of rft", error=CheckpointError):
        return PeftModel.from_pretrained(model, str(folder))
