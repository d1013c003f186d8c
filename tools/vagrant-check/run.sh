#!/usr/bin/env bash
# `vagrant up` for real, without a hypervisor: builds a Debian 12 box, boots it under emulation by libvirt, lets the
# Vagrantfile of this checkout provision it, runs a command in it, and destroys it.
#
# usage: sudo tools/vagrant-check/run.sh [--keep] [--command 'sudo cnilab demo'] [FOLDER]
#
# Needs: mmdebstrap vagrant vagrant-libvirt libvirt-daemon-system libvirt-clients qemu-system-x86 qemu-utils dnsmasq-base
# e2fsprogs slirp4netns rsync. Takes ten minutes and more on two cores. libvirt with its bridge, DHCP server and NAT rules
# runs in private namespaces whose only way out is slirp4netns: this machine's network is left as it is.

set -euo pipefail

keep='' folder='' guest_command='sudo cnilab demo'
while [ $# -gt 0 ]; do
    case $1 in
        --keep) keep=yes ;;
        --command) guest_command=$2; shift ;;
        -*) sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; exit 2 ;;
        *) folder=$1 ;;
    esac
    shift
done
[ "$(id -u)" = 0 ] || { echo "only root can do this" >&2; exit 3; }

here=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
root=$(cd -- "$here/../.." && pwd -P)
folder=$(readlink -f -- "${folder:-$(mktemp -d -p /var/tmp)}")
mkdir -p -- "$folder"
trap '[ -n "$keep" ] || rm -rf --one-file-system -- "$folder"' EXIT

[ -e "$folder/check.box" ] || nice "$here/build-box.sh" "$folder"

# A copy, so that Vagrant's .vagrant folder and the rsync source are not the checkout itself.
rm -rf -- "$folder/checkout"
mkdir -p -- "$folder/checkout"
(cd -- "$root" && git ls-files -z --cached --others --exclude-standard | tar --null -T - -c) | tar -x -C "$folder/checkout"

nice unshare --net --mount --pid --fork --kill-child --mount-proc --propagation private \
    "$here/inside.sh" "$folder" "$guest_command" &
outer=$!
inner=''
while [ -z "$inner" ]; do
    sleep 0.2
    kill -0 "$outer"
    inner=$(ps -o pid= --ppid "$outer" | tr -d ' ' || :)
done
slirp4netns --configure --mtu=1500 "$inner" tap0 >"$folder/slirp.log" 2>&1 &
slirp=$!
status=0
wait "$outer" || status=$?
kill "$slirp" 2>/dev/null || :
exit "$status"
