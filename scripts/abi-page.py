#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Looks that a man page names every constant, struct, field, function and macro of xbb_plugin.h, and no other ones.

usage: abi-page.py HEADER PAGE
"""
import re
import sys

sys.dont_write_bytecode = True
import xbb_header  # noqa: E402


def main():
    text = xbb_header.text(sys.argv[1])
    page = open(sys.argv[2]).read()
    words = set(re.findall(r"\w+", page))
    wanted = xbb_header.constants(text) + [name for name, _ in xbb_header.function_types(text)]
    wanted += re.findall(r"\bstruct (xbb_\w+)", text) + re.findall(r"^#define (XBB_\w+)\(", text, flags=re.M)
    functions = re.findall(r"\b(xbb_\w+)\(", text)
    for _, fields in xbb_header.structs(text):
        functions += [name for name, kind in fields if "(*)" in kind]
        wanted += [name for name, kind in fields if "(*)" not in kind and not name.startswith("reserved")]
    entries = set(re.findall(r"\bFn (\w+)", page))
    problems = [f"does not have {name}" for name in wanted if name not in words]
    problems += [f"has no entry '.Fn {name}'" for name in functions if name not in entries]
    known = set(wanted) | set(functions) | set(re.findall(r"\b(?:XBB|xbb)_\w+", text)) | {"xbb_plugin"}
    # XBB_HOST_F_* stands for all that begin so.
    for name in re.findall(r"\b(?:XBB|xbb)_\w+", page):
        if name not in known and not (name.endswith("_") and any(other.startswith(name) for other in known)):
            problems.append(f"speaks of {name}, which the header does not have")
    for problem in dict.fromkeys(problems):
        print(f"abi-page: {sys.argv[2]} {problem}", file=sys.stderr)
    sys.exit(1 if problems else 0)


main()
