"""Compiles every Triton kernel for every GPU architecture, without a GPU, and holds the machine code to limits.

`python tests/kernels/compile_check.py` prints the table and writes benchmarks/results/compile_check.json and .txt (five
minutes on two cores); `--quick` takes a few kernels and targets and writes nothing. Per kernel and target: registers,
bytes of stack (what did not fit into registers), bytes of the widest load and store, instructions, whether tensor cores
are used. Prints SKIPPED and why where the installed Triton has no assembler.
"""
from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "int8": "i8", "uint8": "u8", "int16": "i16",
          "int32": "i32", "int64": "i64"}

NUMBERS = ("registers", "stack", "shared", "load", "store", "instructions")
TITLES = f"{'kernel':42} {'target':8} " + " ".join(f"{name:>12}" for name in NUMBERS) + "  tensor cores"

# kernel -> most registers on NVIDIA and on AMD, least bytes of the widest load and of the widest store on NVIDIA. A
# kernel may not spill: stack is 0 but for ALLOWED_STACK.
LIMITS = {
    "decode trellis": (128, 128, 8, 16),
    "decode trellis rotated": (256, 256, 16, 16),
    "decode lut": (128, 128, 4, 16),
    "decode lut rotated": (256, 256, 16, 16),
    "decode additive": (128, 128, 16, 16),
    "decode additive rotated": (256, 256, 16, 16),
    "decode product": (168, 168, 2, 16),
    "linear": (256, 256, 16, 16),
    "rounding": (256, 256, 16, 16),
    "int8": (256, 256, 16, 16),
    "viterbi": (256, 256, 1, 1),
}
# Three products of three bytes each hold the matrix in registers, of which RDNA 3 has half as many; eight warps instead
# of four would not spill, and compute twice as much. Rotated books are rare.
ALLOWED_STACK = {("decode additive 2 x 8 rotated 128", "gfx1100"): 512,
                 ("rounding x rotated 128", "gfx1100"): 128,        # the same matrix; 4 or 16 warps spill far more
                 ("rounding x rotated 128, columns", "gfx1100"): 128}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="", help="kernels and targets whose names contain this")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    reason = missing()
    if reason:
        print(f"SKIPPED: {reason}")
        return 0
    from compile_cases import QUICK, QUICK_TARGETS, TARGETS, cases

    names, targets = (QUICK, QUICK_TARGETS) if arguments.quick else (tuple(cases()), TARGETS)
    wanted = [(name, target) for name in names for target in targets if arguments.only in f"{name} {target}"]
    fresh = multiprocessing.get_context("spawn")    # a fork of torch's threads would hang
    with tempfile.TemporaryDirectory() as cache, ProcessPoolExecutor(arguments.processes, fresh) as pool:
        os.environ["TRITON_CACHE_DIR"] = cache      # the processes are yet to start: all is compiled anew
        print(TITLES)
        rows = []
        for row in pool.map(measure, *zip(*wanted)):
            print(line(row), flush=True)
            rows.append(row)
    problems = [problem for row in rows for problem in broken(row)]
    print("\n".join(problems) or f"{len(rows)} compiled within their limits")
    if not arguments.quick and not arguments.only:
        write(rows)
    return 1 if problems else 0


def missing() -> str | None:
    """Why nothing can be compiled here."""
    try:
        import triton
        from triton.backends.compiler import GPUTarget  # noqa: F401
    except ImportError as error:
        return f"triton cannot be imported: {error}"
    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    absent = [name for name in ("ptxas", "nvdisasm", "cuobjdump") if not (folder / name).exists()]
    return f"triton {triton.__version__} comes without {', '.join(absent)}" if absent else None


def measure(name: str, target: str) -> dict:
    """One row: a kernel for one target, or the error it ended with."""
    from compile_cases import cases

    row = {"kernel": name, "target": target}
    try:
        compiled = compile_for(cases()[name](target), target)
    except Exception as error:
        return {**row, "error": f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"}
    return {**row, "shared": compiled.metadata.shared,
            **(amd(compiled.asm["amdgcn"]) if target.startswith("gfx") else nvidia(compiled.asm["cubin"]))}


def compile_for(call, target: str):
    """As Triton would specialize the call for its arguments: ones are constants, multiples of 16 are known as such."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants, attributes = {}, dict(call.constants), {}
    for index, name in enumerate(call.kernel.arg_names):
        value = call.arguments.get(name)
        special = not call.kernel.params[index].do_not_specialize
        if name in constants or (type(value) is int and value == 1 and special):
            signature[name], constants[name] = "constexpr", constants.get(name, value)
            continue
        signature[name] = (f"*{DTYPES[str(value.dtype).removeprefix('torch.')]}" if hasattr(value, "data_ptr") else
                           "fp32" if isinstance(value, float) else "i32")
        if hasattr(value, "data_ptr") or (isinstance(value, int) and value % 16 == 0 and special):
            attributes[(index,)] = [["tt.divisibility", 16]]
    gpu = (GPUTarget("cuda", int(target[3:]), 32) if target.startswith("sm_") else
           GPUTarget("hip", target, 64 if target.startswith("gfx9") else 32))
    source = ASTSource(call.kernel, signature, constants, attributes)
    return triton.compile(source, target=gpu, options={"num_warps": call.num_warps})


def nvidia(cubin: bytes) -> dict:
    """From cuobjdump and nvdisasm, both in Triton's wheel."""
    import triton

    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, code = (subprocess.run([folder / command[0], *command[1:], file.name], capture_output=True, text=True,
                                      check=True).stdout
                       for command in (("cuobjdump", "-res-usage"), ("nvdisasm", "-c")))
    registers, stack = map(int, re.search(r"REG:(\d+).*?STACK:(\d+)", usage).groups())
    names = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]+)", code)
    names = [name for name in names if not name.startswith("NOP")]
    return {"registers": registers, "stack": stack, "instructions": len(names),
            "load": max(map(_nvidia_bytes, [n for n in names if n.startswith(("LDG.", "LDGSTS."))]), default=0),
            "store": max(map(_nvidia_bytes, [n for n in names if n.startswith("STG.")]), default=0),
            "tensor_cores": any("MMA" in name for name in names)}


def _nvidia_bytes(name: str) -> int:
    width = re.search(r"\.(128|64|U16|S16|U8|S8)", name)
    return {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}[width.group(1)] if width else 4


def amd(assembly: str) -> dict:
    """From the assembly's own notes."""
    notes = re.findall(r"\.(vgpr_count|private_segment_fixed_size):\s+(\d+)", assembly)
    notes = {key: int(value) for key, value in notes}
    names = re.findall(r"^\s+([svdgb]\w*_\w+)", assembly, re.MULTILINE)
    memory = [name for name in names if name.startswith(("global_", "buffer_"))]
    return {"registers": notes["vgpr_count"], "stack": notes["private_segment_fixed_size"], "instructions": len(names),
            "load": max((_amd_bytes(name) for name in memory if "_load_" in name), default=0),
            "store": max((_amd_bytes(name) for name in memory if "_store_" in name), default=0),
            "tensor_cores": any(name.startswith(("v_mfma", "v_wmma")) for name in names)}


def _amd_bytes(name: str) -> int:
    if re.search(r"byte|[bui]8$", name):
        return 1
    if re.search(r"short|[bui]16", name):
        return 2
    words = re.search(r"dwordx(\d)|b(64|96|128)$", name)
    return 4 if not words else 4 * int(words.group(1)) if words.group(1) else int(words.group(2)) // 8


def broken(row: dict) -> list[str]:
    """The limits a row does not keep, in words."""
    place = f"{row['kernel']} on {row['target']}"
    if "error" in row:
        return [f"{place} does not compile: {row['error']}"]
    kind = " ".join(word for word in row["kernel"].split() if word in
                    ("decode", "trellis", "lut", "additive", "product", "rotated"))
    kind, first = re.sub(r"palette|uniform", "lut", kind), row["kernel"].split()[0]
    kind = first if first in LIMITS else kind
    kind = kind if kind in LIMITS else kind.replace("decode", "decode lut")
    nvidia_registers, amd_registers, load, store = LIMITS[kind]
    is_amd = row["target"].startswith("gfx")
    most, stack = amd_registers if is_amd else nvidia_registers, ALLOWED_STACK.get((row["kernel"], row["target"]), 0)
    found = [f"{place}: {row['registers']} registers, at most {most} allowed"] * (row["registers"] > most)
    found += [f"{place}: {row['stack']} bytes of stack, {stack} allowed"] * (row["stack"] > stack)
    if not is_amd:
        found += [f"{place}: loads at most {row['load']} bytes at once, expected {load}"] * (row["load"] < load)
        found += [f"{place}: stores at most {row['store']} bytes at once, expected {store}"] * (row["store"] < store)
    products = kind in ("linear", "int8") or "rotated" in row["kernel"]
    return found + [f"{place} uses no tensor cores"] * (products and not row["tensor_cores"])


def line(row: dict) -> str:
    """A row as text."""
    numbers = row.get("error") or " ".join(f"{row[key]:12}" for key in NUMBERS)
    return f"{row['kernel']:42} {row['target']:8} {numbers}" + ("  yes" if row.get("tensor_cores") else "")


def write(rows: list[dict]) -> None:
    import torch
    import triton

    versions = {"triton": triton.__version__, "torch": torch.__version__, "python": sys.version.split()[0]}
    document = {"versions": versions, "rows": rows}
    (RESULTS / "compile_check.json").write_text(json.dumps(document, indent=1) + "\n")
    head = ", ".join(f"{name} {version}" for name, version in versions.items())
    (RESULTS / "compile_check.txt").write_text("\n".join([head, TITLES, *map(line, rows)]) + "\n")


if __name__ == "__main__":
    sys.exit(main())
