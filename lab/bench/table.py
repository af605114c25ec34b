#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Makes a table and JSON of what lab/bench/measure.sh printed (standard input).

A ratio is of one round, in which all backends ran one after the other, so that a machine whose speed changes harms all
alike: its median over the rounds and its spread are given. Nothing here passes or fails.
usage: table.py OUTPUT.json
"""
import json, re, statistics, sys

# A plain C backend with grant copy, 266 lines, in the same kind of lab: IOPS. It was measured on another day, where
# xen-blkback had the figure beside it, so what compares is the ratio to xen-blkback of the same run.
FLOOR = {
    "file": {"randread:4k:1": (234, 125), "randwrite:4k:1": (258, 135), "randread:4k:32": (608, 481),
             "randwrite:4k:32": (622, 496), "read:256k:8": (272, 223), "write:256k:8": (207, 230)},
    "device": {"randread:4k:1": (125, 165), "randwrite:4k:1": (131, 145), "randread:4k:32": (490, 467),
               "randwrite:4k:32": (538, 605), "read:256k:8": (197, 231), "write:256k:8": (206, 266)},
}
NAMES = {"file": "File", "device": "RawDisk"}



figures = {}
for line in sys.stdin:
    match = re.fullmatch(r"(\d+) (\S+:\S+:\d+) (file|device) (blkback|qdisk|xbb) (\d+)\s*", line)
    if match:
        round_, row, storage, backend, iops = match.groups()
        figures.setdefault((storage, row), {}).setdefault(backend, {})[int(round_)] = int(iops)
if not figures:
    raise SystemExit("xen-bench: no figures")

rows = []
print("| row | XBB | xen-blkback | qdisk | XBB / blkback | XBB / qdisk | C / blkback |")
print("|---|---|---|---|---|---|---|")
for (storage, row), backends in sorted(figures.items(), key=lambda item: item[0][0] == "device"):
    pattern, size, depth = row.split(":")
    entry = {"storage": storage, "pattern": pattern, "block": size, "depth": int(depth), "rounds": len(backends["xbb"])}
    for backend, by_round in backends.items():
        entry[backend] = {"iops": statistics.median(by_round.values()), "all": list(by_round.values())}
    for peer in ("blkback", "qdisk"):
        rounds = sorted(set(backends["xbb"]) & set(backends[peer]))
        ratios = [backends["xbb"][r] / max(1, backends[peer][r]) for r in rounds]
        entry["ratio_" + peer] = {"median": round(statistics.median(ratios), 3), "min": round(min(ratios), 3),
                                  "max": round(max(ratios), 3)}
    c, blkback = FLOOR[storage][row]
    entry["floor"] = {"c": c, "blkback": blkback, "ratio": round(c / blkback, 3)}
    rows.append(entry)
    cells = [f"{NAMES[storage]}, {size} {pattern}, depth {depth}"]
    cells += [f"{entry[b]['iops']:.0f}" for b in ("xbb", "blkback", "qdisk")]
    cells += ["{median:.2f} ({min:.2f}..{max:.2f})".format(**entry["ratio_" + peer]) for peer in ("blkback", "qdisk")]
    cells.append(f"{c / blkback:.2f} ({c} / {blkback})")
    print("| " + " | ".join(cells) + " |")
with open(sys.argv[1], "w") as file:
    json.dump({"unit": "IOPS", "rows": rows}, file, indent=1)
    file.write("\n")
