#!/usr/bin/env bash
# Follow the README on a fresh machine: a chroot of a Debian or Ubuntu release that has make and nothing else. An
# ordinary user runs `make demo` on a copy of HEAD and installs what it asks for, which must be what the README names,
# then `make test`.
#
#     tests/fresh/run.sh SUITE [MIRROR]     for example bookworm, or noble http://archive.ubuntu.com/ubuntu
#
# By hand: needs root, debootstrap, 12 GB under TMPDIR and half an hour or more. The default mirror is the one that apt
# uses here. pip is configured inside as it is here, except for folders on this machine. PYTEST_ADDOPTS is passed on, for
# a part of the suite.
set -euo pipefail
cd "$(dirname "$0")/../.."

fail() {
    echo "fresh: $*" >&2
    exit 1
}

suite=${1:?usage: tests/fresh/run.sh SUITE [MIRROR]}
mirror=${2:-$(apt-get indextargets --format '$(LABEL) $(REPO_URI)' | sed -n -E 's/^(Debian|Ubuntu) //p' | head -1)}
components=main
case $mirror in *ubuntu*) components=main,universe ;; esac # what an installed Ubuntu has
[ "$(id -u)" = 0 ] || fail "needs root, for a chroot"
command -v debootstrap >/dev/null || fail "needs debootstrap"
readme=$(sed -n -E 's/^(sudo )?apt-get install //p' README.md | tr ' ' '\n' | sort | xargs)

root=$(mktemp -d)
chmod 755 "$root"
trap 'rm -rf --one-file-system "$root"' EXIT
log=$root/log

# Run a command in the chroot as a user. Its mounts belong to the command and end with it.
inside() { # user, command
    local settings
    mapfile -t settings < <(env | grep -E '^(PIP_|PYTEST_ADDOPTS=)' || true)
    unshare --mount --propagation private bash -euc '
        root=$1 user=$2
        mount -t proc proc "$root/proc"
        mount -t sysfs sysfs "$root/sys"
        mount --rbind /dev "$root/dev"
        exec chroot --userspec="$user:" "$root" env -i "${@:4}" DEBIAN_FRONTEND=noninteractive LANG=C.UTF-8 \
            HOME="/home/$user" PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin sh -c "$3"
    ' inside "$root" "$1" "$2" "${settings[@]}"
}

# Packages, then pip's configuration: a package may bring certificates in place of those that pip needs here.
install() {
    inside root "apt-get install --quiet=2 $* >/dev/null"
    for path in /etc/pip.conf /etc/xdg/pip "${PIP_CONFIG_FILE:-}" "${PIP_CERT:-}" "${PIP_CONSTRAINT:-}"; do
        if [ -e "$path" ]; then
            mkdir -p "$root$(dirname "$path")"
            cp -rLT "$path" "$root$path"
        fi
    done
}

echo "fresh: $suite from $mirror"
debootstrap --variant=minbase --components="$components" "$suite" "$root" "$mirror" >"$log" || fail "$(tail -3 "$log")"
echo "127.0.0.1 localhost" >"$root/etc/hosts"
inside root "useradd --create-home fresh"
install make
mkdir "$root/home/fresh/fastdm"
git archive HEAD | tar --extract --directory "$root/home/fresh/fastdm"
inside root "chown -R fresh: /home/fresh"

asked="make"
SECONDS=0
until inside fresh "cd ~/fastdm && make demo" 2>&1 | tee "$log"; do
    package=$(sed -n -E 's/.*apt-get install ([^ )]+)\)$/\1/p' "$log")
    [ -n "$package" ] || fail "make demo failed"
    if grep -q "pip install" "$log"; then fail "make demo asked for $package after pip had started"; fi
    case " $asked " in *" $package "*) fail "make demo still asks for $package, which is installed" ;; esac
    asked="$asked $package"
    echo "fresh: apt-get install $package"
    install "$package"
    SECONDS=0
done
echo "fresh: make demo took $SECONDS s; .venv: $(du -sh "$root/home/fresh/fastdm/.venv" | cut -f1)"
asked=$(tr ' ' '\n' <<<"$asked" | sort | xargs)
[ "$asked" = "$readme" ] || fail "make demo asked for $asked, the README names $readme"

SECONDS=0
inside fresh "cd ~/fastdm && make test" 2>&1 | tee "$log" || fail "make test failed"
echo "fresh: make test took $SECONDS s"
echo "fresh: $suite works with exactly $readme"
