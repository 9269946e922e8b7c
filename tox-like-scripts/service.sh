# shellcheck shell=bash
# The Docker engine and the service: starting, asking and stopping them, and seeing to it that nothing
# is left. Sourced after lib.sh.

# --- the Docker engine --------------------------------------------------------------------------

DOCKERD_PID=
DOCKER_WAS_MOUNTED=
DOCKERD_PID_FILE=/run/taibai-dockerd.pid
DOCKERD_LOG=/var/log/taibai-dockerd.log

docker_answers() { as_root docker version >/dev/null 2>&1; }

# Installs the engine where there is none, and starts it where nobody else does.
ensure_docker() {
    ensure_root
    ensure_packages "${PROFILES[@]}"
    if command -v docker >/dev/null && docker_answers; then return; fi
    ensure_packages "${ENGINE[@]}"
    # Debian 13 has the client in a package of its own.
    ensure_packages docker=docker-cli
    if docker_answers; then return; fi
    if [ -d /run/systemd/system ]; then
        step "starting the Docker engine" as_root systemctl start docker
    else
        start_dockerd
    fi
    docker_answers || die "the Docker engine does not answer; 'docker version' tells more"
}

# Starts the engine itself, apart from this terminal, and remembers that it did.
start_dockerd() {
    local waited=0
    say "==> starting the Docker engine (its log is $DOCKERD_LOG)"
    ensure_cgroups
    forget_dead dockerd /var/run/docker.pid
    forget_dead containerd /var/run/docker/containerd/containerd.pid
    DOCKER_WAS_MOUNTED=$(grep -E ' /(var/lib|run)/docker[ /]' /proc/self/mounts || true)
    # shellcheck disable=SC2016
    as_root setsid bash -c 'echo $$ >"$1"; exec dockerd >"$2" 2>&1 </dev/null' dockerd "$DOCKERD_PID_FILE" "$DOCKERD_LOG" &
    until docker_answers; do
        waited=$((waited + 1))
        if [ -s "$DOCKERD_PID_FILE" ] && ! alive "$(cat "$DOCKERD_PID_FILE")" || [ "$waited" -gt 120 ]; then
            as_root tail -n 20 "$DOCKERD_LOG" >&2
            die "the Docker engine did not start; all it says is in $DOCKERD_LOG"
        fi
        sleep 0.5
    done
    DOCKERD_PID=$(cat "$DOCKERD_PID_FILE")
}

# forget_dead NAME FILE: removes the record of a process that did not end in good order, and whose number
# may be another's by now: the engine would refuse to start beside it.
forget_dead() {
    local pid
    pid=$(as_root cat "$2" 2>/dev/null) || return 0
    if ! alive "$pid" || [ "$(cat "/proc/$pid/comm" 2>/dev/null)" != "$1" ]; then as_root rm -f "$2"; fi
}

# A machine without a service manager may have none mounted.
ensure_cgroups() {
    if ! grep -qE '^[^ ]+ [^ ]+ cgroup2? ' /proc/mounts; then
        as_root mount -t cgroup2 cgroup2 /sys/fs/cgroup
    fi
}

# Stops the engine if this script started it and nobody's container runs on it.
stop_docker() {
    if [ -z "$DOCKERD_PID" ]; then return; fi
    if [ -n "$(as_root docker ps -q)" ]; then
        say "the Docker engine goes on: other containers run on it"
        return
    fi
    stop_process "$DOCKERD_PID" 30 || return 1
    # What the engine itself leaves.
    as_root rm -f "$DOCKERD_PID_FILE"
    # Where only root may look.
    as_root find /run/docker/containerd -name '*.sock*' -type s -delete 2>/dev/null || true
    local left
    for left in /var/lib/docker /run/docker/netns/default; do
        if ! grep -q " $left " <<<"$DOCKER_WAS_MOUNTED" && grep -q " $left " /proc/self/mounts; then
            as_root umount "$left"
        fi
    done
    DOCKERD_PID=
}

# --- processes ----------------------------------------------------------------------------------

# Whether a process runs; one that ended and was not waited for does not.
alive() {
    [ -n "${1:-}" ] && [ -r "/proc/$1/status" ] && ! grep -qs '^State:.Z' "/proc/$1/status"
}

# kill_as_root SIGNAL PID: with the shell's own `kill`, since a bare system has no other.
kill_as_root() {
    # shellcheck disable=SC2016
    as_root bash -c 'kill -"$1" "$2"' kill "$1" "$2" 2>/dev/null || true
}

# stop_process PID SECONDS: asks it to end, and makes it where it does not. Fails where it had to.
stop_process() {
    local pid=$1 until=$((SECONDS + $2))
    # Said, since in a trap it would be the status of what came before.
    if ! alive "$pid"; then return 0; fi
    kill_as_root TERM "$pid"
    while alive "$pid"; do
        if [ "$SECONDS" -ge "$until" ]; then
            kill_as_root KILL "$pid"
            return 1
        fi
        sleep 0.1
    done
}

# --- the service --------------------------------------------------------------------------------

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

port_is_taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# describe_service STATE PORT DEPLOYMENT [LINES]: says where a service keeps what, and writes its
# configuration. STATE is a directory; LINES are added to the file. AUTH_STRATEGY says how callers are known.
describe_service() {
    STATE=$1 PORT=$2 DEPLOYMENT=$3
    TAIBAI_URL=http://127.0.0.1:$PORT
    SERVICE_LOG=$STATE/taibai.log
    PID_FILE=$STATE/taibai.pid
    WORKER_DIR=/run/taibai
    WORK_DIR=$STATE/work
    mkdir -p "$STATE/packages"
    # Deployments that run at once need users of their own, so their range goes by the port: 1024 to
    # each, far from where systems and containers take theirs.
    cat >"$STATE/taibai.conf" <<EOF
[api]
host = 127.0.0.1
port = $PORT
auth_strategy = ${AUTH_STRATEGY:-noauth}
shutdown_timeout = 20s

[database]
connection = sqlite:///$STATE/taibai.sqlite

[storage]
file_system_dir = $STATE/packages

[docker]
deployment = $DEPLOYMENT
worker_dir = $WORKER_DIR
work_dir = $WORK_DIR
supervisor = $(supervisor_path)
uid_base = $((1900000000 + PORT * 1024))
${4:-}
EOF
}

# start_service PROGRAM: starts what describe_service described, in a session of its own, so that Ctrl-C
# reaches this script alone.
start_service() {
    local program=$1 waited=0
    rm -f "$PID_FILE"
    # The program is known by the number it writes itself: sudo's would be another.
    # shellcheck disable=SC2016
    as_root setsid bash -c 'echo $$ >"$1"; exec "$2" serve --config-file "$3" >>"$4" 2>&1 </dev/null' \
        serve "$PID_FILE" "$program" "$STATE/taibai.conf" "$SERVICE_LOG" &
    until curl --silent --output /dev/null --fail --max-time 2 "$TAIBAI_URL/healthcheck"; do
        waited=$((waited + 1))
        if [ "$waited" -gt 300 ] || { [ "$waited" -gt 10 ] && ! alive "$(cat "$PID_FILE" 2>/dev/null)"; }; then
            tail -n 20 "$SERVICE_LOG" >&2
            die "taibai serve did not start; all it says is in $SERVICE_LOG"
        fi
        sleep 0.1
    done
}

service_runs() { alive "$(cat "$PID_FILE" 2>/dev/null)"; }

stop_service() {
    local status=0
    if [ -s "${PID_FILE:-}" ]; then
        stop_process "$(cat "$PID_FILE")" 30 || status=1
        as_root rm -f "$PID_FILE"
        [ "$status" = 0 ] || warn "taibai serve did not end within 30 s and was killed; its log is $SERVICE_LOG"
    fi
    return "$status"
}

deployment_containers() {
    as_root docker ps --all --quiet --filter "label=org.openstack.taibai.deployment=$DEPLOYMENT"
}

deployment_mounts() { awk -v at="$WORK_DIR/$DEPLOYMENT/" 'index($5, at) == 1 { print $5 }' /proc/self/mountinfo; }

deployment_cgroups() {
    local mount
    awk '$3 == "cgroup" || $3 == "cgroup2" { print $2 }' /proc/mounts | while read -r mount; do
        if [ -d "$mount/taibai/$DEPLOYMENT" ]; then printf '%s\n' "$mount/taibai/$DEPLOYMENT"; fi
    done
}

# Removes what a stopped service leaves for its next start, which adopts workers: here there is none.
sweep() {
    local left
    left=$(deployment_containers)
    if [ -n "$left" ]; then
        # shellcheck disable=SC2086
        as_root docker rm --force --volumes $left >/dev/null || true
    fi
    # Only a service that gave functions a network has one, and rules.
    if as_root docker network rm "taibai-$DEPLOYMENT" >/dev/null 2>&1; then
        as_root nft delete table inet "taibai-$DEPLOYMENT" || true
        as_root nft delete table bridge "taibai-$DEPLOYMENT" 2>/dev/null || true
    fi
    deployment_mounts | sort -r | while read -r left; do as_root umount --lazy "$left" || true; done
    deployment_cgroups | while read -r left; do
        # A group whose last process has just ended is busy for a moment.
        for _ in 1 2 3 4 5 6 7 8 9 10; do
            as_root find "$left" -depth -type d -exec rmdir {} + 2>/dev/null || true
            if [ ! -d "$left" ]; then break; fi
            sleep 0.2
        done
        as_root rmdir "$(dirname "$left")" 2>/dev/null || true
    done
    if [ -z "$(deployment_mounts)" ]; then as_root rm -rf "${WORK_DIR:?}/$DEPLOYMENT"; fi
    as_root rm -rf "${WORKER_DIR:?}/w/$DEPLOYMENT" "${WORKER_DIR:?}/lock-$DEPLOYMENT"
    as_root rmdir "$WORKER_DIR/w" "$WORKER_DIR" 2>/dev/null || true
}

# Prints what is still there of a deployment.
leftovers() {
    local left
    deployment_containers | sed 's/^/container /'
    deployment_mounts | sed 's/^/mount /'
    deployment_cgroups | sed 's/^/control group /'
    for left in "$WORKER_DIR/w/$DEPLOYMENT" "$WORKER_DIR/lock-$DEPLOYMENT" "$WORK_DIR/$DEPLOYMENT"; do
        if as_root test -e "$left"; then printf 'directory %s\n' "$left"; fi
    done
    if service_runs; then printf 'process %s\n' "$(cat "$PID_FILE")"; fi
}

# Ends the service and all it started. Fails, and says what, where something stays.
end_service() {
    local status=0 left
    if [ -z "${DEPLOYMENT:-}" ]; then return; fi
    stop_service || status=1
    sweep
    left=$(leftovers)
    if [ -n "$left" ]; then
        warn "left behind:"
        printf '%s\n' "$left" >&2
        status=1
    fi
    return "$status"
}

# --- asking -------------------------------------------------------------------------------------

# call METHOD PATH [CURL-ARGUMENT...]: sets STATUS, ANSWER and MILLISECONDS; ends the script where there
# is no answer or the answer is an error.
call() {
    local method=$1 path=$2 whole last
    shift 2
    whole=$(curl --silent --show-error --max-time 330 --request "$method" \
        --write-out '\n%{http_code} %{time_total}' "$@" "$TAIBAI_URL$path") || die "$method $path: no answer"
    last=${whole##*$'\n'}
    ANSWER=${whole%$'\n'*}
    ANSWER=${ANSWER%$'\n'}
    STATUS=${last% *}
    # shellcheck disable=SC2034
    MILLISECONDS=$(awk -v seconds="${last#* }" 'BEGIN { printf "%.1f", seconds * 1000 }')
    if [ "$STATUS" -ge 400 ]; then die "$method $path: $STATUS $ANSWER"; fi
}

# field PATH: what stands there in the ANSWER, as `result.output`; a string that holds JSON is entered.
field() {
    python3 -c '
import json, sys
value = json.load(sys.stdin)
for key in sys.argv[1].split("."):
    if isinstance(value, str):
        value = json.loads(value)
    value = value[int(key)] if isinstance(value, list) else value[key]
print(value if isinstance(value, str) else json.dumps(value))
' "$1" <<<"$ANSWER"
}

# id_of LIST NAME: the id of the newest entry of that name in the ANSWER, or nothing.
id_of() {
    python3 -c '
import json, sys
rows = [row for row in json.load(sys.stdin)[sys.argv[1]] if row["name"] == sys.argv[2]]
print(max(rows, key=lambda row: row["created_at"])["id"] if rows else "")
' "$1" "$2" <<<"$ANSWER"
}

# register_runtime NAME IMAGE: sets RUNTIME to a runtime of that name once it is available.
register_runtime() {
    local waited=0 status
    call GET /v1/runtimes
    RUNTIME=$(id_of runtimes "$1")
    if [ -z "$RUNTIME" ]; then
        call POST /v1/runtimes --header "Content-Type: application/json" --data "{\"name\": \"$1\", \"image\": \"$2\"}"
        RUNTIME=$(field id)
    fi
    while true; do
        call GET "/v1/runtimes/$RUNTIME"
        status=$(field status)
        case $status in
        available) return ;;
        error) die "the runtime $1 failed; why is in $SERVICE_LOG" ;;
        esac
        waited=$((waited + 1))
        [ "$waited" -le 600 ] || die "the runtime $1 is still $status after a minute; the service's log is $SERVICE_LOG"
        sleep 0.1
    done
}

# store_function NAME: creates the function of an example, or brings it up to date; sets FUNCTION.
store_function() {
    local package
    package=$(mktemp --suffix .zip)
    zip_example "$1" "$package"
    call GET /v1/functions
    FUNCTION=$(id_of functions "$1")
    if [ -z "$FUNCTION" ]; then
        call POST /v1/functions --form "name=$1" --form "runtime_id=$RUNTIME" \
            --form 'code={"source": "package"}' --form "package=@$package"
        FUNCTION=$(field id)
    else
        call PUT "/v1/functions/$FUNCTION" --form "package=@$package"
    fi
    rm -f "$package"
}

# execute [INPUT]: runs FUNCTION with a JSON object; sets ANSWER to the execution.
execute() {
    local body
    body=$(python3 -c '
import json, sys
print(json.dumps({"function_id": sys.argv[1], "sync": True, "input": sys.argv[2] or None}))
' "$FUNCTION" "${1:-}")
    call POST /v1/executions --header 'Content-Type: application/json' --data "$body"
}
