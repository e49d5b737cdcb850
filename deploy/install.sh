#!/bin/sh
# Makes .venv and installs the locked requirements (hashes checked) and Pointsman itself: install.sh PYTHON REQUIREMENTS
# With uv where it is installed (seconds), else with venv and pip.
set -eu
python=$1
requirements=$2

"$python" - <<'CHECK' || { echo "Pointsman needs Python 3.11 or newer; name one with: make PYTHON=python3.12 ..." >&2; exit 1; }
import sys
sys.exit(sys.version_info < (3, 11))
CHECK

if command -v uv >/dev/null 2>&1; then
  [ -x .venv/bin/python ] || uv venv --quiet --python "$python" .venv
  uv pip install --quiet --python .venv/bin/python --require-hashes -r "$requirements"
  uv pip install --quiet --python .venv/bin/python --no-build-isolation --no-deps --editable .
else
  [ -x .venv/bin/python ] || "$python" -m venv .venv
  echo "installing into .venv (about a minute the first time)"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r "$requirements"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
fi
