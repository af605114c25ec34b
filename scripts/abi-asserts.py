#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Writes a C file that asserts every constant of xbb_plugin.h, and the place, size and type of every field.

abidiff sees neither constants nor the arguments of a function behind a pointer in a struct; and a compiler names the
field that moved.
usage: abi-asserts.py HEADER >asserts.c
"""
import re
import subprocess
import sys
import tempfile

# Structs without struct_size: their size is part of the ABI, not only the places of their fields.
FIXED = ("xbb_req", "xbb_error", "xbb_option", "xbb_value", "xbb_ref")
# What a minor version is there to change, what is text, and what only C sources use.
NOT_NUMBERS = ("XBB_ABI_MINOR", "XBB_PLUGIN_ENTRY", "XBB_PLUGIN_H", "XBB_PLUGIN_HEADER", "XBB_STATIC_ASSERT")


def constants(text):
    names = re.findall(r"^#define (XBB_\w+)[ \t]+\S", text, flags=re.M)
    for body in re.findall(r"\benum\s*\{(.*?)\}", text, flags=re.S):
        names += re.findall(r"\b(XBB_\w+)\s*=", body)
    return [name for name in dict.fromkeys(names) if name not in NOT_NUMBERS]


def fields(body):
    """Name and type of each field of a struct's body."""
    for declaration in re.sub(r"\s+", " ", body).split(";"):
        declaration = declaration.strip()
        if not declaration:
            continue
        if function := re.fullmatch(r"(.*\(\*)(\w+)(\)\(.*\))", declaration):
            yield function[2], function[1] + function[3]
            continue
        kind, names = re.fullmatch(r"([^,]*[ *])(\w+(?:\[\d+\])?(?:, \w+)*)", declaration).groups()
        for name in names.split(", "):
            name, array = re.fullmatch(r"(\w+)(\[\d+\])?", name).groups()
            yield name, kind.strip() + (array or "")


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
    text = re.sub(r"/\*.*?\*/", "", open(header).read(), flags=re.S)
    numbers = [(name, "==") for name in constants(text)]
    types = []
    for struct, body in re.findall(r"^struct (\w+) \{(.*?)^\};", text, flags=re.S | re.M):
        numbers.append((f"sizeof(struct {struct})", "==" if struct in FIXED else ">="))
        for name, kind in fields(body):
            # A minor version may give a reserved field its meaning and name.
            if name.startswith("reserved"):
                continue
            field = f"((struct {struct} *)0)->{name}"
            numbers.append((f"offsetof(struct {struct}, {name})", "=="))
            numbers.append((f"sizeof({field})", "=="))
            types.append((field, kind))
    for start, name, end in re.findall(r"^typedef ([^;]*?\(\*)(\w+)(\)\([^;]*\));", text, flags=re.M):
        types.append((f"({name})0", start + re.sub(r"\s+", " ", end)))
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
