#!/usr/bin/env bash
# run.sh SITES EXPERIMENT.yaml: trains an experiment once so many sites are connected.
# run.sh SITES --resume RUN: goes on with a run's folder. The same is `flwr run` with these settings.
. "$(dirname "$0")/environment.sh"
case $# in
2) what="experiment" ;;
3) what="resume" && [ "$2" = --resume ] || refuse "give SITES EXPERIMENT.yaml or SITES --resume RUN" ;;
*) refuse "give SITES EXPERIMENT.yaml or SITES --resume RUN" ;;
esac
need "${!#}"
exec flwr run "$here/.." deployment --stream \
  --run-config "sites=$1 $what=\"$(realpath "${!#}")\""
