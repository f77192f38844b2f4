"""A pass for numba: indices of arrays are unsigned.

numba lets an index count from an array's end, as Python does, and so makes three instructions of each access. Kernels
check every index that comes from shared memory and use none below zero; that handling was an eighth of their time.
"""

from __future__ import annotations

from typing import Any

from numba.core import ir, types
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import FunctionPass, register_pass
from numba.core.typed_passes import NopythonTypeInference

_register: Any = register_pass  # numba's compiler has no types.


@_register(mutates_CFG=False, analysis_only=False)
class UnsignedIndices(FunctionPass):
    """Has the lowering of each array access take its index as a uintp; the bits are the same."""

    _name = "unsigned_indices"

    def __init__(self) -> None:
        """numba's own is abstract, and does nothing."""

    def run_pass(self, state: Any) -> bool:
        """Changes the signatures that type inference has found. Whether there were any to change."""
        found = False
        for block in state.func_ir.blocks.values():
            accesses = [*block.find_exprs(op="getitem"), *block.find_insts(ir.SetItem)]
            for access in accesses:
                array, index, *value = state.calltypes[access].args
                if isinstance(array, types.Array) and index == types.intp:
                    # Taken out first: each entry of this dictionary can be set once.
                    signature = state.calltypes.pop(access)
                    state.calltypes[access] = signature.replace(args=(array, types.uintp, *value))
                    found = True
        return found


class KernelCompiler(CompilerBase):
    """numba's own pipeline, and the pass."""

    def define_pipelines(self) -> list[Any]:
        """One pipeline: nopython."""
        builder: Any = DefaultPassBuilder
        pipeline = builder.define_nopython_pipeline(self.state)
        pipeline.add_pass_after(UnsignedIndices, NopythonTypeInference)
        pipeline.finalize()
        return [pipeline]
