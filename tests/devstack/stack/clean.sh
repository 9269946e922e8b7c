#!/usr/bin/env bash
# The plugins' part of DevStack's clean.sh, which runs unstack.sh first.
TOP_DIR=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=tests/devstack/stack/functions
source "$TOP_DIR/functions"
# shellcheck source=tests/devstack/stack/openrc
source "$TOP_DIR/openrc"
for file in apache database; do
    # shellcheck source=/dev/null
    source "$TOP_DIR/lib/$file"
done
"$TOP_DIR/unstack.sh" --all
load_plugin_settings
set -o xtrace
run_phase clean
rm -f "$SYSTEMD_DIR"/devstack@*
