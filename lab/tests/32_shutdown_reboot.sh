# SPDX-License-Identifier: BSD-2-Clause
# xl shutdown and xl reboot in the middle of I/O: the rebooted guest has its disk again.
# limit: 900
truncate -s 64M "$images/a.img"
log=$consoles/guest-again.log
busy() {
    guest_start again "$1" "fio --name=a --filename=/dev/xvda --rw=randrw --bsrange=4k-256k --size=64M --direct=1 \
        --ioengine=libaio --iodepth=16 --fdatasync=64 --time_based --runtime=600 --minimal"
    await 60 "I/O" completed_more again xvda 50
}
guest_create again "$(disk xvda "raw:$images/a.img")"
first=$(domid again)
busy one
xl reboot again
await 300 "the guest's return" eval '[[ $(grep -ac "^ready= 0" '"$log"') -eq 2 ]]'
[[ $(domid again) != "$first" ]] || fail "the guest did not reboot"
note "rebooted"
busy two
xl shutdown again
await 120 "the guest's end" eval '! xl domid again'
