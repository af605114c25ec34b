# SPDX-License-Identifier: BSD-2-Clause
"""What a disk may hold: each sector that is written says whose it is, where it belongs, and with which write it came."""
import struct

SECTOR = 512
ZEROES = bytes(SECTOR)
HEADER = struct.Struct("<8sQQQ")
MAGIC = b"XBBSOAK\n"
COPIES = SECTOR // HEADER.size


def content(disk, sector, generation):
    """The bytes of a sector; generation 0 is what was never written."""
    return HEADER.pack(MAGIC, disk, sector, generation) * COPIES if generation else ZEROES


class Wrong(Exception):
    """A byte that may not be there."""


class DiskModel:
    """A disk of numbered sectors. Not for several threads.

    `sure[n]` is the generation that sector n has, unless `maybe` has further ones (a write that was not answered, or that
    failed: it is there or not, and once it was read it stays), or `loose` the newest one that a discard left open: that and
    each older one may be read until the sector is written.
    """

    def __init__(self, number, sectors):
        self.number = number
        self.generation = 0
        self.sure = [0] * sectors
        self.maybe = {}
        self.loose = {}
        self.open = set()

    @property
    def size(self):
        return len(self.sure) * SECTOR

    def grow(self, sectors):
        """The disk has become larger; what is new reads as zeroes."""
        self.sure.extend([0] * (sectors - len(self.sure)))

    def write(self, first, count):
        """Begins a write: its generation and its bytes."""
        self.generation += 1
        generation = self.generation
        for sector in range(first, first + count):
            self.maybe.setdefault(sector, set()).add(generation)
        return generation, b"".join(content(self.number, sector, generation) for sector in range(first, first + count))

    def written(self, first, count, generation):
        """The write was acknowledged: never older from now on."""
        for sector in range(first, first + count):
            self.sure[sector] = generation
            self.maybe.pop(sector, None)
            self.loose.pop(sector, None)

    def discard(self, first, count):
        """A discard begins; what it leaves is open whether it succeeds or not."""
        for sector in range(first, first + count):
            self.loose[sector] = self.generation
            self.open.add(sector)

    def found(self, data, sector):
        """The generation in the bytes of a sector, or Wrong."""
        if data == ZEROES:
            return 0
        magic, disk, place, generation = HEADER.unpack_from(data)
        if data != content(self.number, sector, generation) or not generation:
            whose = f"disk {disk}, sector {place}, write {generation}" if magic == MAGIC else data[:48].hex(" ")
            raise Wrong(f"disk {self.number}, sector {sector}: not one whole write of its own: begins as {whose}")
        return generation

    def check(self, first, data, settles=True):
        """Judges what was read; where the outcome of a write was open it is known then."""
        count = len(data) // SECTOR
        for index in range(count):
            sector = first + index
            part = data[index * SECTOR:(index + 1) * SECTOR]
            sure = self.sure[sector]
            if part == content(self.number, sector, sure):
                if settles and sector in self.maybe and sector not in self.loose:
                    del self.maybe[sector]
                continue
            generation = self.found(part, sector)
            others = self.maybe.get(sector, ())
            if generation in others:
                if settles and sector not in self.loose:
                    self.sure[sector] = generation
                    del self.maybe[sector]
            elif sector not in self.loose or generation > self.loose[sector]:
                raise Wrong(
                    f"disk {self.number}, sector {sector}: write {generation}, but {sure} was acknowledged"
                    + (f", and of {sorted(others)} it is not known" if others else ""))

    def mark(self):
        """What is known now, for `between`."""
        self.open = {*list(self.loose), *list(self.maybe)}
        return list(self.sure)

    def between(self, before, data):
        """Judges an image that was frozen after `mark` and before now: never older, and of no write that came later."""
        for sector in range(min(len(before), len(data) // SECTOR)):
            generation = self.found(data[sector * SECTOR:(sector + 1) * SECTOR], sector)
            if generation > self.generation or generation < before[sector] and sector not in self.open:
                raise Wrong(
                    f"disk {self.number}, sector {sector} of a snapshot: write {generation}, but {before[sector]} was acknowledged before")
