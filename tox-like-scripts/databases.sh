# shellcheck shell=bash
# Database servers of the tests' own: Debian's MariaDB and PostgreSQL, on loopback, with data that goes
# with them. The system's own services are left alone. Sourced after lib.sh.

# Which are started; a script may want fewer.
DATABASE_SERVERS=(mariadb postgresql)
DATABASE_DIR=
DATABASE_PIDS=()
# By server, as TAIBAI_TEST_DATABASE takes them.
declare -A DATABASE_URLS=()

# Who runs the servers, which do not run as root. PostgreSQL's package brings this account.
AS_DATABASE_USER=()
if [ "$(id -u)" = 0 ]; then
    AS_DATABASE_USER=(setpriv --reuid=postgres --regid=postgres --clear-groups)
fi

as_database_user() { "${AS_DATABASE_USER[@]}" "$@"; }

postgres_bin() {
    local directory newest=
    for directory in /usr/lib/postgresql/*/bin; do
        if [ -x "$directory/initdb" ]; then newest=$directory; fi
    done
    printf '%s\n' "$newest"
}

ensure_database_packages() {
    ensure_packages mariadbd=mariadb-server-core mariadb-install-db=mariadb-server-core setpriv=util-linux
    if [ -z "$(postgres_bin)" ]; then ensure_packages /usr/lib/postgresql/none=postgresql; fi
}

# launch LOG COMMAND...: starts a server apart from this terminal, so that Ctrl-C reaches this script alone.
launch() {
    local log=$1
    shift
    "${AS_DATABASE_USER[@]}" setsid "$@" >"$log" 2>&1 </dev/null &
    DATABASE_PIDS+=($!)
}

# wait_for_port PORT LOG
wait_for_port() {
    local waited=0
    until (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; do
        waited=$((waited + 1))
        if [ "$waited" -gt 600 ]; then
            tail -n 20 "$2" >&2
            die "a database server did not start; all it says is in $2"
        fi
        sleep 0.1
    done
}

# The server is as lenient as they come: no strict mode, three bytes to a character. That nothing is cut
# all the same is Taibai's doing.
start_mariadb() {
    local home=$DATABASE_DIR/mariadb log=$LOG_DIR/databases-mariadb.log port
    port=$(free_port)
    as_database_user mkdir "$home"
    as_database_user mariadb-install-db --no-defaults --datadir="$home/data" --skip-test-db \
        --auth-root-authentication-method=normal >"$log" 2>&1 || die "mariadb-install-db failed: $log"
    as_database_user tee "$home/init.sql" >/dev/null <<'SQL'
CREATE USER taibai@'%' IDENTIFIED BY 'taibai';
GRANT ALL ON *.* TO taibai@'%';
SQL
    launch "$log" mariadbd --no-defaults --datadir="$home/data" --socket="$home/s" --pid-file="$home/pid" \
        --bind-address=127.0.0.1 --port="$port" --init-file="$home/init.sql" --skip-name-resolve \
        --sql-mode= --character-set-server=utf8mb3 --max-connections=500 --skip-log-bin \
        --innodb-flush-log-at-trx-commit=0 --innodb-flush-method=nosync --skip-innodb-doublewrite \
        --innodb-buffer-pool-size=64M --innodb-log-file-size=64M
    wait_for_port "$port" "$log"
    # shellcheck disable=SC2034
    DATABASE_URLS[mariadb]=mysql+pymysql://taibai:taibai@127.0.0.1:$port
}

start_postgresql() {
    local home=$DATABASE_DIR/postgresql log=$LOG_DIR/databases-postgresql.log port bin
    port=$(free_port) bin=$(postgres_bin)
    as_database_user mkdir "$home"
    as_database_user tee "$home/password" >/dev/null <<<taibai
    as_database_user "$bin/initdb" --pgdata="$home/data" --username=taibai --pwfile="$home/password" \
        --auth=password --encoding=UTF8 --locale=C.UTF-8 --no-sync >"$log" 2>&1 || die "initdb failed: $log"
    launch "$log" "$bin/postgres" -D "$home/data" -c "port=$port" -c listen_addresses=127.0.0.1 \
        -c unix_socket_directories="$home" -c max_connections=500 -c shared_buffers=64MB \
        -c fsync=off -c full_page_writes=off -c synchronous_commit=off
    wait_for_port "$port" "$log"
    # shellcheck disable=SC2034
    DATABASE_URLS[postgresql]=postgresql+psycopg2://taibai:taibai@127.0.0.1:$port
}

# Starts them. To be followed by stop_databases, whatever comes.
start_databases() {
    local server
    ensure_database_packages
    mkdir -p "$LOG_DIR"
    DATABASE_DIR=$(mktemp -d /tmp/taibai-databases.XXXXXX)
    if [ "$(id -u)" = 0 ]; then chown postgres: "$DATABASE_DIR"; fi
    for server in "${DATABASE_SERVERS[@]}"; do
        say "==> starting $server"
        "start_$server"
    done
}

# Nothing of theirs is wanted, so they are not asked to write anything down.
stop_databases() {
    local pid
    for pid in "${DATABASE_PIDS[@]}"; do
        kill -QUIT "$pid" 2>/dev/null || true
    done
    for pid in "${DATABASE_PIDS[@]}"; do
        for _ in {1..50}; do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
        kill -KILL "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    DATABASE_PIDS=()
    if [ -n "$DATABASE_DIR" ]; then rm -rf "$DATABASE_DIR"; fi
    DATABASE_DIR=
}
