#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Measures XBB beside its peers in one run and writes a table and build/bench.json.

Peers alternate within each row, so that a noisy machine harms both alike; a row gives medians, the ratio of
medians, and the spread (min..max of each). Nothing here passes or fails.
"""
import argparse, json, mmap, os, shutil, signal, statistics, struct, subprocess, sys, tempfile, time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUILD = os.path.join(ROOT, "build/release")
BIN = os.path.join(BUILD, "bin")
PLUGINS = os.path.join(BUILD, "lib/xbb/plugins")


def say(text):
    print(text, file=sys.stderr, flush=True)


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, **options)
    if done.returncode:
        raise SystemExit(f"bench: status {done.returncode} of {' '.join(command)}\n{done.stderr}")
    return done.stdout


class Lab:
    """A loopback Xen with one guest, and xbbd with options."""

    def __init__(self, work, *options):
        self.work, self.xen, self.run_dir = work, work + "/xen", work + "/run"
        os.makedirs(self.run_dir)
        self.socket = self.run_dir + "/xbbd.sock"
        self.malloc_file = work + "/mallocs"
        with open(self.malloc_file, "wb") as file:
            file.write(bytes(8))
        preload = work + "/malloc-count.so"
        run("gcc", "-O2", "-shared", "-fPIC", "-o", preload, os.path.join(ROOT, "scripts/malloc-count.c"))
        self.processes = [self.start([BIN + "/xbb-loopback", "run", "--dir", self.xen])]
        self.wait(lambda: os.path.exists(self.xen + "/xenstored.sock"))
        time.sleep(0.3)
        run(BIN + "/xbb-loopback", "domain", "create", "--dir", self.xen, "1")
        environment = dict(os.environ, LD_PRELOAD=preload, XBB_MALLOC_COUNT=self.malloc_file)
        self.processes.append(self.start(
            [BIN + "/xbbd", "--loopback", self.xen, "--run-dir", self.run_dir, "--plugin-dir", PLUGINS, *options],
            environment))
        self.wait(lambda: os.path.exists(self.socket))

    def start(self, command, environment=None):
        log = open(os.path.join(self.work, os.path.basename(command[0]) + ".log"), "a")
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    @staticmethod
    def wait(condition, seconds=10):
        end = time.time() + seconds
        while not condition():
            if time.time() > end:
                raise SystemExit("bench: the lab did not start")
            time.sleep(0.05)

    def ctl(self, *words):
        return run(BIN + "/xbbctl", *words, "--loopback", self.xen, "--socket", self.socket)

    def attach(self, disk, target, *options):
        self.ctl("attach", "1", disk, target, *options)

    def worker(self, disk):
        return json.loads(self.ctl("show", "1", disk, "--json"))["pid"]

    def stats(self, disk):
        return json.loads(self.ctl("stats", "1", disk, "--json"))["totals"]

    def mallocs(self):
        with open(self.malloc_file, "rb") as file:
            return struct.unpack("<Q", file.read(8))[0]

    def load(self, disk, rw, size, depth, seconds, pages=8):
        out = run(BIN + "/xbb-blkfront", "load", "--dir", self.xen, "--domid", "1", "--vdev", disk, "--rw", rw,
                  "--bs", size, "--depth", str(depth), "--time", str(seconds), "--ring-pages", str(pages),
                  "--grants", "pooled", "--json")
        result = json.loads(out)
        kind = "write" if "write" in rw else "read"
        return result[kind]["iops"]

    def stop(self):
        for process in reversed(self.processes):
            process.terminate()
        subprocess.run(["pkill", "-f", "xbb-vbd .*" + self.xen])
        for process in self.processes:
            process.wait(10)


def fio(target, rw, size, depth, seconds):
    out = run("fio", "--name=peer", "--filename=" + target, "--ioengine=libaio", "--direct=1", "--rw=" + rw,
              "--bs=" + size, f"--iodepth={depth}", f"--runtime={seconds}", "--time_based", "--size=100%",
              "--output-format=json")
    job = json.loads(out[out.index("{"):])["jobs"][0]
    return job["write" if "write" in rw else "read"]["iops"]


def fio_nbd(uri, depth, seconds):
    out = run("fio", "--name=peer", "--ioengine=nbd", "--uri=" + uri, "--rw=randread", "--bs=4k",
              f"--iodepth={depth}", f"--runtime={seconds}", "--time_based", "--size=512m", "--output-format=json")
    return json.loads(out[out.index("{"):])["jobs"][0]["read"]["iops"]


def row(name, ours, theirs, peer, unit="IOPS"):
    mine, other = statistics.median(ours), statistics.median(theirs)
    return {"row": name, "xbb": round(mine), "xbb_spread": [round(min(ours)), round(max(ours))], "peer": peer,
            "peer_value": round(other), "peer_spread": [round(min(theirs)), round(max(theirs))],
            "ratio": round(mine / other, 2) if other else None, "unit": unit}


def memory(pid):
    private = pss = 0
    for line in open(f"/proc/{pid}/smaps_rollup"):
        words = line.split()
        if words[0] in ("Private_Clean:", "Private_Dirty:"):
            private += int(words[1])
        elif words[0] == "Pss:":
            pss = int(words[1])
    return {"private_kib": private, "pss_kib": pss}


def syscalls(pid, seconds):
    """System calls of all threads of a process in some seconds, by strace -c."""
    with tempfile.NamedTemporaryFile("r") as out:
        tracer = subprocess.Popen(["strace", "-f", "-c", "-o", out.name, "-p", str(pid)], stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        tracer.send_signal(signal.SIGINT)
        tracer.wait()
        for line in out:
            words = line.split()
            if words and words[-1] == "total":
                return int(words[2] if words[2].isdigit() else words[3])
    return 0


def print_table(results):
    print(f"{'row':44} {'XBB':>12} {'peer':>12} {'ratio':>6}  spread XBB / peer")
    for entry in results["rows"]:
        spread = "{}..{} / {}..{}".format(*entry["xbb_spread"], *entry["peer_spread"])
        print(f"{entry['row']:44} {entry['xbb']:>12,} {entry['peer_value']:>12,} {entry['ratio'] or 0:>6.2f}"
              f"  {spread}  ({entry['peer']})")
    for key, value in results["facts"].items():
        print(f"{key:44} {json.dumps(value)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=3, help="runs of each peer (3)")
    parser.add_argument("--seconds", type=float, default=2, help="length of a run (2)")
    parser.add_argument("--only", choices=["ring", "storage", "cost"], help="a part only")
    options = parser.parse_args()
    work = tempfile.mkdtemp(prefix="xbb-bench.", dir="/var/tmp")
    results = {"date": time.strftime("%Y-%m-%d"), "cores": os.cpu_count(), "rows": [], "facts": {}}
    rows, facts = results["rows"], results["facts"]
    lab, device = None, None
    try:
        if options.only in (None, "ring"):
            say("bench: pure steps")
            steps = json.loads(run(BIN + "/xbb-bench", "steps"))["hundredths_of_ns"]
            facts["ns of pure steps"] = {name: value / 100 for name, value in steps.items()}
            say("bench: ring with the null plugin beside a C echo backend")
            ring = json.loads(run(BIN + "/xbb-bench", "ring", "--plugin-dir", PLUGINS, "--repeat",
                                  str(options.repeat + 2)))["ring"]
            facts["ring"] = ring
            for depth in (1, 32, 256):
                at = {entry["backend"]: entry for entry in ring if entry["depth"] == depth}
                for backend in ("xbb", "xbb_with_copy"):
                    def spread(entry):
                        return [entry["requests_per_s_min"], entry["requests_per_s_median"], entry["requests_per_s_max"]]
                    rows.append(row(f"ring to null, depth {depth}{', 4k copied' if 'copy' in backend else ''}",
                                    spread(at[backend]), spread(at["c_echo"]), "C echo backend", "requests/s"))
        lab = Lab(work)
        if options.only in (None, "ring"):
            say("bench: null disk of xbb-vbd beside nbdkit null with fio's nbd engine")
            lab.attach("xvda", "null:", "--option", "size=1G")
            socket = work + "/null.nbd"
            peer = subprocess.Popen(["nbdkit", "--foreground", "--unix", socket, "null", "1G"])
            Lab.wait(lambda: os.path.exists(socket))
            for depth in (1, 32, 256):
                ours, theirs = [], []
                for _ in range(options.repeat):
                    ours.append(lab.load("xvda", "randread", "4k", depth, options.seconds))
                    theirs.append(fio_nbd(f"nbd+unix:///?socket={socket}", depth, options.seconds))
                rows.append(row(f"null disk, 4k randread, depth {depth}", ours, theirs, "nbdkit null, fio nbd"))
            peer.terminate()
            lab.ctl("detach", "1", "xvda")
        if options.only in (None, "cost") and shutil.which("valgrind"):
            say("bench: instructions of a request, counted by callgrind")
            facts["instructions per request"] = run(ROOT + "/scripts/count.sh").splitlines()
        if options.only in (None, "cost"):
            say("bench: allocations, system calls, memory")
            lab.attach("xvdb", "null:", "--option", "size=1G", "--option", "read-zeroes=off")
            pid = lab.worker("xvdb")
            lab.load("xvdb", "randread", "4k", 1, 0.2)
            facts["memory of an idle xbb-vbd"] = memory(pid)
            before = (lab.mallocs(), lab.stats("xvdb")["reqs_completed"])
            short = subprocess.Popen(
                [BIN + "/xbb-blkfront", "load", "--dir", lab.xen, "--domid", "1", "--vdev", "xvdb", "--rw",
                 "randread", "--bs", "4k", "--depth", "256", "--time", "4", "--ring-pages", "8", "--grants",
                 "pooled", "--json"], stdout=subprocess.DEVNULL)
            time.sleep(1)
            def counts():
                return (lab.mallocs(), lab.stats("xvdb")["reqs_completed"])
            lab.stats("xvdb")
            quiet = lab.mallocs()
            time.sleep(1.5)
            loud = lab.mallocs()
            facts["memory of a busy xbb-vbd"] = memory(pid)
            facts["allocations in 1.5 s at depth 256"] = loud - quiet
            short.wait()
            done = lab.stats("xvdb")["reqs_completed"]
            facts["requests of that load"] = done - before[1]
            short = subprocess.Popen(
                [BIN + "/xbb-blkfront", "load", "--dir", lab.xen, "--domid", "1", "--vdev", "xvdb", "--rw",
                 "randread", "--bs", "4k", "--depth", "256", "--time", "4", "--ring-pages", "8", "--grants",
                 "pooled", "--json"], stdout=subprocess.DEVNULL)
            time.sleep(1)
            first = lab.stats("xvdb")
            calls = syscalls(pid, 1.5)
            last = lab.stats("xvdb")
            short.wait()
            number = last["reqs_completed"] - first["reqs_completed"]
            facts["system calls per request at depth 256"] = round(calls / max(number, 1), 4)
            facts["requests while counted"] = number
            lab.ctl("detach", "1", "xvdb")
        if options.only in (None, "storage"):
            image = work + "/file.img"
            say("bench: File beside fio libaio on the same file")
            with open(image, "wb") as file:
                for _ in range(512):
                    file.write(os.urandom(1 << 20))
            os.sync()
            targets = [("File", "xvdc", image)]
            if os.geteuid() == 0:
                backing = work + "/device.img"
                shutil.copy(image, backing)
                probe = subprocess.run(["losetup", "--find", "--show", "--direct-io=on", backing],
                                       capture_output=True, text=True)
                if probe.returncode == 0:
                    device = probe.stdout.strip()
                    targets.append(("RawDisk", "xvdd", device))
            for name, disk, path in targets:
                lab.attach(disk, "raw:" + path)
                for rw, size, depth in (("randread", "4k", 1), ("randwrite", "4k", 1), ("randread", "4k", 32),
                                        ("randwrite", "4k", 32), ("read", "1M", 8), ("write", "1M", 8)):
                    ours, theirs = [], []
                    for _ in range(options.repeat):
                        ours.append(lab.load(disk, rw, size, depth, options.seconds))
                        theirs.append(fio(path, rw, size, depth, options.seconds))
                    rows.append(row(f"{name}, {size} {rw}, depth {depth}", ours, theirs, "fio libaio"))
                    say(f"bench: {rows[-1]['row']}: ratio {rows[-1]['ratio']}")
                lab.ctl("detach", "1", disk)
    finally:
        if lab:
            lab.stop()
        if device:
            subprocess.run(["losetup", "-d", device])
        shutil.rmtree(work, ignore_errors=True)
    with open(os.path.join(ROOT, "build/bench.json"), "w") as file:
        json.dump(results, file, indent=1)
    print_table(results)
    print("written to build/bench.json")


if __name__ == "__main__":
    main()
