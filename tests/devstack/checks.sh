# shellcheck shell=bash
# shellcheck disable=SC2030,SC2031,SC2034,SC2153 # DevStack's variables are those of in_devstack; the sourcing script has others
# What the test of the DevStack plugin looks at. Sourced by tox-like-scripts/devstack, after lib.sh and service.sh.
#
# It says in DIRECTORY where it may write, in CLIENT where the published client is, in OPENSTACK what calls it, in
# REGION the region, and in DATABASE_URLS the servers.

DEVSTACK=$ROOT/tests/devstack/stack
GRENADE=$ROOT/tests/devstack/grenade

failed=

# expect NAME WHETHER...: tells how one check went.
expect() {
    local name=$1
    shift
    if "$@"; then
        say "ok: $name"
    else
        say "not ok: $name"
        failed=yes
    fi
}

same() {
    if [ "$1" = "$2" ]; then return; fi
    diff <(printf '%s\n' "$1") <(printf '%s\n' "$2") | head -n 20
    return 1
}

contains() {
    if [[ "$1" == *"$2"* ]]; then return; fi
    say "no '$2' in: $1"
    return 1
}

nothing() {
    if [ -z "$1" ]; then return; fi
    say "there is: $1"
    return 1
}

# --- running DevStack ----------------------------------------------------------------------------

# devstack LOG SCRIPT [ARGUMENT...]: runs one of DevStack's or Grenade's scripts upon $HARNESS.
devstack() {
    local log=$LOG_DIR/devstack-$1.log
    shift
    if ! "$@" >"$log" 2>&1 </dev/null; then
        tail -n 40 "$log" >&2
        say "all of its output is in $log"
        return 1
    fi
}

# No wrong call of a function of DevStack's was noticed.
no_complaints() { nothing "$(cat "$HARNESS/complaints" 2>/dev/null)"; }

# in_devstack COMMAND...: in the environment of a plugin.
in_devstack() {
    (
        # shellcheck disable=SC2034
        TOP_DIR=$DEVSTACK
        # shellcheck source=tests/devstack/stack/functions
        . "$DEVSTACK/functions"
        # shellcheck source=tests/devstack/stack/stackrc
        . "$DEVSTACK/stackrc"
        # shellcheck source=tests/devstack/stack/lib/apache
        . "$DEVSTACK/lib/apache"
        # shellcheck source=tests/devstack/stack/lib/database
        . "$DEVSTACK/lib/database"
        load_plugin_settings
        "$@"
    )
}

setting() { in_devstack eval "printf '%s\n' \"\$$1\""; }

# new_devstack NAME DATABASE [LINE...]: sets HARNESS to a directory for one DevStack, with these lines in its localrc.
new_devstack() {
    local server=${DATABASE_URLS[${2/mysql/mariadb}]}
    export HARNESS=$DIRECTORY/$1
    mkdir -p "$HARNESS/bin"
    ln -s "$OPENSTACK" "$HARNESS/bin/openstack"
    # MariaDB's newer packages have no `mysql`.
    command -v mysql >/dev/null || ln -s "$(command -v mariadb)" "$HARNESS/bin/mysql"
    (
        umask 077
        {
            cat <<END
DATABASE_TYPE=$2
DATABASE_HOST=127.0.0.1
DATABASE_PORT=${server##*:}
DATABASE_USER=taibai
DATABASE_PASSWORD=taibai
ADMIN_PASSWORD=$ADMIN_PASSWORD
DEMO_PASSWORD=$DEMO_PASSWORD
SERVICE_PASSWORD=$SERVICE_PASSWORD
SERVICE_HOST=controller
KEYSTONE_SERVICE_URI=$KEYSTONE
REGION_NAME=$REGION
APACHE_PORT=$(free_port)
TAIBAI_SERVICE_PORT=$(free_port)
TAIBAI_ENGINE_HEALTH_PORT=$(free_port)
TAIBAI_PROXY_URL=http://controller:\$APACHE_PORT/function-engine
TAIBAI_USER=$SERVICE_USER
TAIBAI_DATABASE=taibai_devstack
TAIBAI_BIN_DIR=\$DEST/bin
TAIBAI_CONF_DIR=\$DEST/etc/taibai
TAIBAI_RUN_DIR=/run/tbds-$$
TAIBAI_DEPLOYMENT=$DEPLOYMENT
TAIBAI_UID_BASE=$((1900000000 + PORT * 1024))
TAIBAI_BRIDGE=tbd$PORT
TAIBAI_SUBNET=10.$((100 + PORT / 256 % 100)).$((PORT % 256)).0/24
TAIBAI_IMAGE_PREFIX=$DEPLOYMENT
TAIBAI_POOL_SIZE=1
TAIBAI_GRENADE_NAME=$DEPLOYMENT
END
            shift 2
            printf '%s\n' "$@"
            printf 'enable_plugin taibai %s\n' "$ROOT"
        } >"$HARNESS/localrc"
    )
}

# --- what it can be told -------------------------------------------------------------------------------

# The variables of devstack/settings.
setting_names() { grep -oE '^ *TAIBAI_[A-Z_]+=' devstack/settings | tr -d ' =' | sort -u; }

# Writes down which of them this DevStack has other than they would be by themselves.
note_settings() {
    # The words in quotes are for the shell that has the settings.
    # shellcheck disable=SC2016
    in_devstack eval '
        for name in $(setting_names); do
            value=${!name}
            by_itself=$(unset "$name"; load_plugin_settings; printf "%s" "${!name}")
            if [ "$value" != "$by_itself" ]; then printf "%s\n" "$name"; fi
        done' >>"$DIRECTORY/told"
}

# Each of them was told something in some run whose effects were looked at.
check_settings_told() {
    expect "every variable of the settings had another value than its own somewhere" \
        nothing "$(setting_names | grep -vxF -f "$DIRECTORY/told")"
}

# What follows from those of which others are made.
check_settings() {
    say "==> settings"
    new_devstack settings mysql TAIBAI_PROXY_URL= TAIBAI_SERVICE_PROTOCOL=https TAIBAI_SERVICE_HOST=cloud.example.org \
        TAIBAI_PROXY_PATH=/functions TAIBAI_SERVICE_PORT=7777
    expect "the address of the path follows from protocol, host and path" same \
        "$(setting TAIBAI_PROXY_URL)" https://cloud.example.org/functions
    expect "the catalog names it" same "$(setting TAIBAI_ENDPOINT_URL)" https://cloud.example.org/functions
    expect "the address of the port follows from host and port" same "$(setting TAIBAI_PORT_URL)" http://cloud.example.org:7777
    note_settings
    HARNESS=
}

# What the plugin would install where there is no Docker engine. Here there is one, which it does not see until then.
check_docker_package() {
    local tools=$DIRECTORY/without-docker
    new_devstack package mysql
    mkdir -p "$tools"
    ln -sf /usr/bin/* /usr/sbin/* "$tools"
    rm -f "$tools/docker"
    # asked [NAME=VALUE]: the packages that are asked for.
    asked() {
        # shellcheck disable=SC2016
        in_devstack eval '
            . "'"$ROOT"'/devstack/lib/taibai"
            tools="'"$tools"'" whole=$PATH
            function install_package { printf "%s\n" "$@" >&3; PATH=$whole; hash -r; }
            PATH=$tools
            '"${1:-}"'
            install_taibai_docker' 3>&1 >/dev/null 2>&1
    }
    expect "without a Docker engine the distribution's is installed" same "$(asked)" docker.io
    expect "or the package that was named" same "$(asked TAIBAI_DOCKER_PACKAGE=docker-of-ours)" docker-of-ours
    printf 'TAIBAI_DOCKER_PACKAGE=docker-of-ours\n' >>"$HARNESS/localrc"
    note_settings
    HARNESS=
}

# --- what the plugin says ------------------------------------------------------------------------

# refuses NAME TEXT [NAME=VALUE...]: the first phase ends with a text, and nothing was installed.
refuses() {
    local name=$1 text=$2 said
    shift 2
    rm -f "$HARNESS/installed"
    if said=$(env HARNESS_BARE=yes "$@" "$DEVSTACK/stack.sh" pre-install 2>&1); then
        expect "$name" false
    else
        # Without the trace.
        said=$(grep -v '^+' <<<"$said")
        expect "$name" contains "$said" "$text"
    fi
    expect "$name, before anything is installed" test ! -e "$HARNESS/installed"
}

check_messages() {
    local wanted tools=$DIRECTORY/tools home=$DIRECTORY/home
    say "==> without what a build needs"
    wanted=$(sed -nE 's/^rust-version = "(.*)"$/\1/p' Cargo.toml)
    new_devstack messages mysql
    mkdir -p "$tools" "$home"
    ln -sf /usr/bin/* /usr/sbin/* "$tools"
    ln -sf /bin/* "$tools" 2>/dev/null || true
    rm -f "$tools/cargo" "$tools/rustc" "$tools/rustup"
    refuses "without Rust the message says which is needed" "Taibai needs Rust $wanted or later" PATH="$tools" HOME="$home"
    refuses "and how to install it" "--default-toolchain $wanted" PATH="$tools" HOME="$home"
    refuses "and how to do without" "set TAIBAI_BINARY in local.conf" PATH="$tools" HOME="$home"
    printf '#!/bin/sh\necho "rustc 1.63.0"\n' >"$tools/rustc"
    cp "$tools/rustc" "$tools/cargo"
    chmod +x "$tools/rustc" "$tools/cargo"
    refuses "a Rust that is too old is named" "needs Rust $wanted or later to be built, and this is 1.63.0" \
        PATH="$tools" HOME="$home"
    refuses "and how to install a newer one" "--default-toolchain $wanted" PATH="$tools" HOME="$home"
    refuses "a TAIBAI_BINARY that is not there is named" "/nowhere/taibai is not there" TAIBAI_BINARY=/nowhere/taibai
    refuses "and so is a supervisor that is not beside it" "$home/taibai-supervisor is not there" \
        TAIBAI_BINARY="$(install -m 755 /dev/null "$home/taibai" && printf '%s' "$home/taibai")"
    expect "the plugin calls nothing that DevStack has not" no_complaints
    HARNESS=
}

# complains NAME COMMAND...: the harness refuses a call.
complains() {
    local name=$1
    shift
    rm -f "$HARNESS/complaints"
    in_devstack eval "x=\$($*)" >/dev/null 2>&1 || true
    expect "the harness refuses $name" test -s "$HARNESS/complaints"
    rm -f "$HARNESS/complaints"
}

# That the harness can fail.
check_harness() {
    say "==> the harness itself"
    new_devstack harness mysql
    complains "a function that DevStack has not" get_or_create_everything taibai
    complains "too few arguments" get_or_create_service taibai function-engine
    complains "too many arguments" recreate_database taibai utf8
    complains "an empty argument" "get_or_create_endpoint '' '$REGION' http://controller"
    complains "a value where a name of a variable belongs" "trueorfalse True 'a b'"
    complains "a unit without an absolute path" run_process taibai-api taibai
    complains "a unit with shell syntax" "run_process taibai-api '/bin/sleep 1 >/dev/null'"
    complains "a module that Apache has not" enable_apache_mod functions
    HARNESS=
}

# --- what Apache tells the service ---------------------------------------------------------------

# The snippet alone, in front of a server that answers with the headers it was sent.
check_snippet() {
    local answer port echo_port echo_pid claims
    say "==> Apache in front"
    new_devstack snippet mysql
    port=$(setting APACHE_PORT)
    python3 -c '
import http.server, json, sys
class Echo(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"path": self.path, **{k.lower(): v for k, v in self.headers.items()}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
server = http.server.HTTPServer(("127.0.0.1", 0), Echo)
print(server.server_port, flush=True)
server.serve_forever()
' >"$HARNESS/echo" &
    echo_pid=$!
    until [ -s "$HARNESS/echo" ]; do sleep 0.1; done
    echo_port=$(cat "$HARNESS/echo")

    # serve ACTION: what the snippet does with the headers of clients.
    serve() {
        in_devstack eval "
            [ -d '$HARNESS/apache' ] || _make_apache
            for module in proxy proxy_http headers; do enable_apache_mod \$module norestart; done
            sed -e 's|^Define TAIBAI_URL .*|Define TAIBAI_URL http://127.0.0.1:$echo_port|' \
                -e 's|^Define TAIBAI_FORWARDED .*|Define TAIBAI_FORWARDED $1|' \
                '$ROOT/etc/apache2/function-engine.conf' >\"\$(apache_site_config_for taibai)\"
            enable_apache_site taibai
            restart_apache_server" >"$LOG_DIR/devstack-snippet.log" 2>&1
    }
    # told CURL-ARGUMENT...: the path and the headers that arrive, on one line.
    told() {
        answer=$(curl --silent --noproxy '*' "$@" | python3 -c '
import json, sys
told = json.load(sys.stdin)
print(told["path"], *(told.get(f"x-forwarded-{name}", "-") for name in ("proto", "host", "for", "prefix")),
      *("forwarded" for name in told if name == "forwarded"))')
    }
    claims=(--header 'X-Forwarded-Proto: https' --header 'X-Forwarded-Host: cloud.example.org'
        --header 'X-Forwarded-For: 192.0.2.1' --header 'X-Forwarded-Prefix: /elsewhere' --header 'Forwarded: host=x')
    serve set
    told "http://127.0.0.1:$port/function-engine/v1/functions?limit=1" --header 'Host: cloud.example.org'
    expect "the path arrives without its prefix, with the headers that say what it was" \
        same "$answer" "/v1/functions?limit=1 http cloud.example.org 127.0.0.1 /function-engine"
    told "http://127.0.0.1:$port/function-engine"
    expect "the prefix alone is the service's root" \
        same "$answer" "/ http 127.0.0.1:$port 127.0.0.1 /function-engine"
    told "http://127.0.0.1:$port/function-engine/" "${claims[@]}"
    expect "what a client claims is not believed" \
        same "$answer" "/ http 127.0.0.1:$port 127.0.0.1 /function-engine"
    serve setifempty
    told "http://127.0.0.1:$port/function-engine/" "${claims[@]}"
    expect "behind another proxy its words stay; the prefix is Apache's own" \
        same "$answer" "/ https cloud.example.org 192.0.2.1 /function-engine"
    expect "a path that only begins alike is not served" same \
        "$(curl --silent --noproxy '*' --output /dev/null --write-out '%{http_code}' "http://127.0.0.1:$port/function-engines")" 404
    in_devstack _stop_apache
    HARNESS=
    kill "$echo_pid"
    wait "$echo_pid" 2>/dev/null || true
}

# --- the client ------------------------------------------------------------------------------------

CLIENT_PID=

# Has the plugin install its client, beside what else goes on. To be followed by check_client.
install_client() {
    new_devstack client mysql "TAIBAI_CLIENT_DIR=$DIRECTORY/client-of-ours"
    in_devstack eval "set -e; . '$ROOT/devstack/lib/taibai'; install_taibai_client; install_taibai_client" \
        >"$LOG_DIR/devstack-client.log" 2>&1 &
    CLIENT_PID=$!
}

check_client() {
    say "==> the client of the plugin's own"
    expect "the plugin installs the client" wait "$CLIENT_PID"
    CLIENT_PID=
    export HARNESS=$DIRECTORY/client
    expect "where it was told to" test -x "$DIRECTORY/client-of-ours/bin/openstack"
    note_settings
    expect "which has the commands of functions" contains \
        "$("$(setting TAIBAI_CLIENT)" function execution create --help 2>&1)" "--function"
    HARNESS=
}

# --- what there is -------------------------------------------------------------------------------

in_keystone() { SERVICE_TYPES=function-engine,$DEPLOYMENT "$CLIENT/bin/python" "$ROOT/tests/devstack/keystone.py" devstack-admin "$1" "$REGION" "${@:2}"; }

# ask METHOD URL: the status of the answer to the demo user.
status_of() {
    curl --silent --noproxy '*' --output /dev/null --write-out '%{http_code}' --max-time 60 \
        --header "X-Auth-Token: $TOKEN" "$1"
}

# function_command ARGUMENT...: the published client, as the demo user, through the catalog.
as_demo() { "$OPENSTACK" --os-cloud devstack "$@"; }

# runs INPUT: what the function of the demo user returns.
runs() {
    as_demo function execution create --function who --input "{\"name\": \"$1\"}" -f json |
        python3 -c '
import json, sys
execution = json.load(sys.stdin)
print(execution["status"], json.dumps(json.loads(execution["result"])["output"]))'
}

rows() {
    local table
    case $DATABASE_TYPE in
    mysql) _sql "" "SELECT table_name FROM information_schema.tables WHERE table_schema = '$TAIBAI_DATABASE'" ;;
    postgresql) _sql "$TAIBAI_DATABASE" "SELECT tablename FROM pg_tables WHERE schemaname = 'public'" ;;
    esac | sort | while read -r table; do
        # Engines say in theirs, every few seconds, that they live.
        if [ "$table" = engines ]; then continue; fi
        printf '%s:\n' "$table"
        _sql "$TAIBAI_DATABASE" "SELECT * FROM $table" | sort
    done
}

# The containers that hold functions and pools.
containers() {
    as_root docker ps --quiet --no-trunc --filter "label=org.openstack.taibai.deployment=$DEPLOYMENT" | sort
}

# The workers that hold the function of the demo user.
workers() {
    "$OPENSTACK" --os-cloud devstack-admin function worker list \
        "$(as_demo function show who -f value -c id)" -f value -c Worker_name | sort
}

# All that a second stack.sh must leave as it is.
snapshot() {
    in_keystone show "$SERVICE_USER"
    as_demo runtime list -f json
    as_root find "$DEST/etc" "$APACHE_DIR/sites-available" "$APACHE_DIR/sites-enabled" "$APACHE_DIR/mods-enabled" \
        -printf '%p %m %u %l\n' | sort
    as_root find "$DEST/etc" "$DEST/bin" "$APACHE_DIR/sites-available" -type f -exec sha256sum {} + | sort
    as_root find "$TAIBAI_DATA_DIR/packages" -type f | sort
    rows
    containers
}

# What is left on the machine, one line for each thing.
remains() {
    local file
    for file in /proc/[0-9]*/cmdline; do
        if { tr '\0' ' ' <"$file"; } 2>/dev/null | grep -q -e "$TAIBAI_CONF"; then printf 'process %s\n' "$file"; fi
    done
    as_root docker ps --all --quiet --filter "label=org.openstack.taibai.deployment=$DEPLOYMENT" | sed 's/^/container /'
    as_root docker network ls --filter "name=$DEPLOYMENT" --format '{{.Name}}' | sed 's/^/network /'
    as_root nft list tables | grep -e "$DEPLOYMENT" || true
    ip link show "$TAIBAI_BRIDGE" 2>/dev/null || true
    find /sys/fs/cgroup -type d -path "*/taibai/$DEPLOYMENT" 2>/dev/null || true
    awk -v at="$HARNESS/" 'index($5, at) == 1 { print "mount", $5 }' /proc/self/mountinfo
    for file in "$TAIBAI_RUN_DIR" "$TAIBAI_DATA_DIR/work" "$TAIBAI_DATA_DIR/packages"; do
        if as_root test -e "$file"; then printf 'directory %s\n' "$file"; fi
    done
    find "$APACHE_DIR" -name '*taibai*' -o -name "$TAIBAI_APACHE_SITE.conf"
    "$OPENSTACK" --os-cloud devstack-service container list -f value -c Name | grep -x -e "$TAIBAI_SWIFT_CONTAINER" || true
    case $DATABASE_TYPE in
    mysql) _sql "" "SELECT schema_name FROM information_schema.schemata" ;;
    postgresql) _sql "" "SELECT datname FROM pg_database" ;;
    esac | grep -x -e "$TAIBAI_DATABASE" || true
    find "$SYSTEMD_DIR" -name '*.enabled' -o -name '*.pid'
}

# What clean.sh takes beyond that.
remains_after_clean() {
    remains
    find "$DEST/bin" "$DEST/etc" "$DATA_DIR" "$TAIBAI_DATA_DIR" -name '*taibai*' 2>/dev/null || true
    find "$SYSTEMD_DIR" -name 'devstack@taibai*' 2>/dev/null || true
    as_root docker images --quiet --filter "reference=$DEPLOYMENT/*" | sed 's/^/image /'
}

# --- a whole DevStack ----------------------------------------------------------------------------

# tag_images NAME...: the images that the plugin would build under this test's names: the same ones, so it finds them
# up to date.
tag_images() {
    local image version
    version=$(sed -nE '/^\[workspace\.package\]/,/^\[/ s/^version = "(.*)"$/\1/p' Cargo.toml)
    for image; do
        as_root docker tag "${TAIBAI_IMAGE_PREFIX:-taibai}/$image:latest" "$DEPLOYMENT/$image:$version"
        as_root docker tag "${TAIBAI_IMAGE_PREFIX:-taibai}/$image:latest" "$DEPLOYMENT/$image:latest"
    done
}

# What the plugin has made where there was neither an engine nor an image. They are the test's own from here on.
check_bare() {
    expect "the plugin installs the Docker engine" contains "$(cat "$HARNESS/installed")" "install_package docker.io"
    expect "and builds the images of runtimes" same \
        "$(as_root docker images --format '{{.Repository}}' "$DEPLOYMENT/*" | grep -v /base- | sort -u)" \
        "$(printf "$DEPLOYMENT/%s\n" nodejs python3 shell)"
    for image in python3 nodejs shell; do
        as_root docker tag "$DEPLOYMENT/$image:latest" "${TAIBAI_IMAGE_PREFIX:-taibai}/$image:latest"
    done
    BARE=
}

# The commands of the plugin's own page, as they stand there, but for where the client is.
readme() {
    local text
    text=$(sed -n '/^\.\. code-block:: console$/,/^[^ .]/p' devstack/README.rst | sed -nE 's/^   (\$ )?//p')
    [[ "$text" == *'function execution create'* ]] || return 1
    text=${text//"/opt/stack/data/taibai/client/bin/openstack"/"$OPENSTACK"}
    mkdir "$HARNESS/readme"
    ln -s "$DEVSTACK/openrc" "$DEVSTACK/stackrc" "$HARNESS/readme/"
    # What the login is made of calls a function of DevStack's here.
    (cd "$HARNESS/readme" && bash -eo pipefail -c ". '$DEVSTACK/functions'
$text") && as_demo function delete hello
}

# check_devstack DATABASE ENDPOINT [LINE...]: every phase upon one kind of database, with the catalog naming the
# port or the path.
check_devstack() {
    local database=$1 endpoint=$2 first other url known user
    shift 2
    say "==> DevStack with $database, the catalog naming the $endpoint"
    new_devstack "$database" "$database" "$@"
    if [ -z "$BARE" ]; then tag_images python3 nodejs shell; fi
    if ! devstack "$database-stack" "$DEVSTACK/stack.sh"; then
        expect "$database: stack.sh" false
        unstack
        return
    fi
    expect "$database: stack.sh runs every phase" no_complaints
    if [ -n "$BARE" ]; then check_bare; fi
    note_settings
    case $endpoint in
    port) url=http://controller:$(setting TAIBAI_SERVICE_PORT) other=$(setting TAIBAI_PROXY_URL) ;;
    path) url=$(setting TAIBAI_PROXY_URL) other=http://controller:$(setting TAIBAI_SERVICE_PORT) ;;
    esac

    known=$(in_keystone show "$SERVICE_USER")
    expect "$database: the catalog has the service, at the $endpoint" same \
        "$(python3 -c '
import json, sys
known = json.load(sys.stdin)
print(*sorted({service[2] for service in known["services"]}), *sorted(end[1] for end in known["endpoints"]),
      *{end[2] for end in known["endpoints"]}, *(role[0] for role in known["roles"]))' <<<"$known")" \
        "function-engine admin internal public $url service"
    expect "$database: the configuration is its owner's alone" same \
        "$(stat --format %a "$(setting TAIBAI_CONF)")" 600
    expect "$database: and valid" as_root "$(setting TAIBAI_BIN_DIR)/taibai" config check --config-file "$(setting TAIBAI_CONF)"
    expect "$database: the runtimes are available" same \
        "$(as_demo runtime list -f value -c Name -c Status | sort)" \
        "$(printf '%s available\n' nodejs python3 shell)"

    expect "$database: Tempest knows the service" contains "$(cat "$HARNESS/tempest.conf")" "catalog_type = function-engine"

    # It asks Keystone from within, so the network of workers lets it reach the catalog's endpoints.
    cat >"$HARNESS/who.py" <<'END'
def main(context, name="nobody", **kwargs):
    session = context["os_session"]
    catalog = session.get("/auth/catalog", endpoint_filter={"service_type": "identity", "interface": "public"}).json()
    return [name, session.get_project_id(), sorted({entry["type"] for entry in catalog["catalog"]})[0]]
END
    user=$(as_demo token issue -f value -c project_id)
    expect "$database: the client creates a function through the catalog" same \
        "$(as_demo function create --name who --runtime python3 --file "$HARNESS/who.py" --entry who.main -f value -c name)" who
    expect "$database: and runs it, and the function reaches Keystone" \
        same "$(runs one)" "success [\"one\", \"$user\", \"function-engine\"]"
    TOKEN=$(as_demo token issue -f value -c id)
    expect "$database: the other address serves it too" same "$(status_of "$other/v1/functions")" 200

    if grep -q enable_proxy_headers_parsing "$(setting TAIBAI_CONF)"; then
        expect "$database: links keep the path that the caller used" contains \
            "$(curl --silent --noproxy '*' "$(setting TAIBAI_PROXY_URL)/")" "\"href\":\"$(setting TAIBAI_PROXY_URL)/v1"
    fi

    if [ "$(in_devstack eval 'trueorfalse False TAIBAI_ALLOW_OUTSIDE')" = True ]; then
        expect "$database: what was allowed beside the catalog is in the rules" contains \
            "$(as_root nft list table inet "taibai-$DEPLOYMENT")" 192.0.2.7
        expect "$database: and so are the name servers" contains \
            "$(as_root nft list table inet "taibai-$DEPLOYMENT")" 192.0.2.53
    fi
    expect "$database: the commands of the plugin's page" contains "$(readme 2>&1)" "Hello, World"

    first=$(in_devstack snapshot)
    expect "$database: stack.sh again" devstack "$database-stack-again" "$DEVSTACK/stack.sh"
    expect "$database: changes nothing" same "$(in_devstack snapshot)" "$first"
    expect "$database: nor has it made the database twice" same "$(wc -l <"$HARNESS/recreated")" 1
    expect "$database: the function runs" same "$(runs two)" "success [\"two\", \"$user\", \"function-engine\"]"
    expect "$database: no call was wrong" no_complaints

    first=$(workers)
    expect "$database: Grenade's resources survive an upgrade" devstack "$database-grenade" "$GRENADE/grenade.sh"
    expect "$database: and what there was before" same "$(runs three)" "success [\"three\", \"$user\", \"function-engine\"]"
    expect "$database: Grenade knows the plugin of both sides" same "$(cat "$HARNESS"/save/localrc.*)" \
        "$(printf "enable_plugin taibai $ROOT %s\n" master master)"
    expect "$database: on the same worker" same "$(workers)" "$first"
    expect "$database: no call of Grenade's was wrong" no_complaints
    unstack "$database"
}

# A DevStack that was told everything else, in a few checks: packages in Swift, no Apache, no network of functions, one
# runtime, a database that begins anew, other names, places and addresses.
check_other_ways() {
    local port token execution
    say "==> DevStack, told all that it can be told"
    # These are for the file that DevStack reads.
    # shellcheck disable=SC2016
    new_devstack other mysql "$@" TAIBAI_STORAGE=swift "TAIBAI_SWIFT_CONTAINER=$DEPLOYMENT" TAIBAI_USE_PROXY=False \
        TAIBAI_NETWORK_MODE=none TAIBAI_RECREATE_DB=True TAIBAI_RUNTIMES=python TAIBAI_RUNTIME_TIMEOUT=120 \
        TAIBAI_MAX_WORKERS=4 TAIBAI_SERVICE_NAME=functions "TAIBAI_SERVICE_TYPE=$DEPLOYMENT" \
        TAIBAI_SERVICE_HOST=127.0.0.1 TAIBAI_SERVICE_LISTEN_ADDRESS=127.0.0.1 \
        'TAIBAI_PORT_URL=http://localhost:$TAIBAI_SERVICE_PORT' 'TAIBAI_DATA_DIR=$DEST/functions' \
        'TAIBAI_CONF=$DEST/etc/taibai/functions.conf' 'TAIBAI_DIR=$HARNESS/tree'
    ln -s "$ROOT" "$HARNESS/tree"
    tag_images python3
    if ! devstack other-stack "$DEVSTACK/stack.sh"; then
        expect "other: stack.sh" false
        unstack
        return
    fi
    expect "other: stack.sh runs every phase" no_complaints
    note_settings
    port=$(setting TAIBAI_SERVICE_PORT)
    TAIBAI_URL=http://127.0.0.1:$port
    token="X-Auth-Token: $(as_demo token issue -f value -c id)"

    expect "other: the catalog has the service under its name and type, at the port; its user may use Swift" same \
        "$(in_keystone show "$SERVICE_USER" | python3 -c '
import json, sys
known = json.load(sys.stdin)
print(*(word for service in known["services"] for word in service[1:]), *{end[2] for end in known["endpoints"]},
      *(role[0] for role in known["roles"]))')" \
        "functions $DEPLOYMENT http://localhost:$port member service"
    expect "other: it listens where it was told to" same \
        "$(as_root ss --no-header --listening --tcp --numeric "sport = :$port" | awk '{ print $4 }')" "127.0.0.1:$port"
    expect "other: Apache has no site" nothing "$(find "$HARNESS/apache/sites-enabled" -name '*.conf')"
    expect "other: nor are its headers believed" nothing "$(grep enable_proxy_headers_parsing "$(setting TAIBAI_CONF)")"
    expect "other: the configuration is where it was told to be, and valid" \
        as_root "$(setting TAIBAI_BIN_DIR)/taibai" config check --config-file "$HARNESS/dest/etc/taibai/functions.conf"
    expect "other: workers are as many as it was told" grep -qx 'max_workers = 4' "$(setting TAIBAI_CONF)"
    call GET /v1/runtimes --header "$token"
    expect "other: there is one runtime" same "$(field runtimes.0.status) $(wc -w <<<"$(names runtimes)") $(names runtimes)" \
        "available 1 python3"
    RUNTIME=$(field runtimes.0.id)

    mkdir "$HARNESS/package"
    printf 'import os\n\n\ndef main(**kwargs):\n    return sorted(os.listdir("/sys/class/net"))\n' >"$HARNESS/package/main.py"
    (cd "$HARNESS/package" && python3 -m zipfile -c ../networks.zip main.py)
    call POST /v1/functions --header "$token" --form name=networks --form "runtime_id=$RUNTIME" \
        --form 'code={"source": "package"}' --form "package=@$HARNESS/networks.zip"
    execution="{\"function_id\": \"$(field id)\"}"
    call POST /v1/executions --header "$token" --header 'Content-Type: application/json' --data "$execution"
    expect "other: a function runs, and has no network" same "$(field status) $(field result.output)" 'success ["lo"]'
    expect "other: nor is there one" nothing "$(as_root docker network ls --quiet --filter "name=taibai-$DEPLOYMENT")"
    expect "other: its package is in Swift" same "$(objects | wc -l)" 1
    expect "other: and not on the disk" nothing "$(as_root find "$(setting TAIBAI_DATA_DIR)/packages" -type f)"

    expect "other: stack.sh again" devstack other-stack-again "$DEVSTACK/stack.sh"
    expect "other: makes the database twice" same "$(wc -l <"$HARNESS/recreated")" 2
    call GET /v1/functions --header "$token"
    expect "other: and begins without functions" same "$(names functions)" ''
    expect "other: and without packages" nothing "$(objects)"
    call POST /v1/functions --header "$token" --form name=networks --form "runtime_id=$(runtime_id)" \
        --form 'code={"source": "package"}' --form "package=@$HARNESS/networks.zip"
    expect "other: but for new ones" same "$(objects | wc -l)" 1
    unstack other
}

# names LIST: those in the ANSWER.
names() {
    python3 -c '
import json, sys
print(*(row["name"] for row in json.load(sys.stdin)[sys.argv[1]]))' "$1" <<<"$ANSWER"
}

runtime_id() {
    call GET /v1/runtimes --header "$token"
    field runtimes.0.id
}

# The objects of packages.
objects() {
    "$OPENSTACK" --os-cloud devstack-service object list "$(setting TAIBAI_SWIFT_CONTAINER)" -f value -c Name 2>/dev/null || true
}

# What the services said outlives them.
keep_logs() {
    local file
    for file in "$HARNESS"/units/*.log; do
        if [ -e "$file" ]; then cp "$file" "$LOG_DIR/devstack-${HARNESS##*/}-$(basename "$file" .service.log).log"; fi
    done
}

# unstack [DATABASE]: takes $HARNESS down, which is empty then; of what has come up it looks at all that may stay.
unstack() {
    local database=${1:-}
    keep_logs
    if [ -n "$database" ]; then
        expect "$database: unstack.sh" devstack "$database-unstack" "$DEVSTACK/unstack.sh"
        expect "$database: leaves nothing on the machine" nothing "$(in_devstack remains)"
        expect "$database: nor in Keystone" same "$(in_keystone show "$SERVICE_USER" | tr -d ' \n')" \
            '{"endpoints":[],"roles":[],"services":[],"users":[]}'
        expect "$database: clean.sh" devstack "$database-clean" "$DEVSTACK/clean.sh"
        expect "$database: leaves nothing at all" nothing "$(in_devstack remains_after_clean)"
        expect "$database: no call was wrong on the way down" no_complaints
    else
        "$DEVSTACK/clean.sh" >"$LOG_DIR/devstack-down.log" 2>&1 || true
    fi
    in_devstack _stop_apache
    HARNESS=
}
