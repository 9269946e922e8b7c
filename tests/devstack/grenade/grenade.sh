#!/usr/bin/env bash
# An upgrade as Grenade makes it, of the plugins that $HARNESS/localrc enables, upon what stack.sh has left.
set -o errexit
GRENADE_DIR=$(cd "$(dirname "$0")" && pwd)
export GRENADE_DIR
# shellcheck source=tests/devstack/grenade/grenaderc
source "$GRENADE_DIR/grenaderc"
# shellcheck source=tests/devstack/grenade/functions
source "$GRENADE_DIR/functions"
# shellcheck source=tests/devstack/stack/stackrc
source "$TARGET_DEVSTACK_DIR/stackrc"
mkdir -p "$SAVE_DIR"
: >"$GRENADE_DB"
_source_of_plugins upgrade/settings
[[ -n "$UPGRADE_PROJECTS" ]] || _complain "no project wants to be upgraded"

# phase SCRIPT [ARGUMENT...]: a script of every project, in a process of its own.
function phase {
    local script=$1 project
    shift
    for project in $UPGRADE_PROJECTS; do
        echo "=== $project: $script $*"
        TOP_DIR=$TARGET_DEVSTACK_DIR "${PLUGIN_DIR[$project]}/$script" "$@" ||
            die $LINENO "$script $* of $project failed"
    done
}

phase resources.sh create
phase resources.sh verify pre-upgrade
phase shutdown.sh
phase resources.sh verify_noapi pre-upgrade
phase upgrade.sh
phase resources.sh verify post-upgrade
phase resources.sh destroy
echo "grenade.sh completed in $SECONDS seconds."
