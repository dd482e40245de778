"""Asking the processor for a cache line before it is needed, where the next addresses are known and scattered."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from llr.jit import COMPILED


def _typed_prefetch(_context: Any, array: Any, index: Any) -> Any:
    """Ask for the cache line of `array[index]`, a flat array; never faults, whatever the index."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = signature.args[0]
        view = context.make_array(kind)(context, builder, arguments[0])
        pointer: Any = cgutils.get_item_pointer
        i32, anything = ir.IntType(32), ir.IntType(8).as_pointer()
        address = builder.bitcast(pointer(context, builder, kind, view, [arguments[1]], wraparound=False), anything)
        function_type = ir.FunctionType(ir.VoidType(), [anything, i32, i32, i32])
        declare: Any = cgutils.get_or_insert_function
        function = declare(builder.module, function_type, "llvm.prefetch.p0")
        builder.call(function, [address, i32(0), i32(3), i32(1)])  # for reading, keep, data
        return context.get_dummy_value()

    return types.void(array, types.uintp), codegen


def _no_prefetch(_array: Any, _index: Any) -> None:
    """What uncompiled kernels do instead."""


prefetch: Any = intrinsic(_typed_prefetch) if COMPILED else _no_prefetch
"""`prefetch(array, index)` in a kernel: a flat array, an index of type uint64."""
