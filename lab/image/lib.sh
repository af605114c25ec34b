# SPDX-License-Identifier: BSD-2-Clause
# Functions for the builders of images; sourced. `tree` is a tree of unpacked Debian packages; `kernel_tree` is another one for modules.
# shellcheck shell=bash
set -euo pipefail
: "${tree:?}"

# Copies the programs or libraries, named as in the tree, and the libraries that they need to the image at the same places.
copy_closure() { # image, path...
    local image=$1 path object library
    local linker=$tree/lib64/ld-linux-x86-64.so.2
    local where=$tree/lib/x86_64-linux-gnu:$tree/usr/lib/x86_64-linux-gnu:$tree/usr/lib/xen-4.17/lib/x86_64-linux-gnu
    shift
    for path; do
        object=$tree/$path
        copy_file "$image" "$path"
        head -c 4 "$object" | grep -q ELF || continue
        while read -r library; do
            copy_file "$image" "${library#"$tree"/}"
        done < <("$linker" --library-path "${stubs:+$stubs:}$where" --list "$object" | grep -o "$tree/[^ ]*")
    done
    copy_file "$image" lib64/ld-linux-x86-64.so.2
}

# A link becomes the file that it stands for.
copy_file() { # image, path in the tree
    [[ ! -e $1/$2 ]] || return 0
    mkdir -p "$1/$(dirname "$2")"
    cp -L --preserve=mode "$tree/$2" "$1/$2"
}

# Busybox under all its names that the image does not have yet.
copy_busybox() { # image
    local name
    copy_file "$1" bin/busybox
    # Where the kernel looks for it.
    [[ -e $1/sbin/modprobe ]] || ln -s ../bin/busybox "$1/sbin/modprobe"
    while read -r name; do
        [[ -e $1/bin/$name || -e $1/sbin/$name || -e $1/usr/bin/$name || -e $1/usr/sbin/$name ]] ||
            ln -s busybox "$1/bin/$name"
    done < <("$tree/bin/busybox" --list)
}

# Kernel modules with those that they need, unpacked, and the tables for modprobe.
copy_modules() { # image, module...
    local image=$1 version name file from=${kernel_tree:-$tree}
    version=$(basename "$from"/lib/modules/*)
    shift
    [[ -e $from/lib/modules/$version/modules.dep ]] || depmod -b "$from" "$version"
    for name; do
        while read -r _ file _; do
            tree=$from copy_file "$image" "${file#"$from"/}"
        done < <(modprobe -d "$from" -S "$version" --show-depends "$name" | grep '^insmod')
    done
    find "$image/lib/modules" -name '*.ko.xz' -exec xz -d {} +
    cp "$from/lib/modules/$version"/modules.{builtin,builtin.modinfo,order} "$image/lib/modules/$version/"
    depmod -b "$image" "$version"
}

# The kernel as ELF, which both Xen and its toolstack take, so that nothing is unpacked in emulation.
unpack_kernel() { # vmlinuz, vmlinux
    unpack_as "$1" "$2" $'\xfd7zXZ' xz || unpack_as "$1" "$2" $'\x28\xb5\x2f\xfd' zstd ||
        { echo "lab: no kernel compressed by xz or zstd in $1" >&2; return 1; }
}
unpack_as() { # vmlinuz, vmlinux, magic number, program
    local offset
    while read -r offset; do
        # What follows the kernel is no error.
        tail -c "+$((offset + 1))" "$1" | "$4" -dc >"$2" 2>/dev/null || true
        [[ $(head -c 4 "$2" | tail -c 3) != ELF ]] || return 0
    done < <(LC_ALL=C grep -abo "$3" "$1" | LC_ALL=C cut -d: -f1)
    return 1
}

pack() { # image, archive
    (cd "$1" && find . -mindepth 1 | LC_ALL=C sort | cpio -o -H newc -R 0:0 --quiet) >"$2"
}
