# Read by the batch scripts: where things are, and `run`, a step that gives way and goes on.
set -euo pipefail
[ $# -gt 0 ] || { echo "affect: error: give arguments, as at the script's top" >&2; exit 2; }
home="${AFFECT_HOME:-$SLURM_SUBMIT_DIR}"
[ ! -d "$home/.venv/bin" ] || PATH="$home/.venv/bin:$PATH"
export PATH
# since SLURM 22.05 srun does not take this over from sbatch
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"
export FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1

# What is small, written often and needed by this job alone stays on the node's own disk.
scratch="${AFFECT_SCRATCH:-${SLURM_TMPDIR:-${TMPDIR:-/tmp}}}/affect-$SLURM_JOB_ID"
export FLWR_HOME="${FLWR_HOME:-$scratch/flower}" MPLCONFIGDIR="${MPLCONFIGDIR:-$scratch/matplotlib}"
export WANDB_CACHE_DIR="${WANDB_CACHE_DIR:-$scratch/wandb}" WANDB_DATA_DIR="${WANDB_DATA_DIR:-$scratch/wandb}"
export AFFECT_LOCAL="$scratch" # W&B writes there, and what it has closed is moved to the run's folder
# Recordings are copied once a node to a disk that the site names; AFFECT_STAGE= reads them in place.
near="${AFFECT_SCRATCH:-${SLURM_TMPDIR:-}}"
export AFFECT_STAGE="${AFFECT_STAGE-${near:+$near/affect-recordings-$UID}}"

# `scontrol requeue $SLURM_JOB_ID` in an array can requeue every task: this names the task alone.
job="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}"
job="${job:-$SLURM_JOB_ID}"
jobs="${AFFECT_JOBS:-$SLURM_SUBMIT_DIR/jobs}"
state="$jobs/${job/_//}" # a folder a task, so that no two write one file
restarts="${SLURM_RESTART_COUNT:-0}"
mkdir -p "$state" "$scratch"
trap 'rm -rf "$scratch"' EXIT
[ "$restarts" -gt 0 ] || rm -f "$state/run" "$state/state" # of an older job with this number
if [ "$(cat "$state/state" 2>/dev/null)" = done ]; then exit 0; fi
readlink -f "/proc/$$/fd/1" >"$state/log"
echo "${SLURM_JOB_NAME:-}" >"$state/name"
echo "$restarts" >"$state/restarts"
export AFFECT_RUN_POINTER="$state/run" # affect writes the run's folder here

tell() {
  echo "$*" >"$state/.state"
  mv "$state/.state" "$state/state"
}

step=() # options of srun for the step
signalled=""
trap 'signalled=USR1' USR1 # before the step has begun
trap 'signalled=TERM' TERM

# run affect COMMAND ...: a step, which goes on with the run that an earlier start of the job began.
# %a stands for the array's index.
run() {
  shift
  [ -z "${SLURM_ARRAY_TASK_ID:-}" ] || set -- "${@//\%a/$SLURM_ARRAY_TASK_ID}"
  [ ! -s "$state/run" ] || [ ! -f "$(<"$state/run")/run.json" ] || set -- "$1" --resume "$(<"$state/run")"
  [ -z "$signalled" ] || conclude 75
  tell running
  # shellcheck disable=SC2086,SC2016 # a command of several words; expanded by the step
  srun "${step[@]}" --kill-on-bad-exit=1 bash -c 'trap "" USR1; exec "$@"' affect \
    ${AFFECT_COMMAND:-affect} "$@" </dev/null &
  local pid=$! code
  trap 'give_way USR1 '$pid USR1
  trap 'give_way TERM '$pid TERM
  while :; do
    interrupted=""
    wait "$pid" && code=0 || code=$?
    [ -n "$interrupted" ] || break
  done
  trap - USR1 TERM
  conclude "$code"
}

# give_way SIGNAL PID: asks the step to save and end, until it does. affect ignores the signal while
# it starts and while it ends, hence again and again.
give_way() {
  interrupted=1
  [ -z "$signalled" ] || return 0
  signalled="$1"
  tell "giving way after SIG$1"
  (while kill -USR1 "$2" 2>/dev/null; do sleep 5; done) &
}

# conclude STATUS: done, again, or failed. SIGTERM to the step alone announces a preemption, which
# SLURM does not requeue where the job ends in time; 143 is what it makes of an affect that could
# not listen yet, or any more.
conclude() {
  case "$1:$signalled" in
  0:*) tell done ;;
  *:TERM) # to this script too: SLURM requeues by itself, or the user has cancelled
    tell stopped
    exit "$1"
    ;;
  75:* | 143:*) requeue ;;
  *)
    tell "failed with status $1"
    exit "$1"
    ;;
  esac
}

requeue() {
  if [ "$restarts" -ge "${AFFECT_REQUEUES:-20}" ]; then
    tell "failed: preempted after $restarts restarts"
    exit 75
  fi
  tell preempted
  scontrol requeue "$job"
  exit 75
}
