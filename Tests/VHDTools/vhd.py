#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
"""What tests need of VHDs that no tool of Debian does: differencing images, and libvhdi's view of a chain.

usage: vhd.py child PARENT IMAGE [NAME]     an empty image above PARENT, as XenServer makes one; NAME as it stands in the image
       vhd.py read OUTPUT IMAGE [PARENT]    all of the disk, read by libvhdi (python3-libvhdi), but for what it reads wrong (see mixed)
"""
import struct, sys


def sealed(data, place):
    """With its checksum: the one's complement of the sum of all other bytes."""
    data[place:place + 4] = bytes(4)
    data[place:place + 4] = struct.pack(">I", ~sum(data) & 0xFFFFFFFF)
    return bytes(data)


def child(parent, image, name=".\\base.vhd"):
    with open(parent, "rb") as file:
        file.seek(-512, 2)
        end = file.read()
    size = struct.unpack(">Q", end[48:56])[0]
    blocks = (size + (2 << 20) - 1) >> 21
    table = (blocks * 4 + 511) & ~511
    footer = bytearray(end)
    footer[16:24] = struct.pack(">Q", 512)
    footer[28:32] = b"tap\0"
    footer[60:64] = struct.pack(">I", 4)
    footer[68:84] = bytes(range(16))
    header = bytearray(1024)
    header[0:16] = b"cxsparse" + b"\xff" * 8
    header[16:36] = struct.pack(">QIII", 1536, 0x10000, blocks, 2 << 20)
    header[40:56] = end[68:84]
    header[56:60] = struct.pack(">I", 0xFFFFFFFF)
    title = "base.vhd".encode("utf-16-be")
    header[64:64 + len(title)] = title
    text = name.encode("utf-16-le")
    header[576:600] = b"W2ru" + struct.pack(">IIIQ", 512, len(text), 0, 1536 + table)
    end = sealed(footer, 64)
    with open(image, "wb") as file:
        file.write(end + sealed(header, 36) + b"\xff" * table + text.ljust(512, b"\0") + end)


def mixed(path):
    """Of a differencing image: where eight sectors have bits of both kinds, and for each sector the place of its data, or None.

    libvhdi 20210425 takes the sectors behind a run of set bits for set, up to the next eighth."""
    with open(path, "rb") as file:
        image = file.read()
    table, entries, size = struct.unpack(">Q4xII", image[528:548])
    for number in range(entries):
        first = struct.unpack(">I", image[table + number * 4:table + number * 4 + 4])[0]
        if first == 0xFFFFFFFF:
            continue
        sectors = size // 512
        data = first * 512 + (sectors // 8 + 511 & ~511)
        for index in range(sectors // 8):
            byte = image[first * 512 + index]
            if byte not in (0, 255):
                places = [data + (index * 8 + bit) * 512 if byte >> (7 - bit) & 1 else None for bit in range(8)]
                yield number * size + index * 4096, [image[place:place + 512] if place else None for place in places]


def read(output, image, parent=None):
    import pyvhdi

    disk = pyvhdi.file()
    disk.open(image)
    if parent:
        below = pyvhdi.file()
        below.open(parent)
        disk.set_parent(below)
    size = disk.get_media_size()
    with open(output, "wb") as out:
        for offset in range(0, size, 1 << 20):
            out.write(disk.read_buffer_at_offset(min(1 << 20, size - offset), offset))
        for start, sectors in mixed(image) if parent else []:
            for offset, sector in zip(range(start, size, 512), sectors):
                out.seek(offset)
                out.write(sector or below.read_buffer_at_offset(512, offset))


if __name__ == "__main__":
    {"child": child, "read": read}[sys.argv[1]](*sys.argv[2:])
