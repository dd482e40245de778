"""Kernels that cut lines of CSV into fields, a whole block at a time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from llr.jit import kernel

Bytes = npt.NDArray[np.uint8]
Bounds = npt.NDArray[np.int32]

QUOTE, BREAK, RETURN = 34, 10, 13
LONG = 100_000  # bytes; Python's reader, which has the last word where quotes are, refuses fields above 131,072


@kernel
def cut_fields(
    data: Bytes, delimiter: int, wanted: npt.NDArray[np.int64], bounds: Bounds, plain: npt.NDArray[np.bool_]
) -> bool:
    r"""Where the wanted fields are. `data`: len(plain) lines, each ended by \n or \r\n.

    Field f of line k is data[bounds[wanted[f], 0, k]:bounds[wanted[f], 1, k]]; wanted[f] is -1 where it is not
    wanted. Not `plain`, with empty fields, is what needs a closer look: lines that have not len(wanted) fields,
    quotes inside of quotes, a quoted field that goes on after its end, and where quotes are, carriage returns
    and long lines. False if a quote is open at the end of a line: then lines are no records.
    """
    at = 0
    for k in range(plain.size):
        begin = at
        field = 0
        good = True
        quotes = returns = False
        while True:  # a field
            start = at
            quoted = data[at] == QUOTE
            if quoted:
                quotes = True
                at += 1
                while data[at] != QUOTE or data[at + 1] == QUOTE:
                    if data[at] == BREAK:
                        return False
                    if data[at] == QUOTE:
                        good = False
                        at += 1
                    returns |= data[at] == RETURN
                    at += 1
                at += 1
                after = data[at]
                at_end = after == BREAK or (after == RETURN and data[at + 1] == BREAK)
                good &= at_end or after == delimiter
            while data[at] != delimiter and data[at] != BREAK:
                quotes |= data[at] == QUOTE
                returns |= data[at] == RETURN and data[at + 1] != BREAK
                at += 1
            stop = at
            if data[at] == BREAK and stop > start and data[stop - 1] == RETURN:
                stop -= 1
            if field < wanted.size and wanted[field] >= 0:
                bounds[wanted[field], 0, k] = start + quoted
                bounds[wanted[field], 1, k] = stop - quoted
            field += 1
            at += 1
            if data[at - 1] == BREAK:
                break
        plain[k] = good and field == wanted.size and not (quotes and (returns or at - begin > LONG))
        if not plain[k]:
            bounds[:, :, k] = 0
    return True


@kernel
def gather(data: Bytes, starts: Bounds, stops: Bounds, offsets: Bounds, out: Bytes) -> None:
    """Texts data[starts[k]:stops[k]] one after the other into `out`; text k is out[offsets[k]:offsets[k + 1]]."""
    at = 0
    offsets[0] = 0
    for k in range(starts.size):
        for b in range(starts[k], stops[k]):
            out[at] = data[b]
            at += 1
        offsets[k + 1] = at
