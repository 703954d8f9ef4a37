"""Evaluate checkpoints on held-out trials: the parts of one table, each in its own folder.

    encoder      retrieval, cosine to zero betas, and the captions that need no LLM: constant and nearest
    SYSTEM       captions from every input, their scores, bits of the references and of each decoded word
    SYSTEM-questions  answers to questions under every input, if the store has questions
    regions      the final system without each region and with each region alone, and its attribution

`assemble` joins the parts into ``evaluation.parquet`` and ``evaluation.json``; `bitllm.pipeline.evaluate` runs them
as steps and skips finished ones.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from bitllm.data.dataset import TrialSet
from bitllm.data.tasks import Exchange, exchanges
from bitllm.errors import DataError
from bitllm.evaluation.attribution import attribution, write_maps
from bitllm.evaluation.bits import word_evidence
from bitllm.evaluation.categories import one_category_each
from bitllm.evaluation.controls import BETAS_CONTROLS
from bitllm.evaluation.diagnostics import encoder_table, nearest_training_captions, same_encoder
from bitllm.evaluation.held_out import HeldOut, read_held_out
from bitllm.evaluation.new_subject import adapted, other_trials
from bitllm.evaluation.options import N_QUESTIONS, EvaluateOptions
from bitllm.evaluation.outcomes import Outcomes, Progress, outcomes
from bitllm.evaluation.pairing import other_images
from bitllm.evaluation.questions import TrainingAnswers, about_task, drawn, question_rows
from bitllm.evaluation.results import WITHOUT_ALIGN, to_json
from bitllm.evaluation.rois import Roi, evaluate_regions
from bitllm.evaluation.runs import Checkpoints
from bitllm.evaluation.scoring.floors import best_constant_caption, human_ceiling
from bitllm.evaluation.table import Evaluation, read_rows, rows_of, write_rows
from bitllm.evaluation.words import WordCategories
from bitllm.files import folder_written_whole, read_json, write_json
from bitllm.model.captioner import Captioner

ENCODER_PART, REGIONS_PART = "encoder", "regions"

_ROWS, _REST = "rows.parquet", "part.json"
_N_OTHERS = 4
"""Number of other images for the bits of a decoded word."""
_THIRDS = ("least similar", "middle", "most similar")


@dataclass(frozen=True)
class Evaluator:
    """Checkpoints and held-out trials, with the settings of the evaluation.

    Parameters
    ----------
    checkpoints
        Checkpoints to evaluate.
    options
        Settings; ``seed`` and ``max_new_tokens`` must be set.
    averaged, single
        The trials of one subject, averaged over repetitions and single.
    categories
        Words by category, or None.
    rois
        Regions to silence, and to use alone.
    progress
        Called as ``progress(what, done, total)``.
    """

    checkpoints: Checkpoints
    options: EvaluateOptions
    averaged: HeldOut
    single: HeldOut
    categories: WordCategories | None
    rois: list[Roi]
    progress: Progress | None = None

    @classmethod
    def of(
        cls,
        checkpoints: Checkpoints,
        options: EvaluateOptions,
        categories: WordCategories | None,
        rois: list[Roi],
        progress: Progress | None = None,
    ) -> "Evaluator":
        """Read the trials of the subject and part in the options."""
        averaged, single = (
            read_held_out(
                checkpoints.store,
                checkpoints.split,
                averaged=is_averaged,
                part=options.part,
                subject=options.subject,
            )
            for is_averaged in (True, False)
        )
        return cls(checkpoints, options, averaged, single, categories, rois, progress)

    @property
    def seed(self) -> int:
        """Seed of everything random."""
        return self.options.seed or 0

    @property
    def _has_repetitions(self) -> bool:
        """Whether single trials differ from the averages."""
        return not self.averaged.trials.is_single

    @property
    def max_new_tokens(self) -> int:
        """Longest caption, in tokens."""
        return self.options.max_new_tokens or 24

    def evaluate_encoder(self, folder: Path) -> None:
        """Write the part of the encoder, with the captions that need no LLM."""
        run, held_out = self.checkpoints, self.averaged
        images, similarity = self._images()
        tables: Any = {"inputs": self.options.inputs, "seed": self.seed}
        # the heads of align read the tokens of the encoder as align left it
        before_sft = run.encoder if run.aligner is None else run.aligner.encoder
        encoder = (run.aligner, before_sft, run.atlases)
        rows, real, not_run = encoder_table(*encoder, held_out, images, trials="averaged", **tables)
        parts = [rows]
        if self._has_repetitions:
            tables["inputs"] = ("permuted",)
            parts.append(encoder_table(*encoder, self.single, images, trials="single", **tables)[0])
        training = [run.store.captions[nsd_id] for nsd_id in sorted(run.split.train_images)]
        nearest = nearest_training_captions(
            before_sft, run.aligner, run.store, run.split, run.atlases, queries=real
        )
        human: dict[str, Any] = {}
        if min(len(texts) for texts in held_out.references) > 1:
            human = human_ceiling(held_out.scorer)
        _write_part(
            folder,
            pd.concat(parts, ignore_index=True),
            {
                "embedding": _embedding(run),
                "n_pictures": len(np.unique(held_out.nsd_id)),
                "constant": best_constant_caption(training, seed=self.seed),
                "nearest": nearest,
                "human": human,
                "similarity": similarity,
                "not_run": not_run,
            },
        )

    def evaluate_system(self, name: str, folder: Path, encoder_part: Path) -> None:
        """Write the part of one system; the part of the encoder must be finished."""
        system, options = self._load(name), self.options
        found = outcomes(
            system,
            self.averaged,
            seed=self.seed,
            max_new_tokens=self.max_new_tokens,
            controls=[one for one in BETAS_CONTROLS if one in options.inputs],
            likelihood_of={"all": None, "permuted": ("real",), "none": ()}[options.likelihood],
            progress=self.progress,
        )
        fixed = read_json(encoder_part / _REST)
        baselines = {
            "constant": [fixed["constant"]] * len(self.averaged.trials),
            "nearest": fixed["nearest"],
        }
        parts = [rows_of(found, system=name, baselines=baselines)]
        if self._has_repetitions:
            single = outcomes(
                system,
                self.single,
                seed=self.seed,
                max_new_tokens=self.max_new_tokens,
                controls=(),
                likelihood_of=("real",) if options.likelihood == "all" else (),
                progress=self.progress,
            )
            parts.append(rows_of(single, system=name, trials="single"))
        rows = pd.concat(parts, ignore_index=True)
        wanted = {"real", "permuted", *options.inputs}
        is_wanted = np.where(
            rows["trials"] == "single",
            rows["input"].isin(["real", "permuted"]),
            rows["input"].isin(list(wanted)),
        )
        _write_part(
            folder,
            rows[is_wanted],
            {"words": self._words(system, found), "controls": found.about, "not_run": found.not_run},
        )

    def evaluate_questions(self, name: str, folder: Path) -> None:
        """Write the part of one system with its answers to questions about the held-out images."""
        system, options, split = self._load(name), self.options, self.checkpoints.split
        asked, store = self.questions_to(name), self.checkpoints.store
        training = exchanges(store, tasks=list(asked), nsd_ids=split.train_images, of_trials=None)
        parts = []
        for held_out in (self.averaged, self.single):
            of_trials = held_out is self.single
            own = {task: found for task, found in asked.items() if (found[0].trial is not None) == of_trials}
            if own:
                parts.append(
                    question_rows(
                        system,
                        held_out,
                        own,
                        TrainingAnswers.of(training),
                        controls=options.inputs,
                        seed=self.seed,
                        max_new_tokens=self.max_new_tokens,
                        progress=self.progress,
                    )
                )
        _write_part(folder, pd.concat(parts, ignore_index=True), {})

    def questions_to(self, name: str) -> dict[str, list[Exchange]]:
        """The drawn exchanges to ask a system, by task: the tasks in the options, else those that it was trained on."""
        wanted = self.options.tasks or self.checkpoints.tasks_of(name)
        return {task: found for task, found in self._questions.items() if task in wanted}

    @cached_property
    def _questions(self) -> dict[str, list[Exchange]]:
        n = self.options.questions_per_task
        return {
            task: drawn(found, N_QUESTIONS if n is None else n, seed=self.seed)
            for task, found in self._available.items()
        }

    @cached_property
    def _available(self) -> dict[str, list[Exchange]]:
        store, options = self.checkpoints.store, self.options
        wanted = set(options.tasks or ()).union(*map(self.checkpoints.tasks_of, self.checkpoints.folders))
        if not wanted or options.questions_per_task == 0 or not (store.has_tasks or options.tasks):
            return {}
        found: dict[str, list[Exchange]] = {}
        images, subject = self.averaged.nsd_id.tolist(), self.averaged.subject
        for one in exchanges(store, tasks=options.tasks, nsd_ids=images, of_trials=None):
            if one.subject in (None, subject):
                found.setdefault(one.task, []).append(one)
        if missing := [task for task in options.tasks or () if task not in found]:
            raise DataError(
                f"--tasks: expected questions about the {options.part} images of {self.averaged.subject}, found none "
                f"of `{missing[0]}`; name other tasks"
            )
        return found

    def about_tasks(self) -> dict[str, dict[str, Any]]:
        """Source, license, metric and number of questions of each task."""
        return {task: about_task(self._available[task], found) for task, found in self._questions.items()}

    def evaluate_final(self, folder: Path) -> None:
        """Write regions and attribution of the final system, and its maps if the options name a folder."""
        run = self.checkpoints
        system = self._load(run.final)
        settings: Any = {"seed": self.seed, "max_new_tokens": self.max_new_tokens}
        found = outcomes(system, self.averaged, controls=(), likelihood_of=("real",), **settings)
        regions = evaluate_regions(
            system, found, self.rois, self.categories, progress=self.progress, **settings
        )
        voxels = attribution(system, found, seed=self.seed, progress=self.progress)
        if self.options.maps is not None:
            write_maps(system, self.averaged, voxels, self.options.maps)
        _write_part(folder, None, {"regions": to_json(regions), "attribution": voxels.summary(self.rois)})

    def _load(self, name: str) -> Captioner:
        """A system, adapted to the subject if the options say so."""
        run = self.checkpoints
        system = run.load(name)
        if self.own_trials is None:
            return system
        return adapted(system, *(run.training or (run.store, run.split)), self.own_trials)

    @cached_property
    def own_trials(self) -> TrialSet | None:
        """The trials that adapt the systems to the subject, if the options say so and it is a new one."""
        if not self.options.transport or self.checkpoints.was_trained_on(self.averaged.subject):
            return None
        held_out = self.averaged
        return other_trials(held_out.store, held_out.subject, held_out.nsd_id.tolist())

    def assemble(self, parts: dict[str, Path]) -> Evaluation:
        """Join the parts into the table and the content of ``evaluation.json``.

        Parameters
        ----------
        parts
            Folder of each finished part.
        """
        rest = {name: read_json(folder / _REST) for name, folder in parts.items()}
        names = list(self.checkpoints.folders)
        with_rows = [*names, *(name for name in map(questions_part, names) if name in parts), ENCODER_PART]
        encoder, final = rest[ENCODER_PART], rest[self.checkpoints.final]
        drawn = encoder["human"].pop("drawn", None)
        not_run = self.checkpoints.not_run | encoder["not_run"] | final["not_run"]
        shown = one_category_each(self.averaged.store, np.unique(self.averaged.nsd_id).tolist())
        if self.categories is None and not shown:
            not_run["category"] = "no words by category for this store; give a list with --words"
        if self.checkpoints.tasks_of(self.checkpoints.final) and not self.checkpoints.store.has_tasks:
            not_run["questions"] = "the store has no questions; add them with bitllm tasks"
        about = {
            "not_run": not_run,
            "controls": final["controls"],
            "constant_caption": encoder["constant"],
            "notes": [*self.checkpoints.notes, *([] if drawn is None else [f"human: {drawn}"])],
        }
        return Evaluation(
            pd.concat([read_rows(parts[name] / _ROWS) for name in with_rows], ignore_index=True),
            {
                "version": 1,
                "about": about,
                "embedding": encoder["embedding"],
                "n_pictures": encoder["n_pictures"],
                "human": encoder["human"],
                "groups": self._groups(encoder["similarity"]),
                "similarity": encoder["similarity"],
                **rest.get(REGIONS_PART, {}),
                "words": {name: rest[name]["words"] for name in names},
                "tasks": self.about_tasks(),
                "categories": shown,
                "references": {
                    str(int(image)): list(texts)
                    for image, texts in zip(self.averaged.nsd_id, self.averaged.references, strict=True)
                },
            },
        )

    def _images(self) -> tuple[Float[np.ndarray, "m d"] | None, dict[str, float]]:
        """CLIP embeddings of the test images, and the similarity of each to its nearest training image."""
        run = self.checkpoints
        if run.targets is None:
            return None, {}
        nsd_ids = np.unique(self.averaged.nsd_id)
        images = run.targets.image[run.targets.rows(nsd_ids)]
        if not run.is_own_store:
            return images, {}
        training = run.targets.image[run.targets.rows(np.array(sorted(run.split.train_images)))]
        similarity = (images @ training.T).max(axis=1)
        return images, {
            str(int(image)): float(value) for image, value in zip(nsd_ids, similarity, strict=True)
        }

    def _groups(self, similarity: dict[str, float]) -> list[dict[str, Any]]:
        """Groups of test images: by repetitions, by category, and thirds by similarity to the training images."""
        held_out = self.averaged
        nsd_id, counts = held_out.nsd_id, held_out.n_repetitions
        groups = [("repetitions", str(n), nsd_id[counts == n]) for n in np.unique(counts)]
        if self.categories is not None:
            for name in self.categories.nouns:
                groups.append(
                    ("category", name, nsd_id[self.categories.images_of(name, held_out.references)])
                )
        if similarity:
            order = np.argsort([similarity[str(image)] for image in nsd_id.tolist()], kind="stable")
            thirds = zip(_THIRDS, np.array_split(order, len(_THIRDS)), strict=True)
            groups += [("similarity_to_training", name, nsd_id[part]) for name, part in thirds]
        return [{"kind": kind, "name": name, "nsd_ids": ids.tolist()} for kind, name, ids in groups]

    def _words(self, system: Captioner, found: Outcomes) -> dict[str, list[list[list[Any]]]]:
        """Bits of each word in the captions from real and permuted betas, given the betas of the row's image."""
        if self.options.likelihood == "none":
            return {}
        real = self.averaged.brain_tokens(system.encoder, system.atlases)
        orders = [other_images(self.averaged, seed=self.seed + 1 + draw).order for draw in range(_N_OTHERS)]
        others = [real[order.tolist()] for order in orders]
        return {
            name: [
                [[word.word, round(word.bits, 2)] for word in row]
                for row in word_evidence(system, found.captions[name], real, others)
            ]
            for name in ("real", "permuted")
        }


def questions_part(name: str) -> str:
    """Name of the part with a system's answers to questions."""
    return f"{name}-questions"


def _embedding(run: Checkpoints) -> str:
    """What retrieval compares with the images, in words."""
    if run.aligner is None:
        return WITHOUT_ALIGN
    words = "image space of the align stage"
    return (
        words
        if same_encoder(run.aligner.encoder, run.encoder)
        else f"{words}, before sft trained the encoder"
    )


def _write_part(folder: Path, rows: pd.DataFrame | None, rest: dict[str, Any]) -> None:
    with folder_written_whole(folder, replace=True) as unfinished:
        if rows is not None:
            write_rows(unfinished / _ROWS, rows)
        write_json(unfinished / _REST, rest)
