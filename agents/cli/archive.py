"""`cco archive`: the log of interactions kept in Parquet files, compared with the log, and looked into."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from agents.cli.common import DIFFERENT, JsonFlag, NothingFound, add_plain_row, out, print_json, progress, size_text
from agents.cli.config import Brokers, SettingsFile, TopicPrefix

if TYPE_CHECKING:
    from agents.archive.agent import Archived, Told
    from agents.archive.archive import ArchiveFile
    from agents.archive.verify import PartitionVerified

app = typer.Typer(
    help="The log of interactions in Parquet files, for rebuilds when the log is gone: keep it, compare it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Url = Annotated[
    str,
    typer.Argument(metavar="URL", help="Where the archive is: a folder, or a URL that fsspec knows (s3://...)."),
]


@app.command("run")
def run(
    url: Url,
    file: SettingsFile = None,
    brokers: Brokers = None,
    prefix: TopicPrefix = None,
    every: Annotated[
        float,
        typer.Option("--every", metavar="SECONDS", min=0.1, max=86_400, help="What a record waits for at most."),
    ] = 60.0,
    once: Annotated[bool, typer.Option("--once", help="End where the log ends now, not at SIGTERM.")] = False,
    monitor_port: Annotated[
        int | None,
        typer.Option(
            "--monitor-port", min=0, max=65_535, show_default=False,
            help="Port of /metrics, /healthz, /readyz, /status (0: any free one). Default: none of it.",
        ),
    ] = None,
    json: JsonFlag = False,
) -> None:  # fmt: skip
    """Archive every record of the topic `interactions`, as it is, from where the archive ends, until SIGTERM.

    It may be killed at any time. Small files are merged as it goes on.
    """
    import asyncio
    import signal

    from agents.archive.agent import ArchiveAgent
    from agents.archive.archive import Archive
    from agents.archive.monitor import ArchiveMonitor
    from agents.log import get_logger, set_up
    from agents.settings import load_settings
    from agents.workers.monitor import Monitor

    config, settings = load_settings(file, {"brokers": brokers, "topic_prefix": prefix})
    set_up(settings.log_format)
    log = get_logger(archive=url)

    def tell(told: Told) -> None:
        if told.problem is not None:
            log.warning(told.what, partition=told.partition, reason=told.problem)
        elif told.file is not None:
            log.info(told.what, partition=told.partition, file=told.file.name, bytes=told.file.size)

    async def work() -> Archived:
        agent = ArchiveAgent(config, settings, Archive(url), every=every, tell=tell)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, agent.stop)
        if monitor_port is None:
            return await agent.run(once)
        of = ArchiveMonitor(agent, url)
        monitor = Monitor(of, of, settings.monitor_host, monitor_port)
        await monitor.start()
        log.info("archiving", monitor=monitor.url)
        try:
            return await agent.run(once)
        finally:
            await monitor.stop()

    done = asyncio.run(work())
    if json:
        print_json({**asdict(done), "offsets": {str(p): offset for p, offset in sorted(done.offsets.items())}})
    else:
        ends = ", ".join(f"{partition}:{offset}" for partition, offset in sorted(done.offsets.items()))
        print(f"{done.records:,} records archived in {done.files:,} files; the archive ends at {ends}")


@app.command("verify")
def verify(
    url: Url,
    file: SettingsFile = None,
    brokers: Brokers = None,
    prefix: TopicPrefix = None,
    json: JsonFlag = False,
) -> None:
    """Read the whole archive, and compare each record that the log still has. Exit code 1 if one differs."""
    from agents.archive import verify as archive_verify
    from agents.archive.archive import Archive
    from agents.settings import load_settings

    config, settings = load_settings(file, {"brokers": brokers, "topic_prefix": prefix})
    with progress("comparing", quiet=json) as bar:
        found = archive_verify.verify(Archive(url), config, settings, bar)
    ok = all(each.ok for each in found)
    if json:
        print_json({"ok": ok, "partitions": [{**asdict(each), "behind": each.behind} for each in found]})
    else:
        for each in found:
            _print_verified(each)
    if not ok:
        raise typer.Exit(DIFFERENT)


def _print_verified(found: PartitionVerified) -> None:
    what = f"{found.records:,} records up to offset {found.archived}, {found.compared:,} of them compared with the log"
    late = f"; {found.behind:,} more are in the log" if found.behind else ""
    print(f"partition {found.partition}: {what}{late}: {'as in the log' if found.ok else 'not as it must be'}")
    for line in [*found.problems, *found.differences]:
        print(f"  {line}")
    if found.different > len(found.differences):
        print(f"  and {found.different - len(found.differences):,} more that differ")


@app.command("compact")
def compact(url: Url, json: JsonFlag = False) -> None:
    """Merge the small files of each day, and remove what was left over. Others may write and read meanwhile."""
    from agents.archive import compaction as archive_compaction
    from agents.archive.archive import Archive

    archive = Archive(url)
    found = _files(archive)
    made, removed = 0, 0
    with progress("merging", quiet=json) as bar:
        for number, files in enumerate(found.values()):
            bar(number, len(found))
            try:
                done = archive_compaction.compact(archive, files)
            except FileNotFoundError:  # another one was first
                continue
            made += len(done.made)
            removed += len(done.removed)
    left_over = archive.remove_left_over()
    if json:
        print_json({"made": made, "removed": removed, "left_over": left_over})
    else:
        print(f"{removed:,} files became {made:,}; {left_over:,} left over in the making were removed")


@app.command("describe")
def describe(url: Url, json: JsonFlag = False) -> None:
    """Show what is archived: offsets, days, files and sizes of each partition. Exit code 1 if there is nothing."""
    from agents.archive.archive import Archive, holes, missing

    found = _files(Archive(url))
    if json:
        print_json(
            {
                "partitions": [
                    {"partition": source, "archived": missing(files)[0], "holes": holes(files), **_figures(files)}
                    for source, files in found.items()
                ]
            }
        )
        return
    table = Table(box=None, pad_edge=False)
    for name in ("partition", "archived up to", "files", "size"):
        table.add_column(name, justify="right")
    for name in ("days", "missing"):
        table.add_column(name)
    for source, files in found.items():
        figures = _figures(files)
        gone = ", ".join(f"{first} to {after - 1}" for first, after in holes(files))
        cells = (str(source), f"{missing(files)[0]:,}", f"{figures['files']:,}", size_text(figures["bytes"]))
        add_plain_row(table, *cells, f"{figures['first_day']} to {figures['last_day']}", gone or "nothing")
    out().print(table)


def _files(archive: Any) -> dict[int, list[ArchiveFile]]:
    found: dict[int, list[ArchiveFile]] = archive.files()
    if not found:
        raise NothingFound(f"{archive.url}: there is no archive: `cco archive run` makes it")
    return found


def _figures(files: list[ArchiveFile]) -> dict[str, Any]:
    days = [file.day for file in files]
    return {
        "files": len(files),
        "bytes": sum(file.size for file in files),
        "first_day": min(days),
        "last_day": max(days),
    }
