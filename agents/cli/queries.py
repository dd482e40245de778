"""`cco recommend` and `cco explain`: asking an engine that is loaded from a state or fed from files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from agents.cli.common import (
    ConfigFile,
    JsonFlag,
    NothingFound,
    UsageProblem,
    add_plain_row,
    out,
    print_json,
    progress,
    warn,
)
from agents.cli.inputs import Intake, load_config

if TYPE_CHECKING:
    from agents.engine import Engine
    from model_sync.contract import Boost

TITLES = ("title", "name")  # properties that say what an item is called, where there are any

User = Annotated[str | None, typer.Option("--user", "-u", help="Recommend for this user.")]
Basket = Annotated[str | None, typer.Option("--items", metavar="A,B,C", help="Recommend to go with these items.")]
State = Annotated[
    Path | None, typer.Option("--state", "-s", metavar="DIR", help="Ask the state that `cco replay --state` keeps.")
]
Events = Annotated[
    list[str] | None, typer.Option("--events", "-e", metavar="FILE", help="Or learn from these first; repeatable.")
]
Metadata = Annotated[
    list[str] | None,
    typer.Option(
        "--metadata", metavar="FILE", help="Properties of items: CSV with a column item, JSON Lines, Parquet."
    ),
]
Pairs = list[str] | None


@contextmanager
def _engine(
    state: Path | None, events: Sequence[str] | None, config: Path | None, metadata: Sequence[str] | None, quiet: bool
) -> Iterator[Engine]:
    """An engine that has learnt from a state directory or from files."""
    from agents.engine import Engine
    from agents.files.items import read_items
    from agents.replay import replay

    if (state is None) == (not events):
        raise UsageProblem("name what to ask: either --state DIR or --events FILE")
    settings = load_config(config, state)
    with progress("loading", quiet) as bar:
        if state is not None:
            engine = Engine.load(state, settings)
        else:
            engine = Engine(settings)
            intake = Intake()
            with intake.taking(bar) as take:
                replay(
                    engine, events or (), on_chunk=take,
                    on_drain=lambda done, total: bar(done, total, "publishing what waited"),
                )  # fmt: skip
            intake.conclude()
        for path in metadata or ():
            engine.put_items(dict(read_items(path)))
    with engine:
        yield engine


def _split(pair: str, option: str) -> tuple[str, str]:
    name, sign, value = pair.partition("=")
    if not (name and sign and value):
        raise UsageProblem(f"{option} {pair}: write it as name=value")
    return name, value


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageProblem(f"{where}: {text!r} is not a number")
    return value


def _alike(text: str) -> tuple[str | float | bool, ...]:
    """All that a value typed on a command line may stand for in metadata: text, and a number or truth value."""
    if text in ("true", "false"):
        return (text, text == "true")
    try:
        number = float(text)
    except ValueError:
        return (text,)
    return (text, number) if math.isfinite(number) else (text,)


def _rules(pairs: Pairs, option: str) -> dict[str, list[str | float | bool]]:
    """Values by field: several of one field are alternatives."""
    found: dict[str, list[str | float | bool]] = {}
    for pair in pairs or ():
        name, value = _split(pair, option)
        found.setdefault(name, []).extend(_alike(value))
    return found


def _boosts(pairs: Pairs) -> list[Boost]:
    from model_sync.contract import Boost

    found = []
    for pair in pairs or ():
        name, value = _split(pair, "--boost")
        value, sign, factor = value.rpartition(":")
        if not (sign and value):
            raise UsageProblem(f"--boost {pair}: write it as field=value:factor, such as brand=Apple:1.5")
        found.append(Boost(name, _alike(value), _number(factor, f"--boost {pair}")))
    return found


def _shares(pairs: Pairs, option: str) -> dict[str, float]:
    return {name: _number(value, f"{option} {name}") for name, value in (_split(pair, option) for pair in pairs or ())}


def _basket(items: str | None) -> list[str] | None:
    if items is None:
        return None
    found = [item.strip() for item in items.split(",") if item.strip()]
    if not found:
        raise UsageProblem("--items: name at least one item")
    return found


def _only_one(given: Mapping[str, object]) -> None:
    named = [option for option, value in given.items() if value is not None]
    if len(named) != 1:
        raise UsageProblem(f"name one of {', '.join(given)}" + (f", not {' and '.join(named)}" if named else ""))


def _title(properties: Mapping[str, Any]) -> str:
    return next((str(properties[key]) for key in TITLES if key in properties), "")


def recommend(
    user: User = None,
    item: Annotated[str | None, typer.Option("--item", "-i", help="Recommend to who looks at this item.")] = None,
    items: Basket = None,
    state: State = None,
    events: Events = None,
    config: ConfigFile = None,
    metadata: Metadata = None,
    num: Annotated[int, typer.Option("--num", "-n", min=1, max=1000, help="How many.")] = 10,
    include: Annotated[Pairs, typer.Option(metavar="FIELD=VALUE", help="Only items like this; repeatable.")] = None,
    exclude: Annotated[Pairs, typer.Option(metavar="FIELD=VALUE", help="No items like this; repeatable.")] = None,
    boost: Annotated[Pairs, typer.Option(metavar="FIELD=VALUE:FACTOR", help="Multiply scores; repeatable.")] = None,
    exclude_items: Annotated[str | None, typer.Option(metavar="A,B,C", help="Leave these out.")] = None,
    seen: Annotated[bool, typer.Option("--seen", help="Items of the history may come back.")] = False,
    weight: Annotated[Pairs, typer.Option(metavar="INDICATOR=FACTOR", help="Times its configured weight.")] = None,
    prior: Annotated[Pairs, typer.Option(metavar="PRIOR=SHARE", help="Share of the best score, as recent=0.4.")] = None,
    json: JsonFlag = False,
) -> None:
    """Recommend items for a user, to who looks at an item, or to go with a basket.

    Exit code 1 if there is nothing to recommend. Where the history says nothing, popular items fill up (score 0).
    """
    _only_one({"--user": user, "--item": item, "--items": items})
    basket = _basket(items)
    options: dict[str, Any] = {
        "num": num,
        "include": _rules(include, "--include"),
        "exclude": _rules(exclude, "--exclude"),
        "boost": _boosts(boost),
        "exclude_items": _basket(exclude_items) or (),
        "exclude_seen": not seen,
        "weights": _shares(weight, "--weight"),
        "priors": _shares(prior, "--prior"),
    }
    with _engine(state, events, config, metadata, json) as engine:
        asked = engine.history_of(user, item, basket)
        strangers = _strangers(engine, user, asked)
        hits = engine.recommend(user, item, basket, **options)
        if strangers:
            warn(strangers)
        if json:
            listed = [{"item": hit.item, "score": hit.score, "properties": hit.properties} for hit in hits]
            print_json({"history": asked, "recommendations": listed})
        if not hits:
            raise NothingFound("nothing to recommend")
        if not json:
            table = Table(box=None, pad_edge=False)
            table.add_column("score", justify="right")
            table.add_column("item", overflow="fold")
            table.add_column("", overflow="fold")
            for hit in hits:
                add_plain_row(table, f"{hit.score:.3f}" if hit.score else "popular", hit.item, _title(hit.properties))
            out().print(table)


def _strangers(engine: Engine, user: str | None, asked: Mapping[str, Sequence[str]]) -> str:
    """What is not known of the question, for a warning; empty if all is."""
    if user is not None:
        return "" if any(asked.values()) else f"nothing is known of user {user}"
    unknown = [item for ids in asked.values() for item in ids if engine.items.index(item) is None]
    return f"not known: {', '.join(unknown)}" if unknown else ""


def explain(
    item: Annotated[str, typer.Argument(help="The recommended item.", show_default=False)],
    user: User = None,
    items: Basket = None,
    state: State = None,
    events: Events = None,
    config: ConfigFile = None,
    metadata: Metadata = None,
    json: JsonFlag = False,
) -> None:
    """Say which items of a history speak for ITEM, how much, and the counts of users behind it.

    Exit code 1 if none does.
    """
    _only_one({"--user": user, "--items": items})
    basket = _basket(items)
    with _engine(state, events, config, metadata, json) as engine:
        reasons = engine.explain(item, user=user, items=basket)
        if json:
            fields = ("indicator", "history_item", "contribution", "weight", "k", "n_row", "n_col", "n")
            listed = [{name: getattr(reason, name) for name in fields} for reason in reasons]
            print_json({"item": item, "score": sum(reason.contribution for reason in reasons), "reasons": listed})
        if not reasons:
            raise NothingFound(f"nothing in the history speaks for {item}")
        if json:
            return
        table = Table(box=None, pad_edge=False)
        for name in ("adds", "indicator", "history item", "LLR", "both", "item", "history item", "of users"):
            table.add_column(name, justify="left" if name in ("indicator", "history item") else "right")
        for reason in reasons:
            add_plain_row(
                table, f"{reason.contribution:.3f}", reason.indicator, reason.history_item, f"{reason.weight:.3f}",
                f"{reason.k:,}", f"{reason.n_row:,}", f"{reason.n_col:,}", f"{reason.n:,}",
            )  # fmt: skip
        out().print(table)
