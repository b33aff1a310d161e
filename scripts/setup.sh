#!/bin/sh
# Makes .venv ready: picks a Python and hands over to bootstrap.py, which installs what is missing there.
#
#   scripts/setup.sh            # a second call does nothing; logs are in build/logs
#   scripts/setup.sh --which    # only prints the Python that would be taken
#
# PYTHON=... names the interpreter; otherwise the first of python3.11, python3.12, python3.10 and python3 that is
# Python 3.10 to 3.12 is taken.
set -u
case "${1:-}" in
-h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" && exit ;;
'' | --which) ;;
*) echo "raggedbev: set-up takes no argument but --which and --help, got $1." >&2 && exit 2 ;;
esac
root=$(cd "$(dirname "$0")/.." && pwd) || exit 1
candidates="python3.11 python3.12 python3.10 python3"

version_of() { "$1" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null; }
supported() { case "$1" in 3.10.* | 3.11.* | 3.12.*) true ;; *) false ;; esac; }

python=
if [ -n "${PYTHON:-}" ]; then
  version=$(version_of "$PYTHON")
  if [ -z "$version" ]; then
    echo "raggedbev: PYTHON=$PYTHON is not a Python that runs; raggedbev needs Python 3.10 to 3.12." >&2
    exit 1
  fi
  if ! supported "$version"; then
    echo "raggedbev: needs Python 3.10 to 3.12, but PYTHON=$PYTHON is Python $version." >&2
    exit 1
  fi
  python=$PYTHON
elif [ "${1:-}" != --which ] && [ -x "$root/.venv/bin/python" ] && "$root/.venv/bin/python" -c '' 2>/dev/null; then
  python=$root/.venv/bin/python
else
  for candidate in $candidates; do
    if supported "$(version_of "$candidate")"; then
      python=$candidate
      break
    fi
  done
  if [ -z "$python" ]; then
    echo "raggedbev: needs Python 3.10 to 3.12, but none of $candidates is one; install one or name it with PYTHON=..." >&2
    exit 1
  fi
fi

if [ "${1:-}" = --which ]; then
  exec "$python" -c 'import sys; print(sys.executable)'
fi
exec "$python" -E -s "$root/scripts/bootstrap.py"
