#!/usr/bin/env bash
# Compiles every CUDA source for every architecture from sm_75 to sm_121 that the nvcc found here knows. Needs neither a
# GPU nor torch. Warnings and register spills are errors.
#
#   scripts/cuda_check.sh
#   ARCHS="sm_80 sm_90" scripts/cuda_check.sh      # some architectures only
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" && exit ;; esac
cd "$(dirname "$0")/.."

nvcc=${CUDA_HOME:+$CUDA_HOME/bin/nvcc}
nvcc=${nvcc:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
if [ ! -x "$nvcc" ]; then
  echo "cuda-check needs nvcc, and there is none in CUDA_HOME, PATH or /usr/local/cuda: install the CUDA toolkit." >&2
  exit 1
fi

out=build/cuda-check
mkdir -p "$out"
known=$("$nvcc" --list-gpu-code | grep -oE '^sm_[0-9]+$' | awk -F_ '$2 >= 75 && $2 <= 121')
read -ra archs <<<"$(echo ${ARCHS:-$known})"
mapfile -t sources < <(find csrc -name '*.cu' | sort)
total=$((${#sources[@]} * ${#archs[@]}))
done=0
failed=0

# progress: how many of the files are done, and when the rest will be if they take as long.
progress() {
  done=$((done + 1))
  local left=$((SECONDS * (total - done) / done))
  printf '[%d/%d, about %d:%02d left] ' "$done" "$total" $((left / 60)) $((left % 60))
}

for source in "${sources[@]}"; do
  for arch in "${archs[@]}"; do
    log=$out/$(basename "$source" .cu).$arch.log
    if ! "$nvcc" -std=c++17 -O3 -I csrc -arch="$arch" -Werror all-warnings -Xcompiler -Wall -Xptxas -v,-warn-spills \
      -c "$source" -o "$out/object.o" >"$log" 2>&1; then
      progress
      echo "$source does not compile for $arch without warnings or spills, see $log:"
      grep -iE 'error|warning' "$log" || cat "$log"
      failed=1
    elif grep -E '[1-9][0-9]* bytes (spill|stack frame)' "$log"; then
      progress
      echo "$source spills registers on $arch, see $log"
      failed=1
    else
      kernels=$(grep -c 'Compiling entry function' "$log" || true) # a source may have none
      registers=$({ grep -oE 'Used [0-9]+ registers' "$log" || echo "Used 0 registers"; } | sort -k2 -n | tail -1)
      progress
      echo "$source $arch: $kernels kernels, no warnings, no spills, at most ${registers#Used }"
    fi
  done
done
exit $failed
