"""Nothing of a kernel object leaks out of its ISA: see cmake/check_symbols.py for why that would be fatal."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "cmake" / "check_symbols.py"
# cmake and ninja come with the test extra, whether or not its environment is activated.
ENVIRONMENT = {**os.environ, "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])}


def run(*command, **options):
    return subprocess.run(
        [str(c) for c in command], env=ENVIRONMENT, capture_output=True, text=True, timeout=600, **options
    )


def run_checked(*command):
    result = run(*command)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def configure(source, tree, *options):
    python = f"-DPython_EXECUTABLE={sys.executable}"
    run_checked("cmake", "-S", source, "-B", tree, "-G", "Ninja", python, *options)


def families():
    """The families that the build compiles."""
    text = (ROOT / "CMakeLists.txt").read_text()
    return re.search(r"set\(FASTCONV_KERNEL_FAMILIES([^)]*)\)", text)[1].split()


def objects_of(tree):
    """The kernel objects of a build tree by ISA."""
    found = {}
    for directory in sorted(tree.glob("CMakeFiles/fastconv_kernels_*.dir")):
        isa = directory.name.removeprefix("fastconv_kernels_").removesuffix(".dir")
        found[isa] = sorted(directory.rglob("*.o"))
    return found


def is_current(objects):
    sources = [p for room in ("kernels", "dispatch") for p in (ROOT / "csrc" / room).iterdir()]
    sources += [ROOT / "CMakeLists.txt", ROOT / "cmake" / "isa.cmake"]
    newest_source = max(p.stat().st_mtime for p in sources)
    built = [p for group in objects.values() for p in group]
    return bool(built) and min(p.stat().st_mtime for p in built) > newest_source


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    """The kernel objects of the installed package's own build where they are at hand and current, else of a new one."""
    trees = list((ROOT / "build").glob("*/"))
    if "FASTCONV_BUILD_DIR" in os.environ:
        trees.insert(0, Path(os.environ["FASTCONV_BUILD_DIR"]))
    for tree in trees:
        found = objects_of(tree)
        if is_current(found):
            return found
    tree = tmp_path_factory.mktemp("kernels")
    configure(ROOT, tree, "-DFASTCONV_PYTHON=OFF")
    targets = [p.name.removesuffix(".dir") for p in tree.glob("CMakeFiles/fastconv_kernels_*.dir")]
    run_checked("cmake", "--build", tree, "--parallel", "2", "--target", *targets)
    return objects_of(tree)


def check(isa, *objects):
    return run(sys.executable, SCRIPT, "--isa", isa, *objects)


@pytest.mark.timeout(600)
def test_every_family_is_built_for_every_isa(objects):
    isas = ["avx2", "avx512", "portable"] if sysconfig.get_platform().endswith("x86_64") else ["portable"]
    assert sorted(objects) == isas
    for isa in isas:
        assert [p.name for p in objects[isa]] == sorted(f"{family}.cc.o" for family in families())


@pytest.mark.timeout(600)
def test_kernels_keep_to_their_namespace(objects):
    for isa, group in objects.items():
        result = check(isa, *group)
        assert result.returncode == 0, result.stderr
        # The same objects under another ISA's name: the check does look at them.
        assert check("none", *group).returncode == 1


# What must be seen, by the symbol that gives it away, and what must pass.
LEAKS = {
    "an inline function of the standard library": (
        "#include <algorithm>\nnamespace fastconv::avx2 {\n"
        "using Pick = const float& (*)(const float&, const float&);\nPick f() { return &std::max<float>; } }",
        "W _ZSt3maxIfERKT_S2_S2_",
    ),
    "an inline function of another namespace": (
        "namespace fastconv { inline int __attribute__((noinline)) helper(int x) { return x + 1; } }\n"
        "namespace fastconv::avx2 { int f(int x) { return helper(x); } }",
        "_ZN8fastconv6helperEi",
    ),
    "another ISA's kernel": (
        "namespace fastconv::avx512 { void g(); }\nnamespace fastconv::avx2 { void f() { avx512::g(); } }",
        "_ZN8fastconv6avx5121gEv",
    ),
    "an ISA whose name begins alike": ("namespace fastconv::avx2x { void f() {} }", "_ZN8fastconv5avx2x1fEv"),
    "a function of libm": (
        "#include <math.h>\nnamespace fastconv::avx2 { float f(float x) { return expf(x); } }",
        "expf",
    ),
    "a global without a namespace": (
        "int counter = 0;\nnamespace fastconv::avx2 { void f() { ++counter; } }",
        "counter",
    ),
    "allocation": ("namespace fastconv::avx2 { float* f() { return new float[8]; } }", "_Znam"),
}
CLEAN = """
#include <string.h>
namespace fastconv { struct Args { float* p; long n; }; }
namespace fastconv::avx2 {
namespace { int hidden(const Args& a) { return static_cast<int>(a.n); } }
template <class T> struct Vec { T x; __attribute__((noinline)) T get() const { return x; } };
template <class T> __attribute__((noinline)) T twice(Vec<T> v) { return v.get() + v.get(); }
inline __attribute__((noinline)) const int* table() { static const int values[] = {1, 2, 3}; return values; }
float f(const Args& a, const Args& b) {
  memcpy(a.p, b.p, static_cast<size_t>(a.n));
  memset(b.p, 0, static_cast<size_t>(b.n));
  return twice(Vec<float>{*a.p}) + static_cast<float>(table()[hidden(a)]);
}
}
"""


def compile_object(source, directory):
    compiler = os.environ.get("CXX") or shutil.which("c++") or "g++"
    (directory / "planted.cc").write_text(source)
    flags = ["-std=c++20", "-O2", "-fPIC", "-fno-exceptions", "-fno-stack-protector"]
    run_checked(*compiler.split(), *flags, "-c", directory / "planted.cc", "-o", directory / "planted.o")
    return directory / "planted.o"


@pytest.mark.parametrize("leak", LEAKS)
def test_a_leak_is_seen(leak, tmp_path):
    source, symbol = LEAKS[leak]
    result = check("avx2", compile_object(source, tmp_path))
    assert result.returncode == 1
    assert symbol in result.stderr


def test_clean_code_passes(tmp_path):
    result = check("avx2", compile_object(CLEAN, tmp_path))
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(("source", "builds"), [("void f() {}", True), ("void f() { ::std::abort(); }", False)])
def test_a_leak_fails_the_build(source, builds, tmp_path):
    """The project's own cmake/, around one small kernel."""
    shutil.copytree(ROOT / "cmake", tmp_path / "cmake")
    (tmp_path / "csrc" / "kernels").mkdir(parents=True)
    (tmp_path / "csrc" / "kernels" / "planted.cc").write_text(
        f"#include <cstdlib>\nnamespace fastconv::FASTCONV_ISA_NS {{\n{source}\n}}\n"
    )
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.26)\nproject(planted LANGUAGES CXX)\nset(CMAKE_CXX_STANDARD 20)\n"
        "find_package(Python REQUIRED COMPONENTS Interpreter)\n"
        "include(cmake/isa.cmake)\nfastconv_add_kernels(planted)\n"
    )
    tree = tmp_path / "build"
    configure(tmp_path, tree)
    result = run("cmake", "--build", tree, "--target", "fastconv_symbols")
    assert (result.returncode == 0) == builds, result.stdout + result.stderr
    assert ("symbols outside fastconv::" in result.stdout) != builds
