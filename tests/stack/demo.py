"""`make demo-stack`: purchases through Kafka and a worker into Elasticsearch, and recommendations out, on real servers.

    python -m tests.stack.demo [--events N] [--rate N] [--json]

Exit code 0: no question failed, though the worker was killed, and every document is what the log says: the rows, byte
for byte, as the batch rebuild of the log has them; 1: something differs, or a question failed.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape

from agents.cli.common import size_text
from agents.demo.data import Purchases, load_purchases
from tests.kafka.board import Board, Figures
from tests.kafka.demo import CONFIG, ITEM_PARTITIONS, LEAST, Demo, _digest, run_in_folder
from tests.kafka.world import wait_for
from tests.servers.elasticsearch import ElasticsearchServer, fetch_elasticsearch
from tests.servers.kafka import KafkaServer, fetch_kafka
from tests.stack.questions import Client, Questioner
from tests.stack.serving import serving
from tests.stack.stack import Stack

EVENTS, RATE = 30_000, 1_500.0  # purchases, and how many a second
ITEM_TYPES = '\n[items.types]\ndepartment = "keyword"\nbrand = "keyword"\n'
CUSTOMER = "web-customer"
POPULAR = 50  # products among which the new customer chooses
SECONDS = 60.0  # to wait for what should take one
NEXT_STEPS = """\
With servers of your own, the same by hand (README.md, "With Elasticsearch"; deploy/cco.toml is an example of the file):

  cco topics create --config cco.toml
  cco index create --config cco.toml
  cco worker --config cco.toml --name worker-1             as many as you like, each with a name of its own
  cco items load items.csv --config cco.toml
  cco ingest events.csv --config cco.toml
  cco serve --config cco.toml                              http://127.0.0.1:8000/openapi.json says what it takes
"""


class DemoStack(Stack):
    """A stack whose index the demo makes by the command, for all to see."""

    def create_index(self) -> None:
        """Later."""


class StackDemo(Demo):
    """One run over servers that run."""

    stream_title = "Purchases as they come, questions all the time, and a kill -9 in the middle"

    def __init__(
        self,
        servers: tuple[KafkaServer, ElasticsearchServer],
        folder: Path,
        purchases: Purchases,
        rate: float,
        quiet: bool,
    ) -> None:
        super().__init__(servers[0], folder, purchases, quiet)
        self.node, self.rate = servers[1], rate
        self._killed = (0.0, 0.0)  # when the worker died, and when it went on

    def run(self) -> dict[str, Any]:
        """Show everything; answers the numbers, `equal` among them: whether the index is what the log says."""
        report: dict[str, Any] = {"events": len(self.purchases)}
        self.world = self.stack = DemoStack(
            self.server.bootstrap, self.folder, "demo-", CONFIG + ITEM_TYPES, ITEM_PARTITIONS, session_timeout="10s",
            elasticsearch=self.node.url,
        )  # fmt: skip
        try:
            with ExitStack() as open_:
                self._start_worker()
                report["items"] = self._load_items()
                url = open_.enter_context(serving(self.stack))
                self.client = Client(url)
                open_.callback(self.client.close)
                self._introduce(url)
                with Questioner(url, self._questions()) as self.questioner:
                    report |= self._stream()
                report["questions"] = self._answers()
                report["own_event"] = self._own_event()
                report["rules"] = self._rules()
            report |= self._prove()
            codes = {worker.name: worker.stop() for worker in self.workers}
            assert not any(codes.values()), f"workers did not stop in order: {codes}"
        finally:
            self.world.close()
        return report

    # -- what runs ----------------------------------------------------------------------------------

    def _start_worker(self) -> None:
        self.title("A Kafka, an Elasticsearch, a worker, and the query service")
        self.say(
            f"Apache Kafka listens at {self.server.bootstrap}, Elasticsearch at {self.node.url}. The worker reads"
            " [bold]interactions[/] and [bold]items[/], and writes\nrows, metadata and histories of users into"
            " Elasticsearch; the service asks Elasticsearch, and writes events to Kafka.\n"
        )
        self._command("index", "create", "--json")
        begin = time.perf_counter()
        self.workers = [self.world.worker("ann", CCO_CHECKPOINT_EVERY="1s")]
        self.board = Board(self.workers)
        [told] = wait_for(self._all_served, "all partitions to be served")
        self.say(f"  worker {told.name}, after {time.perf_counter() - begin:.1f} s: {told.partitions}")

    def _load_items(self) -> dict[str, Any]:
        """Department and brand of every product that will be bought, from a file."""
        ids = np.unique(self.purchases.products).tolist()
        known = [
            (str(item), self.purchases.catalogue[str(item)]) for item in ids if str(item) in self.purchases.catalogue
        ]
        with (self.folder / "items.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["item", "name", "department", "brand"])
            for item, product in known:
                brand = "store" if product.name.endswith("(store brand)") else "national"
                table.writerow([item, product.name, product.department, brand])
        begin = time.perf_counter()
        sent, _ = self._command("items", "load", "items.csv", "--json")
        assert sent["item_changes"] == len(known), sent
        with self.stack.client() as client:

            def all_there() -> bool:
                client.indices.refresh(index=self.stack.names.items)
                found = client.count(index=self.stack.names.items, query={"term": {"known": True}})
                return int(found["count"]) == len(known)

            wait_for(all_there, "the items to be in the index")
        seconds = round(time.perf_counter() - begin, 2)
        self.say(f"  {len(known):,} products are in the index {seconds:.1f} s later, with name, department and brand")
        return {"loaded": len(known), "seconds": seconds}

    def _introduce(self, url: str) -> None:
        def answers() -> bool:
            self.client.ask({})
            return True

        wait_for(answers, "the service to answer")
        self.say(f"  [dim]$ cco serve --config cco.toml[/]  serves on {url}")

    # -- the stream, with a kill --------------------------------------------------------------------

    def _questions(self) -> list[dict[str, Any]]:
        """Of households, of somebody new, and about products, with and without rules."""
        rng = np.random.default_rng(1)
        users = rng.choice(np.unique(self.purchases.households), 300).tolist()
        items = rng.choice(self.purchases.products, 300).tolist()
        found: list[dict[str, Any]] = []
        for user, item in zip(users, items, strict=True):
            found += [
                {"user": str(user)},
                {"item": str(item), "num": 5},
                {"user": str(user), "include": [{"field": "department", "values": ["GROCERY", "PRODUCE"]}]},
                {"user": "nobody", "boost": [{"field": "brand", "values": ["store"], "factor": 3}]},
            ]
        return found

    def _totals(self, found: Sequence[Figures]) -> dict[str, float]:
        return super()._totals(found) | {
            "asked": self.questioner.asked,
            "failed": len(self.questioner.failures),
            "p50 ms": self.questioner.milliseconds(0.5, since=time.perf_counter() - 5),
        }

    def _kill(self) -> dict[str, Any]:
        begin = time.perf_counter()
        killed = super()._kill()
        self._killed = (begin, time.perf_counter())
        return killed

    def _goes_on(self, found: Sequence[Figures], killed: dict[str, Any]) -> bool:
        done = super()._goes_on(found, killed)
        self._killed = (self._killed[0], time.perf_counter())
        return done

    def _answers(self) -> dict[str, Any]:
        """What became of the questions."""
        asked, failures = self.questioner.asked, self.questioner.failures
        since, until = self._killed
        meanwhile = sum(since <= end <= until for end, _ in self.questioner.taken)
        report = {
            "asked": asked,
            "failed": len(failures),
            "p50_milliseconds": self.questioner.milliseconds(0.5),
            "p99_milliseconds": self.questioner.milliseconds(0.99),
            "without_worker": meanwhile,
            "without_worker_p99_milliseconds": self.questioner.milliseconds(0.99, since, until),
        }
        self.say(
            f"\n{asked:,} questions were asked meanwhile, [bold]{len(failures)} failed[/]; half of the answers took at"
            f" most {report['p50_milliseconds']:.0f} ms, 99% at most {report['p99_milliseconds']:.0f} ms.\n"
            f"{meanwhile:,} of them were asked between the kill and the worker's return."
        )
        for failure in failures[:3]:
            self.say(f"[bold red]failed[/] {escape(failure)}")
        return report

    # -- answers ------------------------------------------------------------------------------------

    def _show(self, answer: dict[str, Any], known: Sequence[str] = ()) -> None:
        for hit in answer["items"]:
            properties = hit["properties"] or {}
            mark = "   " if not known or hit["item"] in known else "[green]new[/]"
            name, department = escape(str(properties.get("name", hit["item"]))), str(properties.get("department", ""))
            self.say(f"      {mark} {name:<45} {department:<14} {properties.get('brand', ''):<9} {hit['score']:>8,.0f}")

    def _ask(self, question: dict[str, Any], known: Sequence[str] = ()) -> dict[str, Any]:
        answer = self.client.ask(question)
        self.say(f"    POST /recommendations {escape(json.dumps(question))}")
        self._show(answer, known)
        return answer

    def _own_event(self) -> dict[str, Any]:
        """Somebody new buys something; answers how long it took to show."""
        self.title("Somebody new")
        before = self._ask({"user": CUSTOMER, "num": 5})
        shown = [hit["item"] for hit in before["items"]]
        product = self._choice(shown)
        event = {"user_id": CUSTOMER, "item_id": product, "event_type": "purchase"}
        begin = time.perf_counter()
        self.client.post("/events", event)
        accepted = time.perf_counter()

        def changed() -> dict[str, Any] | None:
            answer = self.client.ask({"user": CUSTOMER, "num": 5})
            return answer if answer["history"] else None

        while (answer := changed()) is None:
            assert time.perf_counter() - accepted < SECONDS, "the event does not show"
        seconds = time.perf_counter() - begin
        name = self.purchases.catalogue[product].name
        self.say(
            f"\n    POST /events {escape(json.dumps(event))}\n      buys [bold]{escape(name)}[/]; in Kafka after"
            f" {1000 * (accepted - begin):.0f} ms, and after [bold]{1000 * seconds:.0f} ms[/] the same question is"
            " answered by:"
        )
        self._show(answer, shown)
        after = [hit["item"] for hit in answer["items"]]
        return {
            "milliseconds": round(1000 * seconds, 1),
            "accepted_milliseconds": round(1000 * (accepted - begin), 1),
            "before": shown,
            "after": after,
            "changed": after != shown,
        }

    def _choice(self, shown: Sequence[str]) -> str:
        """Of the products that are bought most, the first that tells most about who buys it."""
        products, counts = np.unique(self.purchases.products, return_counts=True)
        popular = [str(products[k]) for k in np.argsort(-counts, kind="stable")[:POPULAR].tolist()]
        others = [item for item in popular if item not in shown]

        def telling(item: str) -> int:
            hits = self.client.ask({"item": item, "num": 5})["items"]
            return sum(hit["score"] > 0 and hit["item"] not in shown for hit in hits)

        return max(others, key=telling)

    def _rules(self) -> dict[str, Any]:
        """Rules on metadata, and an item that is hidden."""
        self.title("Rules on what the shop knows of its items")
        departments = self._departments()
        only = {"field": "department", "values": departments[:1]}
        ask = {"user": CUSTOMER, "num": 3}
        included = self._ask({**ask, "include": [only]})
        excluded = self._ask({**ask, "exclude": [only, {"field": "brand", "values": ["national"]}]})
        boosted = self._ask({**ask, "boost": [{"field": "brand", "values": ["store"], "factor": 20}]})
        hold = (
            all(hit["properties"]["department"] in departments[:1] for hit in included["items"])
            and all(hit["properties"]["department"] not in departments[:1] for hit in excluded["items"])
            and all(hit["properties"]["brand"] == "store" for hit in excluded["items"])
        )
        hidden = boosted["items"][0]["item"]
        change = {"event": "$set", "entityType": "item", "entityId": hidden, "properties": {"recommendable": False}}
        begin = time.perf_counter()
        self.client.post("/events", change)
        question = {**ask, "num": 100}
        while any(hit["item"] == hidden for hit in self.client.ask(question)["items"]):
            assert time.perf_counter() - begin < SECONDS, "the item does not go"
        seconds = time.perf_counter() - begin
        self.say(
            f"\n    POST /events {escape(json.dumps(change))}\n      and [bold]{seconds:.1f} s[/] later nobody is"
            " recommended that product any more."
        )
        return {
            "hold": hold,
            "included": len(included["items"]),
            "excluded": len(excluded["items"]),
            "hidden_seconds": round(seconds, 2),
        }

    def _departments(self) -> list[str]:
        """Those of what is recommended, the most frequent last."""
        hits = self.client.ask({"user": CUSTOMER, "num": 20})["items"]
        found = [str(hit["properties"]["department"]) for hit in hits if hit["properties"]]
        return sorted(set(found), key=lambda name: (found.count(name), name))

    # -- the proof ----------------------------------------------------------------------------------

    def _prove(self) -> dict[str, Any]:
        self.title("Is it exact? What is in Elasticsearch, and what the log says")
        self.world.settle()
        stack = self.stack
        read, took = self._command("rebuild", "--log", "--model", "batch.jsonl", "--threads", "2", "--json")
        begin = time.perf_counter()
        (self.folder / "index.jsonl").write_bytes(stack.model())
        reading = time.perf_counter() - begin
        sums = {name: _digest(self.folder / f"{name}.jsonl") for name in ("index", "batch")}
        size = (self.folder / "index.jsonl").stat().st_size
        wanted, folded = stack.histories(), stack.folded()
        equal = {
            "rows": sums["index"] == sums["batch"] and read["events"] == len(self.purchases) + 1,
            "users": _same(stack.documents_of_users, wanted),
            "metadata": _same(stack.metadata, folded),
        }
        self.say(f"  index.jsonl  sha256 {sums['index']}  {size_text(size)}, read in {reading:.1f} s")
        self.say(f"  batch.jsonl  sha256 {sums['batch']}  {read['events']:,} events, {size_text(read['model_bytes'])}")
        self.say(f"  histories of {len(wanted):,} users, metadata of {len(folded):,} items: compared with the log's")
        self.say(
            "\n[bold green]Not a byte differs.[/]"
            if all(equal.values())
            else f"\n[bold red]They differ ({equal}): this is a bug, please report it.[/]"
        )
        return {
            "equal": all(equal.values()),
            "parts": equal,
            "sha256": sums,
            "users": len(wanted),
            "model_bytes": size,
            "rebuild_seconds": round(took, 2),
        }


def _same(look: Callable[[], Any], wanted: Any) -> bool:
    """Whether it is so, or becomes so: these documents are written without anybody waiting for them."""
    end = time.monotonic() + SECONDS
    while look() != wanted:
        if time.monotonic() > end:
            return False
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; answers the exit code: 0 all is well, 1 something differs or failed, 2 it could not be run."""
    parser = argparse.ArgumentParser(prog="python -m tests.stack.demo", description=__doc__.partition("\n")[0])
    parser.add_argument("--events", type=int, default=EVENTS, help=f"so many purchases; default: {EVENTS:,}")
    parser.add_argument("--rate", type=float, default=RATE, help=f"so many a second; default: {RATE:,.0f}")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    given = parser.parse_args(arguments)
    if given.events < LEAST:
        parser.error(f"--events: at least {LEAST}, so that there is something to see")
    if not given.rate > 0:
        parser.error("--rate: more than 0")
    return run_in_folder(lambda folder: _run(folder, given.events, given.rate, given.json), given.json)


def _run(folder: Path, events: int, rate: float, quiet: bool) -> dict[str, Any]:
    purchases = load_purchases().first(events)
    libs = fetch_kafka(), fetch_elasticsearch()
    begin = time.perf_counter()
    with (
        KafkaServer(folder / "kafka", libs[0]) as kafka,
        ElasticsearchServer(folder / "elasticsearch", libs[1]) as node,
    ):
        demo = StackDemo((kafka, node), folder / "world", purchases, rate, quiet)
        report = demo.run()
    report["exact"] = report["equal"]
    report["equal"] = report["exact"] and not report["questions"]["failed"] and report["rules"]["hold"]
    report["seconds"] = round(time.perf_counter() - begin, 2)
    demo.title(f"That was it, in {report['seconds']:.0f} seconds. What next?")
    demo.say(escape(NEXT_STEPS))
    return report


if __name__ == "__main__":
    sys.exit(main())
