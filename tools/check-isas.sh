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

die() {
    printf 'kith: %s\n' "$*" >&2
    exit 1
}

say() { # NAME, OK, FAILED, nanoseconds of the start
    echo "$2 $3" >"$logs/$1.count"
    printf '  %-36s %3d ok %s  %.1f s\n' "$1" "$2" "$([ "$3" -gt 0 ] && echo "$3 FAILED")" \
        "$(awk "BEGIN { print ($(date +%s%N) - $4) / 1e9 }")"
}

run_test() { # SET TEST
    local name=$2_test.$1 start code ok bad
    start=$(date +%s%N)
    KITH_KERNELS=$1 timeout "${LIMIT:-1800}" "$tree/tests/$2_test" >"$logs/$name.log" 2>&1
    code=$?
    ok=$(grep -c '^\[       OK \]' "$logs/$name.log")
    bad=$(grep -c '^\[  FAILED  \] [a-zA-Z_]' "$logs/$name.log")
    bad=$(((bad + 1) / 2))
    [ "$code" != 0 ] && [ "$bad" = 0 ] && bad=1
    [ "$code" = 0 ] && [ "$ok" = 0 ] && bad=1
    say "$name" "$ok" "$bad" "$start"
    [ "$bad" = 0 ] || tail -n 40 "$logs/$name.log" | sed 's/^/    /'
}

# As in check-arm64.sh: with int8 a sum that rounds to the other side gives another code, so two
# sets of kernels are near each other and not equal.
run_embed() { # SET
    local start cosine ok=0
    start=$(date +%s%N)
    KITH_KERNELS=$1 "$tree/bin/kith-engine" --model "$model" --embed "$text" \
        >"$logs/embed-$1.txt" 2>"$logs/embed-$1.log"
    cosine=$(awk 'NR == 1 { n = split($0, a, " "); next }
        NF == n && n > 1 { for (i = 1; i <= n; i++) { d += a[i] * $i; x += a[i] * a[i]; y += $i * $i }
                           printf "%.6f", d / sqrt(x * y) }' "$logs/embed-native.txt" "$logs/embed-$1.txt")
    awk "BEGIN { exit !(${cosine:-0} > 0.9995) }" && ok=1
    say "embed.$1" $ok $((1 - ok)) "$start"
    echo "    cosine to this machine's vector: ${cosine:-none}"
    sed 's/^/    /' "$logs/embed-$1.log"
}

[ "$(uname -m)" = x86_64 ] || die "these instruction sets are those of x86-64"
mkdir -p "$logs"
rm -f "$logs"/*.count
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
    build/bin/kith-engine --model $model --embed "$text" >"$logs/embed-native.txt" || die "the native program failed"
    targets+=" $tree/bin/kith-engine"
    for s in $sets_engine; do list+=("run_embed $s"); done
fi
# shellcheck disable=SC2086
make --no-print-directory -j"$jobs" VARIANT=emulated $targets >"$logs/build.log" 2>&1 ||
    { tail -n 30 "$logs/build.log" >&2; die "the build with emulated kernels failed"; }
for job in "${list[@]}"; do
    while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n; done
    $job &
done
wait
read -r passed failed < <(cat "$logs"/*.count | awk '{ p += $1; f += $2 } END { print p + 0, f + 0 }')

echo
echo "$passed passed, $failed failed"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
