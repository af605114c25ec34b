#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Measures exports of an NBD server beside fio's own nbd engine (libnbd), on one server: nbdkit with a disk in memory, on a Unix socket.

Both take turns, and each round begins with the other one; see bench.py for what a row is. Then the system calls of a request are counted.
Nothing here passes or fails.
usage: bench-nbd.py [--seconds S] [--rounds N] [--mebibytes M] [--row WORDS] [--state awake|idle]
                    (ROUNDS, RUNTIME and STATE in the environment are --rounds, --seconds, --state)
"""
import json, os, shutil, subprocess, tempfile

import bench

ROOT = bench.ROOT
# Operation, size, depth of each connection, connections.
ROWS = [("randread", "4k", 32, 1), ("randwrite", "4k", 32, 1), ("randread", "4k", 32, 4), ("randwrite", "4k", 32, 4),
        ("randread", "4k", 1, 1), ("randwrite", "4k", 1, 1), ("read", "1M", 8, 1), ("write", "1M", 8, 1)]


def fio(uri, rw, size, depth, connections, seconds, mebibytes):
    return bench.iops_of_fio(rw, size, depth, seconds, "--ioengine=nbd", "--uri=" + uri, f"--size={mebibytes}m",
                             f"--numjobs={connections}", "--group_reporting", "--thread")


def load(lab, rw, size, depth, connections, seconds):
    """As many queues as connections; a depth for each."""
    out = bench.run(bench.BIN + "/xbb-blkfront", "load", "--dir", lab.xen, "--domid", "1", "--vdev", "xvdn", "--rw", rw, "--bs", size,
                    "--depth", str(depth), "--time", str(seconds), "--ring-pages", "8", "--queues", str(connections),
                    "--indirect", "256", "--grants", "pooled", "--json")
    result = json.loads(out)
    assert result["connection"]["queues"] == connections, result["connection"]
    return sum(result[kind]["iops"] for kind in ("read", "write") if kind in result)


def main():
    given = bench.arguments_beside_a_client(__doc__)
    work = tempfile.mkdtemp(prefix="xbb-nbd-", dir="/var/tmp")
    socket = work + "/nbd.sock"
    lab, server, rows, facts = None, None, [], {}
    try:
        server = subprocess.Popen(["nbdkit", "-f", "-U", socket, "memory", f"size={given.mebibytes}M", "allocator=malloc"],
                                  stdin=subprocess.DEVNULL)
        bench.Lab.wait(lambda: os.path.exists(socket))
        uri = "nbd+unix:///?socket=" + socket
        # All of it is there.
        bench.run("fio", "--name=fill", "--ioengine=nbd", "--uri=" + uri, "--rw=write", "--bs=1M", f"--size={given.mebibytes}m")
        lab = bench.Lab(work, "--max-queues", "4", "--max-indirect-segments", "256")
        lab.ctl("attach", "1", "xvdn", "nbd:" + uri)
        for rw, size, depth, connections in ROWS:
            name = f"NBD, {size} {rw}, depth {depth}" + (f", {connections} connections" if connections > 1 else "") + f", {given.state}"
            if given.row not in name:
                continue
            with bench.state_of_machine(given.state):
                ours, theirs = bench.in_turn(given.rounds, lambda: load(lab, rw, size, depth, connections, given.seconds),
                                             lambda: fio(uri, rw, size, depth, connections, given.seconds, given.mebibytes))
            rows.append(bench.row(name, ours, theirs, "fio nbd", state=given.state))
            bench.say(f"bench: {name}: ratio {rows[-1]['ratio']}")
        facts["system calls of a read of 4k, depth 32"] = bench.calls_of_a_request(lab, "xvdn", 32, 20000)
        lab.ctl("detach", "1", "xvdn")
    finally:
        if lab:
            lab.stop()
        if server:
            server.terminate()
            server.wait(10)
        shutil.rmtree(work, ignore_errors=True)
    facts["load average"] = os.getloadavg()
    bench.print_table({"rows": rows, "facts": facts})
    os.makedirs(os.path.join(ROOT, "build"), exist_ok=True)
    with open(os.path.join(ROOT, "build/bench-nbd.json"), "w") as file:
        json.dump({"state": given.state, "rows": rows, "facts": facts}, file, indent=1)


main()
