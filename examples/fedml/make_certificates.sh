#!/bin/sh
# Certificates for TLS between FedML's processes: one for each line of grpc_ipconfig.csv.
#   ./make_certificates.sh [CSV] [DIR]
# DIR gets ca.pem and ca.key, and rank-N.pem and rank-N.key for each rank N. Give every
# machine ca.pem and the two files of its own rank; ca.key can make new ones: keep it.
# A certificate is for both addresses of a line: grpc_server_ip, and ingress_ip if it has one.
set -eu
csv=${1:-grpc_ipconfig.csv}
dir=${2:-tls}
days=365
umask 077
mkdir -p "$dir"
new="-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"

# shellcheck disable=SC2086
openssl req -x509 $new -days $days -subj "/CN=fedclip run" \
    -keyout "$dir/ca.key" -out "$dir/ca.pem" 2>/dev/null
# rank, own address, address for others: whatever a spreadsheet made of the file
tr -d '\r" \t[]' <"$csv" | tr ';' ',' | awk -F, '
    NR == 1 { for (i = 1; i <= NF; i++) place[$i] = i; next }
    $2 != "" { print $2, $3, place["ingress_ip"] ? $place["ingress_ip"] : "" }
' | while read -r rank hosts; do
    names=""
    for host in $hosts; do
        case $host in
            *:*) name="IP:$host" ;;
            *[!0-9.]*) name="DNS:$host" ;;
            *) name="IP:$host" ;;
        esac
        names=${names:+$names,}$name
    done
    file=$dir/rank-$rank
    # shellcheck disable=SC2086
    openssl req $new -subj "/CN=rank-$rank" -keyout "$file.key" -out "$file.csr" 2>/dev/null
    echo "subjectAltName=$names" >"$file.ext"
    openssl x509 -req -in "$file.csr" -CA "$dir/ca.pem" -CAkey "$dir/ca.key" \
        -CAcreateserial -days $days -extfile "$file.ext" -out "$file.pem" 2>/dev/null
    rm "$file.csr" "$file.ext"
done
ls "$dir"
