"""What nvcc makes of the kernels: registers, spills and shared memory within the budgets that the sources state.

Each csrc/cuda/*.cu states budgets in lines of the form

    // gate: <kernel> registers <most> spills <most bytes, of each form>
    // gate: <kernel> vectors

where the second says that its loads and stores are of 128 bits where operands allow. Every kernel has a line.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
NVCC = shutil.which("nvcc")
GATE = re.compile(r"^// gate: (\w+) (?:registers (\d+) spills (\d+)|(vectors))$", re.MULTILINE)

# Compiling one source takes a minute or two: the first goes into every run.
PARAMETERS = [pytest.param(p, marks=[] if p.stem == "elementwise" else [pytest.mark.slow]) for p in SOURCES]


def gates(source):
    """{kernel: (registers, spills)} and the kernels whose loads are wide."""
    budgets, vectors = {}, set()
    for kernel, registers, spills, wide in GATE.findall(source.read_text()):
        if wide:
            vectors.add(kernel)
        else:
            budgets[kernel] = int(registers), int(spills)
    return budgets, vectors


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_every_kernel_states_its_budget(source):
    kernels = set(re.findall(r"__global__ void (?:__launch_bounds__\(\w+\))?\s*(\w+)\(", source.read_text()))
    assert kernels
    budgets, vectors = gates(source)
    assert set(budgets) == kernels
    assert vectors <= kernels


def kernel_of(symbol, names):
    """The kernel of a mangled name."""
    return next((name for name in names if re.search(rf"\d{name}(?:I|E)", symbol)), None)


@pytest.mark.skipif(NVCC is None, reason="needs nvcc")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("source", PARAMETERS, ids=lambda p: p.stem)
def test_budgets_hold(source, tmp_path):
    budgets, vectors = gates(source)
    command = [NVCC, "-std=c++20", "-O3", "--expt-relaxed-constexpr", "-gencode=arch=compute_90a,code=sm_90a"]
    command += [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc' / 'include'}", "-Xptxas", "-v", "-cubin"]
    cubin = tmp_path / "kernels.cubin"
    done = subprocess.run([*command, str(source), "-o", str(cubin)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    found, symbol = set(), None
    for line in done.stderr.splitlines():
        if match := re.search(r"Compiling entry function '(\S+)'", line):
            symbol = match[1]
        kernel = symbol and kernel_of(symbol, budgets)
        if not kernel:
            continue
        found.add(kernel)
        if match := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
            assert int(match[1]) <= budgets[kernel][1], f"{symbol}: {line.strip()}"
        if match := re.search(r"Used (\d+) registers", line):
            assert int(match[1]) <= budgets[kernel][0], f"{symbol}: {line.strip()}"
    assert found == set(budgets)
    disassembler = shutil.which("nvdisasm") or shutil.which("cuobjdump")
    if not vectors:
        return
    if disassembler is None:
        pytest.skip("registers and spills are right; nvdisasm or cuobjdump (on PyPI) would show the loads")
    option = "-c" if disassembler.endswith("nvdisasm") else "-sass"
    text = subprocess.run([disassembler, option, str(cubin)], capture_output=True, text=True, check=True).stdout
    for kernel in vectors:
        bodies = [b for b in re.split(r"\n\s*(?:\.section|\.text\.|Function : )", text) if kernel_of(b[:400], {kernel})]
        assert bodies, kernel
        assert any("LDG.E.128" in b and "STG.E.128" in b for b in bodies), kernel
