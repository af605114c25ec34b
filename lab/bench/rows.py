#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""The rows of `xen-lab bench`, and which of them an expression selects.

A row is STORAGE:PATTERN:BLOCK:DEPTH:PROCESSORS, the last being the guest's. Printed is one a line, with the backends that take turns:
"PROCESSORS STORAGE PATTERN BLOCK DEPTH BACKEND...", ordered as they are measured.
usage: rows.py [EXPRESSION]    (a regular expression that is searched in the rows' names; "all" for all; without one a short selection)
"""
import re, sys

# Backends of each storage. "qcow2" is an image of which each cluster has data; "overlay" is new for each measurement, over a raw image
# with data everywhere.
BACKENDS = {
    "file": ["blkback", "blkback-direct", "qdisk", "xbb"],
    "device": ["blkback", "qdisk", "xbb"],
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


def line(name):
    storage, pattern, block, depth, processors = name.split(":")
    return " ".join([processors, storage, pattern, block, depth, *BACKENDS[storage]])


if __name__ == "__main__":
    try:
        print(*(line(name) for name in select(" ".join(sys.argv[1:]))), sep="\n")
    except ValueError as error:
        raise SystemExit(f"xen-bench: {error}") from None
