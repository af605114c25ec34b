#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Measures images with tables, QCOW or VHD, beside qemu-nbd with the same client (fio over NBD), and reading beside libqcow alone.

fio talks to qemu-nbd, or to nbdkit with our plugin, which passes its requests through the ring to the disk's worker. Both
servers take turns, each on an image of its own that was made in the same way, and each row gives the medians, the median of the
rounds' ratios with their spread, and the processor time of a request: of the worker, which has a process for the NBD
protocol beside it, and of qemu-nbd, which has the protocol inside. Nothing here passes or fails.
usage: bench-qcow.py [--seconds S] [--rounds N] [--mebibytes M] [--only write|read|libqcow] [--row WORDS] [--directory DIR]
                     [--state awake|idle] [--format qcow2|vhd]    (see bench.py; ROUNDS, RUNTIME and STATE in the environment are --rounds, --seconds, --state)
"""
import argparse, json, os, shutil, statistics, subprocess, tempfile, time

import bench

ROOT = bench.ROOT
TICK = os.sysconf("SC_CLK_TCK")
PLUGIN = bench.BUILD + "/lib/nbdkit/nbdkit-xbb-plugin.so"
DISK = "xvdq"
# What XBB, QEMU and qemu-img call a format, and how an image is made.
FORMATS = {"qcow2": ("qcow2", []), "vhd": ("vpc", ["-o", "subformat=dynamic,force_size=on"])}
# Name, kind of image, options of fio, and how many writes of a new image (None: as many as the time allows).
ROWS = {
    "write": [
        ("4k random write in place, depth 32", "filled", "--rw=randwrite --bs=4k --iodepth=32", None),
        ("4k random write allocating, depth 32", "empty", "--rw=randwrite --bs=4k --iodepth=32", 40000),
        ("4k random write over a template, depth 32", "overlay", "--rw=randwrite --bs=4k --iodepth=32", 8000),
        ("4k random write in place, fsync after each", "filled", "--rw=randwrite --bs=4k --iodepth=1 --fsync=1", None),
        ("4k random write allocating, fsync after each", "empty", "--rw=randwrite --bs=4k --iodepth=1 --fsync=1", 3000),
        ("64k sequential write in place, depth 16", "filled", "--rw=write --bs=64k --iodepth=16", None),
        ("1M sequential write in place, depth 8", "filled", "--rw=write --bs=1M --iodepth=8", None),
        ("64k sequential write allocating, depth 16", "empty", "--rw=write --bs=64k --iodepth=16", 8000),
    ],
    "read": [
        ("4k random read, depth 32", "filled", "--rw=randread --bs=4k --iodepth=32", None),
        ("4k random read of a template, depth 32", "overlay", "--rw=randread --bs=4k --iodepth=32", None),
        ("64k sequential read, depth 16", "filled", "--rw=read --bs=64k --iodepth=16", None),
        ("1M sequential read, depth 8", "filled", "--rw=read --bs=1M --iodepth=8", None),
        ("4k random read, deflated, depth 32", "deflated", "--rw=randread --bs=4k --iodepth=32", None),
    ],
}


def processor_time(pid):
    """Seconds of all threads of a process, in the system too."""
    with open(f"/proc/{pid}/stat") as file:
        words = file.read().rsplit(")", 1)[1].split()
    return (int(words[11]) + int(words[12])) / TICK


def is_direct(pid, path):
    """Whether a process has a file open with O_DIRECT."""
    for number in os.listdir(f"/proc/{pid}/fd"):
        try:
            if os.readlink(f"/proc/{pid}/fd/{number}") != path:
                continue
            with open(f"/proc/{pid}/fdinfo/{number}") as file:
                if any(line.startswith("flags:") and int(line.split()[1], 8) & os.O_DIRECT for line in file):
                    return True
        except OSError:
            continue
    return False


class Images:
    """Images of each kind, one for each server; what is written into for the first time is made anew each time."""

    def __init__(self, work, mebibytes, format):
        self.work, self.mebibytes = work, mebibytes
        self.qemu, self.options = FORMATS[format]
        os.makedirs(work + "/templates")
        self.template = work + "/templates/template.raw"
        # Halves of each 64 KiB can be deflated.
        with open(self.template, "wb") as file:
            for _ in range(mebibytes * 16):
                file.write(os.urandom(32 << 10) + b"xen block backend" * 1927 + b"xbb xbb xbb")

    def make(self, kind, server):
        path = f"{self.work}/{kind}.{server}"
        if kind in ("filled", "deflated"):
            if not os.path.exists(path):
                compress = ["-c"] if kind == "deflated" else []
                bench.run("qemu-img", "convert", *compress, "-O", self.qemu, *self.options, self.template, path)
                os.sync()
            return path
        if kind == "empty":
            bench.run("qemu-img", "create", "-f", self.qemu, *self.options, path, "8G")
        else:
            bench.run("qemu-img", "create", "-f", "qcow2", "-b", self.template, "-F", "raw", path)
        os.sync()
        return path


class Ours:
    """A disk of XBB, as an NBD server."""

    name = "xbb"

    def __init__(self, lab, path, format):
        self.lab = lab
        lab.attach(DISK, format + ":" + path)
        self.uri = "nbd+unix:///?socket=" + lab.work + "/xbb.nbd"
        self.gate = subprocess.Popen(
            ["nbdkit", "--foreground", "--unix", lab.work + "/xbb.nbd", PLUGIN, "dir=" + lab.xen, "domid=1", "vdev=" + DISK],
            stderr=subprocess.DEVNULL)
        lab.wait(lambda: subprocess.run(["nbdinfo", "--size", self.uri], capture_output=True).returncode == 0)
        self.pid = lab.worker(DISK)

    def stop(self):
        self.gate.terminate()
        self.gate.wait(30)
        os.unlink(self.lab.work + "/xbb.nbd")
        self.lab.ctl("detach", "1", DISK)


class Peer:
    """qemu-nbd, past the page cache with asynchronous I/O, as the worker has it where the file system can do that."""

    name = "qemu-nbd"

    def __init__(self, lab, path, format):
        self.socket = lab.work + "/peer.nbd"
        self.uri = "nbd+unix:///?socket=" + self.socket
        self.process = subprocess.Popen(
            ["qemu-nbd", "-f", FORMATS[format][0], "-t", "-e", "4", "-k", self.socket, "--cache=none", "--aio=native",
             "--discard=unmap", path], stderr=subprocess.DEVNULL)
        self.pid = self.process.pid
        lab.wait(lambda: subprocess.run(["nbdinfo", "--size", self.uri], capture_output=True).returncode == 0)

    def stop(self):
        self.process.terminate()
        self.process.wait(60)


def measure(server, options, count, seconds, seed):
    """IOPS, and microseconds of the server's processor time for a request."""
    block = next(word.split("=")[1] for word in options.split() if word.startswith("--bs="))
    size = int(block[:-1]) << {"k": 10, "M": 20}[block[-1]]
    limit = ["--time_based", f"--runtime={seconds}"] if count is None else [f"--io_size={count * size}"]
    before = processor_time(server.pid)
    out = bench.run("fio", "--name=bench", "--ioengine=nbd", "--uri=" + server.uri, *options.split(), *limit, "--size=100%",
                    f"--randseed={seed}", "--output-format=json")
    job = json.loads(out[out.index("{"):])["jobs"][0]
    done = job["write" if "write" in options else "read"]
    time.sleep(0.05)
    return done["iops"], (processor_time(server.pid) - before) * 1e6 / max(1, done["total_ios"])


def peers_row(lab, images, row, given):
    name, kind, options, count = row
    figures = {Ours: [], Peer: []}
    access = {}
    for round_ in range(given.rounds):
        for kind_of_server in ([Ours, Peer] if round_ % 2 == 0 else [Peer, Ours]):
            path = images.make(kind, kind_of_server.name)
            server = kind_of_server(lab, path, given.format)
            try:
                access[kind_of_server.name] = "O_DIRECT" if is_direct(server.pid, path) else "page cache"
                figures[kind_of_server].append(measure(server, options, count, given.seconds, 100 + round_))
            finally:
                server.stop()
            if kind in ("empty", "overlay"):
                if given.format == "qcow2":
                    bench.run("qemu-img", "check", "-q", path)
                os.unlink(path)
    ratios = [ours[0] / theirs[0] for ours, theirs in zip(figures[Ours], figures[Peer])]
    costs = [ours[1] / theirs[1] for ours, theirs in zip(figures[Ours], figures[Peer]) if theirs[1]]

    def median(server, index):
        return statistics.median(figure[index] for figure in figures[server])
    return {"row": name, "access": access, "rounds": given.rounds,
            "xbb": round(median(Ours, 0)), "peer": round(median(Peer, 0)),
            "ratio": [round(statistics.median(ratios), 2), round(min(ratios), 2), round(max(ratios), 2)],
            "xbb_us": round(median(Ours, 1), 1), "peer_us": round(median(Peer, 1), 1),
            "cost_ratio": [round(value, 2) for value in (statistics.median(costs), min(costs), max(costs))] if costs else None,
            "xbb_all": [round(figure[0]) for figure in figures[Ours]], "peer_all": [round(figure[0]) for figure in figures[Peer]]}


def print_peers(rows, state):
    print("| row | XBB | qemu-nbd | ratio | µs of the worker | µs of qemu-nbd | ratio |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        cost = "{} ({} to {})".format(*row["cost_ratio"]) if row["cost_ratio"] else ""
        print("| {row} | {xbb:,} | {peer:,} | {0} ({1} to {2}) | {xbb_us} | {peer_us} | {cost} |".format(
            *row["ratio"], cost=cost, **{key: row[key] for key in ("row", "xbb", "peer", "xbb_us", "peer_us")}))
    for server in ("xbb", "qemu-nbd"):
        print(f"{server}:", *sorted({row["access"][server] for row in rows}), end="; ")
    print(f"{state} machine; load average:", *(round(value, 1) for value in os.getloadavg()))


def libqcow_rows(lab, images, given):
    """Reading through the ring beside libqcow alone with four handles."""
    direct = lab.work + "/libqcow-bench"
    bench.run("gcc", "-O2", "-o", direct, os.path.join(ROOT, "scripts/libqcow-bench.c"), "-lqcow", "-lpthread")
    rows = []
    for name, kind in [("plain", "filled"), ("deflated", "deflated")]:
        path = images.make(kind, "xbb")
        lab.attach(DISK, "qcow2:" + path, "--readonly")
        for order, rw, block, depth in [("random", "randread", 4096, 32), ("sequential", "read", 65536, 16)]:
            ours, theirs = [], []
            for _ in range(given.rounds):
                ours.append(lab.load(DISK, rw, str(block), depth, given.seconds))
                theirs.append(float(bench.run(direct, path, "4", order, str(block), str(given.seconds))))
            rows.append(bench.row(f"{name}, {order} {block >> 10}k", ours, theirs, "libqcow, 4 handles"))
        lab.ctl("detach", "1", DISK)
    return rows


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=float(os.environ.get("RUNTIME") or 3))
    parser.add_argument("--rounds", type=int, default=int(os.environ.get("ROUNDS") or 5))
    parser.add_argument("--state", choices=["awake", "idle"], default=os.environ.get("STATE") or "awake")
    parser.add_argument("--mebibytes", type=int, default=1024)
    parser.add_argument("--only", choices=["write", "read", "libqcow"])
    parser.add_argument("--row", help="rows whose names have these words")
    parser.add_argument("--directory", default="/var/tmp", help="where images are made")
    parser.add_argument("--format", choices=sorted(FORMATS), default="qcow2")
    given = parser.parse_args()
    # A VHD over another one, or a deflated one, is nothing that QEMU has.
    kinds = ("filled", "empty") if given.format == "vhd" else ("filled", "empty", "overlay", "deflated")
    work = tempfile.mkdtemp(prefix="xbb-qcow-", dir=given.directory)
    lab, results = None, {"state": given.state, "peers": [], "libqcow": []}
    try:
        bench.say(f"bench: images of {given.mebibytes} MiB")
        images = Images(work, given.mebibytes, given.format)
        lab = bench.Lab(work, "--backing-dir", work + "/templates")
        for part, rows in ROWS.items():
            for row in rows:
                if row[1] in kinds and given.only in (None, part) and (given.row or "") in row[0]:
                    bench.say("bench: " + row[0])
                    with bench.state_of_machine(given.state):
                        results["peers"].append(peers_row(lab, images, row, given))
        if given.only in (None, "libqcow") and not given.row and given.format == "qcow2":
            with bench.state_of_machine(given.state):
                results["libqcow"] = libqcow_rows(lab, images, given)
    finally:
        if lab:
            lab.stop()
        shutil.rmtree(work, ignore_errors=True)
    if results["peers"]:
        print_peers(results["peers"], given.state)
    if results["libqcow"]:
        bench.print_table({"rows": results["libqcow"], "facts": {}})
    os.makedirs(os.path.join(ROOT, "build"), exist_ok=True)
    with open(os.path.join(ROOT, f"build/bench-{'qcow' if given.format == 'qcow2' else given.format}.json"), "w") as file:
        json.dump(results, file, indent=1)


main()
