#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Guests that come, go and misbehave, on disks of all kinds, while workers and xbbd are killed, upgraded and administered at random.

A model knows what each guest may read. The run stops at the first wrong byte, the first process that holds more than before, and
the first disk that does nothing without a word in `xbbctl list`; it prints the seed, which repeats all decisions. docs/testing.md.

usage: soak.py [--hours H] [--seed N] [--guests N] [--builds debug,release] [--kinds KIND,...] [--log FILE]
"""
import argparse
import collections
import json
import os
import pathlib
import random as chance
import shutil
import signal
import sys
import tempfile
import threading
import time

from guest import Guest
from images import MEBIBYTE, Storage
from machine import Failure, Machine, ROOT, TEMPORARY, growth, holdings, is_starved, sockets
from model import SECTOR, Wrong
import nbd

# Seconds without an answer after which `xbbctl list` has to say something about a disk, and after which nothing excuses it.
SILENCE, END = 45, 240


class Soak:
    def __init__(self, options, machine):
        self.options, self.machine = options, machine
        self.counts = collections.Counter()
        self.failure = None
        self.stopping = threading.Event()
        self.places = []
        self.number = 0
        self.lock = threading.Lock()
        self.began = time.monotonic()
        self.end = self.began + options.hours * 3600
        self.round_end = 0
        self.killing = True

    def next_number(self):
        with self.lock:
            self.number += 1
            return self.number

    def fail(self, error):
        with self.lock:
            if self.failure is None and not self.stopping.is_set():
                self.failure = error
        self.stopping.set()

    def guard(self, body, *words):
        """Runs a part on a thread of its own."""
        def whole():
            try:
                body(*words)
            except (Failure, Wrong, nbd.Closed) as error:
                self.fail(f"{error}")
            except Exception as error:  # pylint: disable=broad-except
                import traceback
                self.fail(traceback.format_exc())
        thread = threading.Thread(target=whole, daemon=True)
        thread.start()
        return thread

    def is_on(self):
        return not self.stopping.is_set() and time.monotonic() < min(self.end, self.round_end)

    # Rounds

    def run(self):
        """Rounds: all disks live for a while, and at the end of a round nothing is left of them."""
        random = chance.Random(f"{self.options.seed}/rounds")
        watch = self.guard(self.watch)
        number = 0
        baseline = None
        while not self.stopping.is_set() and time.monotonic() < self.end:
            number += 1
            self.round_end = time.monotonic() + random.choice([60, 120, 240])
            # In half of the rounds the same xbbd goes on, so that what it keeps adds up.
            self.killing = random.random() < 0.5
            self.places = [Place(self, number, index) for index in range(self.options.guests)]
            threads = [self.guard(place.live) for place in self.places]
            threads += [self.guard(place.administer) for place in self.places]
            threads += [self.guard(Killer(self, number).run), self.guard(Stranger(self, number).live)]
            for thread in threads:
                while thread.is_alive() and not self.failure:
                    thread.join(1)
            if self.failure:
                break
            baseline = self.census(baseline)
            self.counts["rounds"] += 1
            print(self.line(number), flush=True)
        self.stopping.set()
        watch.join()

    def census(self, before):
        """Between two rounds there is no disk, and nothing of one."""
        machine = self.machine
        def clean():
            return not machine.workers() and not list(machine.run.glob("vbd-*"))
        machine.until(f"the end of all workers and files of disks in {machine.run}", clean)
        def free():
            domains = machine.domains()
            return list(domains) == [0] and all(domains[0][key] == 0 for key in ("granted", "mapped", "copying"))
        machine.until("the end of all grants", free)
        # What is made for the first question of its kind is kept.
        for words in (["top", "--batch", "--iterations", "1"], ["metrics"], ["events"], ["log"]):
            machine.ctl(*words)
        now = holdings(machine.xbbd.pid)
        if now is None:
            raise Failure("xbbd has ended by itself")
        if before is None or before[0] != machine.xbbd.pid:
            return machine.xbbd.pid, now
        # Its history of events, and what its allocator keeps; what it let go of it may close a moment later.
        end = time.monotonic() + 30
        while grown := growth(before[1], now, 16384):
            if time.monotonic() > end:
                raise Failure(f"xbbd holds more after each round: {grown}")
            time.sleep(0.5)
            now = holdings(machine.xbbd.pid) or now
        self.counts["censuses of one xbbd"] += 1
        return before

    def line(self, number):
        keys = ["connections", "read", "write", "flush", "trim", "sectors checked", "kills of workers", "kills of xbbd"]
        return f"soak: round {number}, {int(time.monotonic() - self.began)} s: " + ", ".join(f"{self.counts[key]} {key}" for key in keys)

    def watch(self):
        """No disk is silent without a word."""
        quiet = {}
        while not self.stopping.wait(2):
            disks = None
            for place in self.places:
                guest = place.guest
                waits = guest.oldest() if guest and guest.client else 0
                if waits < SILENCE or place.excused() or is_starved() and waits < 4 * END:
                    quiet.pop(id(guest), None)
                    continue
                disks = disks or self.machine.disks() or {}
                disk = disks.get(guest.number)
                said = disk and (disk["trouble"] or disk["stalled"] or disk["silent"] or disk["paused"] or disk["exchange"]
                                 or disk["worker"] not in ("running", "adopted"))
                if not said:
                    quiet[id(guest)] = quiet.get(id(guest), 0) + 1
                if quiet.get(id(guest), 0) > 5 or waits > END:
                    raise Failure(
                        f"guest {guest.number} ({place.storage.kind}) has had no answer for {int(waits)} s, and xbbctl list says {json.dumps(disk)}; {place.tale()}")


class Place:
    """One disk after another, each with guests that come and go, and its administrator."""

    def __init__(self, soak, number, index):
        self.soak, self.machine, self.counts = soak, soak.machine, soak.counts
        self.random = chance.Random(f"{soak.options.seed}/{number}/{index}")
        self.admin_random = chance.Random(f"{soak.options.seed}/{number}/{index}/administrator")
        self.index = index
        self.storage = self.guest = None
        self.lock = threading.Lock()
        # Whether an administrator may do something, and whether workers are killed.
        self.serves = False
        self.is_calm = False
        self.answers_at_kill = 0
        self.full_until = 0
        self.paused_until = 0
        self.history = collections.deque(maxlen=24)

    def note(self, what):
        self.history.append(f"{time.monotonic() - self.soak.began:.1f}: {what}")

    def tale(self):
        return f"{self.storage.kind if self.storage else ''}: " + "; ".join(self.history)

    def excused(self):
        return time.monotonic() < max(self.paused_until, self.full_until) + 30

    # The life of a disk

    def live(self):
        try:
            while self.soak.is_on():
                self.one_disk()
        except (Failure, Wrong, nbd.Closed) as error:
            raise Failure(f"{error}\n  what was done to it: {self.tale()}") from error

    def one_disk(self):
        random = self.random
        kinds = self.soak.options.kinds.split(",") if self.soak.options.kinds else Storage.kinds
        self.storage = storage = Storage(random.choice(kinds), self.soak.next_number(), self.machine.images, random)
        self.counts[f"disks of {storage.kind}"] += 1
        self.is_calm = random.random() < 0.2
        self.target = storage.target
        for _ in range(random.choice([1, 2, 4])):
            if not self.soak.is_on():
                break
            self.one_attachment()
        storage.remove()
        self.counts["disks"] += 1

    def one_attachment(self):
        random, machine, storage = self.random, self.machine, self.storage
        number = self.soak.next_number()
        self.note(f"attach {self.target} to {number}")
        machine.create_domain(number)
        self.attach(number)
        if storage.fills:
            self.stops = random.random() < 0.7
            if self.stops:
                machine.again("set", number, "xvda", "on-enospc=stop")
        guest = Guest(machine, number, storage, random, self.counts, self.soak.stopping, self.is_calm)
        guest.may_fail = storage.fills and not self.stops
        self.answers_at_kill = 0
        held = None
        ending = None
        sessions = 5 if self.is_calm else random.choice([1, 2, 4])
        for session in range(sessions):
            guest.connect()
            self.guest = guest
            self.serves = True
            ending = "close"
            if session == sessions - 1 or not self.is_calm and random.random() < 0.3:
                ending = random.choice(["close", "close", "vanish", "death", "force"])
            self.note(f"session with end {ending}")
            guest.work(random.choice([2, 6, 15]), self.soak.is_on, drains=ending == "close")
            if self.soak.stopping.is_set():
                return
            if ending != "close":
                break
            # The administrator is done with the disk, and it has room and is not paused.
            with self.lock:
                self.serves = False
                self.free()
                while guest.pending and not self.soak.stopping.is_set():
                    guest.take(0.5)
                guest.may_fail = False
                if random.random() < 0.5:
                    guest.read_all()
                guest.close()
                guest.may_fail = storage.fills and not self.stops
                self.guest = None
            self.counts["sessions"] += 1
            # What is opened for good is opened with the first connection.
            if self.is_calm and session > 0:
                held = self.compare(number, held)
            if not self.soak.is_on():
                break
        with self.lock:
            self.serves = False
            self.free()
            image = self.image(number)
            getattr(self, ending)(number, guest)
            self.guest = None
        self.counts[f"ends by {ending}"] += 1
        machine.until(f"the end of the worker of {number}", lambda: machine.worker(number) is None, 120)
        self.counts["sectors read from outside"] += storage.check(*image)
        format, path = image
        self.target = storage.target if path in (str(storage.path), storage.device) else f"{format}:{path}"

    def attach(self, number):
        """Attaches the disk; xbbd may be killed meanwhile, and then it is asked again."""
        end = time.monotonic() + 180
        while True:
            status, out, err = self.machine.ctl("attach", number, "xvda", self.target)
            if status == 0:
                return
            disks = self.machine.disks()
            if disks is not None and number in disks:
                self.machine.ctl("detach", number, "xvda", "--force")
            if not (status in TEMPORARY or self.soak.killing) or time.monotonic() > end:
                raise Failure(f"attach {number} {self.target}: status {status}: {err or out}")
            time.sleep(0.3)

    def image(self, number):
        """Format and path of the image that the disk has now."""
        shown = {}
        def is_known():
            status, out, err = self.machine.ctl("show", number, "xvda", "--json")
            if status == 1 and "is released" in out:
                # What was killed in the middle of a pause, or of what rests on one, leaves the pause to its end.
                self.machine.ctl("resume", number, "xvda")
            elif status not in TEMPORARY | {0}:
                raise Failure(f"xbbctl show {number}: status {status}: {err}{out}")
            elif status == 0:
                shown.update(json.loads(out))
            if status == 0 and shown["format"] is None and shown["state"] in ("closing", "closed"):
                # A worker that began when its guest had closed opens nothing before the guest is back.
                shown.update((self.machine.disks() or {}).get(number, {}))
            return shown.get("format") is not None
        self.machine.until(f"open storage of {number}", is_known, 180)
        return shown["format"], shown["path"]

    def compare(self, number, before):
        """A worker that nobody kills holds no more after its guest came and went again. Gives what is to be compared with next time."""
        time.sleep(1)
        process = self.machine.worker(number)
        now = process and holdings(process)
        if not now or before is None or before[0] != process:
            return now and (process, now)
        # Others may be asking it at any moment.
        end = time.monotonic() + 60
        while grown := growth(before[1], now, 8192):
            if time.monotonic() > end:
                raise Failure(f"the worker of {number} holds more after each connection: {grown}{sockets(process)}")
            time.sleep(0.5)
            now = holdings(process)
            if now is None:
                return None
        self.counts["comparisons of one worker"] += 1
        return before

    # Ends

    def close(self, number, guest):
        self.detach(number)
        self.machine.destroy_domain(number)

    def detach(self, number, *words):
        end = time.monotonic() + 180
        while True:
            status, out, err = self.machine.ctl("detach", number, "xvda", "--timeout", 60, *words)
            disks = self.machine.disks()
            if status == 0 or disks is not None and number not in disks:
                return
            if time.monotonic() > end:
                raise Failure(f"detach {number}: status {status}: {err or out}")
            time.sleep(0.5)

    def vanish(self, number, guest):
        guest.vanish()
        if self.random.random() < 0.5:
            # Nobody is there to let the disk go: this is refused, and the request stands.
            self.ctl("detach", number, "xvda", "--timeout", 3)
        self.detach(number, "--force")
        self.machine.destroy_domain(number)

    def death(self, number, guest):
        self.machine.destroy_domain(number)
        guest.vanish()
        self.detach(number, "--force")

    def force(self, number, guest):
        guest.may_fail = True
        self.detach(number, "--force")
        guest.vanish()
        self.machine.destroy_domain(number)

    # The administrator

    def administer(self):
        random = self.admin_random
        while self.soak.is_on():
            self.soak.stopping.wait(random.choice([0.2, 1, 3]))
            with self.lock:
                guest = self.guest
                if not self.serves or guest is None or not self.soak.is_on():
                    continue
                action = random.choice(
                    ["look"] * 3 + ["limits", "pause", "release", "stop", "upgrade", "snapshot", "snapshot", "commit", "rebase", "resize", "fill", "fill"])
                if self.is_calm and action not in ("look", "limits", "pause", "fill", "resize"):
                    continue
                self.note(action)
                getattr(self, f"do_{action}")(guest.number, random)
                self.note(f"{action} done")
                self.counts[f"administrator: {action}"] += 1

    def ctl(self, *words):
        """What an administrator does may fail where others kill what it needs; the model says whether it did harm."""
        status, out, err = self.machine.ctl(*words)
        if status:
            self.note(f"{' '.join(map(str, words))}: status {status}")
        return status, out, err

    def do_look(self, number, random):
        for words in (["list"], ["show", number, "xvda"], ["stats", number, "xvda"], ["events"], ["log", number, "xvda"],
                      ["top", "--batch", "--iterations", "1"]):
            status, out, err = self.ctl(*words, "--json")
            if status == 0:
                for line in out.splitlines():
                    json.loads(line)
            elif status not in TEMPORARY | {1}:
                raise Failure(f"xbbctl {words}: status {status}: {err}{out}")

    def do_limits(self, number, random):
        self.ctl("set", number, "xvda", f"total-iops-sec={random.choice([0, 50, 1000])}", f"poll-us={random.choice([0, 50])}")

    def do_pause(self, number, random, *words):
        seconds = random.choice([1, 3])
        self.paused_until = time.monotonic() + seconds + 30
        self.ctl("pause", number, "xvda", "--timeout", seconds, *words)
        time.sleep(random.choice([0.1, 1, 4]))
        if self.ctl("resume", number, "xvda")[0] == 0:
            self.paused_until = 0

    def do_release(self, number, random):
        self.do_pause(number, random, "--release")

    def do_stop(self, number, random):
        """The worker is stopped by a signal, and goes on."""
        process = self.machine.worker(number)
        if process:
            try:
                os.kill(process, signal.SIGSTOP)
                time.sleep(random.choice([0.1, 1, 3]))
                os.kill(process, signal.SIGCONT)
            except ProcessLookupError:
                pass

    def do_upgrade(self, number, random):
        if len(self.machine.builds) > 1:
            self.change_build(random)
        self.ctl("upgrade", number, "xvda")

    def change_build(self, random):
        new = self.machine.folder / f"current.{random.random()}"
        new.symlink_to(random.choice(self.machine.builds))
        new.rename(self.machine.current)

    def do_snapshot(self, number, random):
        storage = self.storage
        if not storage.layers or len(list(storage.folder.glob(f"{storage.model.number}.over-*"))) >= 4:
            return
        below = self.image(number)
        mark = storage.model.mark()
        overlay = storage.folder / f"{storage.model.number}.over-{self.soak.next_number()}"
        status, _, _ = self.ctl("snapshot", number, "xvda", overlay)
        if status == 0:
            # What is frozen is the disk at some moment between.
            storage.model.between(mark, storage.read(*below))
            self.counts["snapshots read"] += 1

    def do_commit(self, number, random):
        if self.storage.layers and ".over-" in self.image(number)[1]:
            self.paused_until = time.monotonic() + 60
            status, _, _ = self.ctl("commit", number, "xvda")
            self.paused_until = time.monotonic() + 60 if status else 0
            if status == 0:
                self.sweep(number)

    def do_rebase(self, number, random):
        if not self.storage.layers:
            return
        status, out, _ = self.ctl("show", number, "xvda", "--json")
        chain = json.loads(out).get("images", []) if status == 0 else []
        if len(chain) > 2:
            self.paused_until = time.monotonic() + 60
            below = random.choice(chain[1:])
            status, _, _ = self.ctl("rebase", number, "xvda", "--below", f"{below['format']}:{below['path']}")
            self.paused_until = time.monotonic() + 60 if status else 0
            if status == 0:
                self.sweep(number)

    def sweep(self, number):
        """Removes overlays that the disk does not have any more."""
        status, out, _ = self.ctl("show", number, "xvda", "--json")
        if status == 0:
            kept = {image["path"] for image in json.loads(out).get("images", [])}
            for path in self.storage.folder.glob(f"{self.storage.model.number}.over-*"):
                if kept and str(path) not in kept:
                    path.unlink()

    def do_resize(self, number, random):
        storage = self.storage
        if not storage.grows or storage.model.size > 30 * MEBIBYTE:
            return
        self.ctl("resize", number, "xvda", "+1M")
        sectors, old = None, len(storage.model.sure)
        while sectors is None:
            self.image(number)
            status, out, _ = self.machine.ctl("show", number, "xvda", "--json")
            sectors = json.loads(out).get("sectors") if status == 0 else None
        if sectors not in (old, old + MEBIBYTE // SECTOR):
            raise Failure(f"disk {storage.model.number} has {sectors} sectors after a growth from {old}")
        if sectors > old:
            storage.model.grow(sectors)

    def do_fill(self, number, random):
        """The file system gets full under the image; then there is room again."""
        storage = self.storage
        if not storage.fills:
            return
        self.full_until = time.monotonic() + 60
        filler = storage.mount / "filler"
        try:
            with open(filler, "wb", buffering=0) as file:
                while file.write(bytes(1 << 16)):
                    pass
        except OSError:
            pass
        time.sleep(random.choice([1, 4]))
        guest = self.guest
        if self.stops and guest.oldest() > 8:
            # Something waits, and that has to be told.
            disk = (self.machine.disks() or {}).get(number)
            if disk and disk["worker"] in ("running", "adopted") and not disk["trouble"] and guest.oldest() > 8:
                time.sleep(3)
                disk = (self.machine.disks() or {}).get(number)
                if disk and disk["worker"] in ("running", "adopted") and not disk["trouble"] and guest.oldest() > 11:
                    raise Failure(f"guest {number} waits for {guest.oldest():.0f} s on a full file system, and nothing is said: {disk}")
        filler.unlink()
        if self.stops:
            self.ctl("resume", number, "xvda")
        self.full_until = time.monotonic()

    def free(self):
        """There is room under the image, and no limit holds it back."""
        if self.storage.fills:
            (self.storage.mount / "filler").unlink(missing_ok=True)
        if self.guest:
            self.machine.ctl("set", self.guest.number, "xvda", "total-iops-sec=0")


class Killer:
    """Kills workers, and xbbd with them or alone."""

    def __init__(self, soak, number):
        self.soak, self.machine = soak, soak.machine
        self.random = chance.Random(f"{soak.options.seed}/{number}/killer")

    def run(self):
        random, soak = self.random, self.soak
        while soak.is_on():
            soak.stopping.wait(random.choice([0.3, 1, 2, 5]))
            place = random.choice(soak.places)
            guest = place.guest
            if not soak.is_on():
                return
            others = []
            # A worker has come to something, mostly, before it is killed.
            if guest and not place.is_calm and (guest.answers > place.answers_at_kill or random.random() < 0.2):
                process = self.machine.worker(guest.number)
                if process:
                    others.append(process)
                    place.answers_at_kill = guest.answers
            if soak.killing and random.random() < 0.12:
                with_worker = random.random() < 0.5
                place.note("kill of xbbd" + (" and its worker" if with_worker else ""))
                for other in soak.places:
                    other.note("xbbd killed")
                self.machine.kill_xbbd(*(others if with_worker else []))
                soak.counts["kills of xbbd"] += 1
                soak.counts["kills of workers"] += len(others) if with_worker else 0
            elif others:
                place.note("kill of the worker")
                try:
                    os.kill(others[0], signal.SIGKILL)
                    soak.counts["kills of workers"] += 1
                except ProcessLookupError:
                    pass


class Stranger:
    """A guest that breaks the rules of ring, grants and XenStore on a disk of its own, and changes nothing that it may not write."""

    def __init__(self, soak, number):
        self.soak, self.machine, self.counts = soak, soak.machine, soak.counts
        self.random = chance.Random(f"{soak.options.seed}/{number}/stranger")

    def live(self):
        random, machine, soak = self.random, self.machine, self.soak
        program = next((path for path in (machine.builds[0] / "bin/rude-guest", ROOT / ".build/debug/rude-guest") if path.exists()), None)
        if program is None:
            raise Failure("there is no rude-guest: make build")
        path = machine.images / "stranger.img"
        content = random.randbytes(1 << 16) * 64
        while soak.is_on():
            number = soak.next_number()
            is_read_only = random.random() < 0.5
            path.write_bytes(content)
            machine.create_domain(number)
            words = ["--readonly"] if is_read_only else []
            machine.ctl("attach", number, "xvda", f"raw:{path}", *words)
            process = machine.spawn(program, machine.xen, number, random.getrandbits(32), random.choice([1, 5, 10]))
            try:
                if process.wait(90) < 0:
                    raise Failure(f"the rude guest {number} has ended by signal {-process.returncode}")
            except Failure:
                raise
            except Exception:  # pylint: disable=broad-except
                process.kill()
                process.wait()
                self.counts["rude guests killed"] += 1
            end = time.monotonic() + 180
            while True:
                status, _, err = machine.ctl("detach", number, "xvda", "--force", "--timeout", 20)
                disks = machine.disks()
                if status == 0 or disks is not None and number not in disks:
                    break
                if time.monotonic() > end:
                    raise Failure(f"the disk of a rude guest, {number}, cannot be detached: {err}")
                time.sleep(0.5)
            machine.until(f"the end of the worker of a rude guest, {number}", lambda: machine.worker(number) is None, 120)
            machine.destroy_domain(number)
            if is_read_only and path.read_bytes() != content:
                raise Failure(f"a rude guest, {number}, has written to a read-only disk")
            self.counts["rude guests"] += 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=1)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "little"))
    parser.add_argument("--guests", type=int, default=4)
    parser.add_argument("--builds", default="debug")
    parser.add_argument("--kinds", default="")
    options = parser.parse_args()
    sys.dont_write_bytecode = True
    sys.setswitchinterval(0.002)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="xbb-soak.", dir=os.environ.get("TMPDIR", "/var/tmp")))
    print(f"soak: seed {options.seed}, {options.hours} h, {options.guests} guests, in {folder}", flush=True)
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    machine = soak = None
    status = 1
    try:
        machine = Machine(folder, [ROOT / "build" / name for name in options.builds.split(",")])
        soak = Soak(options, machine)
        soak.run()
        status = 1 if soak.failure else 0
    except (Failure, Wrong) as error:
        soak.failure = str(error) if soak else None
        print(f"soak: {error}", flush=True)
    except KeyboardInterrupt:
        print("soak: interrupted", flush=True)
    finally:
        if soak:
            for place in soak.places:
                if place.guest and place.guest.server and place.guest.server.poll() is None:
                    place.guest.server.kill()
        if machine:
            machine.end()
    for name, count in sorted((soak.counts + machine.counts).items()) if soak else []:
        print(f"  {name}: {count}")
    for text, count in machine.said.most_common(40) if machine else []:
        print(f"  {count} x {text}")
    if status == 0:
        print(f"soak: ok, seed {options.seed}, {int(time.monotonic() - soak.began)} s")
        shutil.rmtree(folder)
    else:
        print(f"soak: FAILED, seed {options.seed}; logs and images are in {folder}: {soak and soak.failure}")
        if soak:
            for place in soak.places:
                if place.storage:
                    print(f"  place {place.index}: {place.tale()}")
    return status


if __name__ == "__main__":
    sys.exit(main())
