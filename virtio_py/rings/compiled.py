"""The compiled engine: numba over the kernels' own code objects, and the compiled bodies of their twins.

Importing this module imports numba; nothing else does.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any

from virtio_py.errors import EngineUnavailable
from virtio_py.memory import GuestMemory
from virtio_py.rings import kernels
from virtio_py.rings.engine import Engine
from virtio_py.rings.kernels import KERNELS, TWINS, Memory, Words
from virtio_py.rings.kernels.common import HOST, ROW
from virtio_py.rings.layouts import pvirtq_desc, virtq_desc

try:
    import numpy
    from llvmlite import ir
    from numba import njit, types
    from numba.core import cgutils
    from numba.extending import intrinsic

    from virtio_py.rings.unsigned_indices import KernelCompiler
except ImportError as error:
    raise EngineUnavailable(f"the compiled engine needs numba: {error}") from error

logger = logging.getLogger(__name__)

# Kernels own no memory, so numba's reference counts (two atomic operations for each array at each call) can go. Callees
# are inlined: a named tuple of arrays is passed as some dozens of words, which costs more than most callees do.
_jit: Any = partial(njit, nogil=True, forceinline=True, _nrt=False, pipeline_class=KernelCompiler)

_ADDR, _LEN = virtq_desc.offset("addr"), virtq_desc.offset("len")
_FLAGS, _NEXT = virtq_desc.offset("flags"), virtq_desc.offset("next")
_PACKED_ADDR, _PACKED_LEN = pvirtq_desc.offset("addr"), pvirtq_desc.offset("len")
_PACKED_ID, _PACKED_FLAGS = pvirtq_desc.offset("id"), pvirtq_desc.offset("flags")


def _item(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """A pointer to an element of a one-dimensional array; the kernel has checked the index."""
    made = context.make_array(array_type)(context, builder, array)
    return builder.gep(made.data, [index])


def _array_load(ordering: str) -> Any:
    @intrinsic
    def load(typing_context: Any, words: Any, index: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            pointer = _item(context, builder, signature.args[0], args[0], args[1])
            value = builder.load_atomic(pointer, ordering, signature.args[0].dtype.bitwidth // 8)
            return builder.zext(value, ir.IntType(64))

        return types.int64(words, types.int64), codegen

    return load


@intrinsic
def _array_store(typing_context: Any, words: Any, index: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        item = signature.args[0].dtype
        pointer = _item(context, builder, signature.args[0], args[0], args[1])
        word = builder.trunc(args[2], ir.IntType(item.bitwidth))
        builder.store_atomic(word, pointer, "release", item.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(words, types.int64, types.int64), codegen


@intrinsic
def _fence(typing_context: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen


_eventfd_write: Any = types.ExternalFunction("eventfd_write", types.int32(types.int32, types.uint64))


@_jit  # type: ignore[untyped-decorator]  # numba's options for it have no types
def _signal(descriptor: int) -> None:
    _eventfd_write(descriptor, 1)


@intrinsic
def _await_signal(typing_context: Any, descriptor: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word, number = ir.IntType(64), ir.IntType(32)
        insert: Any = cgutils.get_or_insert_function
        read = insert(builder.module, ir.FunctionType(number, [number, word.as_pointer()]), "eventfd_read")
        alloca: Any = cgutils.alloca_once
        builder.call(read, [builder.trunc(args[0], number), alloca(builder, word)])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def _pause(typing_context: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        insert: Any = cgutils.get_or_insert_function
        builder.call(insert(builder.module, ir.FunctionType(ir.VoidType(), []), "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), codegen


def _address_load(bits: int) -> Any:
    @intrinsic
    def load(typing_context: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            word = ir.IntType(bits)
            pointer = builder.inttoptr(args[0], word.as_pointer())
            # Monotonic: once and whole. A plain load might be repeated, after the value was checked.
            value = builder.load_atomic(pointer, "monotonic", 1 if bits == 8 else bits // 8)
            return value if bits == 64 else builder.zext(value, ir.IntType(64))

        return types.int64(types.int64), codegen

    return load


def _address_store(bits: int) -> Any:
    @intrinsic
    def store(typing_context: Any, address: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            word = ir.IntType(bits)
            pointer = builder.inttoptr(args[0], word.as_pointer())
            builder.store(args[1] if bits == 64 else builder.trunc(args[1], word), pointer, align=bits // 8)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), codegen

    return store


_load16, _load32, _load64 = _address_load(16), _address_load(32), _address_load(64)
_store16, _store32, _store64 = _address_store(16), _address_store(32), _address_store(64)


@_jit  # type: ignore[untyped-decorator]  # numba's options for it have no types
def _load_split_descriptor(memory: Any, row: int, offset: int) -> tuple[int, int, int, int]:
    at = memory.rows[row * ROW + HOST] + offset
    return _load64(at + _ADDR), _load32(at + _LEN), _load16(at + _FLAGS), _load16(at + _NEXT)


@_jit  # type: ignore[untyped-decorator]  # numba's options for it have no types
def _store_split_descriptor(
    memory: Any, row: int, offset: int, address: int, length: int, flags: int, following: int
) -> None:
    at = memory.rows[row * ROW + HOST] + offset
    _store64(at + _ADDR, address)
    _store32(at + _LEN, length)
    _store16(at + _FLAGS, flags)
    _store16(at + _NEXT, following)


@_jit  # type: ignore[untyped-decorator]  # numba's options for it have no types
def _load_packed_descriptor(memory: Any, row: int, offset: int) -> tuple[int, int, int, int]:
    at = memory.rows[row * ROW + HOST] + offset
    return _load64(at + _PACKED_ADDR), _load32(at + _PACKED_LEN), _load16(at + _PACKED_ID), _load16(at + _PACKED_FLAGS)


@_jit  # type: ignore[untyped-decorator]  # numba's options for it have no types
def _store_packed_descriptor(
    memory: Any, row: int, offset: int, address: int, length: int, ident: int, flags: int
) -> None:
    at = memory.rows[row * ROW + HOST] + offset
    _store64(at + _PACKED_ADDR, address)
    _store32(at + _PACKED_LEN, length)
    _store16(at + _PACKED_ID, ident)
    _store16(at + _PACKED_FLAGS, flags)


@_jit  # type: ignore[untyped-decorator]  # numba's options for it have no types
def _load_word(memory: Any, row: int, offset: int) -> int:
    word: int = _load64(memory.rows[row * ROW + HOST] + offset)
    return word


@_jit  # type: ignore[untyped-decorator]  # numba's options for it have no types
def _store_word(memory: Any, row: int, offset: int, value: int) -> None:
    _store64(memory.rows[row * ROW + HOST] + offset, value)


_LINE_PAIR = 128

COMPILED_TWINS: dict[str, Callable[..., Any]] = {
    "load_acquire": _array_load("acquire"),
    "load_once": _array_load("monotonic"),
    "store_release": _array_store,
    "fence": _fence,
    "pause": _pause,
    "signal": _signal,
    "await_signal": _await_signal,
    "load_split_descriptor": _load_split_descriptor,
    "store_split_descriptor": _store_split_descriptor,
    "load_packed_descriptor": _load_packed_descriptor,
    "store_packed_descriptor": _store_packed_descriptor,
    "load_word": _load_word,
    "store_word": _store_word,
}

assert COMPILED_TWINS.keys() == TWINS.keys(), "every twin has a compiled body"


def _stamp() -> str:
    """A digest of all kernels' sources. numba's cache looks only at the file of the function itself, not at those of
    its callees; with the stamp in its name a function is compiled anew when any of them changes."""
    sources = [*sorted(Path(kernels.__file__).parent.glob("*.py")), Path(__file__)]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]


def compile_all() -> dict[str, Callable[..., Any]]:
    """Each kernel's code object in a namespace where its callees are compiled, given to numba. Nothing is compiled
    before the first call."""
    stamp = _stamp()
    made: dict[str, Callable[..., Any]] = dict(COMPILED_TWINS)
    swap = {id(function): made[name] for name, function in TWINS.items()}
    for name, function in KERNELS.items():
        # Callees go by identity, not by name: a loop for both layouts calls `add`, which is one or the other's.
        namespace = {key: swap.get(id(value), value) for key, value in function.__globals__.items()}
        shadow = FunctionType(function.__code__, namespace, name)
        shadow.__qualname__ = f"{name}_{stamp}"
        shadow.__module__ = function.__module__
        made[name] = swap[id(function)] = _jit(cache=True)(shadow)
    return made


class CompiledEngine(Engine):
    """The kernels compiled, on numpy arrays. Each array is checked by the kernels, not by numpy."""

    name = "compiled"

    def __init__(self) -> None:
        super().__init__(compile_all())
        self._say_if_cold()

    def _say_if_cold(self) -> None:
        """Compilation takes seconds, without a word from numba: say what is going on."""
        first = self.kernels["split_take"]
        impl: Any = first
        if not any(Path(impl._cache.cache_path).glob(f"*{_stamp()}*")):
            logger.warning("compiling the ring kernels; this takes some seconds, once")

    def words(self, count: int) -> Words:
        """`count` private signed 64-bit words, zero."""
        # On cache lines of their own, and pairs of them, since processors fetch pairs: the two halves of a queue are
        # busy on two cores, and must not share a line that only one of them means to use.
        spare: Any = numpy.zeros(count + 2 * _LINE_PAIR // 8, numpy.int64)
        skip = -spare.__array_interface__["data"][0] % _LINE_PAIR // 8
        array: Any = spare[skip : skip + count]
        words: Words = array
        return words

    def view(self, view: memoryview, code: str) -> Words:
        """Shared memory as an array of unsigned words."""
        array: Any = numpy.frombuffer(view, {"H": numpy.uint16, "I": numpy.uint32}[code])
        words: Words = array
        return words

    def memory(self, memory: GuestMemory) -> Memory:
        """The regions with the addresses that they have in this process."""
        rows = super().memory(memory).rows
        for i, region in enumerate(memory.regions):
            host: Any = numpy.frombuffer(region.view, numpy.uint8)
            rows[ROW * i + HOST] = host.__array_interface__["data"][0]
        return Memory(rows, ())
