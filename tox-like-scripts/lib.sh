# shellcheck shell=bash
# What the scripts beside this file share: how they speak, what they install and what they build.
# Sourced, never run. The Docker engine and the service itself are in service.sh.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"

LOG_DIR=${TAIBAI_LOG_DIR:-$ROOT/target/logs}
export CARGO_TARGET_DIR="$ROOT/target"
# Servers and tools of administrators are there; a user's own path has it on no Debian.
export PATH=$PATH:/usr/sbin:/sbin

# --- speaking -----------------------------------------------------------------------------------

say() { printf '%s\n' "$*"; }

warn() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; }

die() {
    warn "$*"
    exit 1
}

# Runs a command as root: as itself where we are root already.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    else
        command -v sudo >/dev/null || die "this needs root: run it as root, or install sudo"
        sudo -- "$@"
    fi
}

# Asks for the password now, and not in the middle of something whose output goes to a file.
ensure_root() {
    if [ "$(id -u)" != 0 ]; then
        as_root true || die "this needs root, for Docker and for control groups"
    fi
}

# Shows that a command is at work: its last line on a terminal, a line every half minute elsewhere.
follow() {
    local log=$1 began=$SECONDS
    # It looks for the script itself: one that ended by a signal cannot stop it.
    while sleep 1 >/dev/null 2>&1 && kill -0 $$ 2>/dev/null; do
        if [ -t 1 ]; then
            printf '\r\033[K    %3d s  %s' $((SECONDS - began)) "$(tail -n 1 "$log" 2>/dev/null | tr -d '\r\033' | cut -c 1-90)"
        elif [ $(((SECONDS - began) % 30)) = 0 ]; then
            printf '    %3d s  %s\n' $((SECONDS - began)) "$(tail -n 1 "$log" 2>/dev/null | cut -c 1-90)"
        fi
    done
}

# step TITLE COMMAND...: runs a command with its output in a log file, and says how long it took. The
# command runs in a shell of its own, so a function that sets variables is no step.
step() {
    local title=$1 log status began=$SECONDS follower
    shift
    mkdir -p "$LOG_DIR"
    log=$LOG_DIR/$(printf '%s' "$title" | tr -cs 'A-Za-z0-9' '-').log
    say "==> $title"
    : >"$log"
    follow "$log" &
    follower=$!
    set +e
    (
        set -e
        "$@"
    ) >"$log" 2>&1
    status=$?
    set -e
    kill "$follower" 2>/dev/null || true
    wait "$follower" 2>/dev/null || true
    if [ -t 1 ]; then printf '\r\033[K'; fi
    if [ "$status" != 0 ]; then
        tail -n 40 "$log" >&2
        die "failed: $title; all of its output is in $log"
    fi
    say "    done in $((SECONDS - began)) s"
}

# --- packages -----------------------------------------------------------------------------------

# Whether this is a system whose packages we know by name.
is_supported() {
    local id version
    # shellcheck source=/dev/null
    id=$(. /etc/os-release 2>/dev/null && printf '%s' "${ID:-}")
    # shellcheck source=/dev/null
    version=$(. /etc/os-release 2>/dev/null && printf '%s' "${VERSION_ID:-}")
    case $id:$version in
    debian:12 | debian:13 | ubuntu:22.04 | ubuntu:24.04) true ;;
    *) false ;;
    esac
}

apt_install() {
    if [ -z "${APT_UPDATED:-}" ]; then
        # A third party's index that fails is no reason to stop; a package that is not found is.
        as_root apt-get update || true
    fi
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"
}

# missing_packages COMMAND=PACKAGE...: prints the packages whose command is not there. A path in place of a
# command stands for a file.
missing_packages() {
    local pair command package
    for pair; do
        command=${pair%%=*} package=${pair#*=}
        case $command in
        */*) [ -e "$command" ] || printf '%s\n' "$package" ;;
        *) command -v "$command" >/dev/null || [ -x "/usr/sbin/$command" ] || [ -x "/sbin/$command" ] || printf '%s\n' "$package" ;;
        esac
    done
}

# ensure_packages COMMAND=PACKAGE...: installs those packages that are missing.
ensure_packages() {
    local missing
    mapfile -t missing < <(missing_packages "$@")
    if [ ${#missing[@]} = 0 ]; then return; fi
    is_supported || die "needed and not found: ${missing[*]} (Debian's names of packages).
This script installs them on Debian 12 and 13 and Ubuntu 22.04 and 24.04; here, please install them and run it again."
    ensure_root
    step "installing ${missing[*]}" apt_install "${missing[@]}"
    APT_UPDATED=yes
}

# What a build and the service need everywhere, and what the Docker engine does.
TOOLS=(curl=curl gcc=gcc /usr/include/stdlib.h=libc6-dev python3=python3
    /etc/ssl/certs/ca-certificates.crt=ca-certificates mkfs.ext4=e2fsprogs mount=mount setsid=util-linux)
ENGINE=(dockerd=docker.io iptables=iptables)
# Where the kernel has AppArmor, the engine starts no container without its tools, and yet installs without.
PROFILES=()
if [ "$(cat /sys/module/apparmor/parameters/enabled 2>/dev/null)" = Y ]; then PROFILES=(apparmor_parser=apparmor); fi

# Where we do not install packages, names all that is missing at once, before anything is changed. An
# engine that answers may be anywhere.
ensure_known_system() {
    local wanted=("${TOOLS[@]}" "${PROFILES[@]}")
    if is_supported; then return; fi
    docker version >/dev/null 2>&1 || wanted+=("${ENGINE[@]}")
    ensure_packages "${wanted[@]}"
}

ensure_tools() { ensure_packages "${TOOLS[@]}"; }

# --- building -----------------------------------------------------------------------------------

# at_least VERSION WANTED
at_least() { printf '%s\n%s\n' "$2" "$1" | sort -V -C; }

ensure_rust() {
    local wanted found rustup
    wanted=$(sed -nE 's/^rust-version = "(.*)"$/\1/p' Cargo.toml)
    rustup="    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --default-toolchain $wanted
    . \"\$HOME/.cargo/env\""
    # A bare system has no curl, and rustup needs its certificates.
    if ! command -v curl >/dev/null && is_supported; then
        rustup="    $([ "$(id -u)" = 0 ] || printf 'sudo ')apt-get install -y curl ca-certificates
$rustup"
    fi
    command -v cargo >/dev/null || PATH=$HOME/.cargo/bin:$PATH
    if ! command -v cargo >/dev/null || ! found=$(rustc --version 2>/dev/null); then
        die "Rust $wanted or later is needed, and none was found. Install it so, and run this again:

$rustup"
    fi
    found=${found#rustc }
    found=${found%% *}
    if ! at_least "${found%%-*}" "$wanted"; then
        if command -v rustup >/dev/null; then
            die "Rust $wanted or later is needed, and this is $found. Update it so, and run this again:

    rustup toolchain install $wanted && rustup default $wanted"
        fi
        die "Rust $wanted or later is needed, and this is $found. A system's own packages are often older; install it so, and run this again:

$rustup"
    fi
}

# The target that this machine's own compiler builds for.
host_triple() { rustc -vV | sed -n 's/^host: //p'; }

supervisor_path() { printf '%s/target/%s/release/taibai-supervisor\n' "$ROOT" "$(host_triple)"; }

# The supervisor runs in images of any distribution, so it is linked statically. With --target the flag
# does not reach build scripts and macros, which cannot be.
build_supervisor() {
    RUSTFLAGS='-C target-feature=+crt-static' \
        cargo build --locked --release --package supervisor --target "$(host_triple)"
}

build_release() { cargo build --locked --release --package taibai --bins; }

# The names of the images that the scripts build.
python_image() { printf '%s/python3:latest\n' "${TAIBAI_IMAGE_PREFIX:-taibai}"; }
node_image() { printf '%s/nodejs:latest\n' "${TAIBAI_IMAGE_PREFIX:-taibai}"; }
shell_image() { printf '%s/shell:latest\n' "${TAIBAI_IMAGE_PREFIX:-taibai}"; }

# An image that prints its arguments, as a function.
build_echo_image() {
    printf 'FROM %s\nENTRYPOINT ["/bin/echo"]\nCMD []\n' "$(python_image)" |
        as_root docker build --quiet --tag "$1" - >/dev/null
}

build_images() { as_root env "${IMAGE_SETTINGS[@]}" "$ROOT/runtimes/build" "$@"; }

# What sudo would drop and the build of an image honours.
IMAGE_SETTINGS=("PATH=$PATH")
for name in TAIBAI_IMAGE_PREFIX TAIBAI_BASE SSL_CERT_FILE http_proxy https_proxy no_proxy \
    HTTP_PROXY HTTPS_PROXY NO_PROXY PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST PIP_DEFAULT_TIMEOUT; do
    if [ -n "${!name:-}" ]; then IMAGE_SETTINGS+=("$name=${!name}"); fi
done
unset name

# ensure_images [RUNTIME...]: their images, or Python's. The base of an image can be pulled on most machines;
# where it cannot, it is made with these packages.
ensure_images() {
    [ $# -gt 0 ] || set -- python
    if build_images --check "$@"; then
        say "==> runtime images up to date: $*"
        return
    fi
    if [ -z "${TAIBAI_BASE:-}" ] && ! build_images --pull >/dev/null 2>&1; then
        ensure_packages mmdebstrap=mmdebstrap
    fi
    step "building runtime images: $*" build_images "$@"
}

# zip_example NAME FILE: the package of one of the examples.
zip_example() {
    rm -f "$2"
    python3 -m zipfile -c "$2" "$ROOT/examples/$1"/main.*
}

# cargo_test_as_root NAME [ARGUMENT...]: runs one test binary, as root where we are not: it makes containers, control
# groups and users. The build itself stays ours. `--workspace` keeps the features that other builds have.
cargo_test_as_root() {
    local runner name=$1
    shift
    if [ "$(id -u)" != 0 ]; then
        runner=CARGO_TARGET_$(host_triple | tr 'a-z-' 'A-Z_')_RUNNER
        export "$runner=sudo --preserve-env"
    fi
    TAIBAI_SUPERVISOR=$(supervisor_path) TAIBAI_TEST_IMAGE=$(python_image) TAIBAI_TEST_NODE_IMAGE=$(node_image) \
        TAIBAI_TEST_SHELL_IMAGE=$(shell_image) TAIBAI_BIN=$ROOT/target/debug/taibai \
        some_tests cargo test --locked --workspace --test "$name" -- "$@"
}

# Runs tests with cargo. A filter that fits none is a mistake, and no success.
some_tests() {
    local log status=0
    log=$(mktemp)
    "$@" 2>&1 | tee "$log" || status=1
    if [ "$status" = 0 ] && ! grep -qE '^test result: ok\. [1-9]' "$log"; then
        warn "there is no such test"
        status=1
    fi
    rm -f "$log"
    return "$status"
}

# A registry that images of functions are pulled from in the tests; they start their own.
ensure_registry() { ensure_packages docker-registry=docker-registry; }

# What the network of functions is made and tried with.
ensure_network_tools() { ensure_packages nft=nftables ip=iproute2; }

# --- commands of the documents ----------------------------------------------------------------------

# page_block PAGE NAME: prints the commands that doc/source/PAGE marks `run by` this script under that name. The file
# PAGE_BLOCKS has those that were asked for.
page_block() { python3 -B "$ROOT/tests/docs/pages.py" block "$(basename "$0")" "$1" "$2" "$PAGE_BLOCKS"; }

# Whether every block that the pages leave to this script was asked for.
check_page_blocks() { python3 -B "$ROOT/tests/docs/pages.py" all "$(basename "$0")" "$PAGE_BLOCKS"; }

# --- Keystone and Swift ---------------------------------------------------------------------------

CLOUD_STARTED=

# Brings up the test cloud, unless the one that TAIBAI_TEST_CLOUD names is up already, and says there
# where its state is.
ensure_cloud() {
    export TAIBAI_TEST_CLOUD=${TAIBAI_TEST_CLOUD:-$ROOT/target/cloud}
    if "$ROOT/tests/cloud/status" "$TAIBAI_TEST_CLOUD" >/dev/null 2>&1; then return; fi
    CLOUD_STARTED=yes
    step "bringing up Keystone and Swift" "$ROOT/tests/cloud/up" "$TAIBAI_TEST_CLOUD"
}

# Stops the cloud if this script started it. Its data stay for the next time.
stop_cloud() {
    if [ -n "$CLOUD_STARTED" ]; then "$ROOT/tests/cloud/down" "$TAIBAI_TEST_CLOUD" >/dev/null; fi
}
