#!/bin/sh
# Installs reformer-serve from these sources into a new virtual environment, at the versions that it is tested with. It is
# all that an image's build stage does, so the same can be had without a container:
#
#     deploy/install.sh client|cpu|cuda FOLDER
#
# client: the SDK and the command `reformer`. cpu, cuda: the server, which is also a client, with torch's build for it.
# TORCH_INDEX: where torch's builds for CPUs are; empty: where pip looks anyway.
set -eu

variant=${1:-} folder=${2:-}
case $variant in
  client) extras= ;;
  cpu | cuda) extras='[server,s3]' ;;
  *) variant= ;;
esac
if [ -z "$variant" ] || [ -z "$folder" ]; then
  echo "usage: $0 client|cpu|cuda FOLDER" >&2
  exit 2
fi
if [ -e "$folder" ]; then
  echo "$0: $folder is there already; name a folder that isn't" >&2
  exit 1
fi

case $folder in /*) ;; *) folder=$PWD/$folder ;; esac
cd "$(dirname "$0")/.."
unset PYTHONPATH # what is there already would not be installed
wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT

# Without pip inside: what is in an image needs none.
python3 -m venv --without-pip "$folder"
pip() { python3 -m pip --disable-pip-version-check --no-input "$@"; }
install() { pip --python "$folder/bin/python" install --constraint constraints.txt "$@"; }

rm -rf build # what an earlier build has left there would get into the wheel
pip wheel --no-deps --wheel-dir "$wheels" .
if [ "$variant" = cpu ]; then
  index=${TORCH_INDEX-https://download.pytorch.org/whl/cpu}
  # By its local version: the usual index has the build for CUDA under the same number.
  install ${index:+--extra-index-url "$index"} "$(grep '^torch==' constraints.txt)+cpu"
fi
install "$(echo "$wheels"/*.whl)$extras"

"$folder/bin/reformer" --version
