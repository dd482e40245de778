"""`cco demo`: a year of real purchases streamed through the engine, explained, extended live, and proved exact."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import numpy as np
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from agents.cli.common import memory_bytes, out, peak_memory_bytes, size_text
from agents.demo.data import Purchases, demo_config, load_purchases
from agents.engine import Engine, Recommendation
from cco.batch import rebuild
from cco.config import Config
from cco.event_data import EventBatch
from cco.events import EventParser
from cco.model_file import encode
from cco.rows import Rows
from cco.vocabulary import Vocabulary

BATCH = 5_000  # purchases handed to the engine at once: about a day of that year
LINES = 12  # progress lines where the output is no terminal
REFRESH = 8  # times a second where it is one
TASTES = ("NUTRITION", "PRODUCE", "DRUG GM")  # the household that leans most to each department is shown
HISTORY = (60, 400)  # how many different products a household that is shown has bought
BASKET = ("GROUND COFFEE", "BABY FOOD - BEGINNER", "CANNED CAT FOOD (9 LIVES/FRISK")  # what the new customer buys
HOW = {"purchase": "bought", "discount": "bought at a discount", "coupon": "bought with a coupon"}
NEW_CUSTOMER = "new-customer"
NEXT_STEPS = """\
Your own data: a CSV file with the columns user,item,event,timestamp (or JSON Lines, or Parquet; gzipped or not):

  .venv/bin/cco replay events.csv --config cco.toml --state state --model model.jsonl    stream it, write the model
  .venv/bin/cco rebuild events.csv --config cco.toml --model batch.jsonl                 the same in batch
  .venv/bin/cco compare model.jsonl batch.jsonl                                          not a byte differs
  .venv/bin/cco recommend --state state --user SOMEBODY                  or --item X, or --items A,B,C
  .venv/bin/cco serve --embedded --state state --config cco.toml         questions and events over HTTP
  .venv/bin/cco --help                                                   all the rest

README.md has an example of cco.toml: without --config only events of the type "purchase" count.
"""


class Demo:
    """One run. `limit` stops the stream after so many purchases; `quiet` prints nothing and only reports."""

    def __init__(self, limit: int | None = None, threads: int = 2, quiet: bool = False) -> None:
        self.config = demo_config()
        self.purchases: Purchases = load_purchases().first(limit)
        self.engine = Engine(self.config, threads=threads)
        self.threads = threads
        self.quiet = quiet
        self.console = out()
        self.live = not quiet and sys.stdout.isatty()
        self.extra: list[dict[str, Any]] = []  # the new customer's events

    def run(self) -> dict[str, Any]:
        """Show everything; answers the numbers, `equal` among them: whether stream and batch agree."""
        begin = time.perf_counter()
        with self.engine:
            report: dict[str, Any] = {"stream": self._stream()}
            report["households"] = self._households()
            report["new_customer"] = self._new_customer()
            report.update(self._prove())
            report["service"] = self._service()
        report["seconds"] = round(time.perf_counter() - begin, 2)
        self._title(f"That was it, in {report['seconds']:.0f} seconds. What next?")
        self._say(escape(NEXT_STEPS))
        return report

    def _say(self, text: str = "") -> None:
        if not self.quiet:
            self.console.print(text)

    def _title(self, text: str) -> None:
        self._say(f"\n[bold cyan]{text}[/]\n")

    def _name(self, product: str) -> str:
        found = self.purchases.catalogue.get(product)
        return escape(f"{found.name} #{product}" if found else f"#{product}")

    # -- the year -----------------------------------------------------------------------------------

    def _stream(self) -> dict[str, Any]:
        data, engine = self.purchases, self.engine
        self._title("A year in a supermarket, one purchase after the other")
        self._say(
            f"{len(data):,} purchases, {_day(data.times[0])} to {_day(data.times[-1])}. Each counts for up to three"
            " indicators:\nbought at all (that is what will be recommended), at a discount, with a coupon. The latest"
            f" {self._cap()} products\nof each household and indicator are kept. Rows wait to be counted together,"
            f" for at most {self.config.max_staleness:.0f} s.\n"
        )
        begin = time.perf_counter()
        done, lines = 0, 0
        with self._display() as show:
            for batch in data.batches(self.config, engine.users, engine.items, BATCH):
                engine.ingest(batch)
                done += len(batch)
                if self.live:
                    show(done, begin)
                elif done * LINES >= len(data) * (lines + 1):
                    lines = done * LINES // len(data)
                    show(done, begin)
        streamed = time.perf_counter() - begin
        waiting, published = engine.pipeline.due(), engine.counters.fields_published
        engine.drain()
        drained = time.perf_counter() - begin - streamed
        stats = engine.stats()
        self._say(
            f"\nDone: {len(data) / streamed:,.0f} purchases a second, while {published:,} rows were published;"
            f" no row was out of\ndate for more than {stats['worst_staleness_seconds']:.1f} s. Draining published what"
            f" still waited, {waiting:,} items, in {drained:.1f} s:\n{len(data) / (streamed + drained):,.0f} purchases"
            " a second, all included.\n"
            f"Kept: {sum(stats['retained'].values()):,} interactions of {stats['members']:,} households with"
            f" {stats['items']:,} products, in {size_text(sum(stats['bytes'].values()))}, index included"
            f" (the process: {size_text(memory_bytes())})."
        )
        return {
            "events": len(data),
            "seconds": round(streamed, 3),
            "drain_seconds": round(drained, 3),
            "rows_published": published,
            "worst_staleness_seconds": round(stats["worst_staleness_seconds"], 3),
            "retained": stats["retained"],
            "state_bytes": stats["bytes"],
            "memory_bytes": memory_bytes(),
        }

    @contextmanager
    def _display(self) -> Iterator[Any]:
        """What shows progress: a panel that changes in place, or lines."""
        if self.live:
            with Live(console=self.console, refresh_per_second=REFRESH) as live:
                yield lambda done, begin: live.update(self._panel(done, begin))
        else:
            yield lambda done, begin: self._say("  ".join(f"{k} {v}" for k, v in self._figures(done, begin).items()))

    def _figures(self, done: int, begin: float) -> dict[str, str]:
        passed = time.perf_counter() - begin
        return {
            "day": _day(self.purchases.times[done - 1]),
            "purchases": f"{done:,}",
            "a second": f"{done / passed:,.0f}",
            "rows published": f"{self.engine.counters.fields_published:,}",
            "waiting": f"{self.engine.pipeline.due():,}",
            "oldest": f"{self.engine.stats()['staleness_seconds']:.1f} s",
            "memory": size_text(memory_bytes()),
        }

    def _panel(self, done: int, begin: float) -> Table:
        table = Table.grid(padding=(0, 3))
        figures = self._figures(done, begin)
        for _ in figures:
            table.add_column(justify="right")
        table.add_row(*(f"[dim]{key}[/]" for key in figures))
        table.add_row(*(f"[bold]{value}[/]" for value in figures.values()))
        whole = Table.grid()
        whole.add_row(ProgressBar(total=len(self.purchases), completed=done, width=80))
        whole.add_row(table)
        return whole

    # -- households ---------------------------------------------------------------------------------

    def _households(self) -> list[dict[str, Any]]:
        self._title("Three households, what they would like, and why")
        self._say(
            "Nothing that a household bought that year is shown to it. Counts are of households, over what is kept.\n"
        )
        return [self._household(taste, household) for taste, household in self._chosen()]

    def _chosen(self) -> list[tuple[str, str]]:
        """For each taste the household whose different products lean most to that department."""
        data = self.purchases
        pairs = np.unique(np.stack([data.households, data.products], axis=1), axis=0)
        households, which = np.unique(pairs[:, 0], return_inverse=True)
        size = np.bincount(which)
        fits = (size >= HISTORY[0]) & (size <= HISTORY[1])
        department_of = {int(product): found.department for product, found in data.catalogue.items()}
        departments = np.array([department_of.get(product, "") for product in pairs[:, 1].tolist()])
        chosen: list[tuple[str, str]] = []
        free = np.ones(size.size, np.bool_)
        for taste in TASTES:
            share = np.bincount(which[departments == taste], minlength=size.size) / size
            best = np.argmax(np.where(free, share + fits, -1.0))  # one that does not fit only if no other is left
            free[best] = False
            chosen.append((taste, str(households[best])))
        return chosen

    def _ever_bought(self, household: str) -> set[str]:
        """Every product of the household, those that its cap has dropped included."""
        mine = self.purchases.households == int(household)
        return set(map(str, np.unique(self.purchases.products[mine]).tolist()))

    def _cap(self) -> int:
        return self.config.indicators[self.config.primary].user_cap

    def _household(self, taste: str, household: str) -> dict[str, Any]:
        history = self.engine.history_of(user=household)
        bought = history.get(self.config.primary, [])
        self._say(f"[bold]Household {household}[/], fond of {taste.lower()}; bought lately:")
        for product in bought[:5]:
            self._say(f"    {self._name(product)}")
        self._say("  would like:")
        hits = self.engine.recommend(user=household, num=4, exclude_items=self._ever_bought(household))
        for hit in hits:
            self._say(f"    [green]{self._name(hit.item)}[/]  score {hit.score:,.0f}")
            for reason in self.engine.explain(hit.item, user=household)[:2]:
                self._say(
                    f"        [dim]{HOW[reason.indicator]} {self._name(reason.history_item)}: this was bought by"
                    f" {reason.k} of the {reason.n_col:,} who did that ({reason.k / reason.n_col:.0%}),\n"
                    f"            and by {reason.n_row:,} of all {reason.n:,} ({reason.n_row / reason.n:.1%});"
                    f" weight {reason.weight:.1f}[/]"
                )
        self._say()
        return {"household": household, "bought": len(bought), "recommended": [hit.item for hit in hits]}

    # -- a new customer -----------------------------------------------------------------------------

    def _new_customer(self) -> list[dict[str, Any]]:
        self._title("A new customer walks in, and buys three things, one by one")
        self.engine.drain()
        shown, steps = self.engine.recommend(user=NEW_CUSTOMER, num=6), []
        self._say("Before anything is known, the popular things:")
        self._list(shown, ())
        when = int(self.purchases.times[-1])
        for kind in BASKET:
            product = self._most_bought(kind)
            if product is None:
                continue
            when += 60
            event = {"user_id": NEW_CUSTOMER, "item_id": product, "event_type": "purchase", "timestamp": when}
            self.extra.append(event)
            rows = self.engine.counters.fields_published
            begin = time.perf_counter()
            self.engine.ingest([event])
            after = self.engine.recommend(user=NEW_CUSTOMER, num=6)
            took = 1000 * (time.perf_counter() - begin)
            rows = self.engine.counters.fields_published - rows
            self._say(
                f"\nBuys [bold]{self._name(product)}[/]: [bold]{took:.1f} ms[/] later, with {rows:,} rows of the model"
                " changed and republished:"
            )
            self._list(after, [hit.item for hit in shown])
            steps.append({"item": product, "milliseconds": round(took, 2), "rows_published": rows,
                          "recommended": [hit.item for hit in after]})  # fmt: skip
            shown = after
        return steps

    def _most_bought(self, kind: str) -> str | None:
        """The product of a kind that most households bought."""
        of_kind = {int(product) for product, found in self.purchases.catalogue.items() if found.kind == kind}
        mine = np.isin(self.purchases.products, list(of_kind))
        products, counts = np.unique(self.purchases.products[mine], return_counts=True)
        return str(products[np.argmax(counts)]) if products.size else None

    def _list(self, hits: Sequence[Recommendation], before: Sequence[str]) -> None:
        for hit in hits:
            new = "[green]new[/]" if before and hit.item not in before else "   "
            self._say(f"    {new} {self._name(hit.item)}" + (f"  [dim]{hit.score:,.1f}[/]" if hit.score else ""))

    # -- the proof ----------------------------------------------------------------------------------

    def _prove(self) -> dict[str, Any]:
        self._title("Is it exact? The same purchases in batch, by code of its own")
        begin = time.perf_counter()
        self.engine.drain()
        stream = _file(self.engine.rows(), self.engine.items, self.config)
        drained = time.perf_counter()
        users, items = Vocabulary(), Vocabulary()
        computed = rebuild(self.config, self._again(users, items), users, items, threads=self.threads)
        batch = _file(computed.rows(), items, self.config)
        rebuilt = time.perf_counter()
        equal = stream == batch
        self._say(
            f"stream: {size_text(len(stream))}, sha256 {_digest(stream)} (drained, written: {drained - begin:.1f} s)"
        )
        self._say(f"batch:  {size_text(len(batch))}, sha256 {_digest(batch)} (computed: {rebuilt - drained:.1f} s)")
        self._say(
            "[bold green]Not a byte differs.[/]"
            if equal
            else "[bold red]They differ: this is a bug, please report it.[/]"
        )
        return {
            "equal": equal,
            "model_bytes": len(stream),
            "sha256": {"stream": _digest(stream), "batch": _digest(batch)},
            "rebuild_seconds": round(rebuilt - drained, 3),
            "peak_memory_bytes": peak_memory_bytes(),
        }

    # -- the service --------------------------------------------------------------------------------

    def _service(self) -> dict[str, Any] | None:
        """None where the packages for it are not installed."""
        try:
            from agents.demo.service import ask_over_http
        except ModuleNotFoundError as error:
            self._say(f"\n[dim]Recommendations over HTTP need the extra `serve` ({error.name} is not installed).[/]")
            return None
        self._title("The same over HTTP, as `cco serve --embedded` does it")
        household = self._chosen()[0][1]
        product = self._most_bought(BASKET[0])
        return ask_over_http(
            self.engine, household, product or "1", int(self.purchases.times[-1]) + 3600, self._say, self._name
        )

    def _again(self, users: Vocabulary, items: Vocabulary) -> Iterator[EventBatch]:
        """Every event of this run, from the data, over other vocabularies."""
        yield from self.purchases.batches(self.config, users, items, 20 * BATCH)
        yield EventParser(self.config, users, items).records(self.extra).batch


def _day(time_of: np.uint32) -> str:
    return datetime.fromtimestamp(int(time_of), UTC).strftime("%Y-%m-%d")


def _file(rows: Rows, items: Vocabulary, config: Config) -> bytes:
    return b"".join(encode(rows, items, config))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
