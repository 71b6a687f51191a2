"""What nvcc makes of the kernels: no spills, registers and shared memory within the budgets that the sources state.

Each csrc/cuda/*.cu states them in lines of the form

    // gate: <kernel> registers <most> [shared <most bytes>]
    // gate: <kernel> vectors           its loads and stores are of 128 bits, in the forms whose operands allow it
    // gate: <kernel> vector loads      its loads are; likewise vector stores
    // gate: <kernel> asynchronous      it copies to shared memory by LDGSTS
    // gate: <kernel> tensor cores      each of its forms multiplies by HMMA

Every kernel has a line. No kernel has a stack frame, so that none spills and none indexes registers at run time. Shared
memory is dynamic: what launches ask for is held to its budget by `cuda_host`, which knows it.

FASTCONV_CUDA_BUILD names a build folder of `_cuda` that was made with FASTCONV_CUDA_KEEP=ON; its cubins are looked at.
Without it `elementwise` alone is compiled here, and the rest by `-m slow`, for both architectures.
"""

import os
import re
import shutil
import struct
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
ARCHITECTURES = ("80", "90a")
NVCC = shutil.which("nvcc")
BUILT = os.environ.get("FASTCONV_CUDA_BUILD")
GATE = re.compile(
    r"^// gate: (\w+) (?:registers (\d+)(?: shared (\d+))?|"
    r"(vectors|vector loads|vector stores|asynchronous|tensor cores))$",
    re.M,
)
# sm_80 has the loads' 128 bits in the same words.
EXPECTED = {
    "vectors": ("LDG.E.128", "STG.E.128"),
    "vector loads": ("LDG.E.128",),
    "vector stores": ("STG.E.128",),
    "asynchronous": ("LDGSTS.E.BYPASS.128",),
    "tensor cores": ("HMMA.",),
}


def gates(source):
    """{kernel: (registers, bytes of shared memory)} and {kernel: what its code holds}."""
    budgets, claims = {}, {}
    for kernel, registers, shared, claim in GATE.findall(source.read_text()):
        if claim:
            claims.setdefault(kernel, set()).update(EXPECTED[claim])
        else:
            budgets[kernel] = int(registers), int(shared or 0)
    return budgets, claims


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_every_kernel_states_its_budget(source):
    text = source.read_text()
    kernels = set(re.findall(r"__global__ void (?:__launch_bounds__\((?:[^()]|\([^()]*\))*\))?\s*(\w+)\(", text))
    assert len(kernels) == text.count("__global__")
    budgets, claims = gates(source)
    assert set(budgets) == kernels
    assert set(claims) <= kernels
    assert len(re.findall(r"^// gate:", text, re.M)) == len(GATE.findall(text))


def kernel_of(symbol, names):
    """The kernel of a mangled name."""
    return next((name for name in names if re.search(rf"\d{name}(?:I|E|P|l)", symbol)), None)


def resources(cubin):
    """{mangled kernel: (registers, bytes of its stack frame, bytes of static shared memory)}."""
    data = cubin.read_bytes()
    assert data[:6] == b"\x7fELF\x02\x01"
    (table,) = struct.unpack_from("<Q", data, 40)
    entry, count, strings = struct.unpack_from("<HHH", data, 58)
    headers = [struct.unpack_from("<IIQQQQIIQQ", data, table + i * entry) for i in range(count)]

    def text_at(section, offset):
        begin = headers[section][4] + offset
        return data[begin : data.index(b"\0", begin)].decode()

    sections = {text_at(strings, h[0]): h for h in headers}
    symtab = sections[".symtab"]
    names = {
        i: text_at(symtab[6], struct.unpack_from("<I", data, symtab[4] + 24 * i)[0]) for i in range(symtab[5] // 24)
    }
    # Attributes: a format, a number and 16 bits, which are the size of what follows where the format is 4.
    registers, frames = {}, {}
    at, end = sections[".nv.info"][4], sum(sections[".nv.info"][4:6])
    while at < end:
        form, attribute, size = struct.unpack_from("<BBH", data, at)
        if form == 4 and attribute in (0x2F, 0x11):
            symbol, value = struct.unpack_from("<II", data, at + 4)
            (registers if attribute == 0x2F else frames)[names[symbol]] = value
        at += 4 + (size if form == 4 else 0)
    kernels = [name.removeprefix(".text.") for name in sections if name.startswith(".text.")]
    return {
        k: (registers[k], frames[k], sections.get(f".nv.shared.{k}", (0,) * 6)[5]) for k in kernels if k in registers
    }


def disassembler():
    """nvdisasm, on PATH or as PyPI's nvidia-cuda-nvdisasm has it; None."""
    here = sorted(Path(sysconfig.get_path("platlib"), "nvidia").glob("*/bin/nvdisasm"))
    return shutil.which("nvdisasm") or (str(here[0]) if here else None)


def check_cubin(source, cubin):
    budgets, claims = gates(source)
    found = set()
    for symbol, (registers, frame, shared) in resources(cubin).items():
        kernel = kernel_of(symbol, budgets)
        assert kernel, f"{symbol} has no gate"
        found.add(kernel)
        assert registers <= budgets[kernel][0], f"{symbol} takes {registers} registers"
        assert frame == 0, f"{symbol} has a stack frame of {frame} bytes: it spills"
        # A kilobyte of every block is the system's.
        assert shared <= 1024, f"{symbol} has {shared} bytes of static shared memory"
    assert found == set(budgets)
    if not claims:
        return
    if (tool := disassembler()) is None:
        pytest.skip("registers and spills are right; nvdisasm (PyPI: nvidia-cuda-nvdisasm) would show the loads")
    text = subprocess.run([tool, "-c", str(cubin)], capture_output=True, text=True, check=True).stdout
    bodies = re.split(r"\n\s*\.section\s+\.text\.", text)[1:]
    for kernel, words in claims.items():
        forms = [b for b in bodies if kernel_of(b.partition(",")[0], {kernel})]
        assert forms, kernel
        for word in words:
            missing = sum(word not in b for b in forms)
            assert missing < (1 if word == "HMMA." else len(forms)), f"{kernel} has no {word} in {missing} forms"


def built_cubins(source):
    return sorted(Path(BUILT).rglob(f"{source.stem}*.cubin")) if BUILT else []


@pytest.mark.skipif(not BUILT, reason="FASTCONV_CUDA_BUILD names no build of _cuda")
@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_budgets_hold_in_the_build(source):
    cubins = [c for c in built_cubins(source) if re.fullmatch(rf"{source.stem}(\..*|)\.cubin", c.name)]
    assert cubins, f"no cubin of {source.name} in {BUILT}: FASTCONV_CUDA_KEEP=ON leaves them there"
    for cubin in cubins:
        check_cubin(source, cubin)


# Compiling one source takes a minute or so: the quickest goes into every run that has no build.
@pytest.mark.skipif(NVCC is None, reason="needs nvcc")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    "source",
    [pytest.param(p, marks=[] if p.stem == "elementwise" and not BUILT else [pytest.mark.slow]) for p in SOURCES],
    ids=lambda p: p.stem,
)
def test_budgets_hold(source, architecture, tmp_path):
    cubin = tmp_path / "kernels.cubin"
    command = [NVCC, "-std=c++20", "-O3", "--expt-relaxed-constexpr"]
    command += [f"-gencode=arch=compute_{architecture},code=sm_{architecture}"]
    command += [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc' / 'include'}", "-cubin", str(source), "-o", str(cubin)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    check_cubin(source, cubin)
