#!/usr/bin/env bash
# `make run`: starts a server on PORT with its data in DIR and the default model, loads the sample
# corpus the first time, asks two questions by meaning, and serves until Ctrl-C.
set -eu
cd "$(dirname "$0")/.."
port=${PORT:-6379}
dir=${DIR:-data}
model=build/models/all-MiniLM-L6-v2.q8_0.gguf
mkdir -p "$dir"
log=$dir/kith.log

echo "==> starting kith-server on port $port, data in $dir, log in $log"
setsid build/bin/kith-server --port "$port" --dir "$dir" --embedder "$model" --logfile "$log" &
server=$!
# The server has a session of its own, so that Ctrl-C reaches it once, from here.
trap 'kill -TERM $server 2>/dev/null || true; wait $server || true; exit 0' INT TERM

for _ in $(seq 1 600); do
    if ! kill -0 $server 2>/dev/null; then
        echo "kith: the server did not start:" >&2
        tail -n 5 "$log" >&2
        wait $server
        exit 1
    fi
    [ "$(redis-cli -p "$port" PING 2>/dev/null)" = PONG ] && break
    sleep 0.05
done
if ! redis-cli -p "$port" INFO server 2>/dev/null | grep -q "^process_id:$server"; then
    echo "kith: port $port answers, but it is not the server just started; choose another with PORT=" >&2
    kill -TERM $server
    wait $server || true
    exit 1
fi

build/bin/kith-sample --port "$port" README.md docs/*.md */README.md

cat <<TXT

The server goes on serving on port $port; Ctrl-C saves and stops it. Next, in another terminal:

  redis-cli -p $port VSIM docs TEXT "how do I keep my data safe?" WITHSCORES COUNT 3

TXT
wait $server
