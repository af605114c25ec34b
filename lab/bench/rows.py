#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""The rows of `xen-lab bench`, and which of them an expression selects.

A row is STORAGE:PATTERN:BLOCK:DEPTH:PROCESSORS, the last being the guest's. Printed is one a line, with the backends that take turns:
"PROCESSORS STORAGE PATTERN BLOCK DEPTH BACKEND...", ordered as they are measured.
usage: rows.py [EXPRESSION]    (a regular expression that is searched in the rows' names; "all" for all; without one a short selection)
The environment's BACKENDS names those that take turns; without it all do.
"""
import os, re, sys

# Backends of each storage. "qcow2" is an image of which each cluster has data; "overlay" is new for each measurement, over a raw image
# with data everywhere. "xbb" has Xen copy the data, "xbb-mapped" is XBB where the guest's pages stay mapped.
BACKENDS = {
    "file": ["blkback", "blkback-direct", "qdisk", "xbb", "xbb-mapped"],
    "device": ["blkback", "qdisk", "xbb", "xbb-mapped"],
    "qcow2": ["qdisk", "xbb"],
    "overlay": ["qdisk", "xbb"],
}
# "mixed" has 70 reads to 30 writes.
PATTERNS = ["randread:4k:1", "randwrite:4k:1", "randread:4k:32", "randwrite:4k:32", "mixed:4k:32", "read:64k:8", "write:64k:8",
            "read:256k:8", "write:256k:8", "read:1M:8", "write:1M:8"]
PROCESSORS = [1, 4]
SHORT = r":(rand(read|write):4k:32|(read|write):256k:8):1$"


def names():
    return [f"{storage}:{pattern}:{processors}" for processors in PROCESSORS for storage in BACKENDS for pattern in PATTERNS]


def select(expression):
    """The names that an expression selects. Raises ValueError where there is none."""
    if expression == "all":
        return names()
    try:
        pattern = re.compile(expression or SHORT)
    except re.error as error:
        raise ValueError(f"'{expression}' is no regular expression: {error}") from None
    selected = [name for name in names() if pattern.search(name)]
    if not selected:
        raise ValueError(f"no row has '{expression}'; rows are named as {names()[0]} and {names()[-1]}")
    return selected


def chosen(words):
    """The names of backends that `words` has, all for None. Raises ValueError for a name that is none."""
    known = list(dict.fromkeys(name for names in BACKENDS.values() for name in names))
    names = known if words is None else words.split()
    for name in names:
        if name not in known:
            raise ValueError(f"'{name}' is no backend; they are {', '.join(known)}")
    return names


def line(name, backends=None):
    """What is printed of a row; "" where none of `backends` has its storage."""
    storage, pattern, block, depth, processors = name.split(":")
    turns = [backend for backend in BACKENDS[storage] if backends is None or backend in backends]
    return " ".join([processors, storage, pattern, block, depth, *turns]) if turns else ""


if __name__ == "__main__":
    try:
        backends = chosen(os.environ.get("BACKENDS") or None)
        print(*filter(None, (line(name, backends) for name in select(" ".join(sys.argv[1:])))), sep="\n")
    except ValueError as error:
        raise SystemExit(f"xen-bench: {error}") from None
