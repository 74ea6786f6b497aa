#!/bin/sh
# Builds the product's wheel into DEST:  wheel.sh DEST [options of `pip wheel`]        PYTHON=python3
# From a copy: with HATCH_BUILD_HOOK_ENABLE_MYPYC=1 the compiler leaves its modules beside the sources.
set -eu
# Compiled modules call each other and Python straight, not through tables that leave every function open to replacement:
# a request runs through much code, and to fetch it takes a good part of the time. (CFLAGS would replace Python's own.)
# mypyc asks for warnings, and to look for misleading indentation takes GCC minutes: it is quadratic.
export CPPFLAGS="-fno-semantic-interposition -fno-plt -Wno-misleading-indentation ${CPPFLAGS:-}" LDFLAGS="-Wl,-Bsymbolic-functions ${LDFLAGS:-}"
dest=${1:?where to? wheel.sh DEST}
shift
mkdir -p "$dest"
dest=$(cd "$dest" && pwd)
source=$(mktemp -d)
trap 'rm -rf "$source"' EXIT
cd "$(dirname "$0")"
# Without what Python leaves beside the sources: other processes write there, and files that were seen are gone again.
tar -cf - --exclude=__pycache__ pyproject.toml README.md LICENSE cli config console decisions extproc panel proto signals \
  stepwise upstream | tar -xf - -C "$source"
"${PYTHON:-python3}" -m pip --quiet --disable-pip-version-check wheel --no-deps -w "$dest" "$@" "$source"
