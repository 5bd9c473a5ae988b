#!/bin/sh
# Start the server and its clients on this machine, wait for them, show the server's log.
#   ./start_cross_silo.sh [CONFIG] [CLIENTS] [SITES]
# SITES/RANK is the folder of images that this process alone opens; 0 is the server's.
# Ctrl-C stops the processes that this script started, and no others.
set -u
cd "$(dirname "$0")" || exit 1
config=${1:-cross_silo.yaml}
clients=${2:-3}
sites=${3:-}
logs=runs/logs
mkdir -p "$logs"
started=""
trap 'kill $started 2>/dev/null; exit 130' INT TERM

own() { # the command for a rank, with its own data
    of=$1
    shift
    exec env ${sites:+"FEDCLIP_ROOT=$sites/$of"} "$@"
}

own 0 fedclip fedml --cf "$config" --offline --rank 0 --role server \
    >"$logs/server.log" 2>&1 &
server=$!
started=$server
rank=1
while [ "$rank" -le "$clients" ]; do
    own "$rank" fedclip fedml --cf "$config" --offline --rank "$rank" --role client \
        >"$logs/client-$rank.log" 2>&1 &
    started="$started $!"
    rank=$((rank + 1))
done

wait "$server"
code=$?
if [ "$code" -ne 0 ]; then
    kill $started 2>/dev/null
    tail -n 3 "$logs/server.log" >&2
    exit "$code"
fi
wait
# a line a round, and the table at the end, without what FedML writes before each
sed -n 's/^\[.*\] //; /^FedCLIP round/p; /^FedCLIP, best round/,/^bytes up/p' \
    "$logs/server.log"
