#!/usr/bin/env bash
# supernode.sh SERVER:PORT CA.crt KEY SOCKET [PORT]: connects a site, which answers at SOCKET.
# PORT, 9094 unless given, is Flower's own between its processes, on this machine alone. After a
# crash the server lets a site in again when it has missed it for a minute: until then this tries
# again, AFFECT_RETRY_S seconds long.
. "$(dirname "$0")/environment.sh"
[ $# -ge 4 ] || refuse "give the server, its ca.crt, the site's key and the socket of site.sh"
port="${5:-9094}"
need "$2" "$3"
[ -S "$4" ] || refuse "nobody answers at $4: start site.sh first"
need_free "$port"
node=
trap '[ -z "$node" ] || kill "$node"; wait; exit 143' TERM INT
while true; do
  flower-supernode --superlink "$1" --root-certificates "$2" --auth-supernode-private-key "$3" \
    --host 127.0.0.1 --port "$port" --node-config "socket=\"$(realpath "$4")\"" &
  node=$!
  ! wait "$node" || exit 0
  [ "$SECONDS" -lt "${AFFECT_RETRY_S:-180}" ] || refuse "not connected to $1: the lines above say why"
  sleep 2
done
