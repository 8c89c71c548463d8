"""`sandboxd attack`: harmless attempts at the walls of a deployment, and which of them were stopped."""

import asyncio
from collections.abc import Sequence
from typing import Any

import click

from sandboxd.attack.catalogue import ROWS
from sandboxd.attack.conduct import Carrier, conduct
from sandboxd.attack.plan import Task, make_plan, unknown_rows
from sandboxd.attack.verdict import Finding, Outcome, counts, passed
from sandboxd.cli import output
from sandboxd.cli.accounts import refuse_root
from sandboxd.cli.data_directory import check_data_dir
from sandboxd.cli.interrupts import interrupts_cancel_task
from sandboxd.cli.options import (
    config_option,
    data_dir_option,
    json_option,
    load,
    optional_url_option,
)
from sandboxd.settings import Settings

EXAMPLES = """\b
Examples:
  sandboxd attack                                   this machine, without a service
  sandboxd attack --url http://127.0.0.1:8080       a service, with $SANDBOXD_KEY
  sandboxd attack --image debian --row 25 --row 26  in an image, two rows only

\b
Exit code: 0 when everything that was tried was stopped, 1 when something was not or gave no answer,
  2 when it could not be tried: a wrong option, no connection, an image without python3.
"""
WORDS = {
    Outcome.STOPPED: "stopped",
    Outcome.NOT_STOPPED: "NOT STOPPED",
    Outcome.NOT_TRIED: "not tried",
    Outcome.NO_ANSWER: "no answer",
}


@click.command(epilog=EXAMPLES)
@click.option("--image", default="host", metavar="NAME", help="Image with a python3. [host]")
@click.option(
    "--row", "rows", type=int, multiple=True, metavar="N", help="Only this row; repeatable."
)
@click.option("--runtime", metavar="NAME", help="OCI runtime that starts the jobs. [native]")
@optional_url_option
@data_dir_option
@config_option
@json_option
def attack(
    image: str,
    rows: tuple[int, ...],
    runtime: str | None,
    url: str | None,
    data_dir: str | None,
    config_file: str | None,
    as_json: bool,
) -> int:
    """Try to break out, harmlessly, and say what stopped it.

    A dozen short jobs and some requests that must be refused, on the service of --url or the settings, else in sandboxes
    of this process's own. Each attempt does no harm should it succeed, and is judged by what it saw. The rows are those
    of docs/attacks.md, where all that the project's own tests try is listed.
    """
    if unknown := unknown_rows(rows):
        known = ", ".join(map(str, ROWS))
        raise click.UsageError(f"row {unknown[0]} is not tried here; there are {known}")
    settings = load({"client.url": url, "store.data_dir": data_dir}, config_file).settings
    if not settings.client.url:
        refuse_root()
        check_data_dir(settings.store.data_dir)
    with output.progress("trying") as progress:

        async def carry_out() -> list[Finding]:
            with interrupts_cancel_task() as interrupts:
                try:
                    plan = make_plan(image, rows, runtime=runtime)
                    return await _conduct(settings, plan, rows, progress)
                except asyncio.CancelledError:
                    if interrupts.first is None:
                        raise
            raise KeyboardInterrupt

        findings = asyncio.run(carry_out())
    _show(findings, as_json=as_json)
    return 0 if passed(findings) else 1


async def _conduct(
    settings: Settings, plan: Sequence[Task], rows: Sequence[int], progress: Any
) -> list[Finding]:
    from sandboxd.cli import attack_carriers

    async def over(carrier: Carrier) -> list[Finding]:
        return await conduct(plan, carrier, rows=rows, progress=progress)

    if settings.client.url:
        async with attack_carriers.remote(settings.client.url, settings.client.key) as carrier:
            return await over(carrier)
    async with attack_carriers.local(settings) as carrier:
        return await over(carrier)


def _show(findings: Sequence[Finding], *, as_json: bool) -> None:
    if as_json:
        output.print_json(report_of(findings))
        return
    output.print_table(
        ("row", "tried", "stopped by", "outcome", "seen"),
        [
            (str(f.probe.row), f.probe.tried, f.probe.wall, WORDS[f.outcome], f.seen)
            for f in findings
        ],
        empty="",
        state=3,
        cut=(1, 2, 4),
    )
    for finding in findings:
        if finding.outcome is not Outcome.STOPPED:
            word = WORDS[finding.outcome]
            output.print_note(f"row {finding.probe.row}, {finding.name}: {word}: {finding.seen}")
    total = counts(f.outcome for f in findings)
    output.print_note(", ".join(f"{total[o]} {word}" for o, word in WORDS.items() if total[o]))


def report_of(findings: Sequence[Finding]) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "passed": passed(findings),
        "counts": counts(f.outcome for f in findings),
        "attempts": [{**f.probe._asdict(), "outcome": f.outcome, "seen": f.seen} for f in findings],
    }
