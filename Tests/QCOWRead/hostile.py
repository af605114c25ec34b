#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Images that somebody made to do harm, each opened and read by the QCOW plugin in a process of its own.

Every case must end by itself, within 2 s of processor time and 64 MiB of memory more than an empty image takes, with an
answer: refused with a message, or read with or without errors. A signal is a fault, and so is a refusal without words.
usage: hostile.py [--quick] QCOW-READ PLUGIN
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


class Runner:
    def __init__(self, program, plugin, folder):
        self.program, self.plugin, self.folder = program, plugin, folder
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
        elif os.WEXITSTATUS(status) in (0, 2):
            self.read += 1
        else:
            problem = f"exit status {os.WEXITSTATUS(status)}"
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


def main():
    quick = "--quick" in sys.argv
    program, plugin = [word for word in sys.argv[1:] if not word.startswith("--")]
    with tempfile.TemporaryDirectory(prefix="xbb-hostile-") as folder:
        os.chdir(folder)
        runner = Runner(program, plugin, folder)
        shell("head -c 300k /dev/urandom > source && head -c 400k /dev/zero | tr '\\0' a >> source && truncate -s 3M source")
        shell("qemu-img convert -O qcow2 source plain && qemu-img snapshot -c one plain && truncate -s 64k empty.raw")
        shell("qemu-img convert -O qcow2 -c source deflated; qemu-img convert -O qcow source old; true")
        shell("qemu-img convert -O qcow2 -o compat=0.10 source two")
        secret = "--object secret,id=s,data=geheim"
        shell(f"qemu-img create -f qcow2 {secret} -o encrypt.format=aes,encrypt.key-secret=s aes 3M && qemu-img convert -n "
              f"{secret} --image-opts --target-image-opts driver=raw,file.filename=source "
              "driver=qcow2,encrypt.key-secret=s,file.filename=aes")
        shell("qemu-img create -f qcow2 none 1M")
        images = {name: open(name, "rb").read() for name in ("plain", "deflated", "old", "two", "aes", "none")}
        runner.run("an empty image", images["none"])
        runner.base, runner.largest = runner.largest[0], (0, "")

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
        print(f"hostile: {runner.cases} cases, {runner.refused} refused, {runner.read} read; slowest {runner.slowest[0]:.2f} s "
              f"({runner.slowest[1]}), largest {runner.largest[0] / 1024:.1f} MiB more than an empty image "
              f"({runner.base / 1024:.1f} MiB) ({runner.largest[1]}); {runner.faults} faults")
        return 1 if runner.faults else 0


sys.exit(main())
