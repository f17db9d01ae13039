#!/usr/bin/env bash
# superlink.sh CERTIFICATES [PORT]: the server's SuperLink, for this machine alone; see gate.sh.
# Runs are written where the experiment says, as seen from the folder in which this is started.
. "$(dirname "$0")/environment.sh"
[ $# -ge 1 ] || refuse "give the folder of certificates.sh"
certificates="$(cd "$1" && pwd)"
port="${2:-9000}"
need "$certificates"/{ca.crt,server.crt,server.key}
need_free "$port"
cat >"$FLWR_HOME/config.toml" <<TOML
[superlink]
default = "deployment"

[superlink.deployment]
address = "127.0.0.1:$port"
root-certificates = "$certificates/ca.crt"
TOML
exec flower-superlink --host 127.0.0.1 --port "$port" --database "$FLWR_HOME/state.db" \
  --ssl-ca-certfile "$certificates/ca.crt" --ssl-certfile "$certificates/server.crt" \
  --ssl-keyfile "$certificates/server.key" --enable-supernode-auth \
  --disable-runtime-dependency-installation
