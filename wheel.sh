#!/bin/sh
# Builds the product's wheel into DEST:  wheel.sh DEST [options of `pip wheel`]        PYTHON=python3
# From a copy: with HATCH_BUILD_HOOK_ENABLE_MYPYC=1 the compiler leaves its modules beside the sources.
set -eu
# Compiled modules call each other and Python straight, not through tables that leave every function open to replacement:
# a request runs through much code, and to fetch it takes a good part of the time. (CFLAGS would replace Python's own.)
# mypyc asks for warnings, and to look for misleading indentation takes GCC longer than to compile: it is quadratic.
export CPPFLAGS="-fno-semantic-interposition -fno-plt -Wno-misleading-indentation ${CPPFLAGS:-}" LDFLAGS="-Wl,-Bsymbolic-functions ${LDFLAGS:-}"
dest=${1:?where to? wheel.sh DEST}
shift
mkdir -p "$dest"
dest=$(cd "$dest" && pwd)
source=$(mktemp -d)
tools=$(mktemp -d)
trap 'rm -rf "$source" "$tools"' EXIT
# More than half of what mypyc writes is what modules do once, when they are imported. To optimise that took half of the
# compiler's time, so GCC is told to leave it as it is.
cat >"$tools/cc" <<'EOF'
#!/bin/sh
once=$(dirname "$0")/once.h
for argument; do
  case $argument in
    *.c) sed -nE 's/^char (CPyDef_[A-Za-z0-9_]+_____top_level__)\(void\) \{$/char \1(void) __attribute__((optimize("O0")));/p' "$argument" >"$once" ;;
  esac
done
[ -s "$once" ] && set -- -include "$once" "$@"
exec "${REAL_CC:?}" "$@"
EOF
chmod +x "$tools/cc"
if "${CC:-cc}" --version 2>/dev/null | grep -q 'Free Software Foundation'; then
  export REAL_CC="${CC:-cc}" CC="$tools/cc"
fi
cd "$(dirname "$0")"
cp -R pyproject.toml README.md LICENSE cli config console decisions extproc panel proto signals stepwise upstream "$source"
"${PYTHON:-python3}" -m pip --quiet --disable-pip-version-check wheel --no-deps -w "$dest" "$@" "$source"
