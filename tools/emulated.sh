# What check-arm64.sh and check-isas.sh share; they source it and set tree, logs, model, text and jobs.

die() {
    printf 'kith: %s\n' "$*" >&2
    exit 1
}

say() { # NAME, OK, FAILED, nanoseconds of the start
    echo "$2 $3" >"$logs/$1.count"
    printf '  %-36s %3d ok %s  %.1f s\n' "$1" "$2" "$([ "$3" -gt 0 ] && echo "$3 FAILED")" \
        "$(awk "BEGIN { print ($(date +%s%N) - $4) / 1e9 }")"
}

unit_test() { # NAME COMMAND ...: runs it, and counts what cmocka says
    local name=$1 start code ok bad
    shift
    start=$(date +%s%N)
    timeout "${LIMIT:-1800}" "$@" >"$logs/$name.log" 2>&1
    code=$?
    ok=$(grep -c '^\[       OK \]' "$logs/$name.log")
    bad=$(grep -c '^\[  FAILED  \] [a-zA-Z_]' "$logs/$name.log")
    bad=$(((bad + 1) / 2))
    [ "$code" != 0 ] && [ "$bad" = 0 ] && bad=1
    [ "$code" = 0 ] && [ "$ok" = 0 ] && bad=1
    say "$name" "$ok" "$bad" "$start"
    [ "$bad" = 0 ] || tail -n 40 "$logs/$name.log" | sed 's/^/    /'
}

embed_native() { # the vector that all others are held to
    build/bin/kith-engine --model "$model" --packed-cache no --embed "$text" >"$logs/embed-native.txt" ||
        die "the native program failed"
}

# The vector that these kernels give, beside that of this machine's own program. With int8 a sum
# that rounds to the other side gives another code, and that others in the next layer: two sets of
# kernels of one machine are as far apart as two machines. What is packed is packed anew.
embed_test() { # KERNELS COMMAND ...: the command is kith-engine, with what runs it
    local kernels=$1 start cosine ok=0
    shift
    start=$(date +%s%N)
    KITH_KERNELS=$kernels timeout "${LIMIT:-1800}" "$@" --model "$model" --packed-cache no --embed "$text" \
        >"$logs/embed-$kernels.txt" 2>"$logs/embed-$kernels.log"
    cosine=$(awk 'NR == 1 { n = split($0, a, " "); next }
        NF == n && n > 1 { for (i = 1; i <= n; i++) { d += a[i] * $i; x += a[i] * a[i]; y += $i * $i }
                           printf "%.6f", d / sqrt(x * y) }' "$logs/embed-native.txt" "$logs/embed-$kernels.txt")
    awk "BEGIN { exit !(${cosine:-0} > 0.9995) }" && ok=1
    say "embed.$kernels" $ok $((1 - ok)) "$start"
    echo "    cosine to this machine's vector: ${cosine:-none}"
    sed 's/^/    /' "$logs/embed-$kernels.log"
}

run_all() { # JOB ...: each a function with its words; as many at a time as $jobs. Ends with the count.
    local passed failed job
    rm -f "$logs"/*.count
    for job in "$@"; do
        while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n; done
        $job &
    done
    wait
    read -r passed failed < <(cat "$logs"/*.count | awk '{ p += $1; f += $2 } END { print p + 0, f + 0 }')
    echo
    echo "$passed passed, $failed failed"
    [ "$failed" = 0 ] && [ "$passed" -gt 0 ]
}
