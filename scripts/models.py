#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Checks the models in Tests/Models with SPIN: each as it stands, which must be without error, and once with each of its
planted errors, which must be found. --long takes larger sizes, too. --names only checks that the files and functions that
models stand for are there.

usage: models.py [--names | --long] [MODEL...]
"""
import pathlib
import re
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
# The sizes of each model: those of every run, of which one must find each planted error, and those of a long run.
SIZES = {
    "recovery": (["-DEACH=2 -DHANDOVERS=1 -DKILLS=2"], [
        "-DEACH=3 -DHANDOVERS=0 -DKILLS=2", "-DEACH=3 -DHANDOVERS=1 -DKILLS=1",
        "-DQUEUES=2 -DEACH=1 -DHANDOVERS=1 -DKILLS=1"]),
    "sleep": (["-DREQUESTS=2", "-DREQUESTS=1 -DCONTROL", "-DREQUESTS=1 -DPOSTER"], [
        "-DREQUESTS=3", "-DREQUESTS=2 -DCONTROL"]),
}
MEBIBYTES, SECONDS = 900, 120


def missing_names(model):
    """What a model says it stands for and is not there."""
    for line in re.findall(r"^ \* @code (.+)$", model.read_text(), re.M):
        file, *names = line.split()
        path = ROOT / file
        if not path.is_file():
            yield f"{model.name}: {file} does not exist"
            continue
        text = path.read_text()
        for name in names:
            if not re.search(rf"\b(func|var) {name}\b" if name != "init" else r"\binit\b", text):
                yield f"{model.name}: {file} has no '{name}'"


def run(model, options):
    """States, seconds, MiB and what SPIN found: "" for nothing."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["spin", *options, "-a", model], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        subprocess.run(
            # Compiling takes longer than finding a planted error.
            ["gcc", "-O0" if any("-DE_" in option for option in options) else "-O2", "-w", "-DSAFETY", "-DCOLLAPSE", f"-DMEMLIM={MEBIBYTES}", "-o", "pan", "pan.c"],
            cwd=folder, check=True)
        began = time.monotonic()
        text = subprocess.run(
            ["./pan", "-m1000000", "-w20"], cwd=folder, text=True, timeout=SECONDS,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout
        seconds = time.monotonic() - began
    if "Search not completed" in text and "errors: 0" in text or "max search depth too small" in text:
        raise SystemExit(f"models: {model.name} {options}: the search was not complete\n{text}")
    states = int(float(re.search(r"([\d.e+]+) states, stored", text)[1]))
    memory = float(re.search(r"([\d.]+)\s+total actual memory usage", text)[1])
    errors = int(re.search(r"errors: (\d+)", text)[1])
    what = re.search(r"^pan:\d+: (.+?)(?: \(at depth.*)?$", text, re.M)
    return states, seconds, memory, (what[1] if what else "an error") if errors else ""


def report(is_good, model, options, result):
    states, seconds, memory, found = result
    print(f"{'ok' if is_good else 'FAILED'} {model.stem} {options}: {states} states, {seconds:.1f} s, {memory:.0f} MiB"
          f"{': ' + found if found else ''}", flush=True)
    return is_good


def check(model, is_long):
    """True if the model has no error as it stands, and each planted one is found."""
    sizes, long_sizes = SIZES[model.stem]
    good = True
    for options in sizes + (long_sizes if is_long else []):
        result = run(model, options.split())
        good &= report(not result[3], model, options, result)
    for name in sorted(set(re.findall(r"\bE_[A-Z_]+\b", model.read_text())) - {"E_"}):
        for options in sizes:
            result = run(model, [*options.split(), f"-D{name}"])
            if result[3]:
                break
        good &= report(bool(result[3]), model, f"{options} -D{name}", result)
    return good


def main():
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    models = [path for path in sorted((ROOT / "Tests/Models").glob("*.pml")) if not words or path.stem in words]
    gone = [text for model in models for text in missing_names(model)]
    if gone or not models:
        raise SystemExit("\n".join(f"models: {text}" for text in gone) or "models: there is none")
    if "--names" in sys.argv:
        return
    if not all([check(model, "--long" in sys.argv) for model in models]):
        raise SystemExit("models: failed")


main()
