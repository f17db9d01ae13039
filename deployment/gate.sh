#!/usr/bin/env bash
# gate.sh CERTIFICATES [PORT] [SUPERLINK_PORT] [HOST]: the one port that sites reach, 9443 unless given.
. "$(dirname "$0")/environment.sh"
[ $# -ge 1 ] || refuse "give the folder of certificates.sh"
exec affect gate --host "${4:-0.0.0.0}" --port "${2:-9443}" --superlink "127.0.0.1:${3:-9000}" \
  --certificate "$1/server.crt" --key "$1/server.key" --authority "$1/ca.crt"
