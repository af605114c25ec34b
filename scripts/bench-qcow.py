#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Measures QCOW images: through the ring beside libqcow alone with as many handles, and beside qemu-nbd with the same client.

Peers alternate, a row has medians. Nothing here passes or fails. The target is 0.9 of libqcow.
usage: bench-qcow.py [--seconds S] [--rounds N] [--mebibytes M]
"""
import argparse, json, os, subprocess, tempfile, time

import bench

ROOT, BIN = bench.ROOT, bench.BIN


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mebibytes", type=int, default=512)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="xbb-qcow-", dir="/var/tmp") as work:
        direct = work + "/libqcow-bench"
        bench.run("gcc", "-O2", "-o", direct, os.path.join(ROOT, "scripts/libqcow-bench.c"), "-lqcow", "-lpthread")
        bench.say(f"bench: images of {given.mebibytes} MiB, plain and deflated")
        # Halves of each 64 KiB can be deflated.
        with open(work + "/raw", "wb") as file:
            for _ in range(given.mebibytes * 16):
                file.write(os.urandom(32 << 10) + b"xen block backend" * 1928)
        bench.run("qemu-img", "convert", "-O", "qcow2", work + "/raw", work + "/plain")
        bench.run("qemu-img", "convert", "-c", "-O", "qcow2", work + "/raw", work + "/deflated")
        os.unlink(work + "/raw")
        lab = bench.Lab(work)
        rows, peers = [], []
        try:
            for number, name in enumerate(["plain", "deflated"]):
                path, disk = f"{work}/{name}", f"xvd{'ab'[number]}"
                lab.attach(disk, "qcow2:" + path, "--readonly")
                for kind, rw, block, depth in [("random", "randread", 4096, 32), ("sequential", "read", 65536, 16)]:
                    ours, theirs = [], []
                    for _ in range(given.rounds):
                        ours.append(lab.load(disk, rw, str(block), depth, given.seconds))
                        theirs.append(float(bench.run(direct, path, "4", kind, str(block), str(given.seconds))))
                    rows.append(bench.row(f"{name}, {kind} {block >> 10}k", ours, theirs, "libqcow, 4 handles"))
                socket, peer = f"{work}/{name}.nbd", f"{work}/{name}.peer"
                peers.append(subprocess.Popen(
                    ["nbdkit", "--foreground", "--unix", socket, bench.BUILD + "/lib/nbdkit/nbdkit-xbb-plugin.so",
                     "dir=" + lab.xen, "domid=1", "vdev=" + disk], stderr=subprocess.DEVNULL))
                peers.append(subprocess.Popen(
                    ["qemu-nbd", "-r", "-f", "qcow2", "-t", "-e", "4", "-k", peer, path], stderr=subprocess.DEVNULL))
                lab.wait(lambda: os.path.exists(socket) and os.path.exists(peer))
                time.sleep(0.5)
                ours, theirs = [], []
                for _ in range(given.rounds):
                    ours.append(bench.fio_nbd("nbd+unix:///?socket=" + socket, 32, given.seconds))
                    theirs.append(bench.fio_nbd("nbd+unix:///?socket=" + peer, 32, given.seconds))
                rows.append(bench.row(f"{name}, random 4k, fio over NBD", ours, theirs, "qemu-nbd"))
        finally:
            for process in peers:
                process.terminate()
            lab.stop()
    bench.print_table({"rows": rows, "facts": {}})
    os.makedirs(os.path.join(ROOT, "build"), exist_ok=True)
    with open(os.path.join(ROOT, "build/bench-qcow.json"), "w") as file:
        json.dump(rows, file, indent=1)


main()
