#!/usr/bin/env bash
# Runs libFuzzer binaries for SECONDS each on a copy of their corpus; a finding is kept in build/fuzz/.
#   tools/fuzz.sh SECONDS FUZZER ...
set -eu
cd "$(dirname "$0")/.."
seconds=$1
shift
status=0
for f in "$@"; do
    name=$(basename "$f")
    corpus=tests/fuzz/corpus/${name#fuzz_}
    work=build/fuzz/$name.corpus
    mkdir -p "$work"
    echo "==> $name for $seconds s"
    if "$f" -max_total_time="$seconds" -artifact_prefix=build/fuzz/$name- -print_final_stats=1 \
        -rss_limit_mb=4096 -timeout=10 "$work" "$corpus" >build/fuzz/$name.log 2>&1; then
        grep -E 'stat::number_of_executed_units|stat::average_exec' build/fuzz/$name.log | sed 's/^/    /'
        echo "    no finding"
    else
        tail -n 40 build/fuzz/$name.log
        status=1
    fi
done
exit $status
