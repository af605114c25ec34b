#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Measures images of Ceph (RBD) beside fio's own rbd engine, on a Ceph of this machine with its OSD in memory.

Both take turns on an image of their own, without librbd's cache, and each round begins with the other one; see bench.py for what a
row is. Nothing here passes or fails.
usage: bench-rbd.py [--seconds S] [--rounds N] [--mebibytes M] [--row WORDS] [--state awake|idle]
                    (ROUNDS, RUNTIME and STATE in the environment are --rounds, --seconds, --state)
"""
import json, os, shutil, subprocess, tempfile

import bench

ROOT = bench.ROOT
ROWS = [("randread", "4k", 32), ("randwrite", "4k", 32), ("randread", "4k", 1), ("randwrite", "4k", 1), ("read", "1M", 8), ("write", "1M", 8)]


def fio(image, rw, size, depth, seconds):
    return bench.iops_of_fio(rw, size, depth, seconds, "--ioengine=rbd", "--clientname=admin", "--pool=rbd", "--rbdname=" + image)


def main():
    given = bench.arguments_beside_a_client(__doc__)
    work = tempfile.mkdtemp(prefix="xbb-rbd-", dir="/var/tmp")
    ceph = work + "/ceph"
    lab, rows = None, []
    try:
        bench.say("bench: a Ceph")
        subprocess.run([ROOT + "/scripts/ceph-lab.sh", "start", ceph, "none", "1", str(os.getpid())], check=True)
        os.environ["CEPH_CONF"] = ceph + "/ceph.conf"
        with open(ceph + "/ceph.conf", "a") as file:
            file.write("[client]\nrbd cache = false\n")
        for image in ("ours", "theirs"):
            bench.run("rbd", "create", image, "--size", str(given.mebibytes))
            # All objects are there.
            bench.run("rbd", "bench", "--io-type", "write", "--io-size", "4M", "--io-total", f"{given.mebibytes}M", "--io-threads", "4", image)
        lab = bench.Lab(work)
        lab.attach("xvdr", f"rbd,conf={ceph}/ceph.conf,run-dir={work}/noted:rbd/ours")
        for rw, size, depth in ROWS:
            name = f"RBD, {size} {rw}, depth {depth}, {given.state}"
            if given.row not in name:
                continue
            with bench.state_of_machine(given.state):
                ours, theirs = bench.in_turn(given.rounds, lambda: lab.load("xvdr", rw, size, depth, given.seconds),
                                             lambda: fio("theirs", rw, size, depth, given.seconds))
            rows.append(bench.row(name, ours, theirs, "fio rbd", state=given.state))
            bench.say(f"bench: {name}: ratio {rows[-1]['ratio']}")
        lab.ctl("detach", "1", "xvdr")
    finally:
        if lab:
            lab.stop()
        subprocess.run([ROOT + "/scripts/ceph-lab.sh", "stop", ceph])
        shutil.rmtree(work, ignore_errors=True)
    bench.print_table({"rows": rows, "facts": {"load average": os.getloadavg()}})
    os.makedirs(os.path.join(ROOT, "build"), exist_ok=True)
    with open(os.path.join(ROOT, "build/bench-rbd.json"), "w") as file:
        json.dump({"state": given.state, "rows": rows}, file, indent=1)


main()
