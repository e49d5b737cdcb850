#!/bin/sh
# Makes the Python modules of our own .proto files again: sh protos/generate.sh [PYTHON]
set -eu
cd "$(dirname "$0")/.."
python=${1:-.venv/bin/python}
"$python" -m grpc_tools.protoc -I protos --python_out=core --pyi_out=core protos/pointsman/sim/v1/generate.proto
"$python" -m grpc_tools.protoc -I protos --python_out=extproc --pyi_out=extproc protos/pointsman/picker/v1/gossip.proto
