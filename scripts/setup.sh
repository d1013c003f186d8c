#!/usr/bin/env bash
# Prepare a Debian or Ubuntu machine for cnilab: packages, the Python environment, the `cnilab` command.
#
# The Vagrantfile provisions with this file, and ./cnilab calls it (--packages) for what is missing, so there is one way
# to set a machine up and one list of packages, scripts/packages.txt. Safe to repeat.

set -euo pipefail

usage() {
    cat <<'HELP'
usage: sudo scripts/setup.sh [--packages] [--test] [--real-kernel] [--python] [--vm]

  --packages     only the distribution's packages, nothing else
  --test         with the packages that the tests need
  --real-kernel  with QEMU, for the tests that need a distribution's kernel
  --python       with Python, where it is missing or too old
  --vm           this machine exists for cnilab alone: also set kernel settings for the whole machine
HELP
}

packages_only='' with_test='' with_real='' with_python='' vm=''
for argument in "$@"; do
    case $argument in
        --packages) packages_only=yes ;;
        --test) with_test=yes ;;
        --real-kernel) with_real=yes ;;
        --python) with_python=yes ;;
        --vm) vm=yes ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; exit 2 ;;
    esac
done

root=$(cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.." && pwd -P)
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 3; }

check_machine() {
    [ "$(id -u)" = 0 ] || die "only root can install packages; run: sudo $0${*:+ $*}"
    [ -r /etc/os-release ] || die "there is no /etc/os-release: this script knows Debian and Ubuntu only"
    # shellcheck source=/dev/null
    . /etc/os-release
    distribution=${ID:-unknown}
    case "$distribution ${VERSION_ID:-} ${ID_LIKE:-}" in
        "debian "* | "ubuntu "* | *" debian"* | *" ubuntu"*) ;;
        *) die "${PRETTY_NAME:-this system} is neither Debian nor Ubuntu; cnilab needs:$(needed_programs)" ;;
    esac
    case "$distribution ${VERSION_ID:-}" in
        "debian 12" | "debian 13" | "ubuntu 22.04" | "ubuntu 24.04") ;;
        *) say "${PRETTY_NAME:-this release} is not one that cnilab is tested on (Debian 12 and 13, Ubuntu 22.04 and 24.04); going on" ;;
    esac
}

rows() { # the lines of packages.txt that are wanted
    grep -vE '^[[:space:]]*(#|$)' "$root/scripts/packages.txt" |
        awk -v test="$with_test" -v real="$with_real" '$3 == "always" || $3 == "test" && test || $3 == "real-kernel" && real'
}

needed_programs() { rows | awk '{ printf " %s", $2 }'; }

python_packages() { # Ubuntu 22.04's python3 is 3.10; its universe holds 3.11
    if [ "$distribution ${VERSION_ID:-}" = "ubuntu 22.04" ]; then
        echo python3.11 python3.11-venv
    else
        echo python3 python3-venv
    fi
}

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

blocker=''
allow_daemons() {
    if [ -n "$blocker" ]; then
        rm -f -- "$blocker"
        blocker=''
    fi
}
block_daemons() { # a daemon on the machine itself has no part in a lab: let no package start one
    [ -e /usr/sbin/policy-rc.d ] && return 0
    blocker=/usr/sbin/policy-rc.d
    trap allow_daemons EXIT
    printf '#!/bin/sh\nexit 101\n' >"$blocker"
    chmod 755 "$blocker"
}

disable() { # keep the daemon $1 from starting with the machine
    if command -v systemctl >/dev/null; then
        systemctl --quiet disable "$1.service" 2>/dev/null || say "the service $1 could not be disabled"
    elif command -v update-rc.d >/dev/null; then
        update-rc.d "$1" disable >/dev/null 2>&1 || :
    fi
}

install_packages() {
    local wanted=() daemons=() package program daemon extra
    while read -r package program _ daemon; do
        installed "$package" && continue
        # Another package, or the user, may have brought the program.
        command -v "$program" >/dev/null && continue
        wanted+=("$package")
        [ "$daemon" = - ] || daemons+=("$daemon")
    done < <(rows)
    if [ -n "$with_python" ]; then
        for package in $(python_packages); do
            installed "$package" || wanted+=("$package")
        done
    fi
    if [ -n "$with_real" ] && [ ! -e /usr/lib/qemu/virtiofsd ] && [ ! -e /usr/libexec/virtiofsd ]; then
        wanted+=("virtiofsd?") # a package of its own from Debian 13 on; before, it comes with QEMU
    fi
    if [ "$distribution" = ubuntu ] && [ -n "$vm" ]; then
        # netem, vrf and wireguard are not in the base package of Ubuntu's cloud kernels.
        extra=linux-modules-extra-$(uname -r)
        installed "$extra" || wanted+=("$extra?")
    fi
    if [ ${#wanted[@]} = 0 ]; then
        say "all packages are there"
        return 0
    fi
    export DEBIAN_FRONTEND=noninteractive
    local apt=(apt-get -qq -o DPkg::Lock::Timeout=300)
    say "reading the package lists"
    "${apt[@]}" update || say "not every package list could be read; trying with those that could"
    local names=()
    for package in "${wanted[@]}"; do
        case $package in
            *\?) # only where it exists
                if apt-cache show "${package%\?}" >/dev/null 2>&1; then names+=("${package%\?}"); fi ;;
            *) names+=("$package") ;;
        esac
    done
    mapfile -t names < <(printf '%s\n' "${names[@]}" | sort -u)
    say "installing ${names[*]}"
    block_daemons
    local log
    log=$(mktemp)
    if ! "${apt[@]}" install --yes --no-install-recommends "${names[@]}" >"$log"; then
        tail -n 20 -- "$log" >&2
        die "apt-get could not install: ${names[*]}"
    fi
    rm -f -- "$log"
    allow_daemons
    for daemon in "${daemons[@]}"; do disable "$daemon"; done
}

prepare_machine() {
    # Otherwise each new namespace gets a tunl0, gre0, sit0, ... as soon as something loads the module. Labs set it for
    # themselves; here it also keeps `ip netns add` by hand clean.
    printf 'net.core.fb_tunnels_only_for_init_net = 1\n' >/etc/sysctl.d/60-cnilab.conf
    if [ -w /proc/sys/net/core/fb_tunnels_only_for_init_net ]; then
        echo 1 >/proc/sys/net/core/fb_tunnels_only_for_init_net
    fi
    # Only root of the machine may load modules, and a lab's root may not be that one: load what styles build on.
    if command -v modprobe >/dev/null; then
        printf '%s\n' veth bridge br_netfilter vxlan tun overlay sch_netem sch_htb sch_tbf ip_set nf_conntrack \
            >/etc/modules-load.d/cnilab.conf
        local module
        while read -r module; do
            modprobe -q "$module" || say "the kernel has no module $module"
        done </etc/modules-load.d/cnilab.conf
    fi
}

link_command() {
    local link=/usr/local/bin/cnilab
    if [ -e "$link" ] && [ ! -L "$link" ]; then
        say "$link is there and is not ours: left alone"
        return 0
    fi
    mkdir -p /usr/local/bin
    ln -sfn -- "$root/cnilab" "$link"
    [ -O "$root" ] || say "$link runs what is in $root, which user $(stat -c %U -- "$root") can change: use it as root only if you trust that user"
}

check_machine "$@"
[ -n "$packages_only" ] || with_python=yes
install_packages
[ -z "$packages_only" ] || exit 0
[ -z "$vm" ] || prepare_machine
"$root/cnilab" --version
link_command
"$root/cnilab" doctor || say "doctor found something missing: see above"
if [ -n "$vm" ]; then
    say "ready. Type: vagrant ssh -c 'sudo cnilab demo'"
else
    say "ready. Type: sudo cnilab demo"
fi
