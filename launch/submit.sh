#!/usr/bin/env bash
# Trains: ./launch/submit.sh RECIPE [key=value ...] [--dry-run | --detach | --json]
# Makes .venv on first use (launch/install.sh), then calls `zerofleet submit`.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
if [ $# -eq 0 ]; then
    cat >&2 <<USAGE
usage: ./launch/submit.sh RECIPE [key=value ...] [--dry-run | --detach | --json]
  RECIPE     a YAML file, for example launch/recipes/quickstart.yaml
  key=value  settings to change, such as train.steps=20 run.name=first
USAGE
    exit 2
fi
"$here/install.sh" train
exec "$here/../.venv/bin/zerofleet" submit "$@"
