#!/usr/bin/env bash
# Builds everything for 64-bit ARM with a cross compiler and runs the unit tests under emulation:
# the NEON kernels beside the scalar ones, and what any other machine's byte, alignment and `char`
# could break. Then the two programs of each machine embed one text, and the vectors are compared.
# Ends with one line that counts.
#
# The libraries come from Debian's arm64 packages, unpacked below build/arm64/sysroot. apt works on
# lists and a status file of its own there, so that the system gets no second architecture and no
# installed package can be replaced.
#
# The emulated processor is a Neoverse N1: ARMv8.2 with the dot products and half precision, which
# is what the kernels ask for, and nothing newer, so an instruction beyond that ends a test. Left
# out are tests that start programs, which an emulator of processes cannot without the kernel's
# help (server_engine_link_test), and those that take minutes of emulation.
set -u
cd "$(dirname "$0")/.."
tree=build/arm64
sysroot=$PWD/$tree/sysroot
logs=$tree/test-logs
host_packages="gcc-aarch64-linux-gnu qemu-user"
arm_packages="libc6-dev libsimde-dev libcmocka-dev libxxhash-dev libutf8proc-dev liblmdb-dev
 libhiredis-dev libevent-dev libjansson-dev libcurl4-openssl-dev"
# The long ones first; TESTS="index_kernels ..." runs some.
tests=${TESTS:-engine_fast storage_store storage_wal storage_chunks server_vset index_hnsw engine_blocks
 index_model base_bytes base_dict base_epoch base_file base_records
 engine_batching engine_embedder engine_gguf engine_kernels engine_packed_cache engine_pool engine_scheduler
 engine_tensor engine_wordpiece engine_bpe engine_framing engine_pretokenizer engine_spm
 index_kernels index_threads index_vectors
 protocol_double_text protocol_resp_read protocol_resp_write
 server_attributes server_commands server_config server_effect server_filter server_keyspace
 server_breaker server_models_plan server_remote_api}
model=build/models/all-MiniLM-L6-v2.q8_0.gguf
text="kith keeps vectors near their kin"
jobs=${JOBS:-$(nproc)}

. tools/emulated.sh

install_host_packages() {
    local need
    command -v apt-get >/dev/null && command -v dpkg-query >/dev/null ||
        die "this system has no apt-get. The check needs Debian's" $host_packages \
            "and, for arm64," $arm_packages
    need=$(for p in $host_packages; do
        dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || echo "$p"
    done)
    [ -z "$need" ] && return
    [ "$(id -u)" = 0 ] || die "these packages are missing and you are not root: run as root: apt-get install" $need
    echo "==> installing" $need
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086
    { apt-get install -y -q --no-install-recommends $need ||
        { apt-get update -q && apt-get install -y -q --no-install-recommends $need; }; } \
        >"$logs/apt.log" 2>&1 || { tail -n 20 "$logs/apt.log" >&2; die "apt-get could not install" $need; }
}

make_sysroot() {
    local apt=$PWD/$tree/apt deb
    [ "$(cat "$sysroot/packages" 2>/dev/null)" = "$arm_packages" ] && return
    echo "==> unpacking arm64 libraries into $tree/sysroot"
    rm -rf "$sysroot" "$apt"
    mkdir -p "$sysroot" "$apt/lists/partial" "$apt/cache/archives/partial"
    : >"$apt/status"
    set -- -q -o APT::Architecture=arm64 -o APT::Architectures::=arm64 -o APT::Sandbox::User= \
        -o Dir::State::Lists="$apt/lists" -o Dir::State::status="$apt/status" -o Dir::Cache="$apt/cache"
    # shellcheck disable=SC2086
    { apt-get "$@" update &&
        apt-get "$@" install -y --download-only --no-install-recommends $arm_packages; } \
        >"$logs/sysroot.log" 2>&1 || { tail -n 20 "$logs/sysroot.log" >&2; die "apt-get could not fetch the arm64 packages"; }
    for deb in "$apt"/cache/archives/*.deb; do
        dpkg-deb -x "$deb" "$sysroot" || die "cannot unpack $deb"
    done
    rm -rf "$apt"
    printf '%s\n' "$arm_packages" >"$sysroot/packages"
}

emulate() { # PROCESSOR PROGRAM ...
    timeout "${LIMIT:-1800}" qemu-aarch64 -L "$sysroot" -cpu "$@"
}

n1="qemu-aarch64 -L $sysroot -cpu neoverse-n1"

run_test() { # shellcheck disable=SC2086
    unit_test "$1_test" $n1 "$tree/tests/$1_test"
}

run_embed() { # shellcheck disable=SC2086
    embed_test "$1" $n1 "$tree/bin/kith-engine"
}

# A processor without the dot products gets the scalar kernels, and asking for NEON is an error.
run_choice() {
    local start ok=0
    start=$(date +%s%N)
    emulate cortex-a57 "$tree/tests/index_kernels_test" >"$logs/choice.log" 2>&1 &&
        grep -q 'kernels scalar' "$logs/choice.log" &&
        ! KITH_KERNELS=neon emulate cortex-a57 "$tree/bin/kith-engine" --model "$model" --packed-cache no --embed "$text" \
            >>"$logs/choice.log" 2>&1 &&
        grep -q 'cannot run the neon kernels' "$logs/choice.log" && ok=1
    say "choice-of-kernels" $ok $((1 - ok)) "$start"
}

mkdir -p "$logs"
install_host_packages
make_sysroot
[ -x build/bin/kith-engine ] && [ -s $model ] || die "make and tools/model.sh q8_0 come first (make check-arm64 does so)"

echo "==> building for arm64"
make --no-print-directory -j"$jobs" programs units ARCH=aarch64 AR=aarch64-linux-gnu-ar \
    CC="aarch64-linux-gnu-gcc --sysroot=$sysroot -DKITH_EMULATED=1" >"$logs/build.log" 2>&1 ||
    { tail -n 30 "$logs/build.log" >&2; die "the build for arm64 failed"; }

echo "==> one text on both machines, and the unit tests"
embed_native
list=()
for t in $tests; do list+=("run_test $t"); done
run_all "run_embed scalar" "run_embed neon" run_choice "${list[@]}"
