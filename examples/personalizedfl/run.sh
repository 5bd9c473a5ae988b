#!/bin/sh
# FedCLIP in PersonalizedFL on the embedded digits: no network, no data.
# usage: sh run.sh PERSONALIZEDFL_DIR [WORK_DIR]
set -eu

host=$(cd "${1:?usage: sh run.sh PERSONALIZEDFL_DIR [WORK_DIR]}" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "${2:-work}"
cd "${2:-work}"

# main.py knows the domains of its data sets by name, so the digits take those of PACS
fedclip data digits --to digits
mkdir -p data/pacs
for pair in scan:art_painting negative:cartoon photo:photo sketch:sketch; do
    ln -sfn "$PWD/digits/${pair%%:*}" "data/pacs/${pair##*:}"
done
cp "$here/fedclip.toml" .

fedclip register personalizedfl "$host"
trap 'fedclip register personalizedfl "$host" --undo' EXIT
FEDCLIP_OUT=out python "$host/main.py" --alg fedclip --dataset pacs --root_dir data/ \
    --datapercent 0.4 --iters 20 --device cpu
