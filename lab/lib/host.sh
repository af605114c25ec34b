# SPDX-License-Identifier: BSD-2-Clause
# The machine: QEMU with Xen and dom0 in it, and commands for dom0; sourced by xen-lab.
# shellcheck shell=bash
: "${lab:?}" "${out:?}"
share=$out/share
# Seconds; the machine is emulated and may be shared.
boot_limit=${XEN_LAB_BOOT_SECONDS:-400}
clock_shift=2

say() { printf '%s\n' "lab: $*"; }

# What dom0 finds in /host: kernel and initramfs of guests, our programs, the tests.
fill_share() {
    rm -rf "${share:?}"
    mkdir -p "$share"/{boot,jobs,logs}
    ln "$out/vmlinux" "$out/guest.cpio" "$share/boot/"
    [[ ! -e $out/guest-6.12.cpio ]] || ln "$out/vmlinux-6.12" "$out/guest-6.12.cpio" "$share/boot/"
    [[ ! -e $out/peers.tar ]] || ln "$out/peers.tar" "$share/"
    pack_programs || return 1
    pack_next || return 1
    mkdir -p "$share/bin"
    gcc -O2 -static -Wall -Werror -o "$share/bin/hold-lock" "$lab/lib/hold-lock.c" || return 1
    gcc -O2 -Wall -Werror -o "$share/bin/domain-time" "$lab/lib/domain-time.c" -lxenctrl || return 1
    gcc -O2 -static -Wall -Werror -o "$share/bin/read-gaps" "$lab/lib/read-gaps.c" || return 1
    share_tests
}

# At any time: dom0 reads them there.
share_tests() { cp -r "$lab/tests" "$lab/lib" "$lab/bench" "$share/"; }

# The files of our packages; dom0 unpacks them into its root. With XEN_LAB_PROGRAMS=build they are those of `make build-release`,
# which takes a second where packages take minutes.
pack_programs() {
    local root=$out/xbb deb
    rm -rf "${root:?}"
    if [[ ${XEN_LAB_PROGRAMS:-packages} == build ]]; then
        DESTDIR=$root PREFIX=/usr "$lab/../scripts/install-tree.sh" || return 1
        find "$root/usr/sbin" "$root/usr/bin" "$root/usr/lib" -type f -exec strip --strip-unneeded {} + 2>/dev/null
    else
        for deb in "$lab"/../build/deb/xbb{,-tools,-plugin-nbd,-plugin-qcow,-plugin-vhd}_*.deb; do
            [[ -e $deb ]] || { echo "lab: $deb is missing: run 'make deb', or set XEN_LAB_PROGRAMS=build" >&2; return 1; }
            dpkg-deb -x "$deb" "$root" || return 1
        done
    fi
    # The plugins that delay and fail belong to the tools, and are for tests.
    rm -rf "${root:?}/usr/share" "$root/usr/lib/x86_64-linux-gnu/nbdkit"
    tar -C "$root" -cf "$share/xbb.tar" .
}

# The packages, and xbb once more under a higher number, for the upgrade.
pack_next() {
    [[ ${XEN_LAB_PROGRAMS:-packages} != build ]] || return 0
    mkdir -p "$share/debs/next"
    cp "$lab"/../build/deb/xbb{,-tools}_*.deb "$share/debs/" || return 1
    "$lab/../scripts/next-deb.sh" "$lab"/../build/deb/xbb_*.deb "$share/debs/next/xbb_next.deb"
}

# Two disks: vda for RawDisk as it is, vdb with a file system for images. The lean dom0 has a slow one, too, vdc.
make_disks() {
    rm -f "$out"/vd[abc].img
    truncate -s 1G "$out/vda.img"
    truncate -s 512M "$out/vdc.img"
    truncate -s 8G "$out/vdb.img"
    mke2fs -q -t ext4 -L images -E lazy_itable_init=1,lazy_journal_init=1 "$out/vdb.img"
}

boot() { # lean | systemd
    local started=$SECONDS initramfs=$out/dom0.cpio disks=(-drive file="$out/vdc.img,if=virtio,format=raw,cache=unsafe,throttling.iops-total=60")
    machine=$1
    if [[ $machine == systemd ]]; then
        # What is written to it is forgotten.
        initramfs=$out/systemd.cpio
        disks=(-drive file="$out/systemd.img,if=virtio,format=raw,snapshot=on")
    fi
    rm -f "$share"/jobs/*
    # Time is counted in instructions (2^shift ns each) and one thread runs both CPUs: on a busy machine the time limits of Xen's
    # toolstack (10 s for a backend, 40 s for a script) would pass while next to nothing is done, and a CPU would wait for
    # another that this machine does not run at the moment.
    local clock=(-accel "tcg,thread=single" -icount "shift=$clock_shift,sleep=on" -rtc clock=vm)
    [[ ${XEN_LAB_CLOCK:-counted} != real ]] || clock=(-accel "tcg,thread=multi")
    # With one processor Xen's account of a domain's time is one of instructions. Dom0 has one, too: with two it did not come up within minutes.
    local processors=2
    [[ ${XEN_LAB_CLOCK:-counted} != single ]] || processors=1
    qemu-system-x86_64 "${clock[@]}" -machine q35 -cpu qemu64,+npt -smp $processors -m 4096 -nographic -no-reboot -nic none \
        -kernel "$out/xen" -append "dom0_mem=1536M,max:1536M dom0_max_vcpus=$processors console=com1 loglvl=all guest_loglvl=all bootscrub=0 spec-ctrl=no" \
        -initrd "$out/vmlinux console=hvc0 quiet panic=5 mitigations=off cryptomgr.notests rodata=off,$initramfs" \
        -virtfs local,path="$share",mount_tag=host,security_model=none \
        -drive file="$out/vda.img",if=virtio,format=raw,cache=unsafe \
        -drive file="$out/vdb.img",if=virtio,format=raw,cache=unsafe "${disks[@]}" \
        </dev/null >"$out/boot.log" 2>&1 &
    qemu=$!
    until [[ -e $share/jobs/ready ]]; do
        if ! kill -0 "$qemu" 2>/dev/null || ((SECONDS - started > boot_limit)); then
            say "dom0 did not come up; the end of $out/boot.log:"
            tail -20 "$out/boot.log"
            halt
            return 1
        fi
        sleep 0.3
    done
    say "dom0 ($machine) is ready after $((SECONDS - started)) s"
}

# Ends the machine, in order if it can.
halt() {
    local waited=0
    [[ -n ${qemu:-} ]] || return 0
    touch "$share/jobs/stop"
    while kill -0 "$qemu" 2>/dev/null; do
        ((++waited <= 100)) || kill -KILL "$qemu" 2>/dev/null
        sleep 0.2
    done
    wait "$qemu" 2>/dev/null
    qemu=
}

# Runs a shell script, given on standard input, in dom0; its output goes to a file. Status 124: it did not end in time.
in_dom0() { # name, limit in seconds, output
    local name=$1 limit=$2 output=$3 started=$SECONDS
    rm -f "$share/jobs/$name".*
    cat >"$share/jobs/$name.new"
    mv "$share/jobs/$name.new" "$share/jobs/$name.sh"
    until [[ -e $share/jobs/$name.rc ]]; do
        if ! kill -0 "$qemu" 2>/dev/null; then
            cp "$share/jobs/$name.out" "$output" 2>/dev/null
            echo "lab: the machine has gone" >>"$output"
            return 125
        fi
        if ((SECONDS - started > limit)); then
            cp "$share/jobs/$name.out" "$output" 2>/dev/null
            echo "lab: not ended after $limit s" >>"$output"
            return 124
        fi
        sleep 0.3
    done
    mv "$share/jobs/$name.out" "$output"
    return "$(cat "$share/jobs/$name.rc")"
}
