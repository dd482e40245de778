"""The last step of `cco demo`: the engine of this process behind the query service, asked over HTTP, and stopped."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

from agents.engine import Engine
from agents.serving.embedded import BackgroundServer, embedded_service
from agents.serving.learning import Learner

QUESTIONS = 200  # asked for the time that one takes
CUSTOMER = "web-customer"


@contextmanager
def served(engine: Engine) -> Iterator[str]:
    """The URL of a service over this engine, while it lasts. Nobody else may change the engine meanwhile."""
    learner = Learner(engine, None)
    learner.start()
    try:
        with BackgroundServer(embedded_service(engine, learner)) as server:
            yield server.url
    finally:
        learner.stop()


def post(url: str, body: object) -> Any:
    """What a service answers to JSON."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def ask_over_http(
    engine: Engine, household: str, product: str, when: int, say: Callable[[str], None], name: Callable[[str], str]
) -> dict[str, Any]:
    """Ask and tell the service what a shop would; answers the numbers. `product` is what a new customer buys."""
    question = {"user": household, "num": 3}
    direct = [hit.item for hit in engine.recommend(user=household, num=3)]
    with served(engine) as url:
        answer = post(f"{url}/recommendations", question)
        say(f"    POST {url}/recommendations {json.dumps(question)}".replace("[", "\\["))
        for found in answer["items"]:
            say(f"        [green]{name(found['item'])}[/]  score {found['score']:,.0f}")
        took = []
        for _ in range(QUESTIONS):
            begin = time.perf_counter()
            post(f"{url}/recommendations", question)
            took.append(1000 * (time.perf_counter() - begin))
        say(f"    {QUESTIONS} more times: [bold]{median(took):.1f} ms[/] each, with a new connection every time\n")
        event = {"user_id": CUSTOMER, "item_id": product, "event_type": "purchase", "timestamp": when}
        before = post(f"{url}/recommendations", {"user": CUSTOMER, "num": 3})["items"]
        begin = time.perf_counter()
        post(f"{url}/events", event)
        after = post(f"{url}/recommendations", {"user": CUSTOMER, "num": 3})["items"]
        changed = 1000 * (time.perf_counter() - begin)
        say(f"    POST {url}/events: somebody new buys [bold]{name(product)}[/]; [bold]{changed:.1f} ms[/] later:")
        known = [found["item"] for found in before]
        for found in after:
            say(f"        {'   ' if found['item'] in known else '[green]new[/]'} {name(found['item'])}")
    return {
        "question_milliseconds": round(median(took), 2),
        "event_milliseconds": round(changed, 2),
        "equal": [found["item"] for found in answer["items"]] == direct,
        "recommended": [[found["item"] for found in part] for part in (before, after)],
    }
