# Sourced by the project's scripts. Installs what is missing, from the system's own packages.
# shellcheck shell=sh disable=SC2034

# What the workspace is built with.
BUILD_DEBIAN='ca-certificates gcc libc6-dev'
BUILD_FREEBSD=''
# What an image for trying things is made of; FreeBSD has /rescue.
IMAGE_DEBIAN='busybox-static'
IMAGE_FREEBSD=''
# What the tests compare with, and the file systems that they make.
TEST_DEBIAN='acl attr btrfs-progs e2fsprogs rsync xfsprogs'
TEST_FREEBSD='rsync'
# What the machine for the tests on ZFS is made with.
VM_DEBIAN='e2fsprogs mmdebstrap'

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ] && [ "${TERM:-dumb}" != dumb ]; then
    bold=$(printf '\033[1m') red=$(printf '\033[31m') green=$(printf '\033[32m')
    blue=$(printf '\033[1;34m') dim=$(printf '\033[2m') plain=$(printf '\033[0m')
else
    bold='' red='' green='' blue='' dim='' plain=''
fi
export bold red green blue dim plain

fail() { # fail MESSAGE: says what is wrong and ends the script
    printf '%s%s: %s%s\n' "$red" "${0##*/}" "$*" "$plain" >&2
    exit 1
}

need_root() {
    [ "$(id -u)" -eq 0 ] || fail "must run as root: it makes mounts and namespaces"
}

need_packages() { # need_packages DEBIAN FREEBSD: the packages of either list are installed
    missing=''
    if [ "$(uname -s)" = FreeBSD ]; then
        for package in $2; do
            pkg info -e "$package" || missing="$missing $package"
        done
        [ -z "$missing" ] && return
        printf 'installing%s\n' "$missing"
        # shellcheck disable=SC2086 # a list
        env ASSUME_ALWAYS_YES=yes pkg install -q $missing
    elif command -v apt-get >/dev/null; then
        for package in $1; do
            dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^.i' ||
                missing="$missing $package"
        done
        [ -z "$missing" ] && return
        printf 'installing%s\n' "$missing"
        apt-get update -qq -o Acquire::Retries=3
        # shellcheck disable=SC2086 # a list
        DEBIAN_FRONTEND=noninteractive DEBCONF_NOWARNINGS=yes apt-get install -y -qq -o Acquire::Retries=3 --no-install-recommends $missing \
            </dev/null >/dev/null
    elif [ -n "$1" ]; then
        printf 'no apt-get here; should something be missing, it is one of: %s\n' "$1"
    fi
}

# True where cargo is on PATH and not older than Cargo.toml's rust-version.
rust_is_recent() {
    have=$(cargo --version 2>/dev/null | cut -d ' ' -f 2) && [ -n "$have" ] || return
    want=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
    [ "$(printf '%s\n%s\n' "$want" "$have" | sort -t . -k 1,1n -k 2,2n | head -n 1)" = "$want" ]
}

need_rust() { # cargo and rustc are on PATH, recent enough
    need_packages "$BUILD_DEBIAN" "$BUILD_FREEBSD"
    rust_is_recent && return
    need_packages 'cargo-web rustc-web' rust
    rust_is_recent && return
    # An older one came first.
    PATH=/usr/bin:/usr/local/bin:$PATH
    export PATH
    hash -r
    rust_is_recent || fail "needs Rust $want or later; $(cargo --version 2>&1 || true) is what there is"
}
