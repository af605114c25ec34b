# SPDX-License-Identifier: BSD-2-Clause
"""Storage of each kind, with the model of what is on it, and a reader from outside."""
import os
import subprocess

from machine import Failure
from model import DiskModel, SECTOR

MEBIBYTE = 1 << 20


def run(*words):
    result = subprocess.run(list(map(str, words)), stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if result.returncode:
        raise Failure(f"{' '.join(map(str, words))}: {result.stderr.strip()}")
    return result.stdout


class Storage:
    """One disk's storage; `target` is what attach is told."""

    kinds = ["file", "file", "qcow2", "qcow2", "vhd", "vhd-fixed", "loop", "delay", "small-file", "small-qcow2"]

    def __init__(self, kind, number, folder, random):
        self.kind, self.folder = kind, folder
        self.path = folder / f"{number}.img"
        self.device = None
        self.mount = None
        self.options = []
        sectors = random.choice([8, 16, 24]) * MEBIBYTE // SECTOR
        self.model = DiskModel(number, sectors)
        self.format = "raw"
        self.grows = kind in ("file", "qcow2")
        self.layers = kind in ("file", "qcow2")
        self.fills = kind.startswith("small")
        if self.fills:
            # There is room for all that the guest can write, until somebody else takes it.
            self.mount = folder / f"{number}.mount"
            self.mount.mkdir()
            run("mount", "-t", "tmpfs", "-o", f"size={self.model.size + 4 * MEBIBYTE},mode=755", "tmpfs", self.mount)
            self.path = self.mount / "disk.img"
        if kind.endswith("qcow2"):
            self._make_qcow2(number, random)
        elif kind.startswith("vhd"):
            self.format = "vhd"
            run("qemu-img", "create", "-q", "-f", "vpc", "-o",
                "force_size=on,subformat=" + ("fixed" if kind.endswith("fixed") else "dynamic"), self.path, self.model.size)
        elif kind == "delay":
            self.format = "delay"
            self.options = ["size=" + str(self.model.size), "keep=on", "reorder=on", "delay-us=" + random.choice(["100", "2000"])]
            self.path.touch()
            os.truncate(self.path, self.model.size)
        else:
            self.path.touch()
            os.truncate(self.path, self.model.size)
            if random.random() < 0.5:
                self.options = ["direct=" + random.choice(["on", "off"])] if kind == "file" else []
        if kind == "loop":
            self.device = run("losetup", "--find", "--show", self.path).strip()

    def _make_qcow2(self, number, random):
        self.format = "qcow2"
        options = [f"cluster_size={random.choice(['4k', '64k', '64k', '1M'])}"]
        if random.random() < 0.3:
            options.append("lazy_refcounts=on")
        if random.random() < 0.3:
            options.append("extended_l2=on") if "cluster_size=4k" not in options else None
        words = []
        if self.kind == "qcow2" and random.random() < 0.7:
            # A template that is shorter than the disk, half of it written.
            template = self.folder / f"{number}.template"
            length = self.model.size // SECTOR * 3 // 4
            generation, data = self.model.write(0, length)
            self.model.written(0, length, generation)
            hole = range(length // 4, length // 2)
            blank = self.model.sure
            for sector in hole:
                blank[sector] = 0
            with open(template, "wb") as file:
                file.write(data[:hole.start * SECTOR])
                file.seek(hole.stop * SECTOR)
                file.write(data[hole.stop * SECTOR:])
            words = ["-b", template.name, "-F", "raw"]
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o", ",".join(options), *words, self.path, self.model.size)

    @property
    def target(self):
        return ",".join([self.format, *self.options]) + f":{self.device or self.path}"

    def check(self, format, path, settles=True):
        """Reads the image that the disk has from outside, all of it, against the model; gives the number of sectors."""
        if format == "delay":
            format = "raw"
        name = {"vhd": "vpc"}.get(format, format)
        if name == "qcow2":
            result = subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", path], capture_output=True, text=True)
            # 3 is lost clusters, which the next worker finds.
            if result.returncode not in (0, 3):
                raise Failure(f"qemu-img check {path}: {result.stdout}{result.stderr}")
        data = self.read(name, path)
        if len(data) != self.model.size:
            raise Failure(f"disk {self.model.number}: {path} has {len(data)} bytes, not {self.model.size}")
        self.model.check(0, data, settles)
        return len(data) // SECTOR

    def read(self, format, path):
        """The content of an image, by QEMU."""
        out = self.folder / f"{self.model.number}.read"
        try:
            options = f"driver={format},file.filename={path}" + (",force_size_calc=current_size" if format == "vpc" else "")
            run("qemu-img", "convert", "-U", "-O", "raw", "--image-opts", options, out)
            return out.read_bytes()
        finally:
            out.unlink(missing_ok=True)

    def remove(self):
        """Away with it all."""
        if self.device:
            run("losetup", "-d", self.device)
        if self.mount:
            run("umount", self.mount)
            self.mount.rmdir()
        for path in self.folder.glob(f"{self.model.number}.*"):
            path.unlink()
