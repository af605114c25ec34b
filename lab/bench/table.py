#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Makes tables and JSON of what lab/bench/measure.sh printed (standard input), each clock's after a line "CLOCK NAME NANOSECONDS", which is
how long an instruction takes. Where the clock counts the instructions of two processors, the time of one goes on while the other one
works; so dom0's instructions are known where there is one processor alone, clock "single".

A ratio is of one round, in which all backends ran one after the other, so that a machine whose speed changes harms all
alike: its median over the rounds and its spread are given. Nothing here passes or fails. Beside OUTPUT.json stands a picture for each
clock and kind of guest, xen-bench-CLOCK-PROCESSORS.svg.
usage: table.py OUTPUT.json
"""
import importlib.util, json, os, statistics, sys

NAMES = {"file": "File", "device": "RawDisk", "qcow2": "qcow2 in place", "overlay": "qcow2 over a raw image"}
# XBB's ways to the guest's data: Xen copies it, or the pages stay mapped.
GRANTS = {"xbb": "copied", "xbb-mapped": "mapped"}
PEERS = {"blkback": "xen-blkback", "blkback-direct": "xen-blkback, direct loop", "qdisk": "qdisk"}


def parse(lines):
    """Figures by row and backend and round: {(clock, storage, pattern, block, depth, processors): {backend: {round: (IOPS, cost)}}}, cost
    being what an operation took of dom0: instructions by the clock "single", nanoseconds by the others."""
    figures, clock, clocks = {}, None, {}
    for line in lines:
        words = line.split()
        if words[:1] == ["CLOCK"]:
            clock, clocks[words[1]] = words[1], int(words[2])
        elif words[:1] == ["RESULT"] and len(words) == 11:
            processors, storage, pattern, block, depth, backend, round_, iops, operations, spent = words[1:]
            key = (clock, storage, pattern, block, int(depth), int(processors))
            unit = clocks[clock] if clock == "single" else 1
            figures.setdefault(key, {}).setdefault(backend, {})[int(round_)] = (
                int(iops), int(spent) / max(1, int(operations)) / unit)
    return figures


def spread(values, digits=3):
    return {"median": round(statistics.median(values), digits), "min": round(min(values), digits), "max": round(max(values), digits)}


def variants(backends):
    """The figures of a row for each way in which XBB was measured: [(grants, {backend: ...})], where "xbb" is XBB in that way."""
    peers = {name: rounds for name, rounds in backends.items() if name not in GRANTS}
    return [(GRANTS[name], {**peers, "xbb": backends[name]}) for name in GRANTS if name in backends]


def entry(key, backends, grants="copied"):
    """What JSON has of a row."""
    clock, storage, pattern, block, depth, processors = key
    result = {"clock": clock, "storage": storage, "pattern": pattern, "block": block, "depth": depth, "processors": processors, "grants": grants,
              "rounds": len(backends["xbb"]), "backends": {}, "ratios": {}}
    for backend, rounds in sorted(backends.items()):
        result["backends"][backend] = {
            "iops": statistics.median(figure[0] for figure in rounds.values()), "all": [figure[0] for figure in rounds.values()],
            "instructions" if clock == "single" else "ns_of_dom0": round(statistics.median(figure[1] for figure in rounds.values()))}
        if backend != "xbb":
            ratios = [backends["xbb"][r][0] / max(1, rounds[r][0]) for r in sorted(set(backends["xbb"]) & set(rounds))]
            # Of a run that ended early the last round may have one of them.
            if ratios:
                result["ratios"][backend] = spread(ratios)
    return result


def label(row):
    text = f"{NAMES[row['storage']]}, {row['block']} {row['pattern']}, depth {row['depth']}"
    text += f", {row['processors']} processors" if row["processors"] > 1 else ""
    return text + (", pages stay mapped" if row["grants"] == "mapped" else "")


def cost(row, backend):
    figures = row["backends"].get(backend)
    if not figures:
        return ""
    if row["clock"] == "single":
        return f"{figures['instructions'] / 1000:.1f}"
    return f"{figures['ns_of_dom0'] / 1000:.0f}"


def table(clock, rows):
    """A table in Markdown of one clock's rows."""
    unit = "thousand instructions" if clock == "single" else "µs"
    lines = [f"{clock} clock: IOPS, ratio (spread), {unit} of dom0 for an operation", "",
             "| row | XBB | " + " | ".join(f"{name} | XBB / it" for name in PEERS.values()) + " | dom0: XBB | " + " | ".join(PEERS.values()) + " |",
             "|---|" + "---|" * (2 + 3 * len(PEERS))]
    for row in rows:
        cells = [label(row), f"{row['backends']['xbb']['iops']:.0f}"]
        for peer in PEERS:
            if peer in row["ratios"]:
                cells += [f"{row['backends'][peer]['iops']:.0f}", "{median:.2f} ({min:.2f}..{max:.2f})".format(**row["ratios"][peer])]
            else:
                cells += ["", ""]
        cells += [cost(row, backend) for backend in ["xbb", *PEERS]]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def picture_maker():
    """scripts/bench_picture.py."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../scripts/bench_picture.py")
    spec = importlib.util.spec_from_file_location("bench_picture", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main():
    figures = parse(sys.stdin)
    rows = [entry(key, of_variant, grants) for key, backends in figures.items() for grants, of_variant in variants(backends)]
    if not rows:
        raise SystemExit("xen-bench: no figures")
    clocks = list(dict.fromkeys(row["clock"] for row in rows))
    print(*(table(clock, [row for row in rows if row["clock"] == clock]) for clock in clocks), sep="\n\n")
    with open(sys.argv[1], "w") as file:
        json.dump({"unit": "IOPS", "rows": rows}, file, indent=1)
        file.write("\n")
    # Nothing is drawn where XBB alone was measured.
    pictures = picture_maker().all_xen_pictures({"rows": rows}, os.path.dirname(os.path.abspath(sys.argv[1])))
    print(*("written to " + name for name in [sys.argv[1], *pictures]), sep="\n")


if __name__ == "__main__":
    main()
