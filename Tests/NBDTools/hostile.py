#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
"""An NBD server that breaks a rule, until a file says that it is to keep them.

usage: hostile.py SOCKET PIDFILE MODE CURE

MODE is what it does wrong, below: in the handshake, or in the answer to a read. When the file CURE is there it keeps to the protocol.
Its export has 16 MiB, all bytes of which are 0x5c until they are written. What it should never be asked for ends it with a line.
"""
import collections, os, socket, struct, sys, threading, time

SIZE = 16 << 20
NBDMAGIC, IHAVEOPT, REPLY = 0x4E42444D41474943, 0x49484156454F5054, 0x0003E889045565A9
STARTTLS, GO, STRUCTURED, META = 5, 7, 8, 10
ACK, INFO, CONTEXT, UNSUPPORTED = 1, 3, 4, 0x80000001
HAS_FLAGS, FLUSH, MULTI = 1, 4, 256
SIMPLE, CHUNK = 0x67446698, 0x668E33EF
DONE, NONE, DATA, HOLE, ERROR = 1, 0, 1, 2, 0x8001

path, pidfile, mode, cure = sys.argv[1:]
disk = bytearray(b"\x5c" * SIZE)
lock = threading.Lock()
# How often something happened on all connections.
times = collections.Counter()


def is_first(what):
    with lock:
        times[what] += 1
        return times[what] == 1


class Closed(Exception):
    pass


class Connection:
    def __init__(self, peer):
        self.peer = peer
        # One that began in order stays so.
        self.wrong = mode if not os.path.exists(cure) else "none"

    def take(self, count):
        data = b""
        while len(data) < count:
            piece = self.peer.recv(count - len(data))
            if not piece:
                raise Closed
            data += piece
        return data

    def send(self, data):
        self.peer.sendall(data)

    def close(self):
        raise Closed

    def hang(self):
        # Until the client gives up.
        while self.peer.recv(4096):
            pass
        raise Closed

    # The handshake

    def reply(self, option, kind, data=b""):
        self.send(struct.pack(">QIII", REPLY, option, kind, len(data)) + data)

    def greet(self):
        if self.wrong == "close-at-once":
            self.close()
        if self.wrong == "silent":
            self.hang()
        if self.wrong == "garbage":
            self.send(os.urandom(4096))
            self.hang()
        if self.wrong == "another-protocol":
            self.send(b"220 mail.example ESMTP\r\n")
            self.hang()
        if self.wrong == "half-a-greeting":
            self.send(struct.pack(">Q", NBDMAGIC))
            self.close()
        self.send(struct.pack(">QQH", NBDMAGIC, IHAVEOPT, 3))
        if self.wrong == "close-after-greeting":
            self.close()
        self.take(4)
        while True:
            magic, option, length = struct.unpack(">QII", self.take(16))
            assert magic == IHAVEOPT and length < 65536
            self.take(length)
            if self.wrong == "close-at-option":
                self.close()
            if self.wrong == "silent-option":
                self.hang()
            if self.wrong == "another-option":
                self.reply(99, ACK)
                self.hang()
            if self.wrong == "large-answer":
                self.send(struct.pack(">QIII", REPLY, option, ACK, 0xFFFFFFFF))
                self.hang()
            if self.wrong == "endless-answers":
                while True:
                    self.reply(option, INFO, struct.pack(">H", 77))
            if self.wrong == "tls-without-asking":
                self.reply(option, 0x80000005)
                self.hang()
            if option == STRUCTURED:
                self.reply(option, ACK)
            elif option == META:
                self.reply(option, CONTEXT, struct.pack(">I", 1) + b"base:allocation")
                self.reply(option, ACK)
            elif option == GO:
                if self.wrong == "close-at-go":
                    self.close()
                if self.wrong == "first-hangs-at-go" and is_first("go"):
                    self.hang()
                if self.wrong == "first-is-refused-at-go" and is_first("go"):
                    self.reply(option, 0x80000006)
                    continue
                size = {"size-zero": 0, "size-without-bounds": 1 << 63, "shrinks": SIZE // 2}.get(self.wrong, SIZE)
                if self.wrong == "shrinks" and not os.path.exists(cure + ".shrunk"):
                    size = SIZE
                if self.wrong != "no-size":
                    self.reply(option, INFO, struct.pack(">HQH", 0, size, HAS_FLAGS | FLUSH | MULTI))
                if self.wrong == "blocks-of-3":
                    self.reply(option, INFO, struct.pack(">HIII", 3, 3, 4096, 1 << 20))
                    self.hang()
                self.reply(option, ACK)
                if self.wrong == "bytes-after-go":
                    self.send(b"\0" * 64)
                    self.hang()
                return
            else:
                self.reply(option, UNSUPPORTED)

    # Transmission

    def simple(self, cookie, error=0):
        self.send(struct.pack(">IIQ", SIMPLE, error, cookie))

    def chunk(self, cookie, kind, data=b"", flags=0, length=None):
        self.send(struct.pack(">IHHQI", CHUNK, flags, kind, cookie, len(data) if length is None else length) + data)

    def data(self, cookie, offset, length, flags=0):
        with lock:
            piece = bytes(disk[offset:offset + length])
        self.chunk(cookie, DATA, struct.pack(">Q", offset) + piece, flags)

    def read(self, cookie, offset, length):
        half = length // 2
        if self.wrong == "bad-magic":
            self.send(b"\xff" * 64)
        elif self.wrong == "wrong-cookie":
            self.data(cookie ^ 1, offset, length, DONE)
        elif self.wrong == "read-without-data":
            self.chunk(cookie, NONE, flags=DONE)
        elif self.wrong == "half-of-a-read":
            self.data(cookie, offset, half)
            self.chunk(cookie, NONE, flags=DONE)
        elif self.wrong == "half-and-close":
            self.send(struct.pack(">IHHQIQ", CHUNK, DONE, DATA, cookie, 8 + length, offset) + bytes(half))
            self.close()
        elif self.wrong == "data-twice":
            self.data(cookie, offset, half)
            self.data(cookie, offset, half)
        elif self.wrong == "answer-twice":
            self.data(cookie, offset, length, DONE)
            self.data(cookie, offset, length, DONE)
        elif self.wrong == "data-before":
            self.chunk(cookie, DATA, struct.pack(">Q", offset - 512) + b"\x66" * length, DONE)
        elif self.wrong == "data-behind":
            self.chunk(cookie, DATA, struct.pack(">Q", offset) + b"\x66" * (length + 512), DONE)
        elif self.wrong == "hole-of-4-GiB":
            self.chunk(cookie, HOLE, struct.pack(">QI", offset, 0xFFFFFFFF), DONE)
        elif self.wrong == "simple-read":
            self.simple(cookie)
            self.send(b"\x66" * length)
        elif self.wrong == "error-without-error":
            self.chunk(cookie, ERROR, struct.pack(">IH", 0, 0), DONE)
        elif self.wrong == "long-error":
            self.chunk(cookie, ERROR, struct.pack(">IH", 5, 0xFFFF), DONE, length=0xFFFF)
        elif self.wrong == "unknown-chunk":
            self.chunk(cookie, 77, b"\0" * 16, DONE)
        elif self.wrong == "closes":
            self.close()
        elif self.wrong == "never":
            self.hang()
        else:
            # In pieces, with a hole where it is all zeroes, as servers may.
            self.data(cookie, offset, half)
            self.data(cookie, offset + half, length - half, DONE)

    def serve(self):
        try:
            self.greet()
            while True:
                magic, flags, kind, cookie, offset, length = struct.unpack(">IHHQQI", self.take(28))
                assert magic == 0x25609513, "no request"
                if kind == 2:
                    return
                if kind in (0, 1):
                    assert length > 0 and offset + length <= SIZE, "outside of the export"
                if kind == 0:
                    self.read(cookie, offset, length)
                elif kind == 1:
                    piece = self.take(length)
                    with lock:
                        disk[offset:offset + length] = piece
                    self.chunk(cookie, NONE, flags=DONE)
                elif kind == 3:
                    self.chunk(cookie, NONE, flags=DONE)
                else:
                    self.chunk(cookie, ERROR, struct.pack(">IH", 95, 0), DONE)
        except (Closed, OSError):
            pass
        finally:
            try:
                self.peer.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            self.peer.close()


def main():
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    with open(pidfile, "w") as file:
        file.write(f"{os.getpid()}\n")
    while True:
        peer, _ = listener.accept()
        threading.Thread(target=Connection(peer).serve, daemon=True).start()


main()
