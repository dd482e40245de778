"""The modes of the system, and the reasons for them.

kappa        the stream keeps the published model as it should be
catching_up  the stream works, and is behind: what is published gets there by itself
lambda       the stream does not get there by itself, in part or as a whole: queries are answered from what was
             published last, and a batch rebuild is what makes it newer
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

Mode = Literal["kappa", "catching_up", "lambda"]
MODES: tuple[Mode, ...] = get_args(Mode)

FOLLOWING_SECONDS = 5.0  # that a partition may lag behind its log and still count as following it
STALLED_SECONDS = 60.0  # without a step, while there is something to do, after which it counts as standing still
STALE_TIMES = 10.0  # of max_staleness: rows that are older are not kept by the stream any more

REBUILD = "publish a rebuild (`cco rebuild --log` or `--archive`, with `--publish` and `--seed`)"


@dataclass(frozen=True, slots=True)
class Reason:
    """Why the mode is not kappa; one with the mode kappa is worth telling, and does not change the mode.

    about: a partition ("interactions-3"), or "" for all. text: a sentence. remedy: what to do, "" for nothing.
    """

    mode: Mode
    about: str
    text: str
    remedy: str = ""


def mode_of(reasons: Iterable[Reason]) -> Mode:
    """The mode that these reasons make together: the worst of theirs."""
    return max((reason.mode for reason in reasons), key=MODES.index, default="kappa")


def lag_reason(about: str, lag: int, behind: float, stood: float) -> Reason | None:
    """What there is to say of a partition `lag` records behind its log for `behind` s, `stood` of them at one place."""
    if lag <= 0 or behind <= FOLLOWING_SECONDS:
        return None
    text = f"{about} is {lag} records behind its log"
    if stood <= STALLED_SECONDS:
        return Reason("catching_up", about, text)
    remedy = "look into the log of its worker, and start that again"
    return Reason("lambda", about, f"{text} and has stood still for {stood:.0f} s", remedy)


def staleness_reason(about: str, staleness: float, most: float) -> Reason | None:
    """What there is to say of rows that are up to `staleness` s old where `most` is allowed."""
    if staleness <= most:
        return None
    text = f"{about} has rows that are older than max_staleness ({staleness:.0f} s, not {most:.0f} s)"
    if staleness <= STALE_TIMES * most:
        return Reason("catching_up", about, text)
    return Reason("lambda", about, text, "a faster sink or more item partitions; until then, " + REBUILD)


def fill_reason(about: str, sources: list[int], waited: float) -> Reason:
    """What there is to say of an item partition that `sources` have not told everything for `waited` s."""
    text = f"{about} waits to be filled by the user stages"
    if waited <= STALLED_SECONDS:
        return Reason("catching_up", about, text)
    named = ", ".join(f"interactions-{source}" for source in sources)
    text += f" for {waited:.0f} s" + (f": {named} did not answer" if named else "")
    return Reason("lambda", about, text, "have all partitions of interactions served")
