# SPDX-License-Identifier: BSD-2-Clause
# The directory that newer toolstacks use beside xen-blkback's: backend/vbd3. This xl does not write it, so xbbctl does.
xbbd_stop
xbbd_start --backend vbd --backend vbd3
truncate -s 64M "$images"/{a,b}.img
guest_create three "$(disk xvda "raw:$images/a.img")"
xbbctl attach "$(domid three)" xvdb "raw:$images/b.img" --kind vbd3
xenstore-exists "/local/domain/0/backend/vbd3/$(domid three)/51728/state"
guest three 'set -e
    i=0; until [ -b /dev/xvdb ]; do i=$((i + 1)); [ $i -lt 300 ]; sleep 0.2; done
    fio --name=b --filename=/dev/xvdb --rw=randwrite --bsrange=4k-64k --size=16M --direct=1 --ioengine=libaio --iodepth=8 \
        --verify=crc32c --verify_fatal=1 --minimal >/tmp/fio 2>&1 || { cat /tmp/fio; exit 1; }' 300
xbbctl detach "$(domid three)" xvdb --kind vbd3
await 30 "the end of the disk in vbd3" eval '[[ $(workers) -eq 1 && $(vbd_nodes) -eq 1 ]]'
guest_shutdown three
xbbd_stop
xbbd_start
