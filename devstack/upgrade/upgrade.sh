#!/usr/bin/env bash
# Brings Taibai to the target side: its program, its images, its schema. The configuration stays as it is, since
# one of an older release is good for a newer one.

echo "*********************************************************************"
echo "Begin $0"
echo "*********************************************************************"

# Tells the calling process, whatever it waits for.
function cleanup {
    set +o errexit
    echo "*********************************************************************"
    echo "ERROR: Abort $0"
    echo "*********************************************************************"
    trap 2
    kill -2 $$
}
trap cleanup SIGHUP SIGINT SIGTERM

RUN_DIR=$(cd "$(dirname "$0")" && pwd)

# shellcheck source=/dev/null
source "$GRENADE_DIR/grenaderc"
# shellcheck source=/dev/null
source "$GRENADE_DIR/functions"

set -o errexit

# shellcheck source=/dev/null
source "$TARGET_DEVSTACK_DIR/stackrc"
# shellcheck source=devstack/settings
source "$RUN_DIR/../settings"
# shellcheck source=devstack/lib/taibai
source "$RUN_DIR/../lib/taibai"

set -o xtrace

# What there was, to look at afterwards.
[[ -d "$SAVE_DIR/etc.taibai" ]] || sudo cp -pr "$TAIBAI_CONF_DIR" "$SAVE_DIR/etc.taibai"

check_taibai_build
install_taibai
install_taibai_images

# What one release needs beyond that: from-RELEASE/upgrade-taibai, or within-RELEASE/upgrade-taibai.
upgrade_project taibai "$RUN_DIR" "$BASE_DEVSTACK_BRANCH" "$TARGET_DEVSTACK_BRANCH"

sync_taibai_database || die $LINENO "The database could not be brought to this release."

check_taibai_upgrade || die $LINENO "Something stands in the way of this release; see the table above."

start_taibai

ensure_services_started taibai-api taibai-engine

set +o xtrace
echo "*********************************************************************"
echo "SUCCESS: End $0"
echo "*********************************************************************"
