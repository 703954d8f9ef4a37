"""A trained model with its prompts: the only place that generates and scores text.

    load_captioner(folder, base) → Captioner ─ caption(trials)            fMRI trials → text
                                             ─ greedy(brain_tokens)       brain tokens → text, temperature 0
                                             ─ sample(brain_tokens)       brain tokens → `Rollout` for rft
                                             ─ log_probs(answers, memory) log p of the tokens of given answers
                                             ─ log2_probs(answers, …)     the same of many answers, without gradients

Validation, rollouts, evaluation and the local page all use it, so they decode and score in the same way. `greedy`,
`sample` and `log2_probs` take one instruction for all inputs, or a `Prompt` for each one.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from peft import PeftModel
from torch import Tensor

from bitllm.data.batch import Anatomies, pad_answers
from bitllm.data.dataset import TrialSet
from bitllm.data.io.models import model_loading
from bitllm.data.prompt import INSTRUCTIONS, Prompt, Prompter
from bitllm.errors import CheckpointError
from bitllm.files import read_record
from bitllm.model.build import CARD, load_trained
from bitllm.model.checkpoint.base import BaseLlm, before_end, end_token_ids
from bitllm.model.checkpoint.weights import RFT_CARD, sft_beneath
from bitllm.model.embed import brain_tokens_of, brain_tokens_of_betas
from bitllm.model.encoder import BrainEncoder
from bitllm.model.likelihood import AfterPrompt, Due, token_log_probs
from bitllm.model.precision import Precision, base_dtype, computing
from bitllm.model.rollout import GumbelSampling, MixedRollout, Rollout
from bitllm.model.transport import Transport

_GENERATED_AT_ONCE = 256
_SCORED_AT_ONCE = 128
_PROMPTS_AT_ONCE = 64


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
    transport
        Map of the pooled betas of a new subject, for its trials only (`bitllm.evaluation.new_subject`).
    """

    model: Any
    prompter: Prompter
    atlases: tuple[str, ...] = ()
    name: str = ""
    split_sha256: str = ""
    transport: Transport | None = None

    @classmethod
    def of(cls, model: Any, tokenizer: Any, **about: Any) -> "Captioner":
        """A captioner for a model; for a prefix interface its prompts contain one placeholder per brain token."""
        if model.config.interface == "cross_attention":
            return cls(model, Prompter(tokenizer), **about)
        prompter = Prompter(tokenizer, model.model.encoder.n_brain_tokens, model.config.brain_token_id)
        return cls(model, prompter, **about)

    @property
    def encoder(self) -> BrainEncoder:
        """The brain encoder, with the transport if there is one."""
        encoder: BrainEncoder = self.model.model.encoder
        return encoder if self.transport is None else encoder.with_transport(self.transport)

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
        instruction: str | Sequence[Prompt] = INSTRUCTIONS[0],
        max_new_tokens: int = 24,
        on_batch: Callable[[int], None] | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> list[str]:
        """Captions or answers by greedy decoding, in batches: the same input and prompt always give the same text.

        Parameters
        ----------
        brain_tokens
            Output of the encoder; None for the LLM without brain input.
        n
            Number of captions if ``brain_tokens`` is None and there is one instruction.
        instruction
            Instruction for all inputs, or a prompt for each of them. Inputs with prompts of equal length are decoded
            together, so that none is padded.
        max_new_tokens
            Longest caption, in tokens.
        on_batch
            Called with the number of captions decoded so far.
        on_text
            Called after each token of a single input with the text so far; if it raises, decoding stops.
        """
        n = n if brain_tokens is None else len(brain_tokens)
        prompts = self._prompts(instruction, n, with_brain=brain_tokens is not None)
        # Equal inputs (such as the zero control) give equal answers to equal prompts: decode one of each.
        if brain_tokens is None or (n > 1 and bool((brain_tokens == brain_tokens[:1]).all())):
            place = {ids: number for number, ids in enumerate(dict.fromkeys(prompts))}
            copies = [place[ids] for ids in prompts]
            prompts = list(place)
        else:
            copies = list(range(n))
        texts, n_done = [""] * len(prompts), 0
        for rows in _of_equal_length(prompts, _GENERATED_AT_ONCE):
            answers = self._decode(
                None if brain_tokens is None else brain_tokens[rows],
                [prompts[row] for row in rows],
                max_new_tokens=max_new_tokens,
                on_token=None if on_text is None else lambda ids: on_text(self._texts(ids)[0]),
            )
            for row, text in zip(rows, self._texts(answers), strict=True):
                texts[row] = text
            n_done += len(rows)
            if on_batch is not None:
                on_batch(n_done)
        return [texts[row] for row in copies]

    @torch.no_grad()
    def sample(
        self,
        brain_tokens: Float[Tensor, "B N width"],
        *,
        n_captions: int,
        seeds: Sequence[int],
        instruction: str | Sequence[Prompt] = INSTRUCTIONS[0],
        max_new_tokens: int = 24,
        temperature: float = 1.0,
        synced_gpus: bool = False,
    ) -> Rollout | MixedRollout:
        """Sample ``n_captions`` captions for each brain input.

        Parameters
        ----------
        seeds
            One seed for each brain input; it determines the captions of that input.
        instruction
            Instruction for all inputs, or a prompt for each of them.
        temperature
            Temperature of the softmax.
        synced_gpus
            Whether every process runs as many steps as the slowest one; needed with sharded weights.
        """
        prompts = self._prompts(instruction, len(brain_tokens))

        def of(rows: Sequence[int], tokens: Float[Tensor, "b N width"]) -> Rollout:
            noise = GumbelSampling(
                [seeds[row] for row in rows],
                n_captions=n_captions,
                temperature=temperature,
                device=tokens.device,
            )
            how: Any = {"max_new_tokens": max_new_tokens, "stops_early": not synced_gpus}
            return self._sampled(tokens, [prompts[row] for row in rows], noise, how)

        groups = list(_of_equal_length(prompts, len(prompts)))
        if len(groups) == 1:
            return of(range(len(prompts)), brain_tokens)
        parts = tuple(of(rows, brain_tokens[rows]) for rows in groups)
        place = np.argsort(np.concatenate(groups))[:, None] * n_captions + np.arange(n_captions)
        return MixedRollout(parts, place.ravel())

    def _sampled(
        self,
        brain_tokens: Float[Tensor, "B N width"],
        prompts: Sequence[Sequence[int]],
        noise: GumbelSampling,
        how: dict[str, Any],
    ) -> Rollout:
        """Captions sampled after prompts of equal length."""
        device = brain_tokens.device
        drawn = self._decode(
            brain_tokens,
            prompts,
            n_each=noise.n_captions,
            choose=noise,
            **how,
        )
        answer = drawn.cpu()  # a single transfer: labels, captions and end tokens are found on the CPU
        is_end = torch.isin(answer, torch.tensor(self._ends))
        # Labels are the tokens up to and including the first end token. The padding token may itself be an end token,
        # so count the end tokens before each position instead of looking for padding.
        is_label = is_end.cumsum(-1) - is_end.long() == 0
        length = int(is_label.sum(-1).max())
        labels = answer.masked_fill(~is_label, -100)[:, :length]
        prompt = torch.tensor(prompts).repeat_interleave(noise.n_captions, 0)
        return Rollout(
            torch.cat([prompt.to(device), drawn[:, :length]], 1),
            torch.cat([torch.full_like(prompt, -100), labels], 1),
            brain_tokens,
            self._texts(answer),
            is_end.any(-1),
        )

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
        instruction: str | Sequence[Prompt] = INSTRUCTIONS[0],
        on_batch: Callable[[int, int], None] | None = None,
    ) -> Float[np.ndarray, "R L"]:
        """log2 p of every token of many answers; 0 beyond the end.

        The prompt is processed once for each input. The answers of an input continue from its cache, in batches of
        similar length.

        Parameters
        ----------
        answers
            Token ids of each answer.
        input_of_answer
            Row of ``brain_tokens``, and of the prompts if there are several, for each answer.
        brain_tokens
            Brain tokens, or a single one for all answers; None for the LLM without brain input.
        instruction
            Instruction for all inputs, or a prompt for each of them.
        on_batch
            Called with the number of answers done and the total.
        """
        lengths = np.array([len(answer) for answer in answers])
        found, n_done = np.zeros((len(answers), int(lengths.max()))), 0
        n_rows = 1 if brain_tokens is None else len(brain_tokens)
        n_inputs = n_rows if isinstance(instruction, str) else len(instruction)
        prompts = self._prompts(instruction, n_inputs, with_brain=brain_tokens is not None)
        owner = input_of_answer if n_inputs > 1 else np.zeros(len(answers), dtype=np.int64)
        by_length, tell = np.argsort(lengths, kind="stable"), on_batch or (lambda done, total: None)
        for inputs in _of_equal_length(prompts, _PROMPTS_AT_ONCE):
            own = by_length[np.isin(owner[by_length], inputs)]
            with self._running():
                part = None if brain_tokens is None else brain_tokens[[row % n_rows for row in inputs]]
                prompt = self._read_prompts(part, [prompts[row] for row in inputs])
                for first in range(0, len(own), _SCORED_AT_ONCE):
                    chosen = own[first : first + _SCORED_AT_ONCE]
                    row, column = np.nonzero(np.arange(lengths[chosen].max()) < lengths[chosen][:, None])
                    labels = torch.full((len(chosen), int(column.max()) + 1), -100)
                    labels[row, column] = torch.tensor([token for n in chosen for token in answers[n]])
                    rows = np.searchsorted(inputs, owner[chosen])
                    log_probs = prompt.rows(rows).log_probs(labels).log_probs
                    found[chosen, : log_probs.shape[1]] = log_probs.cpu().numpy() / np.log(2)
                    n_done += len(chosen)
                    tell(n_done, len(answers))
        return found

    @property
    def _ends(self) -> list[int]:
        return end_token_ids(self.model, self.prompter.tokenizer)

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Within the block, the model is in evaluation mode, without gradients and in its precision."""
        was_training = self.model.training
        self.model.eval()
        try:
            # compiled layers are for training: each length of a cache would be compiled again
            with torch.no_grad(), computing(self.model), torch.compiler.set_stance("force_eager"):
                yield
        finally:
            self.model.train(was_training)

    def _prompts(
        self, instruction: str | Sequence[Prompt], n: int, *, with_brain: bool = True
    ) -> list[tuple[int, ...]]:
        """Token ids of the prompt of each of n inputs; equal prompts are tokenized once."""
        prompter = self.prompter if with_brain else self.prompter.without_brain()
        prompts = [Prompt(instruction)] * n if isinstance(instruction, str) else list(instruction)
        ids = {
            one: tuple(prompter.prompt_ids(one.instruction, one.history)) for one in dict.fromkeys(prompts)
        }
        return [ids[one] for one in prompts]

    def _read_prompts(
        self, brain_tokens: Float[Tensor, "R N width"] | None, prompts: Sequence[Sequence[int]]
    ) -> AfterPrompt:
        """State of the LLM after prompts of equal length, each with its brain input or all without one."""
        ids, memory = torch.tensor(prompts, device=self.model.device), None
        if brain_tokens is not None:
            memory = self.model.model.brain_memory(brain_tokens=brain_tokens.to(self.model.device))
        return AfterPrompt.of(self.model, ids, memory)

    def _decode(
        self,
        brain_tokens: Float[Tensor, "B N width"] | None,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        n_each: int = 1,
        choose: Callable[[Float[Tensor, "R vocabulary"]], Int[Tensor, " R"]] = partial(torch.argmax, dim=-1),  # noqa: B008
        on_token: Callable[[Int[Tensor, "R L"]], None] | None = None,
        stops_early: bool = True,
    ) -> Int[Tensor, "R L"]:
        """Tokens of ``n_each`` answers to each input; the host waits for the device once per token.

        The prompt is processed once for each input. After its end token an answer is padded. Decoding stops when all
        answers have ended, or after ``max_new_tokens`` if ``stops_early`` is false.
        """
        device, pad = self.model.device, self.prompter.tokenizer.pad_token_id
        ends = torch.tensor(self._ends, device=device)
        never = torch.tensor(self.prompter.never_said or [], dtype=torch.long, device=device)
        with self._running():
            now = self._read_prompts(brain_tokens, prompts)
            if n_each > 1:
                now = now.rows(np.repeat(np.arange(len(now.hidden)), n_each))
            has_ended = torch.zeros(len(now.hidden), dtype=torch.bool, device=device)
            answers: list[Tensor] = []
            while True:
                # float32: the largest bfloat16 logits are often equal, and sampling adds noise to them.
                # A matrix: of a slice with three axes torch copies the whole head for each row (256 rows: 14 GB of
                # SmolLM2's).
                scores = self.model.lm_head(now.hidden[:, -1]).float().index_fill(1, never, -torch.inf)
                answers.append(choose(scores).masked_fill(has_ended, pad))
                has_ended = has_ended | torch.isin(answers[-1], ends)
                if on_token is not None:
                    on_token(torch.stack(answers, 1))
                if len(answers) == max_new_tokens or (stops_early and bool(has_ended.all())):
                    return torch.stack(answers, 1)
                now.hidden = now.read(answers[-1][:, None])

    def _texts(self, answers: Int[Tensor, "B L"]) -> list[str]:
        rows = [before_end(row, self._ends) for row in answers.tolist()]
        return [text.strip() for text in self.prompter.tokenizer.batch_decode(rows, skip_special_tokens=True)]


def _of_equal_length(prompts: Sequence[Sequence[int]], at_once: int) -> Iterator[list[int]]:
    """Rows of prompts of equal length, in batches; each batch is in increasing order."""
    lengths = np.array([len(ids) for ids in prompts])
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length).tolist()
        yield from (rows[start : start + at_once] for start in range(0, len(rows), at_once))


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
