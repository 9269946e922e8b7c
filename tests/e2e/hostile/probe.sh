#!/bin/bash
# Tries what no function may do, with what is in every image, and says what worked. TARGETS and PATHS are put in by
# the test. What is tried is harmless where it works.
exec 3>&1 >/dev/null 2>/dev/null </dev/null
targets=(@TARGETS@)
paths=(@PATHS@)
tried=0
worked() { printf 'WORKED %s\n' "$*" >&3; }
attempt() {
    local name=$1
    shift
    tried=$((tried + 1))
    if timeout 3 "$@"; then worked "$name"; fi
}

for target in "${targets[@]}"; do
    attempt "connect $target" bash -c "exec 4<>/dev/tcp/$target"
done
for path in "${paths[@]}"; do
    attempt "see $path" test -e "$path"
done
while read -r path; do worked "socket $path"; done < <(find / -path /proc -prune -o -type s -writable -print)

# Its directory lies in its scratch; an image's is /.
own=${PWD%/*}
[ -n "$own" ] || own=/none
# Beside what is meant for it: scratch, memory, and devices that hold nothing.
while read -r path; do
    case $path in
    "$own" | "$own"/*) ;;
    /tmp | /tmp/* | /dev/shm | /dev/mqueue | /dev/null | /dev/zero | /dev/full | /dev/random | /dev/urandom | /dev/tty | /dev/ptmx | /dev/pts/*) ;;
    *) worked "write $path" ;;
    esac
done < <(find / \( -path /proc -o -path /sys \) -prune -o ! -type l -writable -print)
while read -r path; do worked "write $path"; done < <(find /proc/sys /sys -type f -writable -print)
for path in /proc/sysrq-trigger /proc/kcore /proc/kmsg /dev/mem /dev/kmsg /dev/sda /dev/vda /dev/loop-control; do
    # What is masked is there and empty.
    # shellcheck disable=SC2016
    attempt "read $path" bash -c '[ "$(head -c 1 "$0" | wc -c)" = 1 ]' "$path"
done
tried=$((tried + 3))

attempt "become root" setpriv --reuid 0 true
attempt "join a group" setpriv --groups 0 true
attempt "give a file away" bash -c 'touch /tmp/own && chown 0:0 /tmp/own'
attempt "make a block device" mknod /tmp/block b 8 0
attempt "make a character device" mknod /tmp/character c 1 1
for kind in user mount net pid ipc uts cgroup; do
    attempt "new $kind namespace" unshare "--$kind" true
done
attempt "root in a namespace" unshare --map-root-user true
attempt "enter a namespace" nsenter --target 1 --mount true
attempt "change the root" chroot / true
attempt "mount a tmpfs" mount -t tmpfs none /tmp
attempt "mount proc" mount -t proc none /tmp
attempt "bind a directory" mount --bind / /tmp
attempt "make / writable" mount -o remount,rw /
attempt "unmount" umount -l /tmp
attempt "set the clock" date --set "@$(date +%s)"
attempt "set the host's name" hostname other
attempt "read the kernel's log" dmesg
# shellcheck disable=SC2016
attempt "raise the priority" nice --adjustment -5 bash -c '[ "$(nice)" -lt 0 ]'
attempt "raise a limit" bash -c 'ulimit -c unlimited'
status() { sed -n "s/^$1:[[:space:]]*//p" /proc/self/status; }
for field in CapInh CapPrm CapEff CapAmb; do
    attempt "have $field" test "$(status $field)" != 0000000000000000
done
attempt "gain rights by a program" test "$(status NoNewPrivs)" != 1
attempt "make any system call" test "$(status Seccomp)" != 2
rm -rf /tmp/own /tmp/block /tmp/character
printf 'TRIED %s\n' "$tried" >&3
