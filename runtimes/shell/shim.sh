#!/bin/bash
# Taibai's shim for programs: a function is an executable file of the package, named by the entry. It
# reads its input as JSON, writes its output as JSON, and what it writes to its standard error is the log.
# The messages are described in runtimes/README.md.

# Lengths are in bytes. Not exported: the function has the locale of the container.
LC_ALL=C

# Beside the working directory, so that no function finds them in it.
request=$TAIBAI_SCRATCH/request input=$TAIBAI_SCRATCH/input answer=$TAIBAI_SCRATCH/answer

# send BODY: one frame.
send() {
    local length=${#1} head
    printf -v head '\\x%02x' $((length >> 24 & 255)) $((length >> 16 & 255)) $((length >> 8 & 255)) $((length & 255))
    printf '%b%s' "$head" "$1" >&3
}

# say NAME NONCE KEY TEXT [MORE]: a message with a text, which JSON has to be made of. MORE is an object; what a
# supervisor of before does not understand.
say() {
    local more={}
    if [ "$names_limits" = true ]; then more=${5:-$more}; fi
    send "$(printf '%s' "${4:0:4096}" | jq -Rsc --arg name "$1" --argjson nonce "$2" --arg key "$3" --argjson more "$more" \
        '{($name): ({nonce: $nonce, ($key): .} + $more)}')"
}

# Reads one frame into the file `request`; false where the supervisor has gone. It waits in this shell
# itself: another process would be something that the last execution left behind.
receive() {
    local byte length=0 _
    for _ in 1 2 3 4; do
        # A zero byte reads as no character.
        IFS= read -r -d '' -n 1 byte <&3 || return
        printf -v byte %d "'$byte"
        length=$((length << 8 | byte & 255))
    done
    # The directory is the slot's own, and no execution runs now.
    cd / && chmod -R u+rwx "$TAIBAI_SCRATCH" && find "$TAIBAI_SCRATCH" -mindepth 1 -delete
    mkdir "$TAIBAI_SCRATCH/work" && cd "$TAIBAI_SCRATCH/work" || return
    head -c "$length" <&3 >"$request"
}

# The program that the entry names. Taibai's default, main.main, may also be a file `main`.
find_program() {
    if [ -f "$TAIBAI_PACKAGE/$1" ]; then printf '%s' "$1"; else printf '%s' "${1%.main}"; fi
}

run() {
    local nonce most entry names_limits program status length
    { read -r nonce && read -r most && read -r entry && read -r names_limits; } \
        <<<"$(jq -r '.run | .nonce, .max_result_bytes, .entry, .names_limits' "$request")"
    jq -c .run.input "$request" >"$input"
    program=$(find_program "$entry")
    if [ ! -f "$TAIBAI_PACKAGE/$program" ]; then
        say raised "$nonce" message "The package has no file '$entry'"
        return
    elif [ ! -x "$TAIBAI_PACKAGE/$program" ]; then
        say raised "$nonce" message "'$program' is not executable"
        return
    fi

    # Without the descriptor on which this shim answers.
    "$TAIBAI_PACKAGE/$program" <"$input" >"$answer" 3>&-
    status=$?

    length=$(stat -c %s "$answer")
    if [ "$status" = 137 ]; then
        say exhausted "$nonce" message "'$program' was killed, as the kernel does where memory runs out" '{"limit": "memory"}'
    elif [ "$status" != 0 ]; then
        say raised "$nonce" message "'$program' ended with exit status $status" "{\"status\": $status}"
    elif [ "$length" -gt "$most" ]; then
        say bad_result "$nonce" reason "The function returned $length bytes of JSON; at most $most are allowed" '{"limit": "result_bytes"}'
    elif [ "$length" = 0 ]; then
        send "{\"returned\":{\"nonce\":$nonce,\"output\":null}}"
    elif ! jq -es 'length == 1' "$answer" >/dev/null 2>&1; then
        say bad_result "$nonce" reason "The function wrote something to its standard output that is not JSON"
    else
        send "{\"returned\":{\"nonce\":$nonce,\"output\":$(<"$answer")}}"
    fi
}

send '{"ready":{"version":2}}'
while receive; do run; done
