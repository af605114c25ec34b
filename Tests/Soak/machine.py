# SPDX-License-Identifier: BSD-2-Clause
"""A machine without Xen: xbb-loopback, xbbd, their commands, and what their processes hold."""
import collections
import json
import os
import pathlib
import signal
import subprocess
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
# A command may be given again (xbbctl(8), EXIT STATUS): xbbd or the worker was killed, or something else is being done.
TEMPORARY = {69, 75}


class Failure(Exception):
    """What ends a soak."""


def holdings(process):
    """What a process holds: descriptors and mappings of files by name, threads, and KiB of private memory. None if it has ended."""
    try:
        folder = f"/proc/{process}"
        files, maps = collections.Counter(), collections.Counter()
        for name in os.listdir(f"{folder}/fd"):
            try:
                target = os.readlink(f"{folder}/fd/{name}")
                # Without the numbers that the kernel gives to pipes and sockets.
                files[target if target.startswith("anon_inode:") else target.split("[")[0]] += 1
            except FileNotFoundError:
                pass
        with open(f"{folder}/maps") as lines:
            for line in lines:
                fields = line.split(None, 5)
                # The kernel joins and splits anonymous ones as it likes.
                if len(fields) == 6 and not fields[5].startswith("["):
                    maps[fields[5].strip()] += 1
        with open(f"{folder}/status") as lines:
            memory = next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
        return files, maps, len(os.listdir(f"{folder}/task")), memory
    except (OSError, StopIteration):
        return None


def sockets(process):
    """What ss(8) knows of a process's sockets, for a failure's words."""
    try:
        text = subprocess.run(["ss", "-xpH"], capture_output=True, text=True, errors="replace").stdout
    except OSError:
        return ""
    return "".join(f"\n    {' '.join(line.split())}" for line in text.splitlines() if f"pid={process}," in line)


def growth(before, now, memory):
    """What there is more of; `memory` is how many KiB more are allowed."""
    found = []
    # xbbd's own connection to a worker is missing for a moment after xbbd was killed.
    before = before[0] + collections.Counter({"socket:": 1}), *before[1:]
    for word, old, new in (("descriptors", before[0], now[0]), ("mappings", before[1], now[1])):
        found += [f"{new[name]} {word} of {name}, not {old[name]}" for name in new if new[name] > old[name]]
    if now[2] > before[2]:
        found.append(f"{now[2]} threads, not {before[2]}")
    if now[3] > before[3] + memory:
        found.append(f"{now[3]} KiB of memory, not {before[3]}")
    return found


def is_starved():
    """Whether others want the processors so much that no delay says anything (/proc/pressure)."""
    try:
        with open("/proc/pressure/cpu") as lines:
            return float(lines.readline().split("avg60=")[1].split()[0]) > 75
    except (OSError, IndexError):
        return False


class Machine:
    """The processes of one soak below a folder of its own."""

    def __init__(self, folder, builds):
        self.folder, self.builds = folder, builds
        self.xen, self.run, self.images = folder / "xen", folder / "run", folder / "images"
        for path in (self.xen, self.run, self.images):
            path.mkdir()
        self.current = folder / "current"
        self.current.symlink_to(builds[0])
        self.log = open(folder / "xbbd.log", "ab")
        self.lock = threading.Lock()
        self.counts = collections.Counter()
        # What commands that failed said, without numbers, to be looked at.
        self.said = collections.Counter()
        self.programs = set()
        self.ending = False
        self.loopback = self.spawn("xbb-loopback", "run", "--dir", self.xen, stdout=subprocess.DEVNULL)
        self.until("xbb-loopback", lambda: self.tool("xbb-loopback", "domain", "list", "--dir", self.xen)[0] == 0)
        self.xbbd = None
        self.start_xbbd()

    # Processes

    def spawn(self, name, *words, stdout=None):
        process = subprocess.Popen(
            [str(self.current / "bin" / name), *map(str, words)], stdin=subprocess.DEVNULL, stdout=stdout or self.log,
            stderr=self.log, env={**os.environ, "SWIFT_BACKTRACE": "enable=no"})
        return process

    def start_xbbd(self):
        self.xbbd = self.spawn(
            "xbbd", "--loopback", self.xen, "--run-dir", self.run, "--plugin-dir", self.current / "lib/xbb/plugins",
            "--worker", self.current / "bin/xbb-vbd", "--backing-dir", self.images, "--max-queues", 4,
            "--max-indirect-segments", 64, "--persistent-grants", "on", "--restart-limit", 1000000, "--restart-window", 1)
        self.until("an answer of xbbd", lambda: self.ctl("list", note=False)[0] == 0, 120)

    def kill_xbbd(self, *others):
        """Kills xbbd and processes with it, and starts it again, as a service manager does."""
        for process in (self.xbbd.pid, *others):
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.xbbd.wait()
        self.start_xbbd()

    def until(self, what, is_so, seconds=60):
        """Waits until something is so."""
        end = time.monotonic() + seconds
        while not is_so():
            if time.monotonic() > end:
                raise Failure(f"{what} did not come within {seconds} s")
            time.sleep(0.05)

    # Commands

    def tool(self, name, *words, seconds=240):
        """Runs a program of XBB: status, output, errors."""
        result = subprocess.run(
            [str(self.current / "bin" / name), *map(str, words)], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            errors="replace", timeout=seconds)
        return result.returncode, result.stdout, result.stderr

    def ctl(self, *words, note=True, seconds=240):
        """Runs xbbctl; a wrong use, or an end by a signal, is a fault whatever was done beside."""
        result = self.tool("xbbctl", *words, "--loopback", self.xen, "--socket", self.run / "xbbd.sock", seconds=seconds)
        if note:
            with self.lock:
                self.counts[f"xbbctl {words[0]}"] += 1
                if result[0]:
                    text = " ".join("".join(c if not c.isdigit() else "#" for c in (result[2] or result[1])).split())
                    self.said[f"xbbctl {words[0]}: status {result[0]}: {text[:200]}"] += 1
        if result[0] < 0 or result[0] == 64:
            raise Failure(f"xbbctl {' '.join(map(str, words))}: status {result[0]}: {result[2]}")
        return result

    def again(self, *words, seconds=120, good=(0,)):
        """xbbctl until it succeeds: statuses of TEMPORARY are tried again."""
        end = time.monotonic() + seconds
        while True:
            status, out, err = self.ctl(*words)
            if status in good:
                return out
            if status not in TEMPORARY or time.monotonic() > end:
                raise Failure(f"xbbctl {' '.join(map(str, words))}: status {status}: {err.strip() or out.strip()}")
            time.sleep(0.2)

    def disks(self):
        """`xbbctl list` by domain; None while xbbd is away."""
        status, out, _ = self.ctl("list", "--json", note=False)
        if status:
            return None
        return {disk["domid"]: disk for disk in json.loads(out)["vbds"]}

    def domains(self):
        """The loopback's account of all domains, by number."""
        status, out, err = self.tool("xbb-loopback", "domain", "list", "--dir", self.xen, "--json")
        if status:
            raise Failure(f"xbb-loopback domain list: {err}")
        return {domain["domid"]: domain for domain in json.loads(out)}

    def create_domain(self, number):
        status, _, err = self.tool(
            "xbb-loopback", "domain", "create", "--dir", self.xen, "--pages", 65536, "--grant-entries", 65536, number)
        if status:
            raise Failure(f"domain {number}: {err}")

    def destroy_domain(self, number):
        return self.tool("xbb-loopback", "domain", "destroy", "--dir", self.xen, number)[0] == 0

    def worker(self, number):
        """The process that the lock of a domain's disk names, if it is a worker and alive."""
        try:
            process = int((self.run / f"vbd-vbd-{number}-51712.lock").read_text().split()[0])
            return process if os.readlink(f"/proc/{process}/exe").endswith("/xbb-vbd") else None
        except (OSError, ValueError, IndexError):
            return None

    def workers(self):
        """All processes of workers of this machine."""
        found = []
        for name in os.listdir("/proc"):
            try:
                if name.isdigit() and os.readlink(f"/proc/{name}/exe").endswith("/xbb-vbd") \
                        and str(self.run).encode() in pathlib.Path(f"/proc/{name}/cmdline").read_bytes():
                    found.append(int(name))
            except OSError:
                pass
        return found

    def end(self):
        """Ends all processes."""
        for process in (self.xbbd, self.loopback):
            if process and process.poll() is None:
                process.kill()
                process.wait()
        for process in self.workers():
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                pass
