#!/bin/sh
# Three clients whose images nobody else has, and a server with a held-out domain.
#   ./private_data.sh
set -eu
cd "$(dirname "$0")"
sites=$PWD/runs/sites
rm -rf "$sites"
fedclip data digits --to "$sites/all" --quiet
rank=0
for domain in sketch negative photo scan; do # the server's, then the clients'
    mkdir -p "$sites/$rank"
    mv "$sites/all/$domain" "$sites/$rank/$domain"
    rank=$((rank + 1))
done
rm -r "$sites/all"
exec ./start_cross_silo.sh private_data.yaml 3 "$sites"
