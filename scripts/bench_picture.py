#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Draws the ratios of `make bench`, `make bench-qcow` or `make xen-bench` as an SVG: a dot for the median of a row, a whisker from the lowest to the highest
round, the peer at the line 1.0. The scale is logarithmic, so that twice and half are as far from it. Colours follow the reader's scheme.
usage: bench_picture.py build/bench.json|build/bench-qcow.json OUTPUT.svg
       bench_picture.py build/xen-bench.json OUTPUT.svg CLOCK [PROCESSORS]
"""
import importlib.util, json, math, os, sys
from xml.sax.saxutils import escape

WIDTH, LEFT, RIGHT, TOP = 900, 270, 74, 78
LINE, GAP, HEADING = 13, 9, 26
TICKS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 20, 30, 50, 100]
STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #24292f; }
  .title { font-size: 15px; font-weight: 600; } .heading { font-weight: 600; } .small { font-size: 11px; fill: #57606a; }
  .tick { stroke: #d0d7de; stroke-width: 1; } .peer { stroke: #24292f; stroke-width: 1.5; }
  .s0 { stroke: #0550ae; fill: #0550ae; } .s1 { stroke: #bc4c00; fill: #bc4c00; } .s2 { stroke: #1a7f37; fill: #1a7f37; }
  .s3 { stroke: #8250df; fill: #8250df; } line.s0, line.s1, line.s2, line.s3 { stroke-width: 1.6; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; } .small { fill: #9198a1; } .tick { stroke: #3d444d; } .peer { stroke: #e6edf3; }
    .s0 { stroke: #79c0ff; fill: #79c0ff; } .s1 { stroke: #ffa657; fill: #ffa657; } .s2 { stroke: #7ee787; fill: #7ee787; }
    .s3 { stroke: #d2a8ff; fill: #d2a8ff; }
  }
"""


class Scale:
    """Where a ratio is, in pixels from the left. Its ends are ticks that hold all of the ratios and 1."""

    def __init__(self, ratios):
        low, high = min([1, *ratios]), max([1, *ratios])
        self.low = max([tick for tick in TICKS if tick <= low], default=TICKS[0])
        self.high = min([tick for tick in TICKS if tick >= high], default=TICKS[-1])
        if self.low == self.high:
            self.low, self.high = 0.7, 1.5

    def __call__(self, ratio):
        ratio = min(max(ratio, self.low), self.high)
        part = math.log(ratio / self.low) / math.log(self.high / self.low)
        return round(LEFT + part * (WIDTH - LEFT - RIGHT), 1)

    def ticks(self):
        return [tick for tick in TICKS if self.low <= tick <= self.high]


def mark(series, x, y):
    """A form for each series, as not everyone tells their colours apart."""
    x, y = round(x, 1), round(y, 1)
    if series == 0:
        return f'<circle class="s0" cx="{x}" cy="{y}" r="4"/>'
    if series == 1:
        return f'<rect class="s1" x="{x - 3.5:.1f}" y="{y - 3.5:.1f}" width="7" height="7"/>'
    if series == 2:
        return f'<path class="s2" d="M{x} {y - 5:.1f} l5 5 l-5 5 l-5 -5 z"/>'
    return f'<path class="s3" d="M{x} {y - 5:.1f} l5 9 l-10 0 z"/>'


def draw(title, note, groups):
    """The picture. A group is (heading, rows), a row (label, points), a point (series, median, lowest, highest).
    Raises ValueError where there is nothing to draw or a ratio is not above 0."""
    points = [point for _, rows in groups for _, of_row in rows for point in of_row]
    if not points:
        raise ValueError("no ratios to draw")
    if not all(0 < point[2] <= point[1] <= point[3] for point in points):
        raise ValueError("a ratio is not above 0, or its median is not between its extremes")
    names = list(dict.fromkeys(point[0] for point in points))
    if len(names) > 4:
        raise ValueError("more than four series")
    scale = Scale([value for point in points for value in point[2:]])
    body, y = [], TOP
    for heading, rows in groups:
        if not any(of_row for _, of_row in rows):
            continue
        y += HEADING
        body.append(f'<text class="heading" x="12" y="{y - 8}">{escape(heading)}</text>')
        for label, of_row in rows:
            if not of_row:
                continue
            height = LINE * len(of_row)
            body.append(f'<text x="24" y="{y + height / 2 + 4:.1f}">{escape(label)}</text>')
            for index, (name, median, low, high) in enumerate(of_row):
                series, middle = names.index(name), y + LINE * (index + 0.5)
                body.append(f'<g><title>{escape(label)}, {escape(name)}: {median:.2f} ({low:.2f} to {high:.2f})</title>'
                            f'<line class="s{series}" x1="{scale(low)}" y1="{middle}" x2="{scale(high)}" y2="{middle}"/>'
                            f'{mark(series, scale(median), middle)}'
                            f'<text class="small" text-anchor="end" x="{WIDTH - 12}" y="{middle + 4}">{median:.2f}</text></g>')
            y += height + GAP
    bottom = y
    head = [f'<text class="title" x="12" y="22">{escape(title)}</text>', f'<text class="small" x="12" y="40">{escape(note)}</text>']
    x = LEFT
    for series, name in enumerate(names):
        head += [mark(series, x, 58), f'<text x="{x + 10}" y="62">{escape(name)}</text>']
        x += 24 + 7 * len(name)
    grid = []
    for tick in scale.ticks():
        kind = "peer" if tick == 1 else "tick"
        grid.append(f'<line class="{kind}" x1="{scale(tick)}" y1="{TOP}" x2="{scale(tick)}" y2="{bottom}"/>')
        grid.append(f'<text class="small" text-anchor="middle" x="{scale(tick)}" y="{bottom + 16}">{tick:g}</text>')
    height = bottom + 28
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>{escape(title)}</title>", f"<style>{STYLE}</style>", *head, *grid, *body, "</svg>", ""])


def said_rounds(numbers):
    """How often rows were measured, in words; a run that ended early has rows of fewer rounds."""
    low, high = min(numbers, default=0), max(numbers, default=0)
    return (f"{low} to {high} rounds" if low != high else f"{low} round{'s' if low != 1 else ''}")


def xen_table():
    """lab/bench/table.py, which has the names of storages and peers."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../lab/bench/table.py")
    spec = importlib.util.spec_from_file_location("xen_table", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def xen_picture(results, clock, processors):
    """The rows of one clock and kind of guest."""
    names = xen_table()
    groups = {}
    rows = [row for row in results["rows"] if row["clock"] == clock and row["processors"] == processors]
    for row in rows:
        points = [(f"XBB / {names.PEERS[peer]}", ratio["median"], ratio["min"], ratio["max"])
                  for peer, ratio in sorted(row["ratios"].items(), key=lambda item: list(names.PEERS).index(item[0]))]
        groups.setdefault(names.NAMES[row["storage"]], []).append(
            (f"{row['block']} {row['pattern']}, depth {row['depth']}" + (", mapped" if row["grants"] == "mapped" else ""), points))
    rounds = said_rounds([row["rounds"] for row in rows])
    guest = f"a guest with {processors} processor{'s' if processors > 1 else ''}"
    return draw(f"XBB beside its peers in a real Xen, {clock} clock",
                f"{guest}; I/O a second of XBB divided by those of the peer, which is the line 1; median and extremes of {rounds}",
                list(groups.items()))


def loopback_picture(results):
    """The rows with a state of the machine, a series for each state; the other rows, which have none, for themselves."""
    groups = {}
    for row in results["rows"]:
        if not row.get("ratio_spread"):
            continue
        low, middle, high = row["ratio_spread"]
        state = row.get("state")
        label = row["row"].removesuffix(f", {state}")
        rows = groups.setdefault("XBB / " + row["peer"], {})
        rows.setdefault(label, []).append((f"{state} machine" if state else "as it is", middle, low, high))
    rounds = said_rounds([results.get("repeat", 0)])
    return draw("XBB on the loopback Xen beside its peers",
                f"rate of XBB divided by that of the peer, which is the line 1; median and extremes of {rounds}",
                [(heading, list(rows.items())) for heading, rows in groups.items()])


def qcow_picture(results):
    """The rows beside qemu-nbd: their rates, and the processor time of the two servers, where less is better."""
    writes, reads = [], []
    for row in results["peers"]:
        median, low, high = row["ratio"]
        points = [("IOPS: XBB / qemu-nbd", median, low, high)]
        if row["cost_ratio"]:
            points.append(("processor time: XBB / qemu-nbd, less is better", *row["cost_ratio"]))
        (writes if "write" in row["row"] else reads).append((row["row"], points))
    rounds = said_rounds([row["rounds"] for row in results["peers"]])
    return draw(f"qcow2 beside qemu-nbd, {results['state']} machine",
                f"XBB divided by qemu-nbd, which is the line 1, with fio over NBD; median and extremes of {rounds}",
                [("writing", writes), ("reading", reads)])


def all_xen_pictures(results, folder):
    """A picture for each clock and kind of guest that was measured; returns their files."""
    files = []
    for clock, processors in dict.fromkeys((row["clock"], row["processors"]) for row in results["rows"] if row["ratios"]):
        files.append(os.path.join(folder, f"xen-bench-{clock}-{processors}.svg"))
        with open(files[-1], "w") as file:
            file.write(xen_picture(results, clock, processors))
    return files


def main(words):
    if len(words) not in (2, 3, 4):
        raise SystemExit(__doc__.split("usage:")[1])
    with open(words[0]) as file:
        results = json.load(file)
    try:
        if len(words) > 2:
            picture = xen_picture(results, words[2], int((words[3:] or ["1"])[0]))
        else:
            picture = qcow_picture(results) if "peers" in results else loopback_picture(results)
    except (ValueError, KeyError) as error:
        raise SystemExit(f"bench-picture: {words[0]}: {error}") from None
    with open(words[1], "w") as file:
        file.write(picture)


if __name__ == "__main__":
    main(sys.argv[1:])
