"""Kernels built for a processor with fewer instructions, in a process of their own."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

needs_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="builds for a lesser x86 processor")


def assert_runs(program: str, lesser: str, folder: Path) -> None:
    """The Python program ends well and says nothing where the compiler is told `lesser`, such as -mno-avx."""
    compiler = folder / "compiler"
    compiler.write_text(f'#!/bin/sh\nexec {os.environ.get("CXX", "g++")} "$@" {lesser}\n')
    compiler.chmod(0o700)
    environment = os.environ | {"CXX": str(compiler), "XDG_CACHE_HOME": str(folder)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and not done.stderr, done.stderr
