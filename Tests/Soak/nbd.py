# SPDX-License-Identifier: BSD-2-Clause
"""A client of NBD that has many requests in flight, over a socket of this machine."""
import select
import socket
import struct

READ, WRITE, DISCONNECT, FLUSH, TRIM = range(5)
FUA = 1
REPLY = struct.Struct(">IIQ")


class Closed(Exception):
    """The server is gone, or never had the disk."""


class Client:
    """One connection; `size` is the disk's in bytes."""

    def __init__(self, path, seconds):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(seconds)
        self.buffer = bytearray()
        self.wanted = {}
        self.next = 0
        try:
            self.socket.connect(path)
            magic, option, flags = struct.unpack(">QQH", self._exactly(18))
            if (magic, option) != (0x4E42444D41474943, 0x49484156454F5054):
                raise Closed("no server of NBD")
            # Fixed newstyle without zeroes, and the export of the empty name.
            self.socket.sendall(struct.pack(">I", flags & 3) + struct.pack(">QII", option, 1, 0))
            self.size, self.flags = struct.unpack(">QH", self._exactly(10 if flags & 2 else 134)[:10])
        except OSError as error:
            self.socket.close()
            raise Closed(str(error)) from error
        except Closed:
            self.socket.close()
            raise

    def _exactly(self, count):
        while len(self.buffer) < count:
            part = self.socket.recv(1 << 18)
            if not part:
                raise Closed("the server has closed the connection")
            self.buffer += part
        taken = bytes(self.buffer[:count])
        del self.buffer[:count]
        return taken

    def send(self, command, offset, length, data=b"", flags=0):
        """Sends a request, and gives its handle."""
        self.next += 1
        try:
            self.socket.sendall(struct.pack(">IHHQQI", 0x25609513, flags, command, self.next, offset, length) + data)
        except OSError as error:
            raise Closed(str(error)) from error
        self.wanted[self.next] = length if command == READ else 0
        return self.next

    def receive(self, seconds):
        """The next answer: handle, error, data; None if there is none in time."""
        if len(self.buffer) < REPLY.size and not select.select([self.socket], [], [], seconds)[0]:
            return None
        try:
            magic, error, handle = REPLY.unpack(self._exactly(REPLY.size))
            if magic != 0x67446698 or handle not in self.wanted:
                raise Closed(f"an answer with handle {handle} that is none")
            length = self.wanted.pop(handle)
            return handle, error, self._exactly(length) if length and not error else b""
        except OSError as error:
            raise Closed(str(error)) from error

    def close(self, politely=True):
        """Ends the connection."""
        try:
            if politely:
                self.socket.sendall(struct.pack(">IHHQQI", 0x25609513, 0, DISCONNECT, 0, 0, 0))
        except OSError:
            pass
        self.socket.close()
