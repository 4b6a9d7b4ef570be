#!/usr/bin/env bash
# The plugin template as a stranger would use it: in an environment of its own outside the tree, with opsocket from a
# wheel and without torch. It must be found, hold profile `decoder`, and pass its own tests. Minutes: about one.
#   scripts/check_template.sh [PYTHON]
set -euo pipefail
repository=$(cd "$(dirname "$0")/.." && pwd)
python=${1:-${PYTHON:-python3}}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
unset PYTHONPATH OPSOCKET_PLUGINS
step() { printf '\n-- template: %s (%ss) --\n' "$1" "$SECONDS"; }

step "an environment without torch"
cp -r "$repository/examples/plugin_template" "$work/template"
"$python" -m venv "$work/venv"
bin=$work/venv/bin
"$bin/pip" install --quiet --disable-pip-version-check -c "$repository/constraints.txt" \
  "$repository" "$work/template[dev]"
cd "$work/template"
"$bin/python" -c "import importlib.util, sys; sys.exit('torch is here' if importlib.util.find_spec('torch') else 0)"

step "found"
"$bin/opsocket" backends
"$bin/opsocket" backends --json | "$bin/python" -c "
import json, sys
found = [b['name'] for p in json.load(sys.stdin)['plugins'] for b in p['backends'] if b['devices']]
sys.exit(0 if found == ['template'] else f'available: {found}, wanted the template alone')"

step "profile decoder"
"$bin/opsocket" conformance --backend template --profile decoder,decoder-f32,kv-int8,quant-w4 --jobs 2

step "its own tests"
"$bin/pytest" -q -n 2 -p no:cacheprovider -r N

step "done"
