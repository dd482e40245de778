"""What is asked and answered over HTTP: decoded and checked in one pass, and documented in the OpenAPI."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from model_sync import contract
from model_sync.questions import MAX_BASKET

MAX_RULES = contract.MAX_RULES - 3  # those of availability are asked for besides

Scalar = str | int | float | bool
Id = Annotated[str, Meta(min_length=1, max_length=512)]
Name = Annotated[str, Meta(min_length=1, max_length=256)]
Ids = Annotated[list[Id], Meta(max_length=contract.MAX_IDS)]
Values = Annotated[list[Scalar], Meta(min_length=1, max_length=contract.MAX_VALUES)]
Factor = Annotated[float, Meta(ge=contract.MIN_FACTOR, le=contract.MAX_FACTOR)]
Weight = Annotated[float, Meta(ge=0, le=contract.MAX_FACTOR)]
Share = Annotated[float, Meta(ge=0, le=contract.MAX_SHARE)]
MAX_RECORDS = 1_000


class RuleModel(Struct, forbid_unknown_fields=True, gc=False):
    """Items whose property `field` has any, or all, of `values`. Text, numbers and booleans never equal each other."""

    field: Name
    values: Values
    match: Literal["any", "all"] = "any"


class BoostModel(Struct, forbid_unknown_fields=True, gc=False):
    """Multiplies what ranks the items whose property `field` has any of `values`."""

    field: Name
    values: Values
    factor: Factor


class RangeModel(Struct, forbid_unknown_fields=True, gc=False):
    """Items with a value of `field` from `min` to `max`, both included: both numbers, or both ISO 8601 dates.

    Items without the property match only if `missing`.
    """

    field: Name
    min: float | str | None = None
    max: float | str | None = None
    missing: bool = False


Rules = Annotated[list[RuleModel], Meta(max_length=MAX_RULES)]


class Question(Struct, forbid_unknown_fields=True, kw_only=True, rename={"from_": "from"}):
    """A question. At most one of `user`, `item`, `items` and `history`; none of them asks for backfill alone."""

    user: Annotated[Id | None, Meta(description="Recommend for this user, by the retained history.")] = None
    item: Annotated[Id | None, Meta(description="Recommend to who looks at this item.")] = None
    items: Annotated[
        Annotated[list[Id], Meta(max_length=MAX_BASKET)] | None, Meta(description="Recommend to go with a basket.")
    ] = None
    history: Annotated[
        dict[str, Ids] | None,
        Meta(description="Recommend by this history: item ids per indicator, as of an anonymous session."),
    ] = None
    num: Annotated[int, Meta(ge=1, le=contract.MAX_NUM, description="How many items to return.")] = 10
    from_: Annotated[int, Meta(ge=0, le=contract.MAX_OFFSET, description="How many of the best to skip.")] = 0
    indicators: Annotated[
        dict[str, Weight] | None,
        Meta(description="Only these indicators count, each times its factor (0: not at all). Default: all of them."),
    ] = None
    include: Annotated[Rules, Meta(description="Only items that pass each of these.")] = []
    exclude: Annotated[Rules, Meta(description="No items that match any of these.")] = []
    boost: Annotated[list[BoostModel], Meta(max_length=MAX_RULES, description="What counts more, or less.")] = []
    ranges: Annotated[list[RangeModel], Meta(max_length=MAX_RULES, description="Numbers and dates.")] = []
    exclude_items: Annotated[Ids, Meta(description="Never these.")] = []
    exclude_events: Annotated[
        Annotated[list[Name], Meta(max_length=64)] | None,
        Meta(
            description="Leave out the items of the history that these event types, or indicators, put there: all"
            " items of an indicator that counts the event type. Default: those of the primary indicator."
        ),
    ] = None
    return_self: Annotated[
        bool, Meta(description="The items of the question itself (`item`, `items`, `history`) may come back.")
    ] = False
    current_date: Annotated[
        Annotated[str, Meta(max_length=64)] | None,
        Meta(description="ISO 8601: what is available or expired is so as of then."),
    ] = None
    priors: Annotated[
        dict[str, Share],
        Meta(description="Per prior, the share of the best score that its largest value is worth."),
    ] = {}
    backfill: Annotated[
        str,
        Meta(
            max_length=64,
            description='What orders the items that the history says nothing about: a prior, "random", "rank" (a'
            ' property of the items), "auto" (popular) or "none" (leave them out). "random" is one order of all items,'
            " a circle, that begins elsewhere for each user (without one, for what is asked with) and on each day of"
            " `current_date` (UTC), so pages join.",
        ),
    ] = "auto"
    fields: Annotated[
        Annotated[list[Name], Meta(max_length=contract.MAX_VALUES)] | None,
        Meta(description="Properties to return. Default: all."),
    ] = None
    explain: Annotated[bool, Meta(description="Return what each history item adds to a score.")] = False


class ContributionModel(Struct, gc=False):
    """What one item of the history (or a prior) adds to a score: weight x boost."""

    indicator: str
    item: str
    weight: float
    boost: float
    score: float


class Recommended(Struct):
    """An item. Its score is 0 where it is backfill, and `backfill` is then what it is ordered by."""

    item: str
    score: float
    properties: dict[str, Scalar | list[Scalar]]
    backfill: float | UnsetType = UNSET
    contributions: list[ContributionModel] | UnsetType = UNSET


class Answer(Struct):
    """The best items, best first. `history` is how many history items the question was asked with.

    `model_age`: seconds since which events may be missing in the model; left out while that is not known.
    """

    recommendation_id: str
    items: list[Recommended]
    history: int
    model_age: float | UnsetType = UNSET


class Rejected(Struct):
    """A record that was not taken: its place in the request, from 0, and why."""

    index: int
    problem: str


class Accepted(Struct):
    """What became of the records."""

    accepted: int
    rejected: list[Rejected] = []


class Verdict(Struct):
    """Whether the service is as it should be, and what is wrong if not."""

    ok: bool
    problems: list[str] = []


QUESTION_NAMES = tuple(field.encode_name for field in msgspec.structs.fields(Question))
decode_question = msgspec.json.Decoder(Question).decode
encode = msgspec.json.Encoder().encode
decode_any = msgspec.json.Decoder(Any).decode

_TABLES: dict[str, Any] = {"history": list[Ids], "indicators": list[Weight], "priors": list[Share]}  # by name: values
_AT = re.compile(r".*`\$\[(\d+)\]", re.DOTALL)


def place_in_question(path: str, body: bytes) -> str:
    """The path of what is wrong with a question, with the name of the element: the decoder says `history[...]`."""
    table, elsewhere, rest = path.partition("[...]")
    if not elsewhere or table not in _TABLES:
        return path
    try:
        given = msgspec.json.decode(body)[table]
        msgspec.convert(list(given.values()), _TABLES[table])
    except msgspec.ValidationError as error:
        found = _AT.match(str(error))
        return f"{table}.{list(given)[int(found[1])]}{rest}" if found else path
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, AttributeError):
        pass  # behind what is wrong there is something that is no JSON, or another value of the same name
    return path


QUESTION_EXAMPLES = {
    "user": {"summary": "For a user", "value": {"user": "u1", "num": 4}},
    "item": {
        "summary": "To who looks at an item",
        "value": {"item": "i9", "include": [{"field": "category", "values": ["tablet"]}]},
    },
    "basket": {"summary": "To go with a basket", "value": {"items": ["i1", "i9"], "return_self": False}},
    "session": {
        "summary": "For an anonymous session, views counting half",
        "value": {
            "history": {"purchase": ["i9"]},
            "indicators": {"purchase": 1.0},
            "ranges": [{"field": "price", "max": 99.5}],
            "explain": True,
        },
    },
    "popular": {"summary": "For anybody", "value": {"backfill": "popular", "fields": ["title"]}},
}  # fmt: skip
ANSWER_EXAMPLE = {
    "recommendation_id": "019ab1d2-6f1e-7c3a-9a51-0d2f6a7b8c9d",
    "items": [
        {
            "item": "i4", "score": 12.5, "properties": {"title": "Tablet", "category": ["tablet"]},
            "contributions": [{"indicator": "purchase", "item": "i9", "weight": 12.5, "boost": 1.0, "score": 12.5}],
        },
        {"item": "i7", "score": 0.0, "properties": {}, "backfill": 31.0},
    ],
    "history": 1,
    "model_age": 0.4,
}  # fmt: skip
EVENT_EXAMPLES = {
    "interaction": {
        "summary": "An interaction",
        "value": {"user_id": "u1", "item_id": "i9", "event_type": "purchase", "timestamp": "2024-05-01T12:00:00Z"},
    },
    "set": {
        "summary": "Properties of an item, set one by one",
        "value": {
            "event": "$set", "entityType": "item", "entityId": "i9", "properties": {"category": ["tablet"]},
        },
    },
    "delete": {"summary": "An item is gone", "value": {"event": "$delete", "entityType": "item", "entityId": "i9"}},
    "batch": {
        "summary": "Several records",
        "value": [
            {"user_id": "u1", "item_id": "i9", "event_type": "purchase"},
            {"user_id": "u2", "event_type": "$delete"},
        ],
    },
}  # fmt: skip
