#!/usr/bin/env bash
# Stops Taibai of the base side. Its workers stay: the target side takes them over.
set -o errexit

# shellcheck source=/dev/null
source "$GRENADE_DIR/grenaderc"
# shellcheck source=/dev/null
source "$GRENADE_DIR/functions"
for file in functions stackrc; do
    # shellcheck source=/dev/null
    source "$BASE_DEVSTACK_DIR/$file"
done

TAIBAI_PLUGIN_DIR=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=devstack/settings
source "$TAIBAI_PLUGIN_DIR/settings"
# shellcheck source=devstack/lib/taibai
source "$TAIBAI_PLUGIN_DIR/lib/taibai"

set -o xtrace

stop_taibai

ensure_services_stopped taibai-api taibai-engine
