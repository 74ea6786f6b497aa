#!/bin/sh
# The product's part of the image: a virtual environment at DEST/opt/pointsman, every package pinned by hash.
#   k8s/image-root.sh DEST        EXTRA=cpu|cuda   PYTHON=python3
set -eu
dest=${1:?where to? k8s/image-root.sh DEST}
cd "$(dirname "$0")/.."
mkdir -p "$dest/opt"
root=$(cd "$dest/opt" && pwd)/pointsman
rm -rf "$root"
"${PYTHON:-python3}" -m venv "$root"
pip() { "$root/bin/python" -m pip --quiet --disable-pip-version-check "$@"; }
pip install --require-hashes --no-deps -r "requirements/${EXTRA:-cpu}.txt"
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
"${PYTHON:-python3}" -m venv "$build/venv"
"$build/venv/bin/python" -m pip --quiet --disable-pip-version-check install --require-hashes --no-deps -r requirements/build.txt
# Without a C compiler the wheel is plain Python.
if command -v "${CC:-cc}" >/dev/null; then export HATCH_BUILD_HOOK_ENABLE_MYPYC=1; fi
PYTHON="$build/venv/bin/python" ./wheel.sh "$build" --no-build-isolation
pip install --no-deps "$build"/pointsman-*.whl
# An image needs no installer, and whatever runs in it must not be able to change it.
pip uninstall --yes pip
rm -rf "$root"/bin/*ctivate* "$root"/bin/pip*
