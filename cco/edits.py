"""Edits: what the user stage tells the item stage about a range of its log.

The operations stand in order and each states a fact, so that after all of them every key touched is as
it is at the end of the range: applying a message again changes nothing. Counts and priors are this
source's own, absolute, as of the end of the range.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

ADD, REMOVE, ENTER, LEAVE = 0, 1, 2, 3
"""ADD and REMOVE: user has, has not, the item under the indicator. ENTER: the user's history begins anew
(and ADDs follow). LEAVE: the user has nothing here any more."""


@dataclass(frozen=True, slots=True)
class Edits:
    """One message of source partition `source` to one item partition."""

    source: int
    position: int  # events of the source's log that are applied completely
    op: npt.NDArray[np.uint8]  # (n,)
    indicator: npt.NDArray[np.uint8]  # (n,)
    user: npt.NDArray[np.uint32]  # (n,)
    item: npt.NDArray[np.uint32]  # (n,)
    members: int  # this source's users in U
    count_indicator: npt.NDArray[np.uint8]  # (c,) changed column counts n_t(j)
    count_item: npt.NDArray[np.uint32]  # (c,)
    count: npt.NDArray[np.int32]  # (c,)
    prior: npt.NDArray[np.uint8]  # (p,) position in Config.prior_names
    prior_item: npt.NDArray[np.uint32]  # (p,)
    prior_value: npt.NDArray[np.int32]  # (p,), negative ones too: the sum over the sources decides
