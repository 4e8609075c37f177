"""Compiled CPU kernels: plain C with OpenMP, built at first use by the machine's own compiler and called through ctypes.

Nothing is compiled at import. A library is built once and kept in a cache folder, $LINESCAN_CACHE, else $XDG_CACHE_HOME/linescan, else
~/.cache/linescan, under a name that holds everything it depends on: sources, flags, compiler, processor and OpenMP runtime. Where that
folder cannot be written, it is built into a private temporary folder, for this process alone.

The flags change nothing outside of the library. In particular there is no -ffast-math, whose start-up code makes the processor treat
subnormal numbers as zero, for the whole process.

OpenMP: the library joins the runtime that PyTorch has loaded, so that both share one pool of threads. A forked child has no such pool, and
its first parallel region would wait for ever: there, kernels run on one thread.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

FLAGS = (
    "-std=gnu11",
    "-O3",
    "-march=native",
    "-fPIC",
    "-fopenmp",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-Wno-psabi",
)
COMPILERS = ("cc", "gcc", "clang")
RUNTIMES = ("libgomp", "libiomp", "libomp")
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # the order of the enum in c_vector.h

_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def threads() -> int:
    """How many threads a kernel may use now: PyTorch's number, one in a forked child."""
    return 1 if _forked else torch.get_num_threads()


def pack(*values: int) -> ctypes.Array:
    """A table of int64, the one argument of every kernel."""
    return (ctypes.c_int64 * len(values))(*values)


def entry(x: torch.Tensor) -> tuple[int, ...]:
    """A tensor as a kernel takes it: address, strides in bytes, type."""
    size = x.element_size()
    return x.data_ptr(), *(n * size for n in x.stride()), TYPES[x.dtype]


def call(function, table: ctypes.Array) -> None:
    """Runs a kernel.

    Raises:
        MemoryError: the kernel found no memory for its scratch arrays.
    """
    if function(table):
        raise MemoryError("a compiled kernel found no memory for its scratch arrays")


@cache
def load(source: Path) -> ctypes.CDLL:
    """The library built from `source`, the headers beside it and those beside this file. Fast after the first time, once per process.

    Raises:
        RuntimeError: there is no compiler, it failed (with its own message), or the library can be kept nowhere.
    """
    compiler, runtime = _compiler(), _loaded_runtime()
    name = f"{source.stem}-{_key(source, compiler, runtime)}.so"
    errors = []
    for folder in (_cache_folder(), None):
        try:
            if folder is not None:
                return _open_or_build(folder / name, source, compiler, runtime)
            with tempfile.TemporaryDirectory(prefix="linescan-") as private:  # a loaded library outlives its file
                return _open_or_build(Path(private) / name, source, compiler, runtime)
        except OSError as error:  # no folder, not writable, nothing in it may be executed
            errors.append(str(error))
    raise RuntimeError(f"the compiled library of {source.name} can be kept nowhere: {'; '.join(errors)}")


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return Path(os.environ.get("LINESCAN_CACHE") or (Path(base) if base else Path("~/.cache").expanduser()) / "linescan")


def _compiler() -> list[str]:
    """The command that runs the C compiler: $CC, else the first of COMPILERS there is."""
    if wanted := shlex.split(os.environ.get("CC", "")):
        if shutil.which(wanted[0]) is None:
            raise RuntimeError(f"no C compiler: CC names {wanted[0]!r}, which is not on the PATH")
        return wanted
    for name in COMPILERS:
        if found := shutil.which(name):
            return [found]
    raise RuntimeError(f"no C compiler: none of {', '.join(COMPILERS)} is on the PATH, and CC is not set")


def _loaded_runtime() -> str | None:
    """File of the OpenMP runtime in this process: PyTorch's. None where there is none, or where the system does not tell."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    files = [line.split(maxsplit=5)[-1] for line in lines if "/" in line]
    return next((f for f in files if Path(f).name.startswith(RUNTIMES)), None)


def _key(source: Path, compiler: list[str], runtime: str | None) -> str:
    """Hash of everything the library depends on."""
    info = Path("/proc/cpuinfo")
    processor = (
        next((line for line in info.read_text().splitlines() if line.startswith(("flags", "Features"))), "") if info.exists() else ""
    )
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True).stdout
    parts = [*compiler, *FLAGS, version, processor, platform.machine(), platform.processor(), str(runtime)]
    files = [source, *sorted(source.parent.glob("*.h")), *sorted(Path(__file__).parent.glob("*.h"))]
    return hashlib.sha256("\n".join([*parts, *(f.read_text() for f in files)]).encode()).hexdigest()[:20]


def _open_or_build(path: Path, source: Path, compiler: list[str], runtime: str | None) -> ctypes.CDLL:
    if path.exists():
        try:
            return ctypes.CDLL(str(path))
        except OSError:
            pass  # damaged: a whole one takes its place
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".build-") as work:
        built = Path(work) / path.name
        _build(source, compiler, runtime, built)
        os.replace(built, path)  # at once, so that another process sees a whole library or none
    return ctypes.CDLL(str(path))


def _build(source: Path, compiler: list[str], runtime: str | None, target: Path) -> None:
    code = target.with_suffix(".o")
    _run([*compiler, *FLAGS, "-c", str(source), "-o", str(code)])
    link = [*compiler, "-shared", str(code), "-o", str(target), "-lm"]
    if runtime is not None:
        try:
            return _run([*link, runtime, "-Wl,-z,defs"])
        except RuntimeError:
            pass  # this compiler calls another runtime than PyTorch's: the library brings its own
    _run([*link, "-fopenmp"])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)} failed:\n{(done.stderr or done.stdout).strip()}")
