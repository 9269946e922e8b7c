# shellcheck shell=bash
# What the shells of tests/docs/commands.py have beside the commands of a machine: a service manager for one
# unit, since a test has none. It does what etc/systemd's unit says: it starts and ends the program.

# What the tree's owner would type there as themselves: what cargo makes stays theirs.
cargo() {
    if [ -n "${SUDO_USER:-}" ]; then
        runuser --user "$SUDO_USER" -- cargo "$@"
    else
        command cargo "$@"
    fi
}

unit_answers() { curl --silent --output /dev/null --fail --max-time 2 "$TAIBAI_URL/healthcheck"; }

# One that ended and was not waited for does not run.
unit_runs() { [ -s "$PID_FILE" ] && grep -qs '^State:.[^Z]' "/proc/$(cat "$PID_FILE")/status"; }

start_unit() {
    local waited=0
    if unit_runs; then return; fi
    # shellcheck disable=SC2016
    setsid bash -c 'echo $$ >"$1"; exec taibai serve >>"$2" 2>&1 </dev/null' serve "$PID_FILE" "$SERVICE_LOG" &
    until unit_answers; do
        waited=$((waited + 1))
        if [ "$waited" -gt 300 ] || { [ "$waited" -gt 10 ] && ! unit_runs; }; then
            tail -n 20 "$SERVICE_LOG"
            return 1
        fi
        sleep 0.1
    done
}

stop_unit() {
    local pid waited=0
    if ! unit_runs; then return; fi
    pid=$(cat "$PID_FILE")
    kill -TERM "$pid"
    while unit_runs; do
        waited=$((waited + 1))
        if [ "$waited" -gt 300 ]; then return 1; fi
        sleep 0.1
    done
    rm -f "$PID_FILE"
}

systemctl() {
    case $* in
    daemon-reload) ;;
    'start taibai' | 'enable --now taibai') start_unit ;;
    'stop taibai' | 'disable --now taibai') stop_unit ;;
    'restart taibai') stop_unit && start_unit ;;
    *)
        echo "the stand-in for systemctl knows no: $*"
        return 1
        ;;
    esac
}

# What the unit wrote: a journal has every line of it.
journalctl() {
    case $* in
    '--unit taibai'*) cat "$SERVICE_LOG" ;;
    *)
        echo "the stand-in for journalctl knows no: $*"
        return 1
        ;;
    esac
}
