#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Images that somebody made to do harm, each opened and read by the QCOW plugin in a process of its own.

Every case must end by itself, within 2 s of processor time and 64 MiB of memory more than an empty image takes, with an
answer: refused with a message, or read with or without errors. A signal is a fault, and so is a refusal without words.
With --write each is opened for writing and written to. What is refused must be as it was, byte for byte, and of the others
only what was nobody's and what is the guest's may have changed: see damage().
usage: hostile.py [--quick] [--write] QCOW-READ PLUGIN
"""
import os
import struct
import subprocess
import sys
import tempfile
import time

SECONDS, MEBIBYTES = 2.0, 64
EXTREMES = {
    4: [0, 1, 2, 3, 4, 8, 9, 16, 21, 22, 31, 32, 63, 64, 65, 127, 255, 511, 512, 1023, 1024, 65535, 65536, 0x7fffffff,
        0x80000000, 0xfffffff8, 0xffffffff],
    8: [0, 1, 8, 48, 104, 511, 512, 513, 65535, 65536, 65537, 131072, 1 << 20, 1 << 31, 1 << 32, (1 << 32) - 1, 1 << 40,
        1 << 56, (1 << 62) - 512, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 512, (1 << 64) - 1],
    1: list(range(0, 24)) + [31, 32, 63, 64, 127, 128, 255],
}
# Name, offset, bytes.
VERSION1 = [("version", 4, 4), ("backing offset", 8, 8), ("backing length", 16, 4), ("size", 24, 8),
            ("cluster bits", 32, 1), ("L2 bits", 33, 1), ("encryption", 36, 4), ("L1 offset", 40, 8)]
VERSION3 = [("version", 4, 4), ("backing offset", 8, 8), ("backing length", 16, 4), ("cluster bits", 20, 4),
            ("size", 24, 8), ("encryption", 32, 4), ("L1 entries", 36, 4), ("L1 offset", 40, 8),
            ("refcount offset", 48, 8), ("refcount clusters", 56, 4), ("snapshots", 60, 4), ("snapshot offset", 64, 8),
            ("incompatible", 72, 8), ("compatible", 80, 8), ("autoclear", 88, 8), ("refcount order", 96, 4),
            ("header length", 100, 4), ("compression", 104, 1), ("extension type", 112, 4), ("extension length", 116, 4)]


def shell(command):
    subprocess.run(command, shell=True, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)


OFFSET = 0x00fffffffffffe00
GUEST = b"XBBGUEST"


def words(data, offset, count):
    part = data[offset:offset + 8 * count] if 0 <= offset < len(data) else b""
    return struct.unpack(f">{len(part) // 8}Q", part[:len(part) // 8 * 8])


class Image:
    """What the tables of an image say, however wrong they are: the roles of each cluster."""

    def __init__(self, data):
        self.data, self.roles, self.places, self.seen = data, {}, {}, set()
        self.usable = len(data) >= 104 and data[:4] == b"QFI\xfb" and 2 <= struct.unpack(">I", data[4:8])[0] <= 3
        if not self.usable:
            return
        self.bits, self.size, _, l1_count, l1, table, table_clusters, snapshots, snapshot = \
            struct.unpack(">IQIIQQIIQ", data[20:72])
        self.usable = 9 <= self.bits <= 21
        if not self.usable:
            return
        self.cluster = 1 << self.bits
        self.add("header", 0)
        self.table("active L1", "active L2", "active data", l1, min(l1_count, 4096))
        self.add("refcount table", table, min(table_clusters, 64) << self.bits)
        self.order = struct.unpack(">I", data[96:100])[0] if data[7] == 3 else 4
        self.blocks = words(data, table, min(table_clusters, 64) << (self.bits - 3))
        for block in self.blocks:
            if block:
                self.add("refcount block", block)
        place = snapshot
        for _ in range(min(snapshots, 64)):
            if place + 40 > len(data):
                break
            offset, count, id_size, name_size = struct.unpack(">QIHH", data[place:place + 16])
            extra = struct.unpack(">I", data[place + 36:place + 40])[0]
            end = (place + 40 + min(extra, 1024) + id_size + name_size + 7) & ~7
            self.add("snapshot table", place, end - place)
            self.table("snapshot L1", "snapshot L2", "snapshot data", offset, min(count, 4096))
            place = end

    def add(self, role, offset, length=1):
        for cluster in range(offset >> self.bits, min(offset + max(length, 1) - 1, len(self.data)) // self.cluster + 1):
            self.roles.setdefault(cluster, set()).add(role)

    def table(self, first, second, third, offset, count):
        self.add(first, offset, 8 * count)
        for index, entry in enumerate(words(self.data, offset, count)):
            place = entry & OFFSET
            # Tables of nonsense name many.
            if not place or place >= len(self.data) or (third, place) in self.seen or len(self.seen) > 100:
                continue
            self.seen.add((third, place))
            self.add(second, place)
            for inner, word in enumerate(words(self.data, place, self.cluster // 8)):
                guest = ((index << (self.bits - 3)) + inner) << self.bits
                if word >> 62 & 1:
                    shift = 62 - (self.bits - 8)
                    start, sectors = word & ((1 << shift) - 1), (word & ((1 << 62) - 1)) >> shift
                    if start < len(self.data):
                        self.add(third, start, min(sectors + 1, 2 * self.cluster // 512) * 512)
                elif word & OFFSET:
                    self.add(third, word & OFFSET)
                    if third == "active data":
                        self.places.setdefault((word & OFFSET) >> self.bits, set()).add(guest)

    def refcount(self, cluster):
        per_block = self.cluster * 8 >> self.order
        index, within = divmod(cluster, per_block)
        block = self.blocks[index] if index < len(self.blocks) else 0
        width = 1 << self.order
        at = block * 8 + within * width
        if not block or at // 8 + max(width // 8, 1) > len(self.data):
            return 0
        if width < 8:
            return self.data[at // 8] >> at % 8 & ((1 << width) - 1)
        return int.from_bytes(self.data[at // 8:at // 8 + width // 8], "big")


METADATA = {"header", "active L1", "active L2", "refcount table", "refcount block", "snapshot table", "snapshot L1", "snapshot L2"}
# Of the header: place and length of the L1 and the refcount table, features. Of bits, the corrupt one.
MAY_CHANGE = [(36, 60), (72, 80), (88, 96)]


def damage(before, after):
    """What a writer did to an image that it had no right to do; None: nothing."""
    image = Image(before)
    if not image.usable:
        return "an image that is none was changed" if before != after else None
    if len(after) < len(before) and any(image.roles.get(cluster) for cluster in range(
            (len(after) >> image.bits) + 1, (len(before) + image.cluster - 1) >> image.bits)):
        return f"{len(before) - len(after)} bytes in use were cut off"
    for cluster in range((len(before) + image.cluster - 1) >> image.bits):
        start = cluster << image.bits
        old, new = before[start:start + image.cluster], after[start:start + image.cluster]
        if old == new[:len(old)]:
            continue
        roles = image.roles.get(cluster, set())
        # Believed until the scan comes to it: a table of a snapshot that the disk's own tables claim and that is counted once. Only
        # this snapshot suffers.
        if "snapshot L2" in roles and roles & {"active L2", "active data"} and image.refcount(cluster) == 1:
            continue
        where = f"cluster {cluster} ({', '.join(sorted(roles)) or 'nobody'}), refcount {image.refcount(cluster)}"
        if roles & METADATA and GUEST in new:
            return f"data of the guest stand in {where}"
        if "header" in roles:
            kept = lambda part: b"".join(part[a:b] for a, b in zip([0] + [end for _, end in MAY_CHANGE],
                                                                   [first for first, _ in MAY_CHANGE] + [len(old)]))
            if kept(old) != kept(new):
                return f"the header was changed, {where}"
        if roles & {"snapshot table", "snapshot L1", "snapshot L2"}:
            return f"a snapshot's table was changed, {where}"
        # Refcounts are kept where the image says that they are, until the scan sees that data stand there.
        if "snapshot data" in roles and "refcount block" not in roles and image.refcount(cluster) != 1:
            return f"a snapshot's data were changed, {where}"
    # A guest's sector stands where its tables say.
    image = Image(after)
    for cluster, places in image.places.items() if image.usable else ():
        for at in range(cluster << image.bits, min((cluster + 1) << image.bits, len(after) - 511), 512):
            guest = int.from_bytes(after[at + 8:at + 16], "big")
            if after[at:at + 8] == GUEST and guest & -image.cluster not in places:
                return f"data of offset {guest} stand in cluster {cluster}, which is another's"
    return None


class Runner:
    def __init__(self, program, plugin, folder, writes=False):
        self.program, self.plugin, self.folder, self.writes = program, plugin, folder, writes
        self.cases = self.faults = self.refused = self.read = 0
        self.slowest, self.largest = (0.0, ""), (0, "")
        self.base = 0

    def run(self, name, data, form="qcow2", password=None):
        path = os.path.join(self.folder, "case")
        with open(path, "wb") as file:
            file.write(data)
        self.run_file(name, path, form, password)

    def run_file(self, name, path, form="qcow2", password=None):
        self.cases += 1
        environment = dict(os.environ, **({"XBB_PASSWORD": password} if password else {}))
        before = None
        if self.writes:
            environment["XBB_WRITE"] = "1"
            if os.path.getsize(path) <= 64 << 20:
                before = open(path, "rb").read()
        output = os.path.join(self.folder, "output")
        started = time.monotonic()
        with open(output, "wb") as out:
            child = subprocess.Popen([self.program, self.plugin, form, path], stdout=out, stderr=subprocess.STDOUT,
                                     env=environment)
            _, status, usage = os.wait4(child.pid, 0)
        child.returncode = status
        wall, used = time.monotonic() - started, usage.ru_utime + usage.ru_stime
        text = open(output, "rb").read().decode("utf-8", "replace")
        memory = usage.ru_maxrss - self.base
        self.slowest = max(self.slowest, (used, name))
        self.largest = max(self.largest, (memory, name))
        problem = None
        if os.WIFSIGNALED(status):
            problem = f"ended by signal {os.WTERMSIG(status)}"
        elif os.WEXITSTATUS(status) == 1:
            self.refused += 1
            words = text.rsplit("open: ", 1)[-1].split(" ", 1)
            if len(words) < 2 or len(words[1].strip()) < 8:
                problem = "refused without words"
        elif os.WEXITSTATUS(status) in (0, 2) or os.WEXITSTATUS(status) == 4 and "for one cluster" in name:
            # Who has one cluster at two places reads there what was written last.
            self.read += 1
        else:
            problem = f"exit status {os.WEXITSTATUS(status)}"
        if before is not None:
            # Refcounts of nonsense make the file long, with holes.
            with open(path, "rb") as file:
                after = file.read(len(before) + (1 << 20))
            if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 1:
                done = "a refused image was changed" if before != after else None
            else:
                done = damage(before, after)
            problem = problem or done
        if used > SECONDS:
            problem = f"{used:.2f} s of processor time ({wall:.2f} s)"
        if memory > MEBIBYTES << 10:
            problem = f"{memory >> 10} MiB"
        if problem:
            self.faults += 1
            print(f"hostile: {name}: {problem}\n{text[:400]}")


def put(data, offset, size, value):
    return data[:offset] + value.to_bytes(size, "big") + data[offset + size:]


def fields(runner, data, table, form, quick, what):
    for name, offset, size in table:
        values = EXTREMES[size] + ([] if quick else [1 << bit for bit in range(8 * size)])
        for value in sorted(set(v for v in values if v < 1 << 8 * size)):
            if quick and value % 3:
                continue
            runner.run(f"{what}: {name} = {value:#x}", put(data, offset, size, value), form)


def entries(runner, data, form, offset, count, what, password=None, quick=False):
    """One entry of a table points anywhere, also into the tables themselves."""
    size = len(data)
    for value in [1, 8, 511, 512, 0x10000, 0x20000, 0x30000, size - 512, size, size + 0x10000, 1 << 40, (1 << 56) - 512,
                  1 << 61, 1 << 62, (1 << 62) | 5, (1 << 62) | (size - 1), (1 << 62) | size, (1 << 63) | 0x10000,
                  (1 << 64) - 1, (1 << 63) | 1, (1 << 62) | ((1 << 62) - 1), (1 << 55) | 0x1fe]:
        for index in range(count):
            if quick and (value + index) % 3 == 1:
                continue
            runner.run(f"{what}: entry {index} = {value:#x}", put(data, offset + 8 * index, 8, value), form, password)


def for_writers(runner, images, quick):
    """Images that can be read, and whose tables would make a careless writer overwrite what is not the guest's."""
    for name in ("plain", "small", "one"):
        data = images[name]
        image = Image(data)
        l1 = struct.unpack(">Q", data[40:48])[0]
        l2 = words(data, l1, 1)[0] & OFFSET
        table = struct.unpack(">Q", data[48:56])[0]
        entries_ = [entry for entry in words(data, l2, image.cluster // 8) if entry & OFFSET]
        first = next(at for at, entry in enumerate(words(data, l2, image.cluster // 8)) if entry & OFFSET)
        used = sorted(image.roles)
        own = 1 << 63
        # An entry that claims each cluster of the image for itself; quick: one of each role.
        seen = set()
        for cluster in used + [max(used) + 1, max(used) + 1000]:
            role = tuple(sorted(image.roles.get(cluster, ())))
            if quick and role in seen:
                continue
            seen.add(role)
            place = cluster << image.bits
            for flags in (own, 0, own | 1):
                runner.run(f"{name}: L2 entry claims {role} with {flags:#x}", put(data, l2 + 8 * first, 8, place | flags))
            runner.run(f"{name}: L1 entry claims {role}", put(data, l1, 8, place | own))
            runner.run(f"{name}: a refcount block at {role}", put(data, table, 8, place))
            runner.run(f"{name}: a second refcount block at {role}", put(data, table + 8, 8, place))
            if struct.unpack(">I", data[60:64])[0]:
                snapshot = struct.unpack(">Q", data[64:72])[0]
                runner.run(f"{name}: a snapshot's L1 at {role}", put(data, snapshot, 8, place))
            runner.run(f"{name}: the refcount table at {role}", put(data, 48, 8, place))
            runner.run(f"{name}: the table of snapshots at {role}", put(put(data, 64, 8, place), 60, 4, 1))
            # It is in use, and its refcount says that it is free.
            block = words(data, table, 1)[0]
            width = 1 << image.order
            if width >= 8:
                for count in (0, 2, (1 << width) - 1):
                    runner.run(f"{name}: {role} has the refcount {count}",
                               put(data, block + cluster * width // 8, width // 8, count))
        runner.run(f"{name}: all refcounts are 0",
                   data[:words(data, table, 1)[0]] + bytes(image.cluster) + data[words(data, table, 1)[0] + image.cluster:])
        runner.run(f"{name}: no refcount blocks", data[:table] + bytes(image.cluster) + data[table + image.cluster:])
        runner.run(f"{name}: two entries for one cluster", put(data, l2 + 8 * (first + 1), 8, entries_[0]))
        runner.run(f"{name}: all entries for one cluster",
                   data[:l2] + struct.pack(">Q", entries_[0]) * (image.cluster // 8) + data[l2 + image.cluster:])
        runner.run(f"{name}: autoclear features", put(data, 88, 8, (1 << 64) - 1))
        runner.run(f"{name}: the L1 table is behind the end", put(data, 40, 8, len(data) + image.cluster - len(data) % image.cluster))


def main():
    quick = "--quick" in sys.argv
    writes = "--write" in sys.argv
    program, plugin = [word for word in sys.argv[1:] if not word.startswith("--")]
    with tempfile.TemporaryDirectory(prefix="xbb-hostile-") as folder:
        os.chdir(folder)
        runner = Runner(program, plugin, folder, writes)
        shell("head -c 300k /dev/urandom > source && head -c 400k /dev/zero | tr '\\0' a >> source && truncate -s 3M source")
        shell("qemu-img convert -O qcow2 source plain && qemu-img snapshot -c one plain && truncate -s 64k empty.raw")
        shell("qemu-img convert -O qcow2 -c source deflated; qemu-img convert -O qcow source old; true")
        shell("qemu-img convert -O qcow2 -o compat=0.10 source two")
        shell("qemu-img convert -O qcow2 -o cluster_size=4k source small && qemu-img snapshot -c one small && "
              "qemu-io -f qcow2 -c 'write -P 3 0 300k' small && qemu-img convert -O qcow2 source one")
        secret = "--object secret,id=s,data=geheim"
        shell(f"qemu-img create -f qcow2 {secret} -o encrypt.format=aes,encrypt.key-secret=s aes 3M && qemu-img convert -n "
              f"{secret} --image-opts --target-image-opts driver=raw,file.filename=source "
              "driver=qcow2,encrypt.key-secret=s,file.filename=aes")
        shell("qemu-img create -f qcow2 none 1M")
        images = {name: open(name, "rb").read() for name in ("plain", "deflated", "old", "two", "aes", "none", "small", "one")}
        runner.run("an empty image", images["none"])
        runner.base, runner.largest = runner.largest[0], (0, "")

        if writes:
            for_writers(runner, images, quick)
        fields(runner, images["plain"], VERSION3, "qcow2", quick, "version 3")
        fields(runner, images["old"], VERSION1, "qcow", quick, "version 1")
        if not quick:
            fields(runner, images["two"], VERSION3[:12], "qcow2", quick, "version 2")
            fields(runner, images["aes"], VERSION3, "qcow2", True, "AES without a password")

        # Nothing is judged but the features of such an image, so its sizes are whatever they are.
        for feature in (2, 1 << 63):
            data = put(put(images["plain"], 72, 8, feature), 36, 4, 0xffffffff)
            for bits in (0, 2, 61, 62, 63, 64, 0xffffffff):
                runner.run(f"feature {feature:#x}, clusters of 2^{bits}", put(data, 20, 4, bits))

        # Bombs: tables as large as the header can say, in files that are large enough and have nothing in them.
        for name, field, size, value in [("L1", 36, 4, 0x7fffffff), ("L1", 36, 4, 4 << 20), ("refcount", 56, 4, 0xffffffff),
                                         ("refcount", 56, 4, 1 << 20), ("snapshot", 60, 4, 0xffffffff)]:
            data = put(images["plain"], field, size, value)
            for length in (1 << 30, 1 << 43):
                with open("bomb", "wb") as file:
                    file.write(data)
                    file.truncate(length)
                runner.run_file(f"bomb: {name} {value:#x} in {length} bytes", os.path.join(folder, "bomb"))
        for bits in (9, 16, 21):
            data = put(put(put(images["none"], 20, 4, bits), 24, 8, (1 << 62)), 36, 4, 4 << 20)
            with open("bomb", "wb") as file:
                file.write(data)
                file.truncate(1 << 43)
            runner.run_file(f"bomb: a disk of 2^62 bytes, clusters of 2^{bits}", os.path.join(folder, "bomb"))

        # The largest L1 table that is served, and all of it needed.
        with open("bomb", "wb") as file:
            file.write(put(put(images["none"], 24, 8, 1 << 51), 36, 4, 4 << 20))
            file.truncate(1 << 40)
        runner.run_file("bomb: an L1 table of 32 MiB", os.path.join(folder, "bomb"))

        # Tables: where L1 is, and what it points to.
        for name, form, password in [("plain", "qcow2", None), ("deflated", "qcow2", None), ("old", "qcow", None),
                                     ("aes", "qcow2", "geheim"), ("aes", "qcow2", "wrong"), ("two", "qcow2", None)]:
            data = images[name]
            l1 = struct.unpack(">Q", data[40:48])[0]
            l2 = struct.unpack(">Q", data[l1:l1 + 8])[0] & 0x00fffffffffffe00
            entries(runner, data, form, l1, 1, f"{name} L1", password, quick)
            entries(runner, data, form, l2, 2 if quick else 12, f"{name} L2", password, quick)
            # Every place of a deflated stream is a wrong one.
            entry = struct.unpack(">Q", data[l2:l2 + 8])[0]
            if name == "deflated":
                place = entry & ((1 << 54) - 1)
                for position in range(0, 2000, 100 if quick else 7):
                    at = place + position
                    runner.run(f"deflated: byte {position}", data[:at] + bytes([data[at] ^ 0xff]) + data[at + 1:])

        # Truncation in the metadata, at every 512 bytes.
        for name, form in [("plain", "qcow2"), ("deflated", "qcow2"), ("old", "qcow")]:
            data = images[name]
            l1 = struct.unpack(">Q", data[40:48])[0]
            l2 = struct.unpack(">Q", data[l1:l1 + 8])[0] & 0x00fffffffffffe00
            end = min(len(data), l2 + 65536)
            for length in list(range(0, 112, 7 if quick else 1)) + list(range(512, end, 512 * (40 if quick else 1))):
                runner.run(f"{name}: cut off at {length}", data[:length], form)

        # Names: the plugin hands them on, and this host refuses every child with words.
        for name in [b"/", b"..", b"../../etc/shadow", b"a\0b", b"json:{\"driver\":\"nbd\"}", b"nbd://localhost:1/x", b"x" * 1023,
                     b"x" * 1024, b"x" * 60000, b"\xff\xfe", b"\x1b[2J", b"%s%n%n", b"", b"/dev/stdin", b"case"]:
            data = bytearray(images["none"])
            data[512:512 + len(name)] = name
            runner.run(f"backing name {name[:20]!r}", put(put(bytes(data), 8, 8, 512), 16, 4, len(name)))

        # Anything at all behind the magic.
        import random
        random.seed(4)
        for index in range(40 if quick else 1000):
            data = bytearray(images[random.choice(["plain", "deflated", "two", "none"])])
            for _ in range(random.randrange(1, 12)):
                data[random.randrange(4, 600 if random.random() < 0.5 else len(data))] = random.randrange(256)
            runner.run(f"random {index}", bytes(data))
        print(f"hostile{', written' if writes else ''}: {runner.cases} cases, {runner.refused} refused, {runner.read} read; slowest {runner.slowest[0]:.2f} s "
              f"({runner.slowest[1]}), largest {runner.largest[0] / 1024:.1f} MiB more than an empty image "
              f"({runner.base / 1024:.1f} MiB) ({runner.largest[1]}); {runner.faults} faults")
        return 1 if runner.faults else 0


sys.exit(main())
