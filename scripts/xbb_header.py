# SPDX-License-Identifier: BSD-2-Clause
"""Reads xbb_plugin.h: its constants, its structs and their fields, its types of functions."""
import re

# What a minor version is there to change, what is text, and what only C sources use.
NOT_NUMBERS = ("XBB_ABI_MINOR", "XBB_PLUGIN_ENTRY", "XBB_PLUGIN_H", "XBB_PLUGIN_HEADER", "XBB_STATIC_ASSERT")


def text(path):
    """The header without comments."""
    return re.sub(r"/\*.*?\*/", "", open(path).read(), flags=re.S)


def constants(text):
    """Names of numbers: macros and enumerators."""
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


def structs(text):
    """Name of each struct, with the names and types of its fields."""
    for name, body in re.findall(r"^struct (\w+) \{(.*?)^\};", text, flags=re.S | re.M):
        yield name, list(fields(body))


def function_types(text):
    """Name and type of each typedef of a function."""
    for start, name, end in re.findall(r"^typedef ([^;]*?\(\*)(\w+)(\)\([^;]*\));", text, flags=re.M):
        yield name, start + re.sub(r"\s+", " ", end)
