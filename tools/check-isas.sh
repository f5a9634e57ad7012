#!/usr/bin/env bash
# Builds the kernels of instruction sets that this processor may lack in the form of what it has
# (VARIANT=emulated) and runs the unit tests that depend on kernels once for each of those sets.
# Then the real model embeds one text with each, beside this machine's own vector. Ends with one line
# that counts.
#
# Intrinsics are emulated, not instructions: what the compiler makes of them where it has them is
# seen only on a machine with that set. TESTS="engine_kernels index_kernels" runs some.
set -u
cd "$(dirname "$0")/.."
tree=build/emulated
logs=$tree/test-logs
sets_engine="avx512 avx512bf16 amx" sets_index="avx512"
once="engine_amx engine_kernels engine_fast" # they go through all sets themselves
tests=${TESTS:-engine_golden engine_fast engine_embedder engine_amx engine_kernels index_kernels index_hnsw index_vectors}
model=build/models/all-MiniLM-L6-v2.q8_0.gguf
# More tokens than a tile has rows.
text="kith keeps vectors near their kin: an embedding engine, a graph and a store that ask nothing of one another but numbers, and answer before anyone has looked for the way to the next room"
jobs=${JOBS:-$(nproc)}

. tools/emulated.sh

run_test() { # SET TEST
    KITH_KERNELS=$1 unit_test "$2_test.$1" "$tree/tests/$2_test"
}

run_embed() { # SET
    embed_test "$1" "$tree/bin/kith-engine"
}

[ "$(uname -m)" = x86_64 ] || die "these instruction sets are those of x86-64"
mkdir -p "$logs"
# Emulated kernels are linked before the release build's libraries.
make --no-print-directory -j"$jobs" programs >"$logs/build.log" 2>&1 ||
    { tail -n 30 "$logs/build.log" >&2; die "the build failed"; }
list=()
for t in $tests; do
    sets=sets_${t%%_*}
    [[ " $once " == *" $t "* ]] && list+=("run_test ${!sets##* } $t") && continue
    for s in ${!sets}; do
        # No golden file is BF16, and else the set is avx512; each takes two minutes.
        [ "$s $t" = "avx512bf16 engine_golden" ] || list+=("run_test $s $t")
    done
done
targets=$(printf "$tree/tests/%s_test " $tests)
if [ -z "${TESTS:-}" ]; then
    [ -s $model ] || die "tools/model.sh q8_0 comes first (make check-isas does so)"
    embed_native
    targets+=" $tree/bin/kith-engine"
    for s in $sets_engine; do list+=("run_embed $s"); done
fi
# shellcheck disable=SC2086
make --no-print-directory -j"$jobs" VARIANT=emulated $targets >"$logs/build.log" 2>&1 ||
    { tail -n 30 "$logs/build.log" >&2; die "the build with emulated kernels failed"; }
run_all "${list[@]}"
