#!/bin/sh
# Installs this bundle below PREFIX, without network: sh install.sh PREFIX   (PYTHON=python3.x names the interpreter)
# First compare `sha256sum SHA256SUMS` with what `secateur bundle` printed.
set -eu
umask 022
fail() { echo "install: $1" >&2; exit 2; }
bundle=$(cd "$(dirname "$0")" && pwd)
prefix=${1:-}
python=${PYTHON:-python3}
[ -n "$prefix" ] || fail "name the folder to install to: sh install.sh /opt/secateur"
case $prefix in /*) ;; *) prefix=$PWD/$prefix ;; esac
case $prefix in *[!A-Za-z0-9._/-]*) fail "$prefix: use letters, digits, '.', '_', '-' and '/' alone" ;; esac
[ ! -e "$prefix" ] || fail "$prefix exists: name a new folder"

cd "$bundle"
sha256sum --check --strict --quiet SHA256SUMS >&2 \
  || fail "a file of the bundle differs from its checksum or is missing: copy the bundle again; nothing was installed"
find . -type f ! -path ./SHA256SUMS | sed 's|^\./||' | LC_ALL=C sort > "${TMPDIR:-/tmp}/secateur-here.$$"
trap 'rm -f "${TMPDIR:-/tmp}/secateur-here.$$"' EXIT
sed 's/^[0-9a-f]*  //' SHA256SUMS | LC_ALL=C sort | cmp -s - "${TMPDIR:-/tmp}/secateur-here.$$" \
  || fail "the bundle holds a file that SHA256SUMS does not list: copy the bundle again; nothing was installed"
[ -z "$(find . -type l)" ] || fail "the bundle holds a link: copy the bundle again; nothing was installed"

version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || fail "there is no $python: set PYTHON"
[ "$version" = "@PYTHON_VERSION@" ] || fail "the bundle is for Python @PYTHON_VERSION@ and $python is $version: set PYTHON"

abandon() { rm -rf "$prefix"; fail "$1"; }
mkdir -p "$prefix/etc" "$prefix/var"
"$python" -m venv --without-pip "$prefix/venv" || abandon "$python cannot make a virtual environment"
"$prefix/venv/bin/python" "$(ls wheels/pip-*.whl)/pip" install --quiet --no-index --no-cache-dir --disable-pip-version-check \
  --find-links wheels "wheels/@WHEEL@" || abandon "the packages could not be installed"
for wheel in data/*.whl; do
  [ ! -e "$wheel" ] || "$prefix/venv/bin/python" "$(ls wheels/pip-*.whl)/pip" install --quiet --no-index --no-cache-dir \
    --disable-pip-version-check --no-deps "$wheel" || abandon "$wheel could not be installed"
done
for folder in models knowledge; do [ ! -d $folder ] || cp -R $folder "$prefix/"; done
cp -R etc/. "$prefix/etc/"
find "$prefix/etc" -name '*.toml' -exec sed -i "s|@PREFIX@|$prefix|g" {} +

secateur=$prefix/venv/bin/secateur etc=$prefix/etc
umask 077
. ./keys.sh
"$secateur" serve "$etc/server.toml" --check || fail "the settings in $etc do not fit this machine: mend them, nothing else is missing"
echo "installed; serve with: $secateur serve $etc/server.toml"
