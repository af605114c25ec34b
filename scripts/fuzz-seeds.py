#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""First inputs of the fuzz targets, made of what real frontends, toolstacks, programs and QEMU write.

usage: fuzz-seeds.py DIRECTORY (scripts/fuzz.sh begins with build/fuzz/corpus)
"""
import hashlib
import os
import random
import socket
import struct
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OUT = sys.argv[1]


def put(target, data, kind=""):
    folder = os.path.join(OUT, target)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, kind + hashlib.sha1(data).hexdigest()), "wb") as file:
        file.write(data)


def request(operation, segments, identifier, sector):
    head = struct.pack("<BBH4xQQ", operation, len(segments), 51712, identifier, sector)
    return (head + b"".join(struct.pack("<IBBxx", *s) for s in segments)).ljust(112, b"\0")


def indirect(inner, count, sector, pages):
    head = struct.pack("<BBH4xQQH2x", 6, inner, count, 7, sector, 51712)
    return (head + b"".join(struct.pack("<I", p) for p in pages)).ljust(112, b"\0")


def slots():
    whole = [(8 + n, 0, 7) for n in range(11)]
    kinds = [request(op, whole[:n], 5, 64) for op in (0, 1, 2, 3) for n in (0, 1, 11)]
    kinds += [struct.pack("<BBH4xQQQ", 5, 1, 0, 9, 8, 16).ljust(112, b"\0")]
    kinds += [indirect(op, 40, 128, range(20, 28)) + b"\x00\x07" * 40 for op in (0, 1)]
    for flags in (0, 2, 63, 62):
        for slot in kinds:
            put("slot", struct.pack("<HQ", flags | 40 << 8, 1 << 60) + slot)


def key_nodes():
    """Pairs of key and kind, as KeyTarget.swift reads them: kind 1 is a number, 3 one of its words."""
    for flags in (0, 5, 0x25):
        back = bytes([6, 0, 3 | 11 << 2, 1, 3 | 10 << 2, 2, 1 | 2 << 2, 3, 1 | 1 << 2, 7, 3 | 13 << 2, 8, 3 | 15 << 2])
        for queues in (0, 2):
            front = bytes([12]) + b"".join(bytes([key, 1 | (9 + key % 50) << 2 & 255]) for key in range(12))
            put("keys", bytes([flags]) + back + front + bytes([queues]))


JSONS = [
    '{"execute": "qmp_capabilities", "id": 1}', '{"execute":"query-chardev"}', '[1, -2.5e3, true, false, null, "a\\u00e9\\n"]',
    '{"epoch":"0123456789abcdef","next":7,"disks":{"vbd/1/51712":"connected paused"}}', '{"a":{"b":[[[{}]]]}}',
    '{"counters":{"reqs_received":5,"reqs_completed":4},"latency":{"read":{"count":9,"buckets":[[14,1],[20,8]]}},'
    '"paused":false,"limits":{"total-iops":{"limit":100,"held":3}},"errors":[["read",5,12]]}',
    '"\\ud83d\\ude00"', '{"name":"qcow","formats":["qcow2","qcow"],"probes":true,"location":"file","origin":"xbb"}',
]


def texts():
    for text in JSONS:
        put("json", text.encode())
        for flags in range(4):
            put("metrics", bytes([flags]) + text.encode())
        put("files", text.encode())
    lines = [
        "ping", "list", "log 1/51712", "worker vbd/1/51712", "domain web", "events 0123456789abcdef:12 wait", "events 5",
        "pause 1/51712 60 release", "resume 1/51712 held", "resize 1/51712 1073741824 force", "extents 1/51712 0",
        "set 1/51712 poll_us 50 no-coalesce yes", "upgrade", "swap vbd/1/51712 60 raw fd:10 - %2fdev%2fvg%2fdisk",
        "swap 1/51712 60 qcow2 - a%3db %2fa.qcow2 worker 4711", "+1G", "20M", "qcow2,cache=16M:/a.qcow2", "nbd://server/x",
        "GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text\r\n\r\n", "-M xenpv -xen-domid 3 -qmp unix:/x,server",
    ]
    for line in lines:
        put("request", b"\xff\x10" + (line + "\n").encode())
    put("request", b"\xff\x40" + "\n".join(lines).encode())
    sections = open(os.path.join(ROOT, "etc/xbb.conf")).read().split("\n\n")
    for part in sections:
        plain = "\n".join(line.lstrip("#") for line in part.splitlines() if "=" in line or line.startswith("["))
        for section in ("xbbd", "worker", "tunables"):
            put("settings", f"[{section}]\n{plain}\n".encode()[:2000])
    history = ['{"epoch":"0123456789abcdef","next":9,"disks":{"vbd/1/51712":"connected"}}']
    for number, event in enumerate(["attached", "connected", "error", "resized", "detached"]):
        history.append(
            '{"seq":%d,"time":1700000000.5,"event":"%s","vbd":"vbd/1/51712","errno":"EIO","sector":8}' % (number + 1, event))
    put("files", ("\n".join(history) + "\n").encode())
    put("files", b"4711 123456\nnext 4712 123457\n")
    put("files", b"raw\0/dev/vg/disk\0qcow2\0/a.qcow2\0")


def images():
    """Small clusters, so that an image with all kinds of tables has some KiB."""
    with tempfile.TemporaryDirectory() as folder:
        def shell(command):
            subprocess.run(command, shell=True, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)

        kinds = {
            "v3": "compat=1.1,cluster_size=512", "v2": "compat=0.10,cluster_size=512",
            "bits": "compat=1.1,cluster_size=512,refcount_bits=1", "wide": "compat=1.1,cluster_size=1k,refcount_bits=64",
            "lazy": "compat=1.1,cluster_size=512,lazy_refcounts=on", "zstd": "compat=1.1,cluster_size=512,compression_type=zstd",
            "subclusters": "compat=1.1,cluster_size=16k,extended_l2=on",
        }
        for name, options in kinds.items():
            path = os.path.join(folder, name)
            shell(f"qemu-img create -q -f qcow2 -o {options} {name} 16k")
            shell(f"qemu-io -f qcow2 -c 'write -P 1 0 1k' -c 'write -z 2k 1k' -c 'write -P 2 5k 512' {name}")
            put("qcow-read", b"\x10" + open(path, "rb").read()[:16000], "image-")
            if name in ("v3", "v2"):
                shell(f"qemu-img snapshot -c one {name} && qemu-io -f qcow2 -c 'write -P 3 0 512' {name}")
                shell(f"qemu-img bitmap --add {name} b || true")
                put("qcow-read", b"\x10" + open(path, "rb").read()[:16000], "image-")
        shell("qemu-img create -q -f raw below 16k && qemu-img create -q -f qcow2 -b below -F raw -o cluster_size=512 over 16k")
        put("qcow-read", b"\x10" + open(os.path.join(folder, "over"), "rb").read()[:16000], "image-")
        shell("qemu-img create -q -f qcow old 16k && qemu-io -f qcow -c 'write -P 1 0 512' old")
        put("qcow-read", b"\x00" + open(os.path.join(folder, "old"), "rb").read()[:16000], "image-")


def nbd_servers():
    """What nbdkit and qemu-nbd send, whom the requests are sent that ServerTarget.swift waits for."""
    with tempfile.TemporaryDirectory() as folder:
        place, number = os.path.join(folder, "socket"), os.path.join(folder, "pid")
        subprocess.run(["truncate", "-s", "1M", os.path.join(folder, "file")], check=True)
        servers = [
            "nbdkit -U $S -P $P memory 1M", "nbdkit -U $S -P $P --no-sr memory 1M", "nbdkit -U $S -P $P --oldstyle memory 1M",
            "nbdkit -U $S -P $P --mask-handshake=0 memory 1M", "nbdkit -U $S -P $P --mask-handshake=1 memory 1M",
            "nbdkit -U $S -P $P eval get_size='echo 1048576' pread='echo EIO broken >&2; exit 1'",
            "nbdkit -U $S -P $P eval get_size='echo 1000' block_size='echo 4096 65536 1M' pread='exit 1'",
            "nbdkit -U $S -P $P --tls=require --tls-psk=/dev/null memory 1M",
            "qemu-nbd --fork -t --pid-file=$P -k $S -f raw --discard=unmap file", "qemu-nbd --fork -t --pid-file=$P -k $S -f raw -x other file",
        ]
        for command in servers:
            for options in (True, False):
                subprocess.run(command, shell=True, cwd=folder, check=True, env=os.environ | {"S": place, "P": number},
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                greeting, replies = nbd_session(place, options)
                put("nbd", (b"\x02" if options else b"\x12") + greeting + replies)
                put("nbd", b"\x06" + greeting + replies)
                put("nbd", b"\x07" + replies)
                put("nbd", b"\x01" + replies)
                put("nbd-scan", b"\x07\x20\x07" + replies[-560:].replace(b"\0" * 7, b"A" * 7))
                subprocess.run(["kill", open(number).read().strip()], check=True)
                if os.path.exists(place):
                    os.unlink(place)
    for uri in (
        "nbd://example.com:10809/disk", "nbds://alice@[fe80::1%25eth0]:1/a%20b?tls-psk-file=/etc/psk&tls-hostname=h",
        "nbd+unix:///disk?socket=/run/nbd.sock", "nbds+unix:///?socket=%00/a&tls-certificates=/c&tls-verify-peer=0",
        "nbd+vsock://2:5/", "nbds+vsock:///x?tls-type=anon", "nbd://alice:secret@h", "nbd://[::1", "nbd://h/%zz?x=1&x=2#f",
    ):
        put("nbd-uri", uri.encode())


def nbd_session(place, options):
    """The bytes of a server: of the handshake, and of the answers to its requests."""
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(0.3)
        line.connect(place)
        got = [b"", b""]

        def talk(data, phase=0):
            try:
                line.sendall(data)
                while True:
                    more = line.recv(65536)
                    if not more:
                        return
                    got[phase] += more
            except (TimeoutError, BrokenPipeError, ConnectionResetError):
                return

        def option(number, data=b""):
            talk(b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data)

        talk(b"")
        if got[0][8:16] == b"IHAVEOPT":
            flags = struct.unpack(">H", got[0][16:18])[0]
            talk(struct.pack(">I", flags & 3))
            if options and flags & 1:
                option(8)
                option(10, struct.pack(">III", 0, 1, 15) + b"base:allocation")
                option(7, struct.pack(">IHH", 0, 1, 3))
            else:
                option(1)
        for kind, cookie, offset, length, data in (
            (0, 1, 0, 512, b""), (1, 3, 4096, 512, b"A" * 512), (0, 2, 65536, 1024, b""), (3, 4, 0, 0, b""), (4, 5, 0, 4096, b""),
            (7, 6, 0, 1 << 20, b""),
        ):
            talk(struct.pack(">IHHQQI", 0x25609513, 0, kind, cookie, offset, length) + data, 1)
        return got


def dice():
    """Targets whose input is a row of decisions: any bytes are a session."""
    source = random.Random(1)
    for target in ("ring", "engine", "session", "journal", "offer", "negotiation", "broker", "qcow-write"):
        for length in (16, 64, 200, 200, 500, 500, 1000, 2000):
            put(target, source.randbytes(length))


slots()
key_nodes()
texts()
images()
nbd_servers()
dice()
