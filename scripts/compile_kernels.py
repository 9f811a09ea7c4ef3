"""Compile the GPU kernels for many GPU generations, without a GPU.

    python scripts/compile_kernels.py                     sm_75 (Turing) to sm_120 (Blackwell)
    python scripts/compile_kernels.py --capabilities 90

Prints a Markdown table: size of the machine code, registers and stack of a thread, shared memory,
and the vector widths of loads and of atomic additions. Needs Triton, whose package brings NVIDIA's
assembler.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
# Interpreted kernels are not compiled.
os.environ.pop("TRITON_INTERPRET", None)

from config import positive_int  # noqa: E402
from runtime.errors import UserError, run_script  # noqa: E402
from scripts.benchmark import make_parser, table_head, table_row  # noqa: E402

CAPABILITIES = (75, 80, 86, 89, 90, 100, 120)
# Multisamples, features per entry and levels: the released grid and its proposals' grids.
CASES = ((6, 4, 10), (6, 1, 8), (1, 4, 10))
TABLES = {"fp32": "*fp32", "fp16": "*fp16", "bf16": "*bf16"}


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("--capabilities", type=positive_int, nargs="+", default=CAPABILITIES)
    parser.add_argument("--cases", type=int, nargs="+", choices=range(len(CASES)),
                        default=range(len(CASES)), help="rows of CASES")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=["fp32"])
    args = parser.parse_args(argv)
    try:
        from fields import kernels_triton
    except ImportError as error:
        raise UserError("Triton is not installed; pip install triton") from error
    print(table_head(["GPU", "kernel", "multisamples", "features", "table", "code bytes",
                      "registers", "stack", "shared", "loads", "atomics"]))
    for capability in args.capabilities:
        for members, width, levels in (CASES[case] for case in args.cases):
            for name in ("_forward", "_table_gradient", "_points_gradient"):
                for table in args.tables if name != "_table_gradient" else ["fp32"]:
                    cubin, shared = compile_kernel(getattr(kernels_triton, name), capability,
                                                   members, width, levels, TABLES[table])
                    print(table_row([f"sm_{capability}", name, members, width, table, len(cubin),
                                     *usage(cubin, shared)]), flush=True)


def compile_kernel(kernel, capability, members, width, levels, table):
    """Machine code of a kernel for a compute capability, and its bytes of shared memory."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fields.kernels_triton import BLOCK

    kinds = {"table_ptr": table, "constants_ptr": "*i32"}
    constants = {"LEVELS": levels, "MEMBERS": members, "WIDTH": width,
                 "PADDED": triton.next_power_of_2(width), "BLOCK": BLOCK}
    signature = {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        else:
            signature[name] = kinds.get(name, "*fp32") if name.endswith("_ptr") else "i32"
    # PyTorch aligns its tensors.
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(signature)
               if name.endswith("_ptr")}
    source = ASTSource(kernel, signature, constexprs=constants, attrs=aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    return compiled.asm["cubin"], compiled.metadata.shared


def usage(cubin, shared):
    """Registers, stack, shared memory, kinds of loads and kinds of atomic additions."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        resources = run([tools / "cuobjdump", "-res-usage", file])
        code = run([tools / "nvdisasm", "-c", file])
    found = dict(re.findall(r"(REG|STACK):(\d+)", resources))
    loads = sorted(set(re.findall(r"\bLDG\.E(?:\.CONSTANT)?(?:\.(?:U?\d+))?", code)))
    atomics = sorted(set(re.findall(r"\b(?:REDG?|ATOMG?)\.E\.ADD[.\w]*", code)))
    return [found.get("REG", "?"), found.get("STACK", "?"), shared, ", ".join(loads),
            ", ".join(atomics)]


def run(command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    run_script(main)
