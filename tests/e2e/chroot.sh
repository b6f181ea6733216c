#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
# chroot.sh [VERB...]: `./do demo` and `./do check` (or the verbs given) on a bare Debian 12.
#
# Makes a minimal Debian in a directory of its own (debootstrap --variant=minbase),
# copies what git has of this tree into it, and runs the verbs there, so that a
# package missing from their lists shows. Needs root, debootstrap and a network.
# The system stays in $CHROOT (a directory under /var/tmp) if that is set, for another run.
set -eu

top=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
mirror=${MIRROR:-http://deb.debian.org/debian}
[ "$(id -u)" -eq 0 ] || { echo 'needs root'; exit 77; }
command -v debootstrap >/dev/null || { echo 'needs debootstrap'; exit 77; }

if [ -z "${CHROOT_INSIDE-}" ]; then
    # Mounts of our own: gone with this process, whatever happens.
    CHROOT_INSIDE=1 exec unshare --mount --pid --fork --kill-child "$0" "$@"
fi
mount --make-rprivate /

if [ -n "${CHROOT-}" ]; then
    root=$CHROOT
else
    root=$(mktemp -d /var/tmp/stripelog-chroot.XXXXXX)
    trap 'umount -R "$root/dev" "$root/proc" "$root/sys" 2>/dev/null; rm -rf --one-file-system "$root"' EXIT
fi
if [ ! -x "$root/usr/bin/apt-get" ]; then
    debootstrap --variant=minbase bookworm "$root" "$mirror"
fi
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
cp /etc/resolv.conf "$root/etc/resolv.conf" 2>/dev/null || true
for file in /etc/apt/apt.conf /etc/apt/apt.conf.d/*proxy*; do
    [ ! -f "$file" ] || cp "$file" "$root/etc/apt/apt.conf.d/"
done
cat >"$root/etc/apt/sources.list" <<SOURCES
deb $mirror bookworm main
deb $mirror bookworm-updates main
deb ${MIRROR_SECURITY:-http://deb.debian.org/debian-security} bookworm-security main
SOURCES

rm -rf "$root/stripelog"
mkdir "$root/stripelog"
git -c safe.directory="$top" -C "$top" archive HEAD | tar -x -C "$root/stripelog"

[ $# -gt 0 ] || set -- demo check
status=0
for verb in "$@"; do
    echo "== ./do $verb in $root"
    start=$(date +%s)
    if env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 \
        http_proxy="${http_proxy-}" https_proxy="${https_proxy-}" \
        chroot "$root" /stripelog/do "$verb"; then
        echo "== ./do $verb: passed, $(($(date +%s) - start)) s"
    else
        echo "== ./do $verb: FAILED, $(($(date +%s) - start)) s"
        status=1
    fi
done
exit $status
