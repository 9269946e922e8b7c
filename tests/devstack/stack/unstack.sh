#!/usr/bin/env bash
# The plugins' part of DevStack's unstack.sh. As there, an error does not end it.
TOP_DIR=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=tests/devstack/stack/functions
source "$TOP_DIR/functions"
# shellcheck source=tests/devstack/stack/openrc
source "$TOP_DIR/openrc"
for file in apache database; do
    # shellcheck source=/dev/null
    source "$TOP_DIR/lib/$file"
done
run_phase override_defaults
load_plugin_settings
set -o xtrace
run_phase unstack
