# SPDX-License-Identifier: BSD-2-Clause
# How a guest's data comes and on how many queues; sourced by the tests that go over all of these ways.
# shellcheck shell=bash disable=SC2034  # what is set is for the tests
#
#             queues  pages a request  copies
# usual       1       32, Linux' own   none, as XBB and Linux have it unless told
# queues      4       11               of Xen
# indirect    4       256              of Xen
# persistent  4       11               none: pages stay mapped
# all         4       256              none: pages stay mapped
all_modes="queues indirect persistent all"

# Sets what xbbd is told (`mode_options`), what the guest's kernel is (`mode_line`) and what fio may ask for (`mode_load`), the guest's
# processors and memory, and what the guest has to see: queues, KiB of its largest request, and "enabled" or "disabled" for each feature.
set_mode() { # mode
    mode_processors=4 mode_queues=4 mode_indirect=disabled mode_persistent=disabled mode_request=44
    mode_memory=384
    # Four jobs, as a queue is one processor's; small requests and some as large as there may be. No more of them than leave the emulated
    # processors time for dom0.
    mode_load="--numjobs=4 --offset_increment=8M --size=2M --bssplit=4k/70:64k/20:1M/10 --rate_iops=20 --group_reporting"
    local segments=0 grants=off
    case $1 in
    usual) mode_processors=1 mode_queues=1 mode_memory=256 mode_load="" ;;
    queues) ;;
    indirect) segments=256 ;;
    persistent) grants=on ;;
    all) segments=256 grants=on ;;
    *) fail "no mode '$1'" ;;
    esac
    if [[ $1 == usual ]]; then
        mode_options=() mode_line="" mode_indirect=enabled mode_persistent=enabled mode_request=128
        return
    fi
    mode_options=(--max-queues 4 --max-indirect-segments "$segments" --persistent-grants "$grants")
    mode_line="xen_blkfront.max_queues=4 xen_blkfront.max_indirect_segments=256"
    [[ $segments -eq 0 ]] || mode_indirect=enabled mode_request=1024
    [[ $grants == off ]] || mode_persistent=enabled
    # Linux keeps a page for each segment of each request of each queue where pages stay mapped: 128 MiB for a disk with rings of one page.
    [[ $1 != all ]] || mode_memory=896
}

# What the guest's blkfront says that it makes use of.
assert_mode() { # guest, disk
    local seen
    seen=$(guest "$1" "echo \"\$(ls /sys/block/$2/mq | wc -l) queues, \$(cat /sys/block/$2/queue/max_hw_sectors_kb) KiB,\"
        dmesg | grep 'blkfront: $2: ' | tail -n 1 | sed 's/.*persistent/persistent/; s/; bounce.*//'" | xargs)
    [[ $seen == "$mode_queues queues, $mode_request KiB, persistent grants: $mode_persistent; indirect descriptors: $mode_indirect"* ]] ||
        fail "the guest's $2 has: $seen"
    note "$2: $seen"
}
