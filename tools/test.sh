#!/usr/bin/env bash
# Runs every test of the built VARIANT and ends with one line that counts them. Exits non-zero when
# one failed or none ran. KITH_LONG=1 asks for the long versions.
set -u
cd "$(dirname "$0")/.."
variant=${VARIANT:-release}
[ "$variant" = release ] && root=build || root=build/$variant
export KITH_BIN=$root/bin KITH_VARIANT=$variant
export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=1:abort_on_error=0:exitcode=99}
export UBSAN_OPTIONS=${UBSAN_OPTIONS:-print_stacktrace=1}
export TSAN_OPTIONS=${TSAN_OPTIONS:-halt_on_error=1:exitcode=66}
logs=$root/test-logs
rm -rf "$logs" && mkdir -p "$logs"
passed=0 failed=0 skipped=0

say() { printf '%s\n' "$*"; }

failures="" # what failed, a line each, said again at the end

say "==> unit tests ($variant)"
run_unit() { # TEST LOG: the log, the exit status in LOG.code, the seconds in LOG.time
    local start
    start=$(date +%s%N)
    timeout 600 "$1" >"$2" 2>&1
    echo $? >"$2.code"
    awk "BEGIN { printf \"%.1f\", ($(date +%s%N) - $start) / 1e9 }" >"$2.time"
}
export -f run_unit
# As many at a time as there are processors: they share nothing, and none of them looks at a clock.
(
    for t in "$root"/tests/*_test; do
        [ -x "$t" ] && printf '%s\0%s\0' "$t" "$logs/$(basename "$t").log"
    done | xargs -0 -r -n 2 -P "$(nproc)" bash -c 'run_unit "$@"' run_unit
) &
for t in "$root"/tests/*_test; do
    [ -x "$t" ] || continue
    name=$(basename "$t")
    log=$logs/$name.log
    until [ -s "$log.time" ]; do sleep 0.1; done
    code=$(cat "$log.code")
    ok=$(grep -c '^\[       OK \]' "$log")
    bad=$(grep -c '^\[  FAILED  \] [a-zA-Z_]' "$log")
    skip=$(grep -c '^\[  SKIPPED \] [a-zA-Z_]' "$log")
    [ "$code" != 0 ] && [ "$bad" = 0 ] && bad=1
    [ "$bad" -gt 0 ] && bad=$(((bad + 1) / 2))
    [ "$skip" -gt 0 ] && skip=$(((skip + 1) / 2))
    passed=$((passed + ok)) failed=$((failed + bad)) skipped=$((skipped + skip))
    printf '  %-28s %3d ok %s %s  %s s\n' "$name" "$ok" "$([ "$bad" -gt 0 ] && echo "$bad FAILED")" \
        "$([ "$skip" -gt 0 ] && echo "$skip skipped")" "$(cat "$log.time")"
    if [ "$code" != 0 ]; then
        failures+="unit: $name (exit $code): $(grep -m 1 -E '^\[  FAILED  \]|ERROR|WARNING|error' "$log")"$'\n'
        tail -n 40 "$log" | sed 's/^/    /'
    elif [ "$skip" -gt 0 ]; then
        grep -i 'skip' "$log" | grep -v '^\[' | sort -u | sed 's/^/    /'
    fi
done
wait

# Sets that this processor may lack: a short form of `make check-isas`, so that they do not rot.
if [ "$variant" = release ] && [ "$(uname -m)" = x86_64 ]; then
    say "==> emulated instruction sets"
    TESTS="engine_kernels index_kernels" tools/check-isas.sh >"$logs/check-isas.log" 2>&1
    code=$?
    grep -v ' failed$' "$logs/check-isas.log" | grep .
    read -r ok bad < <(sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed$/\1 \2/p' "$logs/check-isas.log")
    [ "$code" != 0 ] && [ "${bad:-0}" = 0 ] && bad=1
    passed=$((passed + ${ok:-0})) failed=$((failed + ${bad:-0}))
    [ "$code" = 0 ] || failures+="emulated instruction sets: see $logs/check-isas.log"$'\n'
fi

say "==> fuzz corpora ($variant)"
for r in "$root"/tests/replay_fuzz_*; do
    [ -x "$r" ] || continue
    name=$(basename "$r")
    corpus=tests/fuzz/corpus/${name#replay_fuzz_}
    if timeout 600 "$r" "$corpus" >"$logs/$name.log" 2>&1; then
        passed=$((passed + 1))
        printf '  %-28s %s\n' "${name#replay_}" "$(tail -n 1 "$logs/$name.log")"
    else
        failed=$((failed + 1))
        failures+="corpus: $name"$'\n'
        say "  $name FAILED"
        tail -n 30 "$logs/$name.log" | sed 's/^/    /'
    fi
done

# A few files at a time: much of the time they wait for disks, kills and each other. Those that kill come first, for
# they are the longest.
say "==> crash and integration tests ($variant)"
workers=$(($(nproc) < 7 ? $(nproc) + 1 : 8))
build/venv/bin/python -m pytest tests/crash tests/integration -n "$workers" --dist loadfile -q -rs --durations=5 \
    -p no:cacheprovider --junit-xml="$logs/pytest.xml" ${PYTEST_ARGS:-}
code=$?
if [ -f "$logs/pytest.xml" ]; then
    read -r p f s < <(build/venv/bin/python - "$logs/pytest.xml" <<'PY'
import sys, xml.etree.ElementTree as ET
suite = ET.parse(sys.argv[1]).getroot().find("testsuite")
n, f, e, s = (int(suite.get(k)) for k in ("tests", "failures", "errors", "skipped"))
print(n - f - e - s, f + e, s)
PY
    )
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
fi
[ $code != 0 ] && [ "${f:-0}" = 0 ] && failed=$((failed + 1))

say
if [ -n "$failures" ]; then
    say "failed before the integration tests:"
    printf '%s' "$failures" | sed 's/^/  /'
fi
say "kith: $passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
