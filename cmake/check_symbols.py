"""Fails when a kernel object defines or needs a symbol outside its ISA's namespace.

An inline function of the standard library that is instantiated in an object compiled with -mavx512f is a weak symbol:
the linker keeps one copy for the whole binary, maybe this one, and a CPU without AVX-512 then dies in code that never
asked for it. So every global or weak symbol of a kernel object, defined or not, has to lie in fastconv::<isa>; the
compiler's own calls of memcpy and memset are the exception.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys

ALLOWED = frozenset({"memcpy", "memset", "_GLOBAL_OFFSET_TABLE_"})


def foreign_symbols(nm: str, isa: str, objects: list[str]) -> list[str]:
    """The offending symbols, one line each: object, symbol class of nm, mangled name."""
    # _Z, then the prefixes of vtables, guards and local statics, then the nested name with its qualifiers.
    inside = re.compile(rf"_Z(?:T[VTISC]|GV|GR|Z)*N[KVrRO]*8fastconv{len(isa)}{isa}(?![a-z])")
    listing = subprocess.run(
        [nm, "--format=posix", "--print-file-name", *objects], check=True, capture_output=True, text=True
    ).stdout
    found = []
    for line in listing.splitlines():
        file, entry = line.split(": ", 1)
        name, kind = entry.split()[:2]
        # Lower-case classes are local to the object, except u (unique), v and w (weak) and i (ifunc).
        is_local = kind.islower() and kind not in "uvwi"
        if not is_local and name not in ALLOWED and not inside.match(name):
            found.append(f"{file}: {kind} {name}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Check the symbols of the kernel objects of one ISA.")
    parser.add_argument("--nm", default="nm")
    parser.add_argument("--isa", required=True)
    parser.add_argument("objects", nargs="+")
    args = parser.parse_args()
    found = foreign_symbols(args.nm, args.isa, args.objects)
    for line in found:
        print(line, file=sys.stderr)
    if found:
        print(f"{len(found)} symbols outside fastconv::{args.isa}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
