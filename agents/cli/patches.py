"""`cco patches`: the model that workers' patches make."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agents.cli.common import JsonFlag, UsageProblem, print_json
from agents.cli.config import Brokers, SettingsFile, TopicPrefix
from agents.cli.inputs import STANDARD_OUTPUT, check_outputs, write_model


def patches(
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FILE", help="JSON Lines that workers wrote; or --topic.", show_default=False),
    ] = None,
    topic: Annotated[bool, typer.Option("--topic", help="Read the topic `patches` instead.")] = False,
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", metavar="FILE", help="Write the model there (JSON Lines).", show_default="standard output"
        ),
    ] = STANDARD_OUTPUT,
    config: SettingsFile = None,
    brokers: Brokers = None,
    topic_prefix: TopicPrefix = None,
    json: JsonFlag = False,
) -> None:
    """Put the patches of all workers together to a model file, to compare with `cco rebuild`.

    Exact once the workers have published everything that is due.
    """
    from agents.settings import load_settings
    from agents.workers.patches_file import read_files, read_patches_topic

    if topic == bool(files):
        raise UsageProblem("name what to read: either files or --topic")
    if not topic and (brokers or topic_prefix):
        raise UsageProblem("--brokers and --topic-prefix go with --topic")
    check_outputs(model, json, None, [str(path) for path in files or ()], config)
    if topic:
        found = read_patches_topic(load_settings(config, {"brokers": brokers, "topic_prefix": topic_prefix})[1])
    else:
        found = read_files(files or ())
    size = write_model(model, found.lines())
    report = {
        "records": found.records,
        "dropped": found.dropped,
        "items": found.items,
        "outdated_items": found.outdated,
        "positions": {str(partition): position for partition, position in sorted(found.positions.items())},
        "model_bytes": size,
    }
    if json:
        print_json(report)
    elif model != STANDARD_OUTPUT:
        print(f"{found.records:,} records, {found.dropped:,} of earlier owners; {found.items:,} items in {model}")
