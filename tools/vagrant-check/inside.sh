#!/usr/bin/env bash
# The part of run.sh that runs in private namespaces: libvirt without systemd, then Vagrant.

set -euo pipefail

folder=$1 guest_command=$2

until ip link show tap0 up >/dev/null 2>&1; do sleep 0.2; done # slirp4netns, started by run.sh
ip link set lo up

mount -t tmpfs tmpfs /run
mkdir -p /run/lock /run/libvirt
for path in /etc/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt; do
    mkdir -p "$folder/libvirt$path"
    cp -a "$path/." "$folder/libvirt$path/"
    mount --bind "$folder/libvirt$path" "$path"
done
cat >/etc/libvirt/qemu.conf <<'CONF'
user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
remember_owner = 0
CONF
libvirtd --daemon
until virsh --connect qemu:///system version >/dev/null 2>&1; do sleep 0.5; done

export VAGRANT_HOME=$folder/vagrant-home LAB_BOX=cnilab-check LAB_DRIVER=qemu LAB_MEMORY=2048
export VAGRANT_DEFAULT_PROVIDER=libvirt VAGRANT_CHECKPOINT_DISABLE=1 VAGRANT_NO_COLOR=1
cd -- "$folder/checkout"

timed() {
    printf '\n== %s\n' "$*"
    local begun=$SECONDS status=0
    "$@" || status=$?
    printf '== status %d after %d s\n' "$status" $((SECONDS - begun))
    return "$status"
}

timed vagrant validate
timed vagrant box add --force --name cnilab-check "$folder/check.box"
status=0
timed vagrant up || status=$?
if [ "$status" = 0 ]; then
    timed vagrant ssh -c "$guest_command" || status=$?
    timed vagrant ssh -c 'exit 7' || [ $? = 7 ] || status=1
    timed vagrant ssh -c 'sudo cnilab doctor --try' || status=$?
fi
timed vagrant destroy -f
exit "$status"
