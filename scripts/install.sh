# The slow part of ./cnilab, sourced by it when something is missing. Everything that it says goes to standard error.
#
# Safe to interrupt at any moment and to run twice at once: a lock on the checkout, a mark while work is under way, and
# the stamp written last. As root in a user's checkout the Python part runs as that user, so that nothing in the
# checkout ends up owned by root and no build code runs with more rights than its owner has.

# shellcheck shell=sh disable=SC2154  # root, venv, stamp, stamp_test, incomplete, key, want_test, want_real, foreign: set by ./cnilab

started=$(date +%s)
log=
heart=

die() {
    say "$1"
    shift
    for line in "$@"; do printf '        %s\n' "$line" >&2; done
    exit 3
}

stop_heart() {
    [ -z "$heart" ] || kill "$heart" 2>/dev/null || :
    heart=
}

cleanup() {
    stop_heart
    [ -z "$log" ] || rm -f -- "$log"
}

as_owner() { # run a command as the user whom the checkout belongs to
    if [ -n "$foreign" ]; then
        setpriv --reuid "$owner" --regid "$group" --clear-groups \
            env -u XDG_CACHE_HOME -u XDG_CONFIG_HOME -u XDG_DATA_HOME HOME="$home" "$@"
    else
        "$@"
    fi
}

step() { # step TITLE COMMAND...: run it with its output in the log and a sign of life, say how long it took
    title=$1
    shift
    begun=$(date +%s)
    say "$title ..."
    main=$$
    # A sign of life every 10 s. It watches for our end itself: a SIGKILL runs no trap.
    (
        trap - INT TERM EXIT
        while sleep 10 2>/dev/null && kill -0 "$main" 2>/dev/null; do
            say "  still at it, $(($(date +%s) - begun)) s"
        done
    ) >/dev/null 9<&- & # without the lock: its sleep may outlive us
    heart=$!
    status=0
    "$@" >>"$log" 2>&1 </dev/null || status=$?
    stop_heart
    [ "$status" != 0 ] || say "  done in $(($(date +%s) - begun)) s"
    return "$status"
}

last_lines() {
    tail -n 12 "$log" | sed 's/^/        | /' >&2
}

take_lock() {
    command -v flock >/dev/null || return 0
    exec 9<"$root" # the folder itself: no lock file to leave behind or to be owned by the wrong user
    flock -n 9 && return 0
    say "another cnilab is installing here; waiting for it"
    flock 9
}

find_python() { # the first interpreter that is new enough; the distribution's own before others, which root alone may be able to read
    for python in /usr/bin/python3 /usr/bin/python3.13 /usr/bin/python3.12 /usr/bin/python3.11 "$(command -v python3 || :)"; do
        [ -x "$python" ] || continue
        # The name with the version in it: an upgrade of the distribution then leaves a dangling link, not a mixture.
        python=$(as_owner "$python" -c '
import os, sys
if sys.version_info >= (3, 11):
    exact = f"{sys.exec_prefix}/bin/python{sys.version_info[0]}.{sys.version_info[1]}"
    print(exact if os.access(exact, os.X_OK) else sys.executable)' 2>/dev/null) || continue
        [ -z "$python" ] || return 0
    done
    return 1
}

install_packages() {
    programs_missing || return 0
    if [ "$(id -u)" != 0 ]; then
        say "programs that labs need are not installed:$missing"
        say "install them once with: sudo '$root/scripts/setup.sh' --packages${want_test:+ --test}${want_real:+ --real-kernel}"
        return 0
    fi
    if ! command -v apt-get >/dev/null; then
        say "programs that labs need are not installed:$missing"
        say "this is neither Debian nor Ubuntu: install them by the means of this distribution"
        return 0
    fi
    if ! step "installing packages for:$missing" "$root/scripts/setup.sh" --packages ${want_test:+--test} ${want_real:+--real-kernel}; then
        last_lines
        die "the packages could not be installed" \
            "Mend what the lines above name (often the network, or a package source), then run the same command again." \
            "To go on without them: CNILAB_NO_INSTALL=1"
    fi
}

make_environment() {
    as_owner test -w "$root" || die "$root is not yours to write to, and its Python environment is missing or out of date" \
        "Run once: sudo '$root/cnilab' --version" "or work in a checkout of your own."
    if [ -d "$venv" ] && [ ! -e "$venv/pyvenv.cfg" ] && [ ! -e "$incomplete" ] && [ -n "$(ls -A -- "$venv")" ]; then
        die "$venv is there and is no Python environment: move it away, or set CNILAB_VENV to another place"
    fi
    if ! find_python || ! as_owner "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
            if ! step "installing Python" "$root/scripts/setup.sh" --packages --python; then
                last_lines
                die "Python could not be installed"
            fi
        fi
        find_python || die "Python 3.11 or later is needed and was not found" \
            "On Debian and Ubuntu: sudo '$root/scripts/setup.sh' --packages --python"
        as_owner "$python" -c 'import ensurepip, venv' 2>/dev/null || die "$python cannot make environments" \
            "On Debian and Ubuntu: sudo '$root/scripts/setup.sh' --packages --python"
    fi
    if [ -e "$incomplete" ] || ! as_owner "$venv/bin/python" -c 'import pip' 2>/dev/null; then
        as_owner rm -rf -- "$venv"
        as_owner mkdir -p -- "$venv"
        as_owner touch -- "$incomplete"
        if ! step "making a Python environment in $venv ($python)" as_owner "$python" -m venv "$venv"; then
            last_lines
            die "the Python environment could not be made"
        fi
    fi
    as_owner touch -- "$incomplete"
    as_owner rm -f -- "$stamp" "$stamp_test"
    if ! step "installing cnilab and its Python packages${want_test:+, with those for the tests}" install_python; then
        last_lines
        die "pip could not install the Python packages" \
            "Often the network, or the package index is out of reach: '$venv/bin/pip' config list shows which one is set." \
            "Then run the same command again; it goes on where it can."
    fi
    printf '%s\n' "$key" | as_owner tee -- "$stamp" >/dev/null
    [ -z "$want_test" ] || printf '%s\n' "$key" | as_owner tee -- "$stamp_test" >/dev/null
    as_owner rm -f -- "$incomplete"
}

install_python() {
    as_owner "$venv/bin/python" -m pip --disable-pip-version-check --no-input install --progress-bar off \
        -e "$root${want_test:+[test]}" &&
        # Runs go there by default; made by root, it would be closed to the user afterwards.
        as_owner mkdir -p -- "$root/captures/runs" &&
        # Compiled now, by the owner: root in a user's checkout writes no bytecode.
        as_owner "$venv/bin/python" -m compileall -q "$root/emulator"
}

install_missing() {
    take_lock
    umask 022 # what root installs, users shall read
    log=$(mktemp)
    trap cleanup EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    owner=$(id -u) group=$(id -g) home=${HOME:-/}
    if [ -n "$foreign" ]; then
        owner=$(stat -c %u -- "$root") group=$(stat -c %g -- "$root")
        home=$(getent passwd "$owner" | cut -d: -f6)
        home=${home:-/nonexistent}
        # An unmapped owner (a folder shared into a container) is nobody whom we could become.
        if ! as_owner test -w "$root" 2>/dev/null; then
            foreign=
            unset PYTHONDONTWRITEBYTECODE
        fi
    fi
    install_packages
    python_is_current || make_environment
    say "ready after $(($(date +%s) - started)) s"
    cleanup
    trap - EXIT INT TERM HUP
    command -v flock >/dev/null && exec 9<&-
    return 0
}
