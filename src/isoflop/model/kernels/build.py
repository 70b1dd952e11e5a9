"""C++ beside this file: compiled on first use for this very processor, kept in the user's cache, loaded by ctypes."""

import ctypes
import functools
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

# No -ffast-math: a diverged run must still show its NaN. These three change no value that the kernels can produce.
OPTIMIZE = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros")
FLAGS = ("-std=c++17", *OPTIMIZE, "-fopenmp", "-fPIC", "-shared")


@functools.cache
def library(name: str) -> ctypes.CDLL | None:
    """The library built from `name`.cpp, or None, said once on stderr, where that cannot be: no compiler ($CXX, else
    g++), one that fails, or no cache folder of the user's own. Looks once a process."""
    source = Path(__file__).with_name(f"{name}.cpp")
    try:
        return ctypes.CDLL(str(built(source, os.environ.get("CXX", "g++"), cache_folder())))
    except (OSError, subprocess.SubprocessError) as error:
        print(f"isoflop: {name} runs on plain torch, slower: {_reason(error)}", file=sys.stderr, flush=True)
        return None


F = TypeVar("F", bound=Callable[..., Any])


def constant_when_compiled(function: F) -> F:
    """Let torch.compile take what `function` returns for a constant: all that torch.compiler.assume_constant_result
    does, without the import of torch._dynamo, which would cost every start a second."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def built(source: Path, compiler: str, folder: Path) -> Path:
    """The shared object of `source` in `folder`, compiled if it is not there yet. Safe under several processes: each
    compiles in a folder of its own, and the last rename wins. OSError or SubprocessError if it cannot be had."""
    found = shutil.which(compiler)
    if found is None:
        raise FileNotFoundError(f"no C++ compiler {compiler!r} (set CXX to one)")
    target = folder / f"{_fingerprint(source, found)}.so"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=folder) as own:
            part = Path(own) / "part.so"
            _run(found, *FLAGS, str(source), "-o", str(part))
            part.chmod(0o700)
            os.replace(part, target)
    return _owned(target)


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/isoflop/kernels (~/.cache where that is not set), which only the user can enter."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "isoflop" / "kernels"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return _owned(folder)


def _owned(path: Path) -> Path:
    """`path`, if nobody but this user can have put anything there: what is loaded runs as the user."""
    state = path.lstat()
    if stat.S_ISLNK(state.st_mode) or state.st_uid != os.getuid() or state.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"{path} is not this user's alone (set XDG_CACHE_HOME to a folder that is)")
    return path


def _fingerprint(source: Path, compiler: str) -> str:
    """What the machine code depends on: source and headers, flags, compiler and processor."""
    text = b"".join(path.read_bytes() for path in (source, *sorted(source.parent.glob("*.h"))))
    parts = (text, " ".join(FLAGS).encode(), _version(compiler), _processor())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


@functools.cache
def _version(compiler: str) -> bytes:
    return _run(compiler, "--version")


def _processor() -> bytes:
    """The first processor's model and instruction sets: -march=native means something else on another one."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().split(b"\n\n")[0].splitlines()
    except OSError:
        return " ".join(os.uname()).encode()
    return b"\n".join(line for line in lines if line.startswith((b"model", b"vendor", b"flags", b"Features", b"CPU")))


def _run(*command: str) -> bytes:
    return subprocess.run(command, check=True, capture_output=True, timeout=300).stdout


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        return f"{error.cmd[0]} failed: {(error.stderr.decode(errors='replace').splitlines() or ['no message'])[0]}"
    return str(error)
