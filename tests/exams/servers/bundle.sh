#!/usr/bin/env bash
# `make exam-bundle`: bundles the demo's server, installs it in a network namespace that has loopback alone, and asks it a question.
#   tests/exams/servers/bundle.sh .venv/bin build/bundle
set -euo pipefail
bin=$1 out=$2
rm -rf "$out" "$out.installed"
"$bin/secateur" bundle examples/demo/server.toml --wheel "$(ls build/dist/secateur-*.whl)" --output "$out"
python=$("$bin/python" -c 'import sys; print(sys.base_prefix + "/bin/python3")')
unshare --net bash -euo pipefail -s "$PWD/$out" "$python" <<'INSIDE'
ip link set lo up
bundle=$1 prefix=$1.installed
[ "$(ip -oneline link show | wc -l)" = 1 ] || { echo "the namespace has more than loopback"; exit 1; }
key=$(PYTHON=$2 sh "$bundle/install.sh" "$prefix" | grep -o 'sk-[A-Za-z0-9_-]*')
cd /
env -i PATH=/usr/bin:/bin HOME="$prefix/var" "$prefix/venv/bin/secateur" serve "$prefix/etc/server.toml" &
server=$!
trap 'kill $server' EXIT
curl --silent --fail --retry 120 --retry-delay 1 --retry-all-errors http://127.0.0.1:9464/readyz > /dev/null
curl --silent --fail http://127.0.0.1:8000/v1/chat/completions --header "Authorization: Bearer $key" \
  --json '{"model": "help", "messages": [{"role": "user", "content": "Do I need a GPU?"}]}'
echo
kill $server; wait $server; trap - EXIT
"$prefix/venv/bin/secateur" usage "$prefix/var/usage.sqlite3"
"$prefix/venv/bin/secateur" reconcile "$prefix/var/usage.sqlite3"
INSIDE
echo "installed, served and asked without a network"
