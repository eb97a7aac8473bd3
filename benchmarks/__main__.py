"""`python -m benchmarks`: measure, and say what was found; nothing else is written or left behind."""

import json
import sys
from pathlib import Path

import click

from benchmarks.findings import Findings
from benchmarks.measure import QUICK, Durations
from benchmarks.page import sections, write
from benchmarks.process import scratch
from benchmarks.run import Run


@click.command()
@click.option("--quick", is_flag=True, help="measure so shortly that the numbers mean nothing")
@click.option(
    "--json", "found", type=click.Path(dir_okay=False, path_type=Path), help="write what was found here"
)
@click.option(
    "--from",
    "known",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="measure nothing: take what --json wrote",
)
@click.option(
    "--page",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="put the tables into this page, such as docs/performance.md",
)
def main(quick: bool, found: Path | None, known: Path | None, page: Path | None) -> None:
    """Measure this service beside its peers and beside what the machine can do, as ratios from one run.

    It takes about 30 minutes, and the whole machine. Services listen on free ports of 127.0.0.1.
    """
    findings = (
        Findings.from_dict(json.loads(known.read_text()))
        if known
        else _measured(QUICK if quick else Durations())
    )
    if found:
        found.write_text(json.dumps(findings.to_dict(), indent=1) + "\n")
    if page:
        write(findings, page)
    click.echo("\n\n".join(sections(findings).values()))


def _measured(durations: Durations) -> Findings:
    with scratch() as folder:
        return Run(folder, durations, lambda line: print(line, file=sys.stderr, flush=True))()


if __name__ == "__main__":
    main()
