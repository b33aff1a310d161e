#!/usr/bin/env bash
# Evaluate on several processes; the environment variables are those of dist_train.sh.
#   tools/dist_test.sh CONFIG CHECKPOINT PROCESSES_PER_NODE [flags of tools/test.py]
set -eu
case "${1:-}" in -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" && exit ;; esac
if [ $# -lt 3 ]; then
    echo "usage: $0 CONFIG CHECKPOINT PROCESSES_PER_NODE [flags of tools/test.py]" >&2
    exit 2
fi
exec "$(dirname "$0")/dist_run.sh" test.py "$1" "$3" "$2" "${@:4}"
