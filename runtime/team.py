"""Kernels on the threads that PyTorch itself uses, through its OpenMP library, by numba.

PyTorch's threads are awake: after an operation they wait for the next one by spinning. Other
threads would have to be woken, which on a virtual machine takes longer than a short kernel, and
would compete with them for the cores.
"""

import ctypes
import functools
import os

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_BYTES = ir.IntType(8).as_pointer()
_SIZE = ir.IntType(64)


@functools.cache
def parallel_address() -> int:
    """The address of `GOMP_parallel` in the process, 0 if its OpenMP library has none.

    GNU's library, which PyTorch uses on Linux, defines it.
    """
    if os.name != "posix":
        return 0
    function = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
    return ctypes.cast(function, ctypes.c_void_p).value or 0 if function else 0


@intrinsic
def run(typing_context, parallel, num_threads, kernel, count, num_parts, arguments):
    """Call `kernel(first, last, *arguments)` for `num_parts` parts of range(count) on a team.

    parallel: `parallel_address()`. kernel: the address of a function that `numba.cfunc` compiled
    for (intp, intp) and the types of `arguments`, a tuple. Each thread takes the next part as soon
    as it has finished one.
    """
    numbers = [types.intp] * 5
    return types.void(*numbers, arguments), functools.partial(_write_run, arguments)


def _write_run(arguments, context, builder, signature, values):
    """Instructions that call GOMP_parallel with the job: what the threads share."""
    parallel, num_threads, kernel, count, num_parts, packed = values
    job = cgutils.pack_struct(builder, [_SIZE(0), kernel, count, num_parts, packed])
    pointer = cgutils.alloca_once_value(builder, job)
    body = _write_body(context, builder.module, arguments, job.type)
    unsigned = ir.IntType(32)
    function_type = ir.FunctionType(ir.VoidType(), [body.type, _BYTES, unsigned, unsigned])
    builder.call(builder.inttoptr(parallel, function_type.as_pointer()), [
        body, builder.bitcast(pointer, _BYTES), builder.trunc(num_threads, unsigned), unsigned(0)])
    return context.get_dummy_value()


def _write_body(context, module, arguments, job_type):
    """The function of one thread: while parts are left, take the next one and call the kernel."""
    body = ir.Function(module, ir.FunctionType(ir.VoidType(), [_BYTES]),
                       module.get_unique_name("team_body"))
    body.linkage = "internal"
    builder = ir.IRBuilder(body.append_basic_block())
    job = builder.bitcast(body.args[0], job_type.as_pointer())
    kernel, count, num_parts, packed = (
        builder.load(cgutils.gep_inbounds(builder, job, 0, i)) for i in range(1, 5))
    loop, work, end = (body.append_basic_block(name) for name in ("loop", "work", "end"))
    builder.branch(loop)
    builder.position_at_end(loop)
    part = builder.atomic_rmw("add", cgutils.gep_inbounds(builder, job, 0, 0), _SIZE(1), "seq_cst")
    builder.cbranch(builder.icmp_signed("<", part, num_parts), work, end)
    builder.position_at_end(work)
    ends = [builder.sdiv(builder.mul(count, builder.add(part, _SIZE(i))), num_parts)
            for i in range(2)]
    values = [*ends, *cgutils.unpack_tuple(builder, packed, len(arguments))]
    kernel_types = [context.get_value_type(kind) for kind in (types.intp, types.intp, *arguments)]
    kernel_type = ir.FunctionType(context.get_value_type(types.none), kernel_types)
    builder.call(builder.inttoptr(kernel, kernel_type.as_pointer()), values)
    builder.branch(loop)
    builder.position_at_end(end)
    builder.ret_void()
    return body
