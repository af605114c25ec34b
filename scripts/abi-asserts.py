#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Writes a C file that asserts every constant of xbb_plugin.h, and the place, size and type of every field.

abidiff sees neither constants nor the arguments of a function behind a pointer in a struct; and a compiler names the
field that moved.
usage: abi-asserts.py HEADER >asserts.c
"""
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True
import xbb_header  # noqa: E402

# Structs without struct_size: their size is part of the ABI, not only the places of their fields.
FIXED = ("xbb_req", "xbb_error", "xbb_option", "xbb_value", "xbb_ref")


def evaluate(header, expressions):
    """The values of C expressions, as the compiler sees them."""
    with tempfile.TemporaryDirectory() as folder:
        with open(f"{folder}/print.c", "w") as out:
            out.write(f'#include <stdio.h>\n#include "{header}"\nint main(void) {{\n')
            out.writelines(f'printf("%llu\\n", (unsigned long long)({text}));\n' for text in expressions)
            out.write("}\n")
        subprocess.run(["gcc", "-std=c11", f"{folder}/print.c", "-o", f"{folder}/print"], check=True)
        return subprocess.run([f"{folder}/print"], check=True, capture_output=True, text=True).stdout.split()


def main():
    header = sys.argv[1]
    text = xbb_header.text(header)
    numbers = [(name, "==") for name in xbb_header.constants(text)]
    types = []
    for struct, fields in xbb_header.structs(text):
        numbers.append((f"sizeof(struct {struct})", "==" if struct in FIXED else ">="))
        for name, kind in fields:
            # A minor version may give a reserved field its meaning and name.
            if name.startswith("reserved"):
                continue
            field = f"((struct {struct} *)0)->{name}"
            numbers.append((f"offsetof(struct {struct}, {name})", "=="))
            numbers.append((f"sizeof({field})", "=="))
            types.append((field, kind))
    types += [(f"({name})0", kind) for name, kind in xbb_header.function_types(text)]
    types.append(("&xbb_plugin_v1", "const struct xbb_plugin *(*)(void)"))

    print("/* SPDX-License-Identifier: BSD-2-Clause")
    print(" * What is frozen of xbb_plugin.h. Written by scripts/abi-freeze.sh; a released version's file never changes. */")
    print('#include "xbb_plugin.h"')
    for (what, relation), value in zip(numbers, evaluate(header, [what for what, _ in numbers])):
        print(f'_Static_assert({what} {relation} {value}ull, "{what} {relation} {value}");')
    for what, kind in types:
        print(f'_Static_assert(__builtin_types_compatible_p(__typeof__({what}), {kind}), "{what} is {kind}");')
    print('_Static_assert(__builtin_strcmp(XBB_PLUGIN_ENTRY, "xbb_plugin_v1") == 0, "XBB_PLUGIN_ENTRY");')


main()
