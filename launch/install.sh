#!/usr/bin/env bash
# Makes .venv with zerofleet and what it needs: launch/install.sh EXTRAS, for example `launch/install.sh train,dev`.
# A marker is written last, so an installation that was killed anywhere is continued by the next call.
# PYTHON chooses the interpreter.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="$root/.venv"
log="$venv/install.log"
extras="${1:?usage: launch/install.sh EXTRAS}"
marker="$venv/.zerofleet-$(cat "$root/pyproject.toml" "$root/constraints.txt" | sha256sum | cut -c1-16)"

fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

has_all_extras() {
    [ -e "$marker" ] || return 1
    local extra
    for extra in ${extras//,/ }; do grep -qx "$extra" "$marker" || return 1; done
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3 python}; do
        "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1 || continue
        "$candidate" -c 'import ensurepip, venv' >/dev/null 2>&1 \
            || fail "$candidate cannot make virtual environments: install its venv package (Debian: apt install python3-venv)"
        command -v "$candidate"
        return
    done
    fail "no Python 3.11 or 3.12 among: ${PYTHON:-python3.11 python3.12 python3 python}. Install one, or name it: PYTHON=/path/to/python3.11"
}

# run WHAT COMMAND...: output to the log; on screen what is done, for how long, and the log's last line.
run() {
    local what="$1" started=$SECONDS interval=15 due width child state=0
    shift
    if [ -t 1 ]; then interval=1; fi
    due=$((started + interval))
    printf '\n== %s: %s\n' "$what" "$*" >>"$log"
    "$@" >>"$log" 2>&1 &
    child=$!
    # shellcheck disable=SC2064  # the child's number now, not when the trap strikes
    trap "kill $child 2>/dev/null; exit 130" INT TERM
    while sleep 0.2; kill -0 "$child" 2>/dev/null; do
        [ "$SECONDS" -ge "$due" ] || continue
        due=$((SECONDS + interval))
        width=$(($(tput cols 2>/dev/null || echo 100) - ${#what} - 12))
        if [ -t 1 ]; then printf '\r\033[K'; fi
        printf '%s: %d s  %s' "$what" $((SECONDS - started)) "$(tail -n 1 "$log" | tr -d '\r' | cut -c "1-$width")"
        if [ ! -t 1 ]; then printf '\n'; fi
    done
    wait "$child" || state=$?
    trap - INT TERM
    if [ -t 1 ]; then printf '\r\033[K'; fi
    if [ "$state" -ne 0 ]; then
        tail -n 20 "$log" >&2
        fail "$what failed after $((SECONDS - started)) s (exit code $state); the whole output is in $log. Mend it and call again: what is done stays"
    fi
    printf '%s: done in %d s\n' "$what" $((SECONDS - started))
}

make_venv() {
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        rm -rf "$venv/bin" "$venv/lib" "$venv/lib64" "$venv/include" "$venv/pyvenv.cfg"
        run "making .venv with $1" "$1" -m venv "$venv"
    fi
    # pip writes RECORD last: a package without one was cut short, and pip would take it for complete.
    find "$venv/lib" -maxdepth 3 -name '*.dist-info' -type d ! -exec test -e '{}/RECORD' ';' -prune -exec rm -rf '{}' +
}

has_all_extras && exit 0
mkdir -p "$venv"
exec 9>"$venv/.install.lock"
if ! flock -n 9; then
    echo "another installation into .venv is running: waiting for it"
    flock 9
    has_all_extras && exit 0
fi

echo "installing zerofleet[$extras] into .venv (first use only; some minutes)"
extras="$(printf '%s\n' "$extras" $(cat "$marker" 2>/dev/null) | tr ',' '\n' | sort -u | paste -sd,)"
python="$(find_python)"
make_venv "$python"
pip=("$venv/bin/python" -m pip install --disable-pip-version-check --no-input --progress-bar off -c "$root/constraints.txt")
cd "$root"
run "installing torch" "${pip[@]}" torch
run "installing zerofleet[$extras]" "${pip[@]}" -e ".[$extras]"
if [[ ",$extras," == *,train,* ]]; then
    state=0
    "$venv/bin/python" -m zerofleet.trainer.ops 9>&- || state=$?
    # 1: the compiler failed, and said why; ranks do without the op. Anything else is a kill: nothing is finished.
    [ "$state" -le 1 ] || fail "building DeepSpeed's ops ended with exit code $state: call again"
fi
tr ',' '\n' <<<"$extras" >"$marker.new"
mv "$marker.new" "$marker"
