"""The command that writes the page about finished runs: report."""

from pathlib import Path

import tyro

from bitllm.cli.terminal import OUT, print_json


def report(
    runs: tyro.conf.Positional[tuple[Path, ...]],
    /,
    *,
    out: Path = Path("report.html"),
    store: Path | None = None,
    pictures: bool | None = None,
    json: bool = False,
) -> None:
    """Write one self-contained HTML page about a run, or about several side by side.

    Args:
        runs: Folders of demos, or of runs that `bitllm ground` wrote into.
        out: The page.
        store: The store of the run, where it does not lie in its folder; for pictures and brain maps.
        pictures: Whether the pictures that were seen are shown; by default only simulated ones.
        json: Print the numbers as JSON, too.
    """
    from bitllm.errors import ConfigError
    from bitllm.files import require_place

    if not runs:
        raise ConfigError("report: expected the folder of a run, found none; name one or more")
    require_place(out)
    from bitllm.report.page import write_report
    from bitllm.report.runs.compare import write_comparison
    from bitllm.report.runs.folder import read_run

    read = [read_run(run, pictures=pictures, store=store) for run in runs]
    if len(read) == 1:
        one = read[0]
        write_report(one.results, one.curves, one.gallery, out, brain=one.brain)
    else:
        write_comparison(read, out)
    if json:
        print_json([one.results for one in read] if len(read) > 1 else read[0].results)
    else:
        OUT.print(f"{out}: {out.stat().st_size / 1e6:.1f} MB", markup=False, soft_wrap=True)
