#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Compares the module table of docs/architecture.md with Package.swift: every module of the product has a row, a row names
exactly what the module depends on, and all of it stands in rows below. Tests and C libraries of the system have no rows.

Also: a module imports what it depends on, and depends on what it imports; nothing comes along by way of others. The package of
the fuzz targets, which no other check builds, says of the product's modules what Package.swift says.

usage: check-modules.py            compare; exit status 1 where they differ
       check-modules.py --print    rows as they should be, in an order in which all arrows point down
"""
import glob
import json
import re
import subprocess
import sys
import tempfile

DOCUMENT = "docs/architecture.md"
IMPORTING = r"^(?:@\w+ |public |package )*import (?:struct |enum |class |func )?(\w+)(?:\.\w+)?$"
FUZZ = "Tests/Fuzz"


def package(folder="."):
    """The Package.swift of a folder as SwiftPM understands it."""
    with tempfile.TemporaryDirectory() as scratch:
        words = ["swift", "package", "--package-path", folder, "--scratch-path", scratch, "dump-package"]
        text = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    return json.loads(text)


def dependencies(target):
    """Names of what a target depends on: targets and products of other packages."""
    found = []
    for dependency in target["dependencies"]:
        name = (dependency.get("byName") or dependency.get("target") or dependency.get("product") or [None])[0]
        if name:
            found.append(name)
    return found


def targets(package):
    """Names of the product's modules in the order of Package.swift, each with the modules that it depends on."""
    found = {}
    for target in package["targets"]:
        if target["type"] in ("test", "system") or (target.get("path") or "").startswith("Tests/"):
            continue
        found[target["name"]] = dependencies(target)
    return {name: [d for d in names if d in found] for name, names in found.items()}


def fuzzed(product, fuzz):
    """Where the fuzz targets' package says something else of a module than the product's."""
    known = {target["name"]: set(dependencies(target)) for target in product["targets"]}
    problems = []
    for target in fuzz["targets"]:
        name, path = target["name"], f"{FUZZ}/{target.get('path')}"
        if "/Modules/" in path:
            problems += [f"{name} depends on {d} in Package.swift" for d in known[name] - set(dependencies(target))]
            problems += [f"{name} depends on {d} here only" for d in set(dependencies(target)) - known[name]]
            continue
        imported = set()
        for file in glob.glob(path + "/*.swift"):
            imported |= set(re.findall(IMPORTING, open(file, encoding="utf-8").read(), re.M))
        missing = (imported & set(known)) - set(dependencies(target))
        problems += [f"{name} imports {d} and does not depend on it" for d in sorted(missing)]
    return problems


def unused(package):
    """What modules in Swift say that they depend on and no file imports, and what they import and do not say.

    An executable of ours that a test runs, and the C header that another C library includes, are imported by nobody."""
    names = {target["name"] for target in package["targets"]} | {"ArgumentParser"}
    programs = {target["name"] for target in package["targets"] if target["type"] == "executable"}
    problems = []
    for target in package["targets"]:
        kind = target["type"]
        folder = target.get("path") or ("Tests/" if kind == "test" else "Sources/") + target["name"]
        files = [f for f in glob.glob(folder + "/**/*.swift", recursive=True)]
        if not files:
            continue
        imported = set()
        for file in files:
            text = open(file, encoding="utf-8").read()
            imported |= set(re.findall(IMPORTING, text, re.M))
        told = set(dependencies(target)) - programs
        told = {name for name in told if name not in ("PluginAPI", "CLinux") or kind != "executable"} | (told & imported)
        problems += [f"{target['name']} depends on {n} and does not import it" for n in sorted(told - imported)]
        problems += [
            f"{target['name']} imports {n} and does not depend on it"
            for n in sorted((imported & names) - told - programs - {target["name"]})
        ]
    return problems


def rows():
    """The rows of the table below the heading "Modules": names and what they know, from the top down."""
    text = open(DOCUMENT, encoding="utf-8").read()
    section = text.split("\n## Modules", 1)[1].split("\n## ", 1)[0]
    table = []
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        name = re.fullmatch(r"`([A-Za-z0-9-]+)`", cells[0]) if line.startswith("|") and len(cells) >= 2 else None
        if name:
            table.append((name.group(1), re.findall(r"`([A-Za-z0-9-]+)`", cells[1])))
    return table


def ordered(known):
    """The modules so that each stands above all that it knows; among those that can, in the order of Package.swift."""
    users = {name: {user for user in known if name in known[user]} for name in known}
    left, result = list(known), []
    while left:
        name = next(name for name in left if not users[name] & set(left))
        left.remove(name)
        result.append(name)
    return result


def main():
    described = package()
    known = targets(described)
    if sys.argv[1:] == ["--print"]:
        for name in ordered(known):
            print(f"| `{name}` | {', '.join(f'`{d}`' for d in sorted(known[name])) or 'nothing'} |")
        return 0
    table = rows()
    names = [name for name, _ in table]
    problems = [f"{name} has no row" for name in known if name not in names]
    problems += [f"{name} is no module of Package.swift" for name in names if name not in known]
    problems += [f"{name} has two rows" for name in set(names) if names.count(name) > 1]
    for position, (name, told) in enumerate(table):
        real = set(known.get(name, told))
        problems += [f"{name} depends on {d}, which its row lacks" for d in sorted(real - set(told))]
        problems += [f"{name} does not depend on {d}, as its row says" for d in sorted(set(told) - real)]
        problems += [f"{name} depends on {d}, which stands above it" for d in told if d in names[: position + 1]]
    problems = [f"{DOCUMENT}: {problem}" for problem in problems]
    problems += [f"Package.swift: {problem}" for problem in unused(described)]
    problems += [f"{FUZZ}/Package.swift: {problem}" for problem in fuzzed(described, package(FUZZ))]
    for problem in problems:
        print(f"check: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
