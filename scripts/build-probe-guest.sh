#!/usr/bin/env bash
# build-probe-guest.sh ROOTFS OUT.qcow2
#
# Makes the smallest guest that can prove a cloud works: Debian's kernel, a busybox initramfs
# (probe-guest-init), syslinux on a FAT partition. ROOTFS is an unpacked Debian tree with
# linux-image-amd64 and busybox. Nothing is mounted, no loop device and no root is needed, and
# the same inputs give the same bytes.
set -euo pipefail

here=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
export LC_ALL=C TZ=UTC SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-1700000000}
export MTOOLS_SKIP_CHECK=1 MTOOLSRC=/dev/null
export PATH=$PATH:/usr/sbin:/sbin
umask 022

# acpi's button and evdev hear the power button, af_packet is what udhcpc sends with, a volume is a virtio disk.
modules=(virtio_pci virtio_net virtio_blk af_packet button evdev)
applets=(cut head hostname httpd insmod ip mkdir mount nc poweroff printf sed sh sleep sync tr udhcpc)
arguments="quiet panic=5 console=tty0 console=ttyS0 tsc=reliable no_timer_check mitigations=off"
sectors=65536 # of the disk, 512 bytes each: 32 MiB
first=2048    # of the partition

die() {
    echo "build-probe-guest: $*" >&2
    exit 1
}

mbr_code() {
    local file
    for file in /usr/lib/SYSLINUX/mbr.bin /usr/lib/syslinux/mbr/mbr.bin /usr/share/syslinux/mbr.bin; do
        [[ ! -r $file ]] || { echo "$file" && return; }
    done
    die "syslinux's mbr.bin is not on this host: install syslinux-common"
}

newest_kernel() {
    local version
    for version in $(find "$rootfs/boot" -name 'vmlinuz-*' -printf '%f\n' | sed 's/^vmlinuz-//' | sort -rV); do
        [[ ! -r $rootfs/lib/modules/$version/modules.dep ]] || { echo "$version" && return; }
    done
    die "$rootfs holds no kernel with its modules (boot/vmlinuz-*, lib/modules/*/modules.dep)"
}

# The modules' files below lib/modules/VERSION, each after those that it needs.
module_files() {
    local name line file
    for name in "${modules[@]}"; do
        line=$(grep -E "(^|/)${name//_/[_-]}\.ko[^ /]*:" "$tree/modules.dep" || true)
        if [[ -n $line ]]; then
            # depmod lists what a module needs in the order of unloading.
            for file in ${line#*:} ${line%%:*}; do echo "$file"; done |
                awk -v own="${line%%:*}" '$0 != own { need[++n] = $0 }
                    END { while (n) print need[n--]; print own }'
        else
            grep -qE "/${name//_/[_-]}\.ko" "$tree/modules.builtin" || die "the kernel $version lacks $name"
        fi
    done | awk '!seen[$0]++'
}

add_modules() {
    local file name
    mkdir -p "$initramfs/lib/modules"
    while read -r file; do
        name=${file##*/}
        case $name in
            *.ko) install -m 644 "$tree/$file" "$initramfs/lib/modules/$name" ;;
            *.ko.xz) xz -dc "$tree/$file" >"$initramfs/lib/modules/${name%.xz}" ;;
            *) die "$file: only .ko and .ko.xz are known here" ;;
        esac
        echo "${name%.xz}" >>"$initramfs/lib/modules/order"
    done <"$work/modules"
}

# busybox with the loader and the libraries that it wants, if any. It is run once, to see whether
# all of the guest's commands are in it.
add_busybox() {
    local busybox=$rootfs/bin/busybox loader=$rootfs/lib64/ld-linux-x86-64.so.2 file
    [[ -x $busybox ]] || busybox=$rootfs/usr/bin/busybox
    [[ -x $loader ]] || loader=$rootfs/usr/lib64/ld-linux-x86-64.so.2
    [[ -x $busybox ]] || die "$rootfs has no busybox"
    install -D -m 755 "$busybox" "$initramfs/bin/busybox"
    ln -s busybox "$initramfs/bin/sh"
    local -a start=("$busybox")
    if grep -q ld-linux-x86-64 "$busybox"; then
        [[ -x $loader ]] || die "$rootfs has no dynamic loader for its busybox"
        start=("$loader" --library-path "$rootfs/usr/lib/x86_64-linux-gnu:$rootfs/lib/x86_64-linux-gnu" "$busybox")
        install -D -m 755 "$loader" "$initramfs/lib64/ld-linux-x86-64.so.2"
        "${start[@]:0:3}" --list "$busybox" >"$work/libraries"
        while read -r file; do
            install -D -m 644 "$file" "$initramfs/lib/${file##*/}"
        done < <(sed -n 's/.* => \(\/[^ ]*\) .*/\1/p' "$work/libraries" | grep -v ld-linux)
    fi
    "${start[@]}" --list | sort >"$work/applets"
    local missing
    missing=$(printf '%s\n' "${applets[@]}" | comm -23 - "$work/applets" | tr '\n' ' ')
    [[ -z $missing ]] || die "the busybox of $rootfs lacks: $missing"
}

make_initrd() {
    mkdir -p "$initramfs"/{dev,proc,sys,tmp}
    add_busybox
    module_files >"$work/modules"
    add_modules
    install -m 755 "$here/probe-guest-init" "$initramfs/init"
    install -m 755 "$here/probe-guest-udhcpc" "$initramfs/bin/probe-guest-udhcpc"
    find "$initramfs" -exec touch --no-dereference --date "@$SOURCE_DATE_EPOCH" {} +
    (cd "$initramfs" && find . | sort | cpio --quiet --reproducible -R 0:0 -H newc -o) | gzip -9n >"$work/initrd.gz"
}

make_disk() {
    local disk=$work/disk.raw mbr file
    mbr=$(mbr_code)
    install -m 644 "$rootfs/boot/vmlinuz-$version" "$work/vmlinuz"
    printf '%s\n' 'default probe' 'prompt 0' 'label probe' ' kernel vmlinuz' \
        " append initrd=initrd.gz $arguments" >"$work/syslinux.cfg"
    truncate -s "$((sectors * 512))" "$disk"
    printf '%s\n' 'label: dos' 'label-id: 0x57ac1ab0' "start=$first, type=6, bootable" | sfdisk -q "$disk"
    dd if="$mbr" of="$disk" bs=440 count=1 conv=notrunc status=none
    mkfs.fat --invariant -i 57ac1ab0 -n PROBE -F 16 -h "$first" --offset "$first" \
        "$disk" "$(((sectors - first) / 2))" >"$work/mkfs.log"
    for file in vmlinuz initrd.gz syslinux.cfg; do
        touch --date "@$SOURCE_DATE_EPOCH" "$work/$file"
        mcopy -m -i "$disk@@$((first * 512))" "$work/$file" "::$file"
    done
    syslinux --install --offset "$((first * 512))" "$disk"
    # zlib, which every reader of qcow2 knows.
    qemu-img convert -c -f raw -O qcow2 -o compat=1.1,compression_type=zlib "$disk" "$work/guest.qcow2"
}

[[ $# -eq 2 ]] || die "usage: build-probe-guest.sh ROOTFS OUT.qcow2"
rootfs=$(readlink -f -- "$1")
out=$2
for tool in cpio gzip mcopy mkfs.fat qemu-img sfdisk syslinux; do
    command -v "$tool" >/dev/null || die "$tool is not on this host"
done

# Beside the result, so that it appears there by one rename.
work=$(mktemp -d "$out.XXXXXX")
trap 'rm -rf "$work"' EXIT
initramfs=$work/initramfs
version=$(newest_kernel)
tree=$rootfs/lib/modules/$version
make_initrd
make_disk
mv -f "$work/guest.qcow2" "$out"
