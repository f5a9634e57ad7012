#!/usr/bin/env bash
# Format, headers that compile alone, rooms that keep their walls, docs that match the tables.
set -u
cd "$(dirname "$0")/.."
CC=${CC:-gcc}
bad=0
files=$(git ls-files --cached --others --exclude-standard '*.c' '*.h' | while read -r f; do [ -f "$f" ] && echo "$f"; done)

echo "==> format"
# shellcheck disable=SC2086
clang-format --dry-run --Werror $files || bad=1

echo "==> every header alone"
for h in $(echo "$files" | grep '\.h$'); do
    # shellcheck disable=SC2086
    echo "#include \"$h\"" | $CC $CFLAGS -fsyntax-only -x c - || { echo "  $h does not stand alone"; bad=1; }
done

echo "==> walls between rooms"
# Who may include whom (docs/design.md, "The rooms"). The linker checks calls, this checks headers.
allow() {
    case $1 in
    base) echo base ;;
    protocol) echo base protocol ;;
    storage) echo base storage ;;
    index) echo base index ;;
    engine) echo base engine ;;
    replication) echo base protocol storage replication ;;
    *) echo base protocol storage index engine replication server tools bench tests ;;
    esac
}
for f in $files; do
    room=${f%%/*}
    for inc in $(sed -n 's/^#include "\([a-z]*\)\/.*/\1/p' "$f" | sort -u); do
        case " $(allow "$room") " in
        *" $inc "*) ;;
        *) echo "  $f may not include $inc/"; bad=1 ;;
        esac
    done
    grep -n '#include "\.\./' "$f" && { echo "  $f includes by ../"; bad=1; }
done
library() { # header pattern, files that may have it
    local hits
    hits=$(echo "$files" | xargs grep -lE "#include <$1" | grep -vE "$2" || true)
    [ -z "$hits" ] || { echo "  <$1> is included outside its room: $hits"; bad=1; }
}
library 'xxhash' '^base/'
library 'lmdb' '^storage/|^tests/unit/storage_'
library 'hiredis/read' '^protocol/'
library 'event2' '^server/'
library 'simde' '^(index|engine)/.*(_kernels\.c|lanes\.h)$'
library 'utf8proc' '^engine/|^tests/unit/engine_'
library 'jansson' '^tools/|^server/remote_api\.c$|^tests/unit/server_remote_api_test\.c$'
library 'curl' '^server/remote_http\.c$'

echo "==> each room links with what it may know"
for room in base protocol storage index engine server; do
    main=$(mktemp /tmp/kith-lint-XXXXXX.c)
    echo 'int main(void) { return 0; }' >"$main"
    case $room in
    base) libs="" sys="-lxxhash -lm" ;;
    protocol) libs="base" sys="-lhiredis -lxxhash -lm" ;;
    storage) libs="base" sys="-llmdb -lxxhash -lm" ;;
    index) libs="base" sys="-lxxhash -lm" ;;
    engine) libs="base" sys="-lutf8proc -lxxhash -lm" ;;
    server) libs="replication engine index storage protocol base" sys="-lcurl -ljansson -levent_core -llmdb -lhiredis -lutf8proc -lxxhash -lm" ;;
    esac
    args="-Wl,--whole-archive build/obj/lib$room.a -Wl,--no-whole-archive"
    for l in $libs; do args="$args build/obj/lib$l.a"; done
    # shellcheck disable=SC2086
    $CC -pthread -o "${main%.c}" "$main" $args $sys || { echo "  $room calls what it may not know"; bad=1; }
    rm -f "$main" "${main%.c}"
done

echo "==> documents made from the tables"
for d in commands configuration; do
    build/bin/kith-docs $d | diff -u docs/$d.md - || { echo "  docs/$d.md is stale: make docs"; bad=1; }
done

[ $bad = 0 ] && echo "lint: clean"
exit $bad
