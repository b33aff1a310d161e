#!/usr/bin/env bash
# Builds the source distribution and from it the wheel, checks their metadata, and installs both kinds of wheel, compiled
# and without a compiler, into environments that hold torch, NumPy, SciPy and what these need, and nothing else.
#
#   scripts/package_check.sh [FOLDER]      the distributions go to FOLDER, build/package by default
#
# PYTHON chooses the interpreter (.venv/bin/python); it needs torch, SciPy and requirements/package.txt.
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" && exit ;; esac
cd "$(dirname "$0")/.."

out=${1:-build/package}
python=${PYTHON:-.venv/bin/python}
command -v "$python" >/dev/null || { echo "package-check: there is no $python; run make setup or name a PYTHON." >&2; exit 1; }
python=$(cd "$(dirname "$(command -v "$python")")" && pwd)/$(basename "$python")
unset PYTHONPATH
rm -rf "$out"
mkdir -p "$out/plain"
out=$(cd "$out" && pwd)

# note TEXT: how far it is, with the time since the start.
note() { printf '[%d:%02d] %s\n' $((SECONDS / 60)) $((SECONDS % 60)) "$1"; }

# watch LOG: every EVERY seconds, 15 by default, how far a step is, and how many files ninja has compiled.
watch() {
  local log=$1 shown=$SECONDS
  while kill -0 $$ 2>/dev/null; do
    sleep 1 >/dev/null 2>&1
    if [ $((SECONDS - shown)) -ge "${EVERY:-15}" ]; then
      shown=$SECONDS
      note "  still running $(grep -oE '\[[0-9]+/[0-9]+\]' "$log" | tail -n 1)"
    fi
  done
}

# quietly LOG COMMAND...: runs the command and tells that it runs; its output is shown only if it fails.
quietly() {
  local log=$out/$1 status=0 watcher
  shift
  : >"$log"
  watch "$log" &
  watcher=$!
  "$@" >"$log" 2>&1 || status=$?
  kill "$watcher" && wait "$watcher" 2>/dev/null || true
  [ $status = 0 ] || { tail -n 30 "$log"; echo "package-check: failed, see $log" >&2; exit 1; }
}

note "source distribution and wheel (compiles the operators: some minutes)"
quietly build.log "$python" -m build --no-isolation --outdir "$out" .
if grep -i 'warning: no files found\|SetuptoolsDeprecationWarning' "$out/build.log"; then
  echo "package-check: setuptools warns, see $out/build.log" >&2
  exit 1
fi
quietly twine.log "$python" -m twine check --strict "$out"/*.whl "$out"/*.tar.gz

note "wheel without a compiler"
mkdir "$out/source"
tar xzf "$out"/*.tar.gz -C "$out/source" --strip-components=1
CXX=no-such-compiler quietly plain.log "$python" -m pip wheel --no-build-isolation --no-deps --no-cache-dir \
  --wheel-dir "$out/plain" "$out/source"

# What the installed package shows: a pack, a heatmap, and an assignment that is known.
cat >"$out/use.py" <<'PYTHON'
import importlib.util
import sys
import warnings

import torch

import raggedbev
from raggedbev import _extension, combine_data, draw_gaussian_heatmap, linear_assignment

compiled = sys.argv[1] == "compiled"
assert sys.prefix in raggedbev.__file__, raggedbev.__file__
assert importlib.util.find_spec("mmengine") is None, "the environment is not empty"
assert _extension.COMPILED == compiled, f"COMPILED is {_extension.COMPILED}"
warnings.simplefilter("error" if compiled else "ignore", _extension.SlowPathWarning)
cost = torch.tensor([[[4.0, 1.0, 6.0], [2.0, 0.0, 5.0]]])
assert linear_assignment(cost).pred_of_gt.tolist() == [[1, 0]]
x = combine_data([torch.tensor([3, 9]), torch.tensor([5])])
assert draw_gaussian_heatmap(None, x, x, x.create_with_sample_sizes_like_self(torch.ones_like(x.tensor)), None, 12, 12).sum() > 3
PYTHON

# check NAME WHEEL: the wheel in an empty environment. Links stand in for installing torch, SciPy and their needs again.
check() {
  local name=$1 wheel=$2 environment=$out/env-$1
  note "an empty environment with the $name wheel"
  "$python" -m venv --without-pip "$environment"
  "$python" - "$environment" <<'PYTHON'
import importlib.metadata as metadata
import re
import sys
from pathlib import Path

site = next(Path(sys.argv[1]).glob("lib/python*/site-packages"))
wanted, seen = ["torch", "numpy", "scipy"], set()
while wanted:
    name = re.sub(r"[-_.]+", "-", wanted.pop()).lower()
    if name in seen:
        continue
    seen.add(name)
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        continue  # for another platform
    wanted += [re.match(r"[\w.-]+", need)[0] for need in distribution.requires or () if "extra ==" not in need]
    for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
        if not (site / top).exists():
            (site / top).symlink_to(distribution.locate_file(top))
PYTHON
  quietly "install-$name.log" "$python" -m pip --python "$environment/bin/python" install --no-deps --no-index "$wheel"
  (cd "$environment" && bin/python "$out/use.py" "$name" && bin/python -m raggedbev.info >"$out/info-$name.txt")
}

check compiled "$(ls "$out"/*.whl)"
check plain "$(ls "$out"/plain/*.whl)"
rm -r "$out/source" "$out"/env-*
note "all is well: $(cd "$out" && ls ./*.whl ./*.tar.gz | tr '\n' ' ')"
