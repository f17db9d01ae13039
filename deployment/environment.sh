# Read by the scripts beside it: where things are, and that nothing is reported to anybody.
set -euo pipefail
umask 077
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
[ ! -d "$here/../.venv/bin" ] || PATH="$here/../.venv/bin:$PATH"
export PATH
export FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1
export FLWR_SUPEREXEC_TASK_POLL_INTERVAL="${FLWR_SUPEREXEC_TASK_POLL_INTERVAL:-0.2}"
export FLWR_HOME="${FLWR_HOME:-$HOME/.affect/flower}"
mkdir -p "$FLWR_HOME"

refuse() {
  echo "$(basename "$0"): error: $*" >&2
  exit 2
}

# need FILE...: refuses to go on without a file.
need() {
  for file in "$@"; do [ -r "$file" ] || refuse "cannot read $file"; done
}

# need_free PORT: refuses a port of this machine at which somebody answers.
need_free() {
  ! (: <>"/dev/tcp/127.0.0.1/$1") 2>/dev/null || refuse "port $1 is in use: choose another"
}
