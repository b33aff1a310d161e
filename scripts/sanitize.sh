#!/usr/bin/env bash
# Builds the package with AddressSanitizer and UndefinedBehaviorSanitizer into build/sanitize, and runs the tests of the
# compiled operators with it, indices and sizes far outside the tensors among them: once the kernels of the CPU, once the
# host twins of the device's kernels with their lanes in shuffled orders. Before that, ThreadSanitizer looks for syncs that
# the kernels of match costs and assignment lack. The normal build is not touched. Needs g++. TWINS="0 1 shuffle:7"
# chooses what pytest runs on; arguments go to pytest.
#
#   scripts/sanitize.sh
#   TWINS=0 scripts/sanitize.sh -k gather
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" && exit ;; esac
cd "$(dirname "$0")/.."

python=$PWD/.venv/bin/python
build=$PWD/build/sanitize
flags="-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize=vptr -fno-sanitize-recover=all"
mkdir -p "$build"

# note TEXT: what comes now, with the time since the start.
note() { printf '[%d:%02d] %s\n' $((SECONDS / 60)) $((SECONDS % 60)) "$1"; }

note "ThreadSanitizer over the kernels of match costs and assignment (1 minute)"
g++ -std=c++17 -O1 -g -fsanitize=thread -I csrc tests/matching/races.cpp -o "$build/races"
RAGGEDBEV_HOST_TWIN=shuffle TSAN_OPTIONS=halt_on_error=1 "$build/races"

note "building with AddressSanitizer and UndefinedBehaviorSanitizer (up to 5 minutes; what did not change stays built)"
CXX=g++ CFLAGS="$flags" LDFLAGS="-fsanitize=address,undefined" RAGGEDBEV_CUDA=0 \
  "$python" setup.py --quiet egg_info --egg-base "$build" build --build-base "$build" --build-lib "$build/lib"

export LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so) $(g++ -print-file-name=libstdc++.so)"
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:detect_stack_use_after_return=1
export UBSAN_OPTIONS=print_stacktrace=1
export PYTHONPATH=$build/lib PYTHONMALLOC=malloc

"$python" -c "
from raggedbev import _C
if not _C.__file__.startswith('$build'):
    raise SystemExit(f'the build with sanitizers must be tested, but {_C.__file__} was loaded')"
# What traces rather than runs kernels is left out: slow here, and nothing new for the sanitizers.
for twin in ${TWINS:-0 shuffle}; do
  note "tests with RAGGEDBEV_HOST_TWIN=$twin (8 to 27 minutes)"
  RAGGEDBEV_HOST_TWIN=$twin "$python" -m pytest -p no:cacheprovider \
    tests/test_python_calls.py tests/ragged tests/heatmap tests/matching tests/losses \
    -k "not compile and not export and not opcheck and not inductor" "$@"
done
note "all is well"
