# SPDX-License-Identifier: BSD-2-Clause
# A guest's blkfront writes to a disk and reads it; the bytes are in the image.
# limit: 600
truncate -s 64M "$images/a.img"
guest_create first "$(disk xvda "raw:$images/a.img")"
[[ $(guest first 'blockdev --getsize64 /dev/xvda') == $((64 << 20)) ]] || fail "the guest sees another size"

sum=$(guest first '
    dd if=/dev/urandom of=/tmp/data bs=64k count=64 2>/dev/null
    dd if=/tmp/data of=/dev/xvda bs=64k seek=16 oflag=direct 2>/dev/null
    dd if=/dev/xvda bs=64k skip=16 count=64 iflag=direct 2>/dev/null | cmp - /tmp/data
    md5sum </tmp/data')
note "first I/O is done"
[[ $(dd if="$images/a.img" bs=64k skip=16 count=64 2>/dev/null | md5sum) == "$sum" ]] || fail "the image has other bytes"
guest_shutdown first
