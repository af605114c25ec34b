# SPDX-License-Identifier: BSD-2-Clause
"""A guest whose frontend is nbdkit's plugin, and which knows what it may read."""
import collections
import signal
import subprocess
import time

import nbd
from machine import Failure, ROOT
from model import SECTOR


class Request:
    def __init__(self, command, first, count, generation=0):
        self.command, self.first, self.count, self.generation = command, first, count, generation
        self.began = time.monotonic()


class Guest:
    """The frontend of one disk. `oldest()` may be asked by other threads."""

    def __init__(self, machine, number, storage, random, counts, stopping, is_constant=False):
        self.stopping = stopping
        self.words = self._choose(random) if is_constant else None
        self.machine, self.number, self.storage, self.random, self.counts = machine, number, storage, random, counts
        self.model = storage.model
        self.pending = {}
        self.answers = 0
        # True while what is done to the disk may fail requests.
        self.may_fail = False
        self.server = None
        self.client = None

    # The frontend

    @staticmethod
    def _choose(random):
        return [
            f"ring-pages={random.choice([1, 2, 8])}", f"queues={random.choice([1, 1, 2, 4])}",
            f"indirect={random.choice([0, 32, 64])}", f"persistent={random.choice(['true', 'false'])}",
            f"abi={random.choice(['native', 'native', 'x86_32'])}", f"grants={random.choice(['per-request', 'pooled'])}"]

    def connect(self):
        """Starts the frontend, and waits until it has the disk."""
        random, folder = self.random, self.machine.folder
        socket = folder / f"{self.number}.nbd"
        socket.unlink(missing_ok=True)
        self.log = folder / f"{self.number}.nbdkit"
        plugin = next(build for build in (self.machine.builds[0], ROOT / "build/debug", ROOT / "build/release")
                      if (build / "lib/nbdkit/nbdkit-xbb-plugin.so").exists()) / "lib/nbdkit/nbdkit-xbb-plugin.so"
        words = self.words or self._choose(random)
        with open(self.log, "wb") as log:
            self.server = subprocess.Popen(
                ["nbdkit", "-f", "-t", "32", "-U", socket, plugin, f"dir={self.machine.xen}", f"domid={self.number}", "timeout=120000",
                 "requests=32", *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        end = time.monotonic() + 180
        while True:
            try:
                self.client = nbd.Client(str(socket), 180)
                break
            except nbd.Closed as error:
                if self.server.poll() is not None or time.monotonic() > end:
                    text = self.log.read_text(errors="replace").strip()
                    raise Failure(f"guest {self.number}: no disk: {error}; nbdkit ({' '.join(words)}): {text}") from error
                time.sleep(0.05)
        self.counts["connections"] += 1
        # A client of NBD does not see that its disk grows.
        self.sectors = self.client.size // SECTOR
        if self.sectors != len(self.model.sure):
            raise Failure(f"guest {self.number}: the disk has {self.sectors} sectors, not {len(self.model.sure)}")

    def close(self):
        """The frontend gives the disk back."""
        self.client.close()
        self.server.send_signal(signal.SIGTERM)
        try:
            status = self.server.wait(180)
        except subprocess.TimeoutExpired as error:
            raise Failure(f"guest {self.number}: the backend did not let the disk go within 180 s") from error
        text = self.log.read_text(errors="replace")
        if status or "nbdkit: error" in text and not self.may_fail:
            raise Failure(f"guest {self.number}: nbdkit ended with {status}: {text.strip()[-600:]}")

    def vanish(self):
        """The frontend is gone in the middle of everything."""
        self.server.kill()
        self.server.wait()
        self.client.close(politely=False)
        self.pending.clear()

    # The load

    def oldest(self):
        """Seconds that the oldest request waits."""
        began = [request.began for request in list(self.pending.values())]
        return time.monotonic() - min(began) if began else 0

    def _free(self, first, count):
        return all(r.first + r.count <= first or first + count <= r.first for r in self.pending.values())

    def _send(self, shape):
        random, model, client = self.random, self.model, self.client
        draw = random.random()
        sectors = self.sectors
        largest = random.choice([1, 8, 8, 16, 64, 128])
        first, count = random.randrange(sectors), 1 + random.randrange(largest)
        if shape["narrow"]:
            first = (shape["narrow"] + first % 512) % sectors
        if random.random() < 0.6:
            first, count = first & ~7, (count + 7) & ~7
        count = min(count, sectors - first)
        if draw < shape["flush"]:
            handle = client.send(nbd.FLUSH, 0, 0)
            self.pending[handle] = Request(nbd.FLUSH, 0, 0)
            return
        if count <= 0 or not self._free(first, count):
            return
        draw = random.random()
        if draw < shape["trim"]:
            count = min(sectors - first, count * 4)
            if self._free(first, count):
                # Whatever becomes of it.
                model.discard(first, count)
                self.pending[client.send(nbd.TRIM, first * SECTOR, count * SECTOR)] = Request(nbd.TRIM, first, count)
        elif draw < shape["write"]:
            generation, data = model.write(first, count)
            flags = nbd.FUA if random.random() < 0.03 else 0
            # Noted before it is sent: it may land although sending fails.
            request = Request(nbd.WRITE, first, count, generation)
            self.pending[client.send(nbd.WRITE, first * SECTOR, count * SECTOR, data, flags)] = request
        else:
            self.pending[client.send(nbd.READ, first * SECTOR, count * SECTOR)] = Request(nbd.READ, first, count)

    def take(self, seconds):
        """Takes an answer; False if there is none in time."""
        if self.stopping.is_set():
            raise Failure("the run ends")
        answer = self.client.receive(seconds)
        if answer is None:
            return False
        handle, error, data = answer
        self.answers += 1
        request = self.pending.pop(handle)
        name = ("read", "write", "", "flush", "trim")[request.command]
        self.counts[name if not error else f"{name} failed"] += 1
        if error:
            if not self.may_fail:
                raise Failure(f"guest {self.number}: {name} of {request.count} sectors at {request.first}: error {error}")
            return True
        if request.command == nbd.WRITE:
            self.model.written(request.first, request.count, request.generation)
            self.counts["sectors written"] += request.count
        elif request.command == nbd.READ:
            self.model.check(request.first, data)
            self.counts["sectors checked"] += request.count
        elif request.command == nbd.TRIM:
            self.model.discard(request.first, request.count)
        return True

    def work(self, seconds, may_go_on, drains=True):
        """Reads and writes for a while; with `drains` until all is answered."""
        random = self.random
        shape = {
            "depth": random.choice([1, 4, 8, 24]), "flush": random.choice([0.01, 0.05, 0.3]), "trim": random.choice([0, 0.03, 0.15]),
            "narrow": random.choice([0, 0, random.randrange(1, len(self.model.sure))]), "write": random.choice([0.3, 0.55, 0.9])}
        pause = random.choice([0.001, 0.005, 0.02])
        end = time.monotonic() + seconds
        while time.monotonic() < end and may_go_on():
            for _ in range(4):
                if len(self.pending) < shape["depth"]:
                    self._send(shape)
            while self.pending and self.take(0 if len(self.pending) < shape["depth"] else 0.2):
                pass
            time.sleep(pause)
        while drains and self.pending and may_go_on():
            self.take(0.5)

    def read_all(self):
        """Reads the whole disk as the guest sees it."""
        sectors = self.sectors
        for first in range(0, sectors, 256):
            count = min(256, sectors - first)
            self.pending[self.client.send(nbd.READ, first * SECTOR, count * SECTOR)] = Request(nbd.READ, first, count)
            while len(self.pending) > 4:
                self.take(0.5)
        while self.pending:
            self.take(0.5)
