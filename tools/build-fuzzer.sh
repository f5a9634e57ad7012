#!/bin/sh
# Builds one libFuzzer target under AddressSanitizer and UndefinedBehaviorSanitizer.
#
#   tools/build-fuzzer.sh OUT SOURCE.c... -- FLAG...
#
# Kernel files (*_kernels.c) are compiled as their scalar variant alone; where a dispatcher names
# another variant of a table, the linker gives it the scalar one, so every choice is the same code.
set -eu

clang=${FUZZ_CC:-clang}
out=$1
shift
work=$out.objects
rm -rf "$work"
mkdir -p "$work"

sources=
while [ "$1" != -- ]; do
    sources="$sources $1"
    shift
done
shift

compile_flags=
link_flags=
for flag in "$@"; do
    case $flag in
    -l*) link_flags="$link_flags $flag" ;;
    *) compile_flags="$compile_flags $flag" ;;
    esac
done
sanitize=-fsanitize=fuzzer,address,undefined

for source in $sources; do
    object=$work/$(echo "$source" | tr / _).o
    isa=
    case $source in
    *_kernels.c) isa='-DKITH_ISA=scalar -DKITH_ISA_scalar=1' ;;
    esac
    # shellcheck disable=SC2086 # flags are words
    $clang -g -O1 -fno-omit-frame-pointer -fno-sanitize-recover=all $sanitize \
        $compile_flags $isa -c "$source" -o "$object"
done

# x_avx2, x_avx512, x_amx and so on stand for x_scalar.
for variant in $(nm -u "$work"/*.o | sed -n 's/^ *U \(.*_\(avx2\|avx512\|avx512bf16\|amx\|neon\)\)$/\1/p' | sort -u); do
    link_flags="$link_flags -Wl,--defsym=$variant=${variant%_*}_scalar"
done
# shellcheck disable=SC2086
$clang $sanitize -pthread "$work"/*.o $link_flags -o "$out"
rm -rf "$work"
