# SPDX-License-Identifier: BSD-2-Clause
# A Debian dom0 installs the package and serves guests with both ways of configuration; an upgrade under I/O hands the disks
# over to new workers and is not noticed; removal waits for the guests; a purge leaves nothing.
# machine: systemd
# limit: 3000
debs=/host/debs
export DEBIAN_FRONTEND=noninteractive

# What apt and dpkg themselves keep of their work is not ours.
all_files() {
    find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp -o -path /host -o -path /srv -o \
        -path /var/cache -o -path /var/log -o -path /var/lib/apt -o -path /var/lib/dpkg -o -path /var/lib/systemd -o \
        -path /var/lib/xen \) -prune -o -print | sort
}
# A command as an administrator types it, and what it prints, as it stands in docs/xl.md.
transcript() {
    printf '# %s\n' "$*"
    "$@" 2>&1
}
state_of() { systemctl is-active "$1"; }

all_files >/tmp/before
sha256sum /etc/passwd /etc/group >/tmp/users
note "apt install"
transcript apt-get install -y "$debs"/xbb_*.deb >/tmp/install.txt || { cat /tmp/install.txt; fail "apt install"; }
transcript systemctl --no-pager status xbbd >>/tmp/install.txt || true
[[ $(state_of xbbd) == active ]] || fail "xbbd is $(state_of xbbd) after the installation"
await 60 "xbbd's socket" xbbctl list
[[ $(find /sys/bus/xen-backend/drivers -maxdepth 1 -name vbd) == "" ]] || fail "xen-blkback is loaded"

truncate -s 256M "$images"/{script,plain}.img
guest_config script "$(disk xvda "raw:$images/script.img")"
guest_config plain "format=raw,vdev=xvda,access=rw,target=$images/plain.img"
for name in script plain; do
    note "xl create $name"
    {
        transcript grep -E '^(name|type|disk)' "/srv/$name.cfg"
        transcript xl create "/srv/$name.cfg"
    } >>/tmp/guests.txt || { cat /tmp/guests.txt; fail "xl create $name"; }
    guest_ready "$name"
done
{
    transcript xl list
    transcript xl block-list script
    transcript xl block-list plain
    transcript xbbctl list
} >>/tmp/guests.txt
cat /tmp/install.txt /tmp/guests.txt
[[ $(workers) -eq 2 ]] || fail "$(workers) workers serve 2 disks"
for name in script plain; do
    note "a file system in guest $name"
    guest "$name" 'mke2fs -q -t ext4 /dev/xvda && mkdir -p /tmp/d && mount /dev/xvda /tmp/d && cp -r /bin /tmp/d/ &&
        umount /tmp/d && e2fsck -fn /dev/xvda' 300
done

note "upgrade under I/O"
before=$(pidof xbb-vbd)
guest_fio_start script xvda
apt-get install -y "$debs"/next/xbb_*.deb >/tmp/upgrade.txt 2>&1 || { cat /tmp/upgrade.txt; fail "upgrade"; }
[[ $(dpkg-query -W -f '${Version}' xbb) == *+next ]] || fail "the version is $(dpkg-query -W -f '${Version}' xbb)"
grep -c 'handed over to' /tmp/upgrade.txt | grep -qx 2 || { cat /tmp/upgrade.txt; fail "the upgrade did not hand 2 disks over"; }
for pid in $before; do await 10 "the end of worker $pid of the old version" test ! -e "/proc/$pid"; done
for pid in $(pidof xbb-vbd); do
    [[ $(readlink "/proc/$pid/exe") == /usr/sbin/xbb-vbd ]] || fail "worker $pid runs $(readlink "/proc/$pid/exe")"
done
[[ $(workers) -eq 2 ]] || fail "$(workers) workers serve 2 disks after the upgrade"
done_so_far=$(completed script xvda)
await 120 "I/O after the upgrade" completed_more script xvda "$done_so_far"
guest_fio_end script xvda

note "removal is refused"
refuses apt-get remove -y xbb
grep -q "guests use disks that XBB serves" <<<"$refusal" || fail "apt did not say why: $refusal"
[[ $(workers) -eq 2 && $(state_of xbbd) == active ]] || fail "the refused removal left $(workers) workers, xbbd $(state_of xbbd)"
guest script 'dd if=/dev/xvda of=/dev/null bs=64k count=16 2>/dev/null'

guest_shutdown script
guest_shutdown plain
await 60 "the workers' end" eval '[[ $(workers) -eq 0 ]]'
note "remove and purge"
apt-get remove -y xbb >/tmp/remove.txt 2>&1 || { cat /tmp/remove.txt; fail "remove"; }
[[ $(state_of xbbd) != active && ! -e /run/xbb ]] || fail "after remove: xbbd $(state_of xbbd), $(ls -d /run/xbb)"
apt-get purge -y xbb >/tmp/purge.txt 2>&1 || { cat /tmp/purge.txt; fail "purge"; }
all_files >/tmp/after
diff /tmp/before /tmp/after || fail "the purge left or took files"
sha256sum -c --quiet /tmp/users || fail "the purge left users or groups"
[[ ! -e /var/lib/xbb && ! -e /etc/xbb ]] || fail "the purge left /var/lib/xbb or /etc/xbb"
