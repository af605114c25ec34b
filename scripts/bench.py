#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Measures XBB beside its peers in one run and writes a table, build/bench.json and its picture, build/bench.svg.

Peers alternate within each row, and each round begins with the other one, so that a noisy machine harms both alike; a row gives medians,
the median of the rounds' ratios, and the spread (min..max of each). Storage is measured in two states of the machine: idle, whose
processors sleep between requests and take time to wake up, and awake, where a process of the lowest class (SCHED_IDLE) on each of them
keeps them from it. Nothing here passes or fails. ROWS, ROUNDS, RUNTIME and STATE in the environment are --rows, --repeat,
--seconds and --state.
"""
import argparse, contextlib, json, os, re, shutil, signal, statistics, struct, subprocess, sys, tempfile, time
import bench_picture

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUILD = os.path.join(ROOT, "build/release")
BIN = os.path.join(BUILD, "bin")
PLUGINS = os.path.join(BUILD, "lib/xbb/plugins")
# Pattern, size, depth; "randrw" has 70 reads to 30 writes.
STORAGE_ROWS = [("randread", "4k", 1), ("randwrite", "4k", 1), ("randread", "4k", 32), ("randwrite", "4k", 32), ("randrw", "4k", 32),
                ("read", "64k", 8), ("write", "64k", 8), ("read", "256k", 8), ("write", "256k", 8), ("read", "1M", 8), ("write", "1M", 8)]


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
        out = run(BIN + "/xbb-blkfront", "load", "--dir", self.xen, "--domid", "1", "--vdev", disk, "--rw", rw, "--rwmixread", "70",
                  "--bs", size, "--depth", str(depth), "--time", str(seconds), "--ring-pages", str(pages),
                  "--grants", "pooled", "--json")
        result = json.loads(out)
        return sum(result[kind]["iops"] for kind in ("read", "write") if kind in result)

    def stop(self):
        for process in reversed(self.processes):
            process.terminate()
        subprocess.run(["pkill", "-f", "xbb-vbd .*" + self.xen])
        for process in self.processes:
            process.wait(10)


def iops_of_fio(rw, size, depth, seconds, *options):
    """Reads and writes in a second of a run of fio; `options` say by which engine, and of what."""
    out = run("fio", "--name=peer", "--rw=" + rw, "--bs=" + size, f"--iodepth={depth}", f"--runtime={seconds}", "--time_based",
              "--output-format=json", *options)
    job = json.loads(out[out.index("{"):])["jobs"][0]
    return job["write"]["iops"] + job["read"]["iops"]


def fio(target, rw, size, depth, seconds):
    return iops_of_fio(rw, size, depth, seconds, "--filename=" + target, "--ioengine=libaio", "--direct=1", "--rwmixread=70",
                       "--size=100%")


def arguments_beside_a_client(about):
    """What is asked for on the command line of a bench of storage in the network, beside another client of it."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--seconds", type=float, default=float(os.environ.get("RUNTIME") or 3))
    parser.add_argument("--rounds", type=int, default=int(os.environ.get("ROUNDS") or 5))
    parser.add_argument("--state", choices=["awake", "idle"], default=os.environ.get("STATE") or "awake")
    parser.add_argument("--mebibytes", type=int, default=256)
    parser.add_argument("--row", default="", help="rows whose names have these words")
    return parser.parse_args()


def fio_nbd(uri, depth, seconds):
    out = run("fio", "--name=peer", "--ioengine=nbd", "--uri=" + uri, "--rw=randread", "--bs=4k",
              f"--iodepth={depth}", f"--runtime={seconds}", "--time_based", "--size=512m", "--output-format=json")
    return json.loads(out[out.index("{"):])["jobs"][0]["read"]["iops"]


def row(name, ours, theirs, peer, unit="IOPS", **more):
    """A row of figures that were measured in turn, those of a round at the same place."""
    ratios = [mine / other for mine, other in zip(ours, theirs) if other]
    return {"row": name, "xbb": round(statistics.median(ours)), "xbb_spread": [round(min(ours)), round(max(ours))], "peer": peer,
            "peer_value": round(statistics.median(theirs)), "peer_spread": [round(min(theirs)), round(max(theirs))],
            "ratio": round(statistics.median(ratios), 2) if ratios else None,
            "ratio_spread": [round(value, 3) for value in (min(ratios), statistics.median(ratios), max(ratios))] if ratios else None,
            "unit": unit, **more}


@contextlib.contextmanager
def state_of_machine(state):
    """Keeps all processors from sleeping where the state is "awake"."""
    loop = "import os\nparent = os.getppid()\nos.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))\n" \
        "os.sched_setaffinity(0, [{}])\nwhile os.getppid() == parent:\n  for _ in range(1000000): pass"
    spinners = [subprocess.Popen([sys.executable, "-c", loop.format(cpu)])
                for cpu in (sorted(os.sched_getaffinity(0)) if state == "awake" else [])]
    try:
        yield
    finally:
        for spinner in spinners:
            spinner.terminate()
            spinner.wait()


class QueueDepth:
    """How many requests a block device had on the average, while a block runs; of a file, the device of its file system."""

    def __init__(self, path):
        about = os.stat(path)
        number = about.st_rdev or about.st_dev
        self.file, self.mean = f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/stat", []

    def weighted_ms(self):
        with open(self.file) as file:
            return int(file.read().split()[10])

    def of(self, measure):
        before, started = self.weighted_ms(), time.monotonic()
        result = measure()
        self.mean.append((self.weighted_ms() - before) / 1000 / (time.monotonic() - started))
        return result


def in_turn(rounds, ours, theirs):
    """Figures of both for each round; each round begins with the other one."""
    figures = ([], [])
    for number in range(rounds):
        for one in ((0, 1) if number % 2 == 0 else (1, 0)):
            figures[one].append((ours, theirs)[one]())
    return figures


def memory(pid):
    private = pss = 0
    for line in open(f"/proc/{pid}/smaps_rollup"):
        words = line.split()
        if words[0] in ("Private_Clean:", "Private_Dirty:"):
            private += int(words[1])
        elif words[0] == "Pss:":
            pss = int(words[1])
    return {"private_kib": private, "pss_kib": pss}


def calls_of_a_load(lab, disk, depth, count):
    """System calls of the worker, by name, while a guest connects, does so many reads of 4k at a depth, and goes."""
    with tempfile.NamedTemporaryFile("r") as out:
        pid = lab.worker(disk)
        tracer = subprocess.Popen(["strace", "-f", "-c", "-U", "calls,name", "-o", out.name, "-p", str(pid)],
                                  stderr=subprocess.DEVNULL)
        lab.wait(lambda: "TracerPid:\t0" not in open(f"/proc/{pid}/status").read())
        run(BIN + "/xbb-blkfront", "load", "--dir", lab.xen, "--domid", "1", "--vdev", disk, "--rw", "randread", "--bs", "4k",
            "--depth", str(depth), "--count", str(count), "--ring-pages", "8", "--grants", "pooled")
        tracer.send_signal(signal.SIGINT)
        tracer.wait()
        lines = [line.split() for line in out]
    return {words[1]: int(words[0]) for words in lines if len(words) == 2 and words[0].isdigit() and words[1] != "total"}


def calls_of_a_request(lab, disk, depth, count):
    """System calls of the worker for a request, by name: the difference of two loads, so that connecting does not count. strace slows
    the worker, so that batches may be larger than they are without."""
    few, many = calls_of_a_load(lab, disk, depth, count), calls_of_a_load(lab, disk, depth, 3 * count)
    found = {name: (many[name] - few.get(name, 0)) / (2 * count) for name in many}
    by_name = {name: round(value, 3) for name, value in sorted(found.items(), key=lambda item: -item[1]) if value >= 0.001}
    return {"total": round(sum(by_name.values()), 4), **by_name}


def print_table(results):
    print(f"{'row':44} {'XBB':>12} {'peer':>12} {'ratio':>6}  spread of ratio; XBB / peer")
    for entry in results["rows"]:
        spread = "{}..{} / {}..{}".format(*entry["xbb_spread"], *entry["peer_spread"])
        if entry["ratio_spread"]:
            spread = "{:.2f}..{:.2f}; ".format(entry["ratio_spread"][0], entry["ratio_spread"][2]) + spread
        if "queue_depth" in entry:
            spread += "; device's mean queue {} / {}".format(*entry["queue_depth"])
        print(f"{entry['row']:44} {entry['xbb']:>12,} {entry['peer_value']:>12,} {entry['ratio'] or 0:>6.2f}"
              f"  {spread}  ({entry['peer']})")
    for key, value in results["facts"].items():
        print(f"{key:44} {json.dumps(value)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=int(os.environ.get("ROUNDS") or 3), help="runs of each peer (3)")
    parser.add_argument("--seconds", type=float, default=float(os.environ.get("RUNTIME") or 2), help="length of a run (2)")
    parser.add_argument("--only", choices=["ring", "storage", "cost"], help="a part only")
    parser.add_argument("--rows", default=os.environ.get("ROWS") or "", help="rows whose names have this regular expression")
    parser.add_argument("--state", choices=["idle", "awake", "both"], default=os.environ.get("STATE") or "both",
                        help="the machine while storage is measured (both)")
    options = parser.parse_args()
    if options.rows and not options.only:
        options.only = "storage" if not re.search("ring|null", options.rows) else "ring"
    states = ["awake", "idle"] if options.state == "both" else [options.state]

    def wanted(name):
        return re.search(options.rows, name)
    work = tempfile.mkdtemp(prefix="xbb-bench.", dir="/var/tmp")
    results = {"date": time.strftime("%Y-%m-%d"), "cores": os.cpu_count(), "repeat": options.repeat, "rows": [], "facts": {}}
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
                    # Only extremes and medians are known, not which were of one round: the widest that the ratio can be.
                    mine, other = spread(at[backend]), spread(at["c_echo"])
                    rows[-1]["ratio_spread"] = [round(value, 3) for value in (mine[0] / other[2], mine[1] / other[1], mine[2] / other[0])]
        lab = Lab(work)
        if options.only in (None, "ring"):
            say("bench: null disk of xbb-vbd beside nbdkit null with fio's nbd engine")
            lab.attach("xvda", "null:", "--option", "size=1G")
            socket = work + "/null.nbd"
            peer = subprocess.Popen(["nbdkit", "--foreground", "--unix", socket, "null", "1G"])
            Lab.wait(lambda: os.path.exists(socket))
            for depth in (1, 32, 256):
                if not wanted(f"null disk, 4k randread, depth {depth}"):
                    continue
                ours, theirs = in_turn(options.repeat, lambda: lab.load("xvda", "randread", "4k", depth, options.seconds),
                                       lambda: fio_nbd(f"nbd+unix:///?socket={socket}", depth, options.seconds))
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
            facts["system calls per request, null, depth 256"] = calls_of_a_request(lab, "xvdb", 256, 200000)
            lab.ctl("detach", "1", "xvdb")
        if options.only in (None, "cost"):
            small = work + "/small.img"
            with open(small, "wb") as file:
                for _ in range(64):
                    file.write(os.urandom(1 << 20))
            os.sync()
            lab.attach("xvde", "raw:" + small)
            for depth in (1, 8, 32):
                facts[f"system calls per request, File, depth {depth}"] = calls_of_a_request(lab, "xvde", depth, 4000)
            lab.ctl("detach", "1", "xvde")
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
            for kind, disk, path in targets:
                lab.attach(disk, "raw:" + path)
                for rw, size, depth in STORAGE_ROWS:
                    for state in states:
                        name = f"{kind}, {size} {'mixed 70/30' if rw == 'randrw' else rw}, depth {depth}, {state}"
                        if not wanted(name):
                            continue
                        queues = QueueDepth(path), QueueDepth(path)
                        with state_of_machine(state):
                            ours, theirs = in_turn(
                                options.repeat,
                                lambda: queues[0].of(lambda: lab.load(disk, rw, size, depth, options.seconds)),
                                lambda: queues[1].of(lambda: fio(path, rw, size, depth, options.seconds)))
                        rows.append(row(name, ours, theirs, "fio libaio", state=state,
                                        queue_depth=[round(statistics.median(queue.mean), 1) for queue in queues]))
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
    written = "build/bench.json"
    if any(row["ratio_spread"] for row in rows):
        with open(os.path.join(ROOT, "build/bench.svg"), "w") as file:
            file.write(bench_picture.loopback_picture(results))
        written += " and build/bench.svg"
    print("written to " + written)


if __name__ == "__main__":
    main()
