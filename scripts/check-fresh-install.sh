#!/usr/bin/env bash
# Try the installation from nothing: a bare Debian 12 in a folder, a user's checkout in it, and the commands of the README.
#
# usage: sudo scripts/check-fresh-install.sh [--demo] [--test] [--ci] [--keep] [FOLDER]
#
#   --demo  also run `cnilab demo` as root and as the user
#   --test  also run `cnilab test` as root
#   --ci    also run .ci/run as root
#   --keep  leave the folder (by default a temporary one, removed afterwards)
#
# Needs mmdebstrap. This machine's settings for apt and pip are passed through, nothing else. The folder becomes the root
# of private mount and process namespaces (pivot_root, not chroot: the kernel refuses user namespaces to a chroot).

set -euo pipefail

demo='' tests='' ci='' keep='' folder=''
for argument in "$@"; do
    case $argument in
        --demo) demo=yes ;;
        --test) tests=yes ;;
        --ci) ci=yes ;;
        --keep) keep=yes ;;
        -*) sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; exit 2 ;;
        *) folder=$argument ;;
    esac
done
[ "$(id -u)" = 0 ] || { echo "only root can do this" >&2; exit 3; }

root=$(cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.." && pwd -P)
folder=${folder:-$(mktemp -d)}
checkout="/home/user/my checkout" # with a space, as users have

leave() {
    [ -n "$keep" ] || rm -rf --one-file-system -- "$folder"
}
trap leave EXIT

say() { printf '\n== %s\n' "$*"; }
fail() { printf '== FAILED: %s\n' "$*" >&2; exit 1; }

pip_files() { # the folders of this machine that pip's settings name
    python3 -m pip config list 2>/dev/null | grep -oE "(file://)?/[^' ]+" | sed 's,^file://,,' | while read -r path; do
        while [ "$path" != / ] && [ ! -e "$path" ]; do path=$(dirname -- "$path"); done
        # An index in a folder has its files beside the pages, in a folder of its own.
        case $path in / | /etc/*) ;; */simple) dirname -- "$path" ;; *) echo "$path" ;; esac
    done | sort -u
}

make_root() {
    [ ! -e "$folder/etc/debian_version" ] || return 0
    mmdebstrap --quiet --variant=minbase --aptopt='Acquire::Languages "none"' bookworm "$folder" \
        /etc/apt/sources.list.d/*.sources || mmdebstrap --quiet --variant=minbase bookworm "$folder"
    cp -a /etc/apt/sources.list.d/. "$folder/etc/apt/sources.list.d/"
    rm -f "$folder/etc/apt/sources.list.d"/*.disabled* "$folder/etc/apt/sources.list.d/0000"*
    cp -a /etc/apt/apt.conf.d/99* "$folder/etc/apt/apt.conf.d/" 2>/dev/null || :
    cp -L /etc/resolv.conf /etc/hosts "$folder/etc/"
    # Under a name of its own: the package ca-certificates would write over the usual one.
    cp -L /etc/ssl/certs/ca-certificates.crt "$folder/etc/machine-ca.pem" 2>/dev/null || :
    python3 - "$folder/etc/pip.conf" <<'PYTHON'
# pip's settings of this machine, wherever they come from, as one file.
import subprocess, sys

wanted = {}
for line in subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout.splitlines():
    key, _, value = line.partition("=")
    wanted[key.replace(":env:", "global").split(".", 1)[1]] = value.strip("'")
if "cert" in wanted:
    wanted["cert"] = "/etc/machine-ca.pem"
wanted.pop("constraint", None)  # releases that this machine would have; a fresh one has none
with open(sys.argv[1], "w") as file:
    file.write("[global]\n" + "".join(f"{key} = {value}\n" for key, value in wanted.items()))
PYTHON
    inside useradd --create-home --shell /bin/bash user
}

inside() { # run a command as root in the folder
    local shared
    mapfile -t shared < <(pip_files)
    # shellcheck disable=SC2016  # expands in the new namespaces
    unshare --mount --pid --fork --kill-child --propagation private bash -c '
        set -e
        folder=$1 count=$2; shift 2
        mount --bind "$folder" "$folder"
        cd "$folder"
        mount -t proc proc proc
        mount --rbind /sys sys
        mount --rbind /dev dev
        mount -t tmpfs -o mode=755 tmpfs run
        mount -t tmpfs tmpfs tmp
        for ((; count > 0; count--)); do
            if [ -d "$1" ]; then mkdir -p ".$1"; else mkdir -p ".$(dirname "$1")"; touch ".$1"; fi
            mount --bind -o ro "$1" ".$1"
            shift
        done
        mkdir -p mnt
        pivot_root . mnt
        umount -l /mnt
        cd /root
        exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb LANG=C.UTF-8 "$@"
    ' inside "$folder" "${#shared[@]}" "${shared[@]}" "$@"
}

as_user() { # run a shell command as the user, in the checkout
    inside setpriv --reuid user --regid user --clear-groups env HOME=/home/user USER=user \
        PATH=/usr/local/bin:/usr/bin:/bin bash -c "cd '$checkout' && $1"
}
as_root() { inside bash -c "cd '$checkout' && $1"; }

copy_checkout() {
    rm -rf -- "${folder:?}$checkout"
    mkdir -p -- "$folder$checkout"
    (cd -- "$root" && git ls-files -z --cached --others --exclude-standard | tar --null -T - -c) | tar -x -C "$folder$checkout"
    as_root "chown -R user:user ."
}

say "a bare Debian 12"
make_root
copy_checkout

if [ ! -e "$folder/usr/bin/python3" ]; then
    say "as the user, with nothing installed: says what is missing, and how to get it"
    if as_user "./cnilab --version" >"$folder/out" 2>&1; then fail "went on without Python"; fi
    cat "$folder/out"
    grep -q "scripts/setup.sh' --packages" "$folder/out" || fail "no command to install what is missing"
fi

say "as root, first use: installs"
begun=$SECONDS
as_root "./cnilab --version"
echo "took $((SECONDS - begun)) s"

say "as root, second use: installs nothing"
said=$(as_root "./cnilab --version" 2>&1)
[ "$(wc -l <<<"$said")" = 1 ] || fail "said more than its version: $said"

say "nothing in the user's checkout belongs to root, and no daemon was started or left enabled"
others=$(as_root "find . ! -user user")
[ -z "$others" ] || fail "these belong to root: $others"
[ -z "$(find "$folder/etc" -name 'bird.service' -path '*wants*')" ] || fail "bird starts with the machine"
[ ! -e "$folder/usr/sbin/policy-rc.d" ] || fail "policy-rc.d was left behind"

say "as the user, from elsewhere and by a link"
inside ln -sfn "$checkout/cnilab" /usr/local/bin/cnilab
as_user "cd / && cnilab --version && cnilab --help | head -3"
as_user "./cnilab plan three-nodes --cni flannel | head -5"

say "as the user, two first uses at once after one that was killed"
rm -rf -- "$folder$checkout/.venv"
as_user "timeout -s KILL 6 ./cnilab --version || echo 'killed, as meant'" # with its namespaces, all of it goes
as_user "{ ./cnilab --version & ./cnilab --version & wait -n && wait -n; }"

say "doctor"
as_root "./cnilab doctor" || fail "doctor"

if [ -n "$demo" ]; then
    say "sudo ./cnilab demo"
    as_root "./cnilab demo"
    say "./cnilab demo, as the user"
    as_user "./cnilab demo"
fi
if [ -n "$tests" ]; then
    say "sudo ./cnilab test"
    as_root "./cnilab test -q"
fi
if [ -n "$ci" ]; then
    say ".ci/run"
    as_root "CI=true .ci/run"
fi
rm -f -- "$folder/out"
say "all well"
