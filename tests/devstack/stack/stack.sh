#!/usr/bin/env bash
# stack.sh [PHASE...]: the plugins' phases, in the order and under the shell options of DevStack's own.
TOP_DIR=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=tests/devstack/stack/functions
source "$TOP_DIR/functions"
# shellcheck source=tests/devstack/stack/stackrc
source "$TOP_DIR/stackrc"

function _failed {
    local status=$?
    set +o xtrace
    echo "stack.sh failed with status $status in ${FUNCNAME[1]:-the script}" >&2
    exit $status
}
trap _failed ERR
set -o errexit

run_phase override_defaults
# shellcheck source=tests/devstack/stack/lib/apache
source "$TOP_DIR/lib/apache"
# shellcheck source=tests/devstack/stack/lib/database
source "$TOP_DIR/lib/database"
load_plugin_settings

if [[ $# == 0 ]]; then set -- pre-install install post-config extra test-config; fi
# What DevStack has done by then: packages of plugins come with its own, before the first phase.
if [[ "$1" == pre-install && -z "${HARNESS_BARE:-}" ]]; then
    _install_plugin_packages
    mkdir -p "$DEST"
    if [[ ! -d "$APACHE_DIR" ]]; then
        _make_apache
        # shellcheck disable=SC2119
        restart_apache_server
    fi
fi
PS4='+ ${EPOCHREALTIME%???} '
set -o xtrace
for phase; do
    run_phase stack "$phase"
done
set +o xtrace
echo "stack.sh completed in $SECONDS seconds."
