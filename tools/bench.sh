#!/usr/bin/env bash
# `make bench`: the figures of the README beside their peers. Tables on the screen, CSV and PNG files in
# build/bench/. `make bench-vsets` is `bench.sh vsets OPTIONS`, and the longest of them. Give the machine
# nothing else to do.
set -eu
cd "$(dirname "$0")/.."
python=build/venv/bin/python
out=build/bench
mkdir -p $out
if ! cmp -s tools/requirements-bench.txt build/venv/requirements-bench.txt; then
    echo "==> installing the benches' Python packages"
    build/venv/bin/pip install -q --disable-pip-version-check -r tools/requirements-bench.txt
    cp tools/requirements-bench.txt build/venv/requirements-bench.txt
fi
if [ "${1:-}" = vsets ]; then
    shift
    exec $python bench/vsets.py "$@"
fi
echo "==> commands beside redis-server"
$python bench/redis_compare.py --csv $out/redis.csv --png $out/redis.png
echo "==> embeddings beside ONNX Runtime"
$python bench/embed_tcp.py --csv $out/embed.csv --png $out/embed.png
echo "==> kith-import beside EMBED"
$python bench/import_speed.py --csv $out/import.csv
echo "==> the engine's kernels"
build/bin/bench-embed-kernels
echo "==> the index"
build/bin/bench-index
echo "==> the shard's lock"
build/bin/bench-handover
echo "==> the log and the store"
build/bin/bench-storage
echo "CSV and PNG files are in $out"
