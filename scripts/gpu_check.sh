#!/usr/bin/env bash
# What only a machine with a GPU can show, in one command: builds the operators with CUDA, tests them, runs the tests of
# the kernels under compute-sanitizer, and takes the figures. Needs torch with CUDA, its nvcc, SciPy, pytest and
# hypothesis; no mm package, no .venv.
#
#   scripts/gpu_check.sh [FOLDER]      results go to FOLDER, build/gpu-check by default; summary.txt comes first
#
# PYTHON chooses the interpreter (python3), STEPS="build tests" some of the steps, LIMIT the seconds that a step may take.
# A failed step does not stop those after it, except the build; the exit status says whether any failed.
set -uo pipefail
case "${1:-}" in -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" && exit ;; esac
cd "$(dirname "$0")/.."

out=${1:-build/gpu-check}
python=${PYTHON:-python3}
limit=${LIMIT:-900}
steps=${STEPS:-build tests sanitizer figures}
failed=0
mkdir -p "$out"
out=$(cd "$out" && pwd)
export PYTHONPATH=$PWD/plugin PYTHONUNBUFFERED=1

if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
  echo "gpu-check needs a GPU that torch sees, and $python has none: install torch with CUDA, or name another PYTHON." >&2
  exit 1
fi

"$python" - >"$out/summary.txt" <<'PYTHON'
import datetime, platform, sys, torch
device = torch.cuda.get_device_properties(0)
print(f"{datetime.date.today()}, {device.name} (sm_{device.major}{device.minor}), CUDA {torch.version.cuda}, "
      f"torch {torch.__version__}, Python {sys.version.split()[0]}, {platform.machine()}")
PYTHON
cat "$out/summary.txt"

# say NAME LOG COMMAND...: runs the command within the limit, into the log, and notes how it went.
say() {
  local name=$1 log=$out/$2 start=$SECONDS status
  shift 2
  printf '[%d:%02d] %s, %d s at most ...\n' $((SECONDS / 60)) $((SECONDS % 60)) "$name" "$limit"
  echo "\$ $*" >>"$log"
  timeout "$limit" "$@" >>"$log" 2>&1
  status=$?
  [ $status = 0 ] || failed=1
  printf '%-28s %-12s %5d s  %s\n' "$name" "$([ $status = 0 ] && echo ok || echo "failed ($status)")" \
    $((SECONDS - start)) "$(basename "$log")" | tee -a "$out/summary.txt"
  return $status
}

wants() { [[ " $steps " == *" $1 "* ]]; }

core=(tests/ragged tests/matching tests/heatmap tests/losses tests/test_layering.py)
test=("$python" -m pytest -p no:cacheprovider -q)

if wants build; then
  say build build.log env RAGGEDBEV_CUDA=1 "$python" setup.py build_ext --inplace || exit 1
fi
if wants tests; then
  say tests tests.log "${test[@]}" -rs "${core[@]}"
fi
if wants sanitizer; then
  sanitizer=$(command -v compute-sanitizer || echo "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer")
  # What traces rather than runs kernels is left out, and captured graphs, which replay what ran before.
  chosen="cuda and not compile and not export and not opcheck and not inductor and not graph and not hypothesis"
  for tool in memcheck racecheck initcheck synccheck; do
    say "sanitizer $tool" sanitizer.log "$sanitizer" --tool "$tool" --error-exitcode 9 --target-processes all \
      "${test[@]}" tests/ragged tests/matching tests/heatmap tests/losses -k "$chosen"
  done
fi
if wants figures; then
  loss=("$python" tools/benchmark_loss.py streampetr_r50_704 --device cuda)
  say "figures of losses" figures.log "${loss[@]}" --repeats 30 --out "$out/loss"
  say "figures of trained losses" figures.log "${loss[@]}" --repeats 30 --predictions trained --out "$out/loss-trained" \
    --arms reference batched batched+graph
  say "figures of batch sizes" figures.log "${loss[@]}" --batch-sizes 1 2 4 8 16 32 64 --repeats 10 \
    --arms published reference batched batched+graph --out "$out/loss-growth"
  say "figures of assignment" figures.log "$python" benchmarks/assignment.py --device cuda --json "$out/assignment.json"
  say "figures of match costs" figures.log "$python" benchmarks/match_cost.py --device cuda --json "$out/match-cost.json"
  say "figures of matching" figures.log "$python" benchmarks/matching.py --device cuda --json "$out/matching.json"
  say "figures of ragged operators" figures.log "$python" benchmarks/ragged.py --device cuda --budget 2 \
    --json "$out/ragged.json"
fi
exit $failed
