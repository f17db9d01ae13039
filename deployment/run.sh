#!/usr/bin/env bash
# run.sh SITES EXPERIMENT.yaml: trains an experiment once so many sites are connected.
# run.sh SITES --resume RUN: goes on with a run's folder. Ends with 2 and a line if the run failed.
. "$(dirname "$0")/environment.sh"
case "$#:${2:-}" in
3:--resume) what="resume" ;;
2:*) what="experiment" ;;
*) refuse "give SITES EXPERIMENT.yaml, or SITES --resume RUN" ;;
esac
need "${!#}"

# field KEY: the value of KEY in JSON, of a run's where there are runs.
field() {
  python -c 'import json, sys; told = json.load(sys.stdin); told = (told.get("runs") or [told])[0]
print(told.get(sys.argv[1]) or told.get("error-message") or "")' "$1"
}

told="$(flwr run "$here/.." deployment --format json \
  --run-config "sites=$1 $what=\"$(realpath "${!#}")\"")" || refuse "$(field error-message <<<"$told")"
id="$(field run-id <<<"$told")"
echo "run $id: stop it with \`flwr stop $id deployment\`" >&2
flwr log "$id" deployment --stream >&2
told="$(flwr list deployment --run-id "$id" --format json)"
[ "$(field status <<<"$told")" = finished:completed ] || refuse "$(field status-details <<<"$told")"
