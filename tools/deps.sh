#!/usr/bin/env bash
# Installs the packages that building (build), testing (test) or the benches (bench) need and that
# are missing.
# On a system without apt-get it prints the list and stops.
set -eu
cd "$(dirname "$0")/.."

build="gcc make libc6-dev liblmdb-dev libxxhash-dev libsimde-dev libevent-dev libhiredis-dev
 libutf8proc-dev libjansson-dev libcurl4-openssl-dev python3-venv redis-tools"
test="$build libcmocka-dev clang clang-format libclang-rt-14-dev redis-server strace lmdb-utils e2fsprogs openssl"
bench="$test g++ libhnswlib-dev"
case "${1:-build}" in
build) packages=$build ;;
test) packages=$test ;;
bench) packages=$bench ;;
*)
    echo "usage: tools/deps.sh build|test|bench" >&2
    exit 2
    ;;
esac

# Runs a long command quietly, with the seconds it takes shown; its last words when it fails.
busy() {
    local log start
    log=$(mktemp)
    start=$(date +%s)
    "$@" >"$log" 2>&1 &
    while kill -0 $! 2>/dev/null; do
        [ -t 1 ] && printf '\r    %d s  %.70s\033[K' $(($(date +%s) - start)) "$(tail -n 1 "$log" | tr -d '\r')"
        sleep 0.5
    done
    [ -t 1 ] && printf '\r\033[K'
    if wait $!; then
        rm -f "$log"
        return 0
    fi
    tail -n 20 "$log" >&2
    rm -f "$log"
    return 1
}

missing() {
    for p in $packages; do
        dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || echo "$p"
    done
}

if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
    # Another system: trust what is there, and say what is looked for when something is not.
    if [ "${KITH_DEPS:-}" = present ]; then
        exit 0
    fi
    echo "kith: this system has no apt-get. Install these (Debian's names), then set KITH_DEPS=present:" >&2
    echo $packages >&2
    exit 1
fi

need=$(missing)
if [ -n "$need" ]; then
    sudo=
    if [ "$(id -u)" != 0 ]; then
        if ! command -v sudo >/dev/null; then
            echo "kith: these packages are missing and you are not root: run as root:" >&2
            echo "  apt-get install" $need >&2
            exit 1
        fi
        sudo=sudo
    fi
    echo "==> installing" $need
    export DEBIAN_FRONTEND=noninteractive
    install_needed() {
        # shellcheck disable=SC2086
        $sudo apt-get install -y -q --no-install-recommends $need ||
            { $sudo apt-get update -q && $sudo apt-get install -y -q --no-install-recommends $need; }
    }
    busy install_needed || {
        echo "kith: apt-get could not install:" $need >&2
        exit 1
    }
    # A freshly installed redis-server must not take the port a user is about to use.
    case " $need " in *redis-server*) $sudo service redis-server stop >/dev/null 2>&1 || true ;; esac
fi

venv=build/venv
if [ ! -x $venv/bin/python ]; then
    mkdir -p build
    echo "==> making $venv"
    python3 -m venv $venv
fi
if [ "${1:-build}" != build ] && ! cmp -s tools/requirements.txt $venv/requirements.txt; then
    echo "==> installing the tests' Python packages into $venv"
    busy $venv/bin/pip install --disable-pip-version-check -r tools/requirements.txt
    cp tools/requirements.txt $venv/requirements.txt
fi

# redis-py's own tests come with its source only: tests/integration/test_redis_py_suite.py runs them.
suite=build/redis-py
if [ "${1:-build}" != build ] && ! cmp -s tools/redis-py.txt $suite/redis-py.txt; then
    pinned=$(sed 's/ .*//' tools/redis-py.txt)
    if ! grep -qx "$pinned" tools/requirements.txt; then
        echo "kith: tools/redis-py.txt has $pinned, tools/requirements.txt another version" >&2
        exit 1
    fi
    echo "==> fetching the source of $pinned for its tests"
    rm -rf $suite
    mkdir -p $suite
    busy $venv/bin/pip download --disable-pip-version-check --no-binary redis --no-deps \
        --require-hashes -r tools/redis-py.txt -d $suite
    tar -xzf $suite/*.tar.gz -C $suite --strip-components 1
    cp tools/redis-py.txt $suite/redis-py.txt
fi
