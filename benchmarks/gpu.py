"""Measure a GPU and compare it with the predictions of `scaling.py`: at most ten minutes, random weights, no network.

    python benchmarks/gpu.py                       on an H100: the poster's sizes
    python benchmarks/gpu.py --device cpu mine.yaml    the same program at the sizes of a small recipe

Writes ``gpu.json`` and prints a table; each row passes if the measured value is on the right side of its prediction.
The predictions were written before any GPU ran this program: they are arithmetic for an H100, and a FAIL is as
informative as a PASS. On a CPU nothing is judged.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from bitllm.model.build import n_trainable, train_interface
from bitllm.model.captioner import Captioner
from bitllm.model.likelihood import Due
from bitllm.model.precision import tf32
from bitllm.model.voxels import Anatomy
from bitllm.pipeline.recipe import Recipe, read_recipe
from bitllm.preflight.cost import make_aligner
from bitllm.preflight.steps import make_answers, make_betas, make_model, make_prompter
from bitllm.stages.rewards import Answers
from bitllm.stages.rft import RftObjective, with_lora
from bitllm.stages.sft import answer_loss, sft_optimizers

PROMPT, CAPTION, NEW = 45, 12, 24


@dataclass(frozen=True)
class Prediction:
    """What a row must reach on an H100."""

    what: str
    limit: float
    at_most: bool
    because: str


PREDICTIONS = {
    "bf16_tflops": Prediction("bf16 product, TFLOP/s", 400, False, "half of the data sheet's 989, cautious"),
    "tf32_tflops": Prediction("TF32 product, TFLOP/s", 250, False, "half of 495"),
    "copy_gb_s": Prediction("copy on the card, GB/s", 2500, False, "3,350 by the data sheet"),
    "launch_us": Prediction("launch of a kernel, µs", 10, True, "8 assumed in scaling.py"),
    "align_loss_error": Prediction("align loss, card against CPU", 1e-4, True, "float32 in another order"),
    "align_waits": Prediction(
        "waits of a step of align", 0, True, "counted on a pretend device; the log adds 1"
    ),
    "align_ms": Prediction("step of align, ms", 10, True, "4.5 on the card and 2 of launches, doubled"),
    "pooling_ratio": Prediction("pooling: attention kernel / product", 3, False, "16 blocks on 132 SMs"),
    "pooling_error": Prediction("pooling, float32 against float64", 1e-4, True, "sums of 15,724 terms"),
    "sft_waits": Prediction("waits of a step of sft", 1, True, "transformers looks for packed sequences"),
    "sft_ms": Prediction("step of sft, ms", 90, True, "69 on the card"),
    "sft_mfu": Prediction(
        "share of the bf16 product in sft", 0.35, False, "20 % of the time is not products"
    ),
    "decode_ms": Prediction("greedy decoding, ms a token", 22, True, "1,238 launches and Python"),
    "rft_waits": Prediction(
        "waits of a step of rft", NEW + 2, True, "one for each token but the last, 2 checks, 1 copy"
    ),
    "rft_s": Prediction("step of rft without rewards, s", 2.5, True, "1.2 on the card, 0.5 of decoding"),
    "sft_compiled_ratio": Prediction(
        "sft: plain / compiled layers", 1.15, False, "norms, rotations, SiLU fused"
    ),
    "resume_error": Prediction(
        "sft loss after kill and resume", 1e-3, True, "0 on a CPU; atomic additions on a card"
    ),
    "rewards_share": Prediction(
        "rft: CLIP and BERTScore rewards / step", 0.1, True, "6.6 TFLOP of 192 captions"
    ),
    "ddp_error": Prediction("sft loss, two cards with copies", 1e-3, True, "sums in another order"),
    "fsdp_error": Prediction("sft loss, two cards with shards", 1e-3, True, "sums in another order"),
    "references_s": Prediction(
        "references scored a second", 1000, False, "62 tokens of 5.6 GFLOP, 70 % of 400 T"
    ),
}


class Card:
    """Times and counts on a device."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.is_cuda = self.device.type == "cuda"
        self.found: dict[str, float] = {}
        self.skipped: dict[str, str] = {}

    def seconds(self, run: Callable[[], Any], *, repeats: int = 5) -> float:
        """Median time of one call, after two to warm up."""
        times = []
        for number in range(repeats + 2):
            start = time.perf_counter()
            run()
            if self.is_cuda:
                torch.cuda.synchronize()
            if number >= 2:
                times.append(time.perf_counter() - start)
        return float(np.median(times))

    def waits(self, run: Callable[[], Any]) -> int:
        """How often the host waits for the device in one call."""
        if not self.is_cuda:
            return 0
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run()
        torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(one.message) for one in caught)


def machine(card: Card, side: int) -> None:
    """Rates of the card itself."""
    a = torch.randn(side, side, device=card.device)
    half = a.bfloat16()
    card.found["bf16_tflops"] = 2e-12 * side**3 / card.seconds(lambda: half @ half)
    with tf32():
        card.found["tf32_tflops"] = 2e-12 * side**3 / card.seconds(lambda: a @ a)
    b = torch.empty_like(a)
    card.found["copy_gb_s"] = 2e-9 * a.nbytes / card.seconds(lambda: b.copy_(a))
    small = torch.zeros(8, device=card.device)
    card.found["launch_us"] = 1e3 * card.seconds(lambda: [small.add_(1) for _ in range(1000)])


def align(card: Card, recipe: Recipe) -> None:
    """A step of align; its loss against the CPU's; pooling by one product against the attention kernel."""
    torch.manual_seed(0)
    aligner = make_aligner(recipe)
    for module in aligner.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    n = recipe.align.optimizer.batch_size
    betas, subject_index, anatomy = make_betas(recipe, n, seed=0)
    betas = betas.masked_fill(~anatomy.voxel_mask[subject_index], 0.0)
    width = recipe.clip.embedding_width
    image, text = (F.normalize(torch.randn(n, width), dim=-1) for _ in range(2))
    batch = {
        "betas": betas,
        "subject_index": subject_index,
        **anatomy._asdict(),
        "image": image,
        "text": text,
    }
    batch |= {"nsd_id": torch.arange(n)}
    per_subject = int(subject_index.bincount().max())
    with torch.no_grad():
        expected = float(aligner(**batch, per_subject=per_subject)["loss"])
    aligner.to(card.device)
    batch = {name: value.to(card.device) for name, value in batch.items()}
    optimizer = torch.optim.AdamW(aligner.parameters(), fused=True)

    def step() -> None:
        aligner(**batch, per_subject=per_subject)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()

    with torch.no_grad():
        found = float(aligner(**batch, per_subject=per_subject)["loss"])
    card.found["align_loss_error"] = abs(found - expected)
    with tf32():
        card.found["align_ms"] = 1e3 * card.seconds(step)
        card.found["align_waits"] = card.waits(step)
    pooling(card, aligner.encoder, batch, per_subject)


def pooling(card: Card, encoder: Any, batch: dict[str, Any], per_subject: int) -> None:
    """Forward and backward of the pooling alone, both ways, and its error."""
    import bitllm.model.encoder as module

    place = Anatomy(*(batch[name] for name in Anatomy._fields))

    def pooled() -> torch.Tensor:
        return encoder.pooled(batch["betas"], batch["subject_index"], place, per_subject=per_subject)

    def both_ways() -> None:
        pooled().square().sum().backward()

    product, limit = card.seconds(both_ways), module.MAP_LIMIT_BYTES
    explicit = pooled().detach()
    module.MAP_LIMIT_BYTES = 0
    card.found["pooling_ratio"] = card.seconds(both_ways) / product
    module.MAP_LIMIT_BYTES = limit
    few = slice(2)
    with torch.no_grad():
        double = encoder.double().pooled(
            batch["betas"][few].double(),
            batch["subject_index"][few],
            place._replace(coords_mm=place[0].double()),
        )
    card.found["pooling_error"] = float((explicit[few].double() - double).abs().max())
    encoder.float()


def language(card: Card, recipe: Recipe) -> None:
    """Steps of sft and rft, decoding, and scoring of references, with one model."""
    dtype = torch.bfloat16 if card.is_cuda else torch.float32
    model = make_model(recipe, dtype=dtype).to(card.device)
    prompter = make_prompter(recipe, model, n_tokens=PROMPT)
    n, n_rft = recipe.sft.optimizer.batch_size, recipe.rft.optimizer.batch_size
    pooled = torch.randn(max(n, n_rft), recipe.encoder.n_queries, device=card.device)
    sft(card, recipe, model, prompter, pooled[:n])
    captioner = Captioner(model, prompter)
    rows = n_rft * recipe.rft.n_captions
    brain = torch.randn(rows, recipe.encoder.n_brain_tokens, recipe.encoder.token_width, device=card.device)
    decoding = card.seconds(lambda: captioner.greedy(brain, max_new_tokens=NEW), repeats=2)
    card.found["decode_ms"] = 1e3 * decoding / NEW
    answers = [list(range(10, 10 + CAPTION))] * 256
    input_of_answer = np.arange(256) % rows
    scoring = card.seconds(lambda: captioner.log2_probs(answers, input_of_answer, brain), repeats=2)
    card.found["references_s"] = 256 / scoring
    rft(card, recipe, model, captioner, pooled[:n_rft])


def sft(card: Card, recipe: Recipe, model: Any, prompter: Any, pooled: torch.Tensor) -> None:
    """A step of sft."""
    train_interface(model)
    model.train()
    optimizers = sft_optimizers(model, recipe.sft)
    text = make_answers(prompter, len(pooled), n_tokens=CAPTION)
    due = Due.of(text["labels"]).to(card.device)
    ids, labels = (text[name].to(card.device) for name in ("input_ids", "labels"))
    inputs = {"input_ids": ids, "labels": labels, "due": due, "pooled": pooled}

    def step() -> None:
        answer_loss(model, inputs).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    seconds = card.seconds(step)
    if card.is_cuda:
        model.model.language_model.compile_layers()
        card.found["sft_compiled_ratio"] = seconds / card.seconds(step)
        torch.compiler.set_stance("force_eager")
    else:
        card.skipped["sft_compiled_ratio"] = "minutes of compiling; `sft_step.py` measures it on a CPU"
    card.found |= {"sft_ms": 1e3 * seconds, "sft_waits": card.waits(step)}
    sizes = recipe.llm.published_sizes()
    backbone = (
        sum(p.numel() for p in model.model.language_model.parameters()) - sizes.vocab_size * sizes.hidden_size
    )
    flop = (4 * backbone + 6 * n_trainable(model)) * ids.numel()
    card.found["sft_mfu"] = 1e-12 * flop / seconds / card.found["bf16_tflops"]
    model.zero_grad(set_to_none=True)
    model.eval()


def rft(card: Card, recipe: Recipe, model: Any, captioner: Captioner, pooled: torch.Tensor) -> None:
    """A step of rft with random rewards."""

    def reward(answers: Answers) -> dict[str, np.ndarray]:
        return {"random": np.random.default_rng(0).normal(size=len(answers.captions))}

    policy = with_lora(model, recipe.rft).train().to(card.device)
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=True)
    settings = recipe.rft.model_copy(update={"max_new_tokens": NEW})
    objective = RftObjective(policy, captioner, reward, settings, seed=0)
    rows = np.arange(len(pooled))

    def step() -> None:
        objective(pooled=pooled, nsd_id=rows, example=np.stack([rows, rows], axis=1))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()

    card.found["rft_s"] = card.seconds(step, repeats=2)
    rewards(card, n_captions=len(rows) * settings.n_captions)
    card.found["rft_waits"] = card.waits(step)


def rewards(card: Card, *, n_captions: int) -> None:
    """Captions through random encoders of the sizes of CLIP-L's text tower and of DeBERTa-xlarge, against a step."""
    sizes = [(768, 12, 3072), (1024, 48, 4096)] if card.is_cuda else [(32, 1, 64)] * 2
    towers = []
    for width, layers, inner in sizes:
        layer = nn.TransformerEncoderLayer(width, 8, inner, batch_first=True, device=card.device)
        towers.append((width, nn.TransformerEncoder(layer, layers, enable_nested_tensor=False).eval()))

    @torch.no_grad()
    def both() -> None:
        for width, tower in towers:
            tower(torch.randn(n_captions, NEW, width, device=card.device)).cpu()

    card.found["rewards_share"] = card.seconds(both) / card.found["rft_s"]


def runs(card: Card) -> None:
    """The smallest demo's sft: killed and resumed, and on two cards, each against the losses of one whole run."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = train(folder / "whole")
        words = ["--trainer.save-every", "1"]
        train(folder / "killed", *words, kill_at=5)
        card.found["resume_error"] = largest(whole, train(folder / "killed", *words))
        for how in ("ddp", "fsdp"):
            if torch.cuda.device_count() < 2:
                card.skipped[f"{how}_error"] = f"{torch.cuda.device_count()} cards, two are needed"
                continue
            found = train(folder / how, "--trainer.parallel", how, n_processes=2)
            card.found[f"{how}_error"] = largest(whole, found)


def train(run: Path, *words: str, n_processes: int = 1, kill_at: int | None = None) -> list[float]:
    """Losses of the smallest demo's sft, trained by the command; killed after a checkpoint where that is asked for."""
    if not (run / "align").exists() and run.name != "whole":
        shutil.copytree(run.with_name("whole"), run, ignore=shutil.ignore_patterns("sft", "sft.json"))
    together = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n_processes)]
    words = (
        "-m",
        "bitllm",
        "train",
        "smoke",
        "sft",
        "--out",
        str(run),
        "--sft.optimizer.log-every",
        "1",
        *words,
    )
    started = subprocess.Popen(
        [sys.executable, *(together if n_processes > 1 else []), *words], stdout=subprocess.DEVNULL
    )
    checkpoints = run / "sft.training" / "checkpoints"
    while started.poll() is None:
        if kill_at is not None and any(
            path.name >= f"step-{kill_at:08d}" for path in checkpoints.glob("step-*")
        ):
            started.kill()
        time.sleep(0.01)
    started.wait()
    log = run / "sft" / "log.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return [row["loss"] for row in rows if "loss" in row]


def largest(one: list[float], other: list[float]) -> float:
    """Largest difference of two rows of losses."""
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def report(card: Card) -> list[str]:
    """Lines of the table."""
    lines = ["| measured | value | predicted | | because |", "|---|---|---|---|---|"]
    for name, one in PREDICTIONS.items():
        if name in card.skipped:
            lines.append(f"| {one.what} | | | skipped | {card.skipped[name]} |")
            continue
        value = card.found[name]
        passes = value <= one.limit if one.at_most else value >= one.limit
        verdict = ("PASS" if passes else "FAIL") if card.is_cuda else "not judged"
        sign = "≤" if one.at_most else "≥"
        lines.append(f"| {one.what} | {value:.4g} | {sign} {one.limit:g} | {verdict} | {one.because} |")
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Measure everything; 1 if a row fails."""
    parser = argparse.ArgumentParser(description="A GPU against predictions.")
    parser.add_argument("recipe", nargs="?", default="poster", help="a packaged recipe or a YAML file")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the program")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="file of the measured values")
    given = parser.parse_args(arguments)
    card, recipe = Card(given.device), read_recipe(given.recipe)
    machine(card, 8192 if card.is_cuda else 128)
    align(card, recipe)
    language(card, recipe)
    if card.is_cuda:
        runs(card)
    else:
        card.skipped |= dict.fromkeys(("resume_error", "ddp_error", "fsdp_error"), "tests do this on a CPU")
    about = {"torch": torch.__version__, "device": given.device}
    if card.is_cuda:
        about |= {"card": torch.cuda.get_device_name(), "peak_gb": torch.cuda.max_memory_allocated() / 1e9}
    given.out.write_text(json.dumps({"about": about, "found": card.found}, indent=1) + "\n", encoding="utf-8")
    lines = report(card)
    print("\n".join(lines))
    return int(any("FAIL" in line for line in lines))


if __name__ == "__main__":
    sys.exit(main())
