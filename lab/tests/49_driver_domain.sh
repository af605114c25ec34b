# SPDX-License-Identifier: BSD-2-Clause
# A driver domain: xbbd and `xl devd` in the guest "storage" serve a disk of another guest (backend=storage). The storage
# there is a disk that XBB in dom0 serves, so that the bytes go through both and end on dom0's block device.
# limit: 1800
# Its root is this dom0's, with the programs and the script; its first process is that of all guests.
mkdir -p /srv/overlay
(cd /srv/overlay && cpio -idm --quiet init <../guest.cpio)
(cd / && find . -xdev \( -path ./srv -o -path ./host -o -path ./init -o -path './var/log/*' \) -prune -o -print |
    cpio -o -H newc --quiet) >/srv/storage.cpio
(cd /srv/overlay && echo init | cpio -o -H newc --quiet) >>/srv/storage.cpio
rm -rf /srv/overlay
dd if=/dev/zero of="$raw_device" bs=1M count=64 conv=fsync 2>/dev/null

guest_ramdisk=/srv/storage.cpio guest_memory=640 guest_lines="driver_domain = 1" \
    guest_create storage "$(disk xvda "raw:$raw_device")"
rm -f /srv/storage.cpio
guest storage 'set -e
    for module in xen-evtchn xen-gntdev xen-gntalloc xen-privcmd xenfs; do modprobe "$module"; done
    mount -t xenfs xenfs /proc/xen
    mkdir -p /run/xbb /run/xen /run/lock /var/lock /var/log/xen
    setsid xbbd >/var/log/xbbd.log 2>&1 </dev/null &
    i=0; until xbbctl list; do i=$((i + 1)); [ $i -lt 100 ]; sleep 0.3; done
    setsid xl devd -F >/var/log/xl-devd.log 2>&1 </dev/null &' 300

guest_create user "vdev=xvda,access=rw,backend=storage,script=block-xbb,target=raw:/dev/xvda"
storage=$(domid storage)
xenstore-exists "/local/domain/$storage/backend/vbd/$(domid user)/51712" || fail "the disk is not in the driver domain"
[[ $(vbd_nodes) -eq 1 ]] || fail "dom0 serves $(vbd_nodes) disks, and the driver domain's only was expected"
guest storage 'xbbctl list'
sum=$(guest user '
    dd if=/dev/urandom of=/tmp/data bs=64k count=64 2>/dev/null
    dd if=/tmp/data of=/dev/xvda bs=64k seek=16 oflag=direct 2>/dev/null
    dd if=/dev/xvda bs=64k skip=16 count=64 iflag=direct 2>/dev/null | cmp - /tmp/data
    md5sum </tmp/data') || fail "the guest reads other bytes than it wrote"
guest user 'fio --name=a --filename=/dev/xvda --rw=randwrite --bsrange=4k-64k --offset=8M --size=16M --direct=1 \
    --ioengine=libaio --iodepth=8 --verify=crc32c --verify_fatal=1 --minimal >/tmp/fio 2>&1 || { cat /tmp/fio; exit 1; }' 600 ||
    fail "fio through the driver domain"
[[ $(dd if="$raw_device" bs=64k skip=16 count=64 iflag=direct 2>/dev/null | md5sum) == "$sum" ]] ||
    fail "dom0's device has other bytes"
guest_shutdown user
guest storage 'i=0; while pidof xbb-vbd; do i=$((i + 1)); [ $i -lt 100 ]; sleep 0.3; done' 120 ||
    fail "the driver domain still serves the disk"
# Its programs are a dom0's, which do not know what xl shutdown asks for.
xl destroy storage
