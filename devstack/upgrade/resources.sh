#!/usr/bin/env bash
# Functions that have to survive an upgrade: resources.sh create, verify, verify_noapi, destroy.
#
# A project of its own, with a function, an execution of it, and a version under an alias. While the services are
# down, its package is on the disk, its row in the database, and the worker that holds it still runs.
set -o errexit

# shellcheck source=/dev/null
source "$GRENADE_DIR/grenaderc"
# shellcheck source=/dev/null
source "$GRENADE_DIR/functions"
# shellcheck source=/dev/null
source "$TOP_DIR/openrc" admin admin

TAIBAI_PLUGIN_DIR=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=devstack/settings
source "$TAIBAI_PLUGIN_DIR/settings"
# shellcheck source=devstack/lib/taibai
source "$TAIBAI_PLUGIN_DIR/lib/taibai"

set -o xtrace

# The project, and its user.
GRENADE_NAME=${TAIBAI_GRENADE_NAME:-taibai_grenade}
GRENADE_PASSWORD=pass

if ! is_service_enabled taibai-api; then
    echo "taibai-api is not enabled. Skipping resource phase $1 for taibai."
    exit 0
fi

# Whoever calls is the user of these resources from here on.
function as_grenade_user {
    export OS_PROJECT_NAME=$GRENADE_NAME OS_USERNAME=$GRENADE_NAME OS_PASSWORD=$GRENADE_PASSWORD
    unset OS_TENANT_NAME OS_PROJECT_ID OS_USER_ID OS_CLOUD
}

# expect WHAT FOUND WANTED
function expect {
    if [[ "$2" != "$3" ]]; then
        die $LINENO "$1: '$2', and it should be '$3'"
    fi
}

# function_client ARGUMENT...: `openstack function ARGUMENT...`.
function function_client {
    "$TAIBAI_CLIENT" function "$@"
}

# run_function ARGUMENT...: runs a function and prints what it returned.
function run_function {
    function_client execution create -f json "$@" | python3 -c '
import json, sys
execution = json.load(sys.stdin)
print(execution["status"], json.dumps(json.loads(execution["result"])["output"], sort_keys=True))
'
}

function create {
    local project user id directory
    project=$(openstack project create "$GRENADE_NAME" --domain default -f value -c id)
    resource_save taibai project_id "$project"
    user=$(openstack user create "$GRENADE_NAME" --project "$project" --domain default \
        --password "$GRENADE_PASSWORD" -f value -c id)
    resource_save taibai user_id "$user"
    openstack role add member --user "$user" --project "$project"

    as_grenade_user
    directory=$(mktemp -d)
    cat >"$directory/survivor.py" <<'END'
def main(context, name="nobody", **kwargs):
    return {"name": name, "project": context["os_session"].get_project_id()}
END
    id=$(function_client create --name survivor --runtime python3 --file "$directory/survivor.py" \
        --entry survivor.main -f value -c id)
    rm -r "$directory"
    resource_save taibai function_id "$id"
    expect "the function's first execution" "$(run_function --function "$id" --input '{"name": "base"}')" \
        "success {\"name\": \"base\", \"project\": \"$project\"}"
    id=$(function_client execution list --filter "function_id=$id" -f value -c Id)
    resource_save taibai execution_id "$id"
    id=$(resource_get taibai function_id)
    function_client version create "$id" --description "what there was before the upgrade"
    function_client alias create keep --function "$id" --function-version 1
}

# With the API: what there was is there, and works.
function verify {
    local id project
    as_grenade_user
    id=$(resource_get taibai function_id)
    project=$(resource_get taibai project_id)
    expect "the function's name" "$(function_client show "$id" -f value -c name)" survivor
    expect "the execution from before" \
        "$(function_client execution show "$(resource_get taibai execution_id)" -f value -c status)" success
    expect "the function" "$(run_function --function "$id" --input "{\"name\": \"$1\"}")" \
        "success {\"name\": \"$1\", \"project\": \"$project\"}"
    expect "the alias" "$(run_function --function-alias keep --input "{\"name\": \"$1\"}")" \
        "success {\"name\": \"$1\", \"project\": \"$project\"}"
    in_place
}

# Without the API: what lies beneath is in place.
function verify_noapi {
    if curl --silent --output /dev/null --noproxy '*' "http://$TAIBAI_SERVICE_HOST:$TAIBAI_SERVICE_PORT/"; then
        die $LINENO "the API still answers"
    fi
    in_place
}

# The rows in the database, the package on the disk.
function in_place {
    local id digest
    id=$(resource_get taibai function_id)
    digest=$(taibai_sql "SELECT package_digest FROM functions WHERE id = '$id'" "$TAIBAI_DATABASE")
    expect "the version's package" \
        "$(taibai_sql "SELECT package_digest FROM function_versions WHERE function_id = '$id'" "$TAIBAI_DATABASE")" "$digest"
    if [[ "$TAIBAI_STORAGE" == "local" ]]; then
        expect "the digest of the package on the disk" \
            "$(sudo sha256sum "$TAIBAI_DATA_DIR/packages/${digest:0:2}/$digest" | cut -d ' ' -f 1)" "$digest"
    fi
}

function destroy {
    local id
    (
        as_grenade_user
        id=$(resource_get taibai function_id)
        function_client alias delete keep
        function_client version delete "$id" 1
        function_client delete "$id"
    )
    openstack user delete "$(resource_get taibai user_id)"
    openstack project delete "$(resource_get taibai project_id)"
}

case $1 in
    create) create ;;
    verify) verify "$2" ;;
    verify_noapi) verify_noapi ;;
    destroy) destroy ;;
    force_destroy)
        set +o errexit
        destroy
        ;;
esac
