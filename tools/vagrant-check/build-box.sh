#!/usr/bin/env bash
# Build FOLDER/check.box: a bare Debian 12 with its own kernel, as the boxes of the usual kind are: user vagrant, passwordless
# sudo, Vagrant's insecure key, DHCP on eth0. No boot loader: libvirt boots the kernel directly.

set -euo pipefail

folder=$1
tree=$folder/tree
key=$(dpkg -L vagrant | grep '/keys/vagrant.pub$')

rm -rf --one-file-system -- "$tree"
mmdebstrap --variant=minbase --aptopt='Acquire::Languages "none"' \
    --include=systemd-sysv,udev,dbus,openssh-server,sudo,ifupdown,isc-dhcp-client,rsync,linux-image-cloud-amd64,iproute2 \
    bookworm "$tree" /etc/apt/sources.list.d/*.sources
cp -a /etc/apt/sources.list.d/. "$tree/etc/apt/sources.list.d/"
rm -f "$tree/etc/apt/sources.list.d"/*.disabled* "$tree/etc/apt/sources.list.d/0000"*
cp -a /etc/apt/apt.conf.d/99* "$tree/etc/apt/apt.conf.d/" 2>/dev/null || :
# The certificates that this machine trusts, for pip.
if [ -e /etc/ssl/certs/ca-certificates.crt ]; then
    cp -L /etc/ssl/certs/ca-certificates.crt "$tree/etc/machine-ca.pem"
    printf '[global]\ncert = /etc/machine-ca.pem\n' >"$tree/etc/pip.conf"
fi

chroot "$tree" useradd --create-home --shell /bin/bash vagrant
echo 'vagrant ALL=(ALL) NOPASSWD: ALL' >"$tree/etc/sudoers.d/vagrant"
chmod 440 "$tree/etc/sudoers.d/vagrant"
install -d -m 700 "$tree/home/vagrant/.ssh"
install -m 600 "$key" "$tree/home/vagrant/.ssh/authorized_keys"
chroot "$tree" chown -R vagrant:vagrant /home/vagrant
printf 'auto lo\niface lo inet loopback\nauto eth0\niface eth0 inet dhcp\n' >"$tree/etc/network/interfaces"
echo cnilab-check >"$tree/etc/hostname"
printf '127.0.0.1 localhost\n127.0.1.1 cnilab-check\n' >"$tree/etc/hosts"
echo '/dev/vda / ext4 rw,noatime 0 1' >"$tree/etc/fstab"
rm -f "$tree/etc/resolv.conf"
for unit in apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer fstrim.timer; do
    ln -sf /dev/null "$tree/etc/systemd/system/$unit"
done

cp -L "$tree/vmlinuz" "$tree/initrd.img" "$folder/"
mke2fs -q -t ext4 -d "$tree" "$folder/box.raw" 5G
qemu-img convert -c -O qcow2 "$folder/box.raw" "$folder/box.img"
echo '{"provider": "libvirt", "format": "qcow2", "virtual_size": 5}' >"$folder/metadata.json"
# What is special about this box comes with it; the checkout's Vagrantfile stays as users have it.
cat >"$folder/Vagrantfile" <<RUBY
Vagrant.configure("2") do |config|
  config.ssh.insert_key = false
  config.vm.provider "libvirt" do |libvirt|
    libvirt.kernel = "$folder/vmlinuz"
    libvirt.initrd = "$folder/initrd.img"
    libvirt.cmd_line = "root=/dev/vda rw net.ifnames=0 mitigations=off quiet"
    libvirt.cpu_mode = "custom"
    libvirt.cpu_model = "Nehalem"
    libvirt.graphics_type = "none"
    libvirt.video_type = "none"
  end
end
RUBY
tar -C "$folder" -czf "$folder/check.box" metadata.json Vagrantfile box.img
rm -rf --one-file-system -- "$tree" "$folder/box.raw" "$folder/box.img"
ls -lh "$folder/check.box"
