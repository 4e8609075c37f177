"""Compiling recorded launches for GPUs that are not there, and reading what the kernels need of them. No driver, no device.

Triton hands ptxas the code and cuobjdump, which comes with Triton too, reads registers, stack and shared memory from the result. A kernel
here has no arrays of its own, so a stack means that registers were spilled to memory.
"""

import hashlib
import re
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .triton_runtime import Launch

ARCHITECTURES = (80, 86, 90, 100, 120)  # A100, RTX 30, H100 / H200, B200, RTX 50
TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.bool: "i1",
}
ALIGNED = [["tt.divisibility", 16]]


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel takes: registers per thread, bytes of stack per thread (spills), bytes of shared memory per program."""

    registers: int
    stack: int
    shared: int


def _arguments(launch: Launch) -> tuple[dict, dict, dict]:
    """(signature, constexprs, attributes) as Triton's own specialisation makes them: 1 is a constant, multiples of 16 are known to be.

    An argument under do_not_specialize is neither.
    """
    signature, constants, attributes = {}, {}, {}
    named = dict(zip(launch.kernel.arg_names, launch.args, strict=False)) | launch.constexprs
    for index, parameter in enumerate(launch.kernel.params):
        name, value = parameter.name, named.get(parameter.name, parameter.default)
        opaque = parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1 and not opaque):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[name] = "*" + TYPES[value.dtype]
            attributes[(index,)] = ALIGNED
        elif isinstance(value, bool):
            signature[name] = "i1"
        elif isinstance(value, int):
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0 and not opaque:
                attributes[(index,)] = ALIGNED
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            raise TypeError(f"{launch.name}: argument {name} has type {type(value).__name__}")
    return signature, constants, attributes


def key(launch: Launch) -> str:
    """Two launches with the same key compile to the same code."""
    return str((launch.name, *_arguments(launch), launch.num_warps, launch.num_stages))


def digest(launch: Launch) -> str:
    """What the compiled code of a launch depends on besides the architecture, as a short hash: the source of the kernel and of all that it
    calls, argument types, constants, options, and the version of Triton with its ptxas."""
    text = str((triton.__version__, launch.kernel.cache_key, key(launch)))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def compile_launch(launch: Launch, architecture: int) -> triton.compiler.CompiledKernel:
    """The kernel of a launch, compiled for compute capability `architecture` (90 for 9.0). `.asm` has ttir, ptx and cubin.

    Raises:
        RuntimeError: Triton was imported for its interpreter.
    """
    if not isinstance(launch.kernel, triton.JITFunction):
        raise RuntimeError("TRITON_INTERPRET=1 was set when Triton was imported: kernels cannot be compiled in this process")
    signature, constants, attributes = _arguments(launch)
    source = ASTSource(launch.kernel, signature, constants, attributes)
    return triton.compile(
        source, target=GPUTarget("cuda", architecture, 32), options=dict(num_warps=launch.num_warps, num_stages=launch.num_stages)
    )


@cache
def tool(name: str) -> Path:
    """A program of CUDA that comes with Triton, such as cuobjdump or nvdisasm."""
    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name


def resources(kernel: triton.compiler.CompiledKernel) -> Resources:
    """Reads registers, stack and shared memory of a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        text = subprocess.run([tool("cuobjdump"), "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    return Resources(int(found[1]), int(found[2]), kernel.metadata.shared)
