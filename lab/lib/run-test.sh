#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# Runs one test in dom0, with a running xbbd, and looks whether anything is left behind it.
# usage: LAB_MACHINE=lean|systemd run-test.sh NAME
name=$1
. /host/lib/dom0.sh

# With systemd xbbd is what a test installs.
[[ $LAB_MACHINE == systemd || -n $(pidof xbbd) ]] || (xbbd_start) || exit 1
ports_before=$(ports) descriptors_before=$(descriptors)
# So that what is there afterwards is this test's.
dmesg -c >/dev/null
complaints() { dmesg | grep -E 'WARNING: |BUG: |Bad page|Oops|general protection fault'; }
(
    set -eE
    trap 'note "line $LINENO of ${BASH_SOURCE[0]##*/}: $BASH_COMMAND"' ERR
    . "/host/tests/$name.sh"
)
status=$?
if [[ $status -eq 0 ]]; then
    (assert_nothing_left)
    status=$?
fi
if [[ $status -eq 0 ]] && complaints; then
    note "FAILED: dom0's kernel complained"
    status=1
fi
if [[ $status -ne 0 ]]; then
    logs=/host/logs/$name
    mkdir -p "$logs"
    dmesg >"$logs/dmesg"
    xl dmesg -c >"$logs/xl-dmesg" 2>&1
    xl list >"$logs/xl-list" 2>&1
    xenstore-ls -fp >"$logs/xenstore" 2>&1
    timeout 20 xbbctl list >"$logs/xbbctl-list" 2>&1
    ps >"$logs/ps" 2>&1
    ! command -v journalctl >/dev/null || journalctl -b --no-pager >"$logs/journal"
    cp -r /var/log/xen /var/log/xbbd.log /var/log/messages "$logs/" 2>/dev/null
fi
# The next test begins with nothing, whatever this one left.
for guest in $(xl list | awk 'NR > 2 {print $1}'); do
    timeout 60 xl destroy "$guest"
done
: >/var/log/xbbd.log
: >/var/log/messages
rm -f /var/log/xen/*.log /srv/*.cfg
rm -rf "${images:?}"/*
exit $status
