#!/usr/bin/env bash
# The tests of models on other releases of diffusers, each laid over the installed one, nothing else changed:
#   tests/versions.sh            the lowest that setup.py allows
#   tests/versions.sh 0.38.0 …   these
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
lowest=$(sed -n 's/.*"diffusers>=\([0-9.]*\)".*/\1.0/p' setup.py)
for version in "${@:-$lowest}"; do
    folder=$(mktemp -d)
    "$PYTHON" -m pip install --quiet --no-deps --target "$folder" "diffusers==$version"
    echo "diffusers $version"
    PYTHONPATH="$folder:$PWD" OMP_NUM_THREADS=1 "$PYTHON" -m pytest -q -p no:cacheprovider \
        tests/test_wan.py tests/models/test_classes.py tests/models/test_pipelines.py tests/guidance/test_hook.py
    rm -r "$folder"
done
