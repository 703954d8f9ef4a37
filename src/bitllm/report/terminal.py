"""Results in the terminal, 80 columns wide.

Of an evaluation (`render_table`): verdict, systems with controls, bits, encoder, groups, regions. Of a file of captions
(`render_scores`): metrics with floors, differences, verdict.
"""

from collections.abc import Iterator

from rich.console import Group as Stack
from rich.console import RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from bitllm.evaluation.results import About, Results
from bitllm.evaluation.scoring.score_file import CaptionScores
from bitllm.evaluation.verdict import CONTROLS, bits_of, in_order, judge_questions, label
from bitllm.report.headline import headline
from bitllm.report.questions import sources, task_rows
from bitllm.report.tables import (
    COMPARISON,
    Row,
    category_rows,
    group_name,
    interval,
    number,
    p_value,
    retrieval_rows,
    score_groups,
    shown,
    subject_note,
)

_STYLES = {"system": "bold", "comparison": "yellow", "ceiling": "green"}


def render_table(results: Results) -> Stack:
    """The results as an object that rich can print."""
    judged = headline(results)
    color = "green" if judged.is_evidence else "yellow"
    title = "Do the captions depend on the brain data?"
    parts: list[RenderableType] = [Panel(Text(judged.sentence), border_style=color, title=title)]
    parts += [Text(_where(results.about)), Text(), *_scores(results)]
    for table in (
        _categories(results),
        _bits(results),
        _questions(results),
        _retrieval(results),
        _groups(results),
        _regions(results),
    ):
        if table.row_count:
            parts += [table, Text()]
    parts += [Text(line) for line in _lines(results)]
    parts += [
        Text(f"not run: {name}: {reason}", style="dim") for name, reason in results.about.not_run.items()
    ]
    parts += [Text(f"note: {note}", style="dim") for note in results.about.notes]
    return Stack(*parts)


def render_scores(found: CaptionScores) -> Stack:
    """The scores of a file of captions as an object that rich can print."""
    table = _table(f"{found.n_images:,} images, {found.n_distinct:,} distinct captions")
    _columns(table, "metric", "score", "95 % interval", *found.floors)
    for name, one in found.scores.items():
        floors = [number(floor.get(name), 2) for floor in found.floors.values()]
        table.add_row(name, number(one.value, 2), escape(interval(one)), *floors)
    parts: list[RenderableType] = [table]
    for pair, differences in found.differences.items():
        if pair.removeprefix("real - ") not in found.floors:
            table = _table(escape(pair.replace(" - ", " − ")))
            _columns(table, "metric", "difference", "95 % interval", "p")
            for name, one in differences.items():
                cells = (name, number(one.value, 2, sign=True), interval(one, 2), _p(one.p))
                table.add_row(*map(escape, cells))
            parts += [Text(), table]
    return Stack(*parts, *map(Text, _about_scores(found)), Text(), Text(found.summary, style="bold"))


def _about_scores(found: CaptionScores) -> Iterator[str]:
    constant, human = found.floors["constant"], found.floors.get("human", {})
    yield f'constant: "{constant["caption"]}" ({constant["chosen_on"]})'
    if "drawn" in human:
        yield f"human: {human['drawn']} are held out in turn"
    yield (
        f"words per caption {found.diversity['mean_length']:.1f}, distinct-1 {found.diversity['distinct_1']:.3f}, "
        f"distinct-2 {found.diversity['distinct_2']:.3f}"
    )
    yield f"tokenizer {found.tokenizer}, references {found.references_sha256[:12]}"
    yield from (f"note: {note}" for note in found.notes)
    yield from (f"not run: {name}: {why}" for name, why in found.not_run.items())


def _where(about: About) -> str:
    note = f" ({subject_note(about)})" if subject_note(about) else ""
    return (
        f"{about.subject}{note}, {about.part} part of split {about.split} {about.split_sha256[:8]}: "
        f"{about.n_images:,} images, {about.n_trials:,} trials, seed {about.seed}"
    )


def _scores(results: Results) -> Iterator[RenderableType]:
    table = _table("Captions: scores with their controls; [95 % interval over images]")
    table.add_column("system, its controls", max_width=22)
    table.add_column("CIDEr", justify="right")
    table.add_column("", no_wrap=True)
    table.add_column("real − control", justify="right", no_wrap=True)
    for name in ("BLEU\n-4", "ROUGE\n-L", "dis-\ntinct"):
        table.add_column(name, justify="right")
    groups = score_groups(results)
    for group in groups:
        for row in group.rows:
            table.add_row(*map(escape, _cells(row)), style=_STYLES.get(row.kind, ""))
        table.add_row()
    if groups:
        yield table
    if any(row.kind == "comparison" for group in groups for row in group.rows):
        yield from (Text(f"* {COMPARISON}"), Text())


def _cells(row: Row) -> list[str]:
    indent = "" if row.kind in ("system", "ceiling") else "  "
    cider = row.scores.get("CIDEr")
    return [
        indent + row.short + (" *" if row.kind == "comparison" else ""),
        "" if cider is None else number(cider.value),
        interval(cider),
        "" if row.difference is None else row.difference.shown(sign=True),
        *(number(row.scores[name].value) if name in row.scores else "" for name in ("BLEU-4", "ROUGE-L")),
        "" if row.n_distinct is None else number(row.n_distinct, 0),
    ]


def _categories(results: Results) -> Table:
    n = 0 if results.categories is None else results.categories.n_categories
    table = _table(f"Category named by the caption, of {n} (percent; [95 % interval])")
    _columns(table, "input", "right", "", "real − control", "p")
    for row in category_rows(results):
        difference = shown(row.difference, sign=True) if row.difference else ""
        cells = (row.label, number(row.share.value), interval(row.share), difference,
                 _p(None if row.difference is None else row.difference.p))  # fmt: skip
        table.add_row(*map(escape, cells), style=_STYLES.get(row.kind, ""))
    return table


def _bits(results: Results) -> Table:
    """Bits of every system against another image's betas; for the final system also against the other controls."""
    table = _table("Bits by which the real betas make the references more probable (0: none)")
    _columns(table, "real − control", "per caption", "per word", "p")
    for name, system in results.systems.items():
        controls = in_order(system.controls, CONTROLS) if name == results.final else ["permuted"]
        for control in controls:
            found = bits_of(system, "per_caption", control)
            if found is not None:
                per_word = shown(bits_of(system, "per_word", control), 3, sign=True)
                pair = f"{name} − {label(control, is_short=True)}"
                cells = (pair, found.shown(2, sign=True), per_word, _p(found.p))
                table.add_row(*map(escape, cells))
    return table


def _questions(results: Results) -> Table:
    """The tasks of the system that was asked: accuracy with its controls, in percent."""
    table = _table(f"Questions: accuracy of {results.asked}, in %")
    _columns(table, "task", "N", "real", "real − another image", "freq.", "LLM\nalone", "yes", "bits")
    system = results.systems.get(results.asked)
    for row in [] if system is None or system.questions is None else task_rows(system.questions):
        floors = [None if one is None else one.value for one in (row.most_frequent, row.llm_alone)]
        yes = "" if row.yes_ratio is None else number(100 * row.yes_ratio, 0)
        bits = "" if row.bits is None else number(row.bits.value, 2, sign=True)
        lead = "" if row.over_permuted is None else row.over_permuted.shown(sign=True)
        cells = (
            row.name,
            number(row.n_questions, 0),
            number(row.real.value),
            lead,
            *map(number, floors),
            yes,
            bits,
        )
        table.add_row(*map(escape, cells))
    return table


def _retrieval(results: Results) -> Table:
    table = _table("Image retrieval from the brain embedding")
    _columns(table, "input", "R@10", "chance", "median rank", "chance", "N")
    for row in retrieval_rows(results):
        one = row.found
        cells = (row.short, one.r_at_10.shown(3), number(one.chance_r_at_10, 3), number(one.median_rank),
                 number(one.chance_median_rank), number(one.n_pictures, 0))  # fmt: skip
        table.add_row(*map(escape, cells), style="bold" if row.name == "real" else "")
    return table


def _groups(results: Results) -> Table:
    table = _table(f"Groups of test images ({results.final}; similar: to training images)")
    _columns(table, "group", "images", "CIDEr", "real − another image", "bits per word")
    for one in results.groups:
        cider = "" if one.cider is None else number(one.cider.value)
        lead, bits = shown(one.real_minus_permuted, sign=True), shown(one.bits_per_word, 3, sign=True)
        table.add_row(*map(escape, (group_name(one.kind, one.name), str(one.n_images), cider, lead, bits)))
    return table


def _regions(results: Results) -> Table:
    table = _table("Regions: bits per word lost when the region is silenced, and from the region alone")
    _columns(table, "region", "voxels", "lost", "same size", "CIDEr lost", "alone")
    for one in results.regions:
        atlas, _, name = one.name.partition(":")
        cells = (f"  {name}" if name else atlas, str(one.n_voxels), one.bits_lost.shown(3, sign=True),
                 number(one.bits_lost_same_size.value, 3, sign=True), number(one.cider_lost.value, sign=True),
                 number(one.bits_alone.value, 3, sign=True))  # fmt: skip
        table.add_row(*map(escape, cells))
    return table


def _lines(results: Results) -> Iterator[str]:
    yield from ([] if (judged := judge_questions(results, results.asked)) is None else [judged.sentence])
    yield from sources(results)
    encoder = results.encoder
    if encoder.cosine_real_zero is not None:
        mean, sd = (number(value, 3) for value in encoder.cosine_real_zero)
        yield f"cosine of the embeddings of real and zero betas: {mean} ± {sd} (1: betas ignored)"
    if encoder.identification:
        points = (
            (one.ways, number(one.correct.value, 3), number(one.chance, 3)) for one in encoder.identification
        )
        curve = (f"{ways}: {correct} (chance {chance})" for ways, correct, chance in points)
        yield f"N-way identification: {' · '.join(curve)}"
    for name, found in results.between_systems.items():
        yield f"{name.replace(' - ', ' − ')}, CIDEr: {found.shown(sign=True)}"
    if results.similarity_to_training is not None:
        found = results.similarity_to_training
        yield (
            f"rank correlation of CIDEr real − another image with similarity to training images: "
            f"{number(found.value, 2, sign=True)} {p_value(found.p)}"
        )


def _p(p: float | None) -> str:
    return p_value(p).removeprefix("p ").removeprefix("= ")


def _columns(table: Table, first: str, *others: str) -> None:
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right", no_wrap=name != "real − another image")


def _table(title: str) -> Table:
    return Table(
        title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0), title_style="bold"
    )
