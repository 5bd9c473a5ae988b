#!/bin/sh
# fedclip as any user: one without a home directory, or with one that is read-only, gets
# all caches in the working directory, which is where the data and the results are.
set -eu
if [ -z "${HOME:-}" ] || [ ! -w "$HOME" ]; then
    export HOME="$PWD/.fedclip-cache/home"
    mkdir -p "$HOME"
fi
export FEDCLIP_CACHE="${FEDCLIP_CACHE:-$PWD/.fedclip-cache}"
export MPLCONFIGDIR="${MPLCONFIGDIR:-$FEDCLIP_CACHE/matplotlib}"
exec fedclip "$@"
