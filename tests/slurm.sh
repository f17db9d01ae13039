#!/usr/bin/env bash
# slurm.sh start FOLDER PORT: a SLURM of this machine's own with two virtual nodes, `n1` and `n2`, of
# eight cores and two pretended GPUs each, on the loopback device, with all that it writes in FOLDER.
# It takes PORT to PORT + 2. slurm.sh stop FOLDER: ends what start has started, by the ids it wrote.
# Needs Debian's slurmctld, slurmd, slurm-client and munge, and to be root; no systemd, no cgroups.
set -euo pipefail
folder="$(realpath "$2")"
export SLURM_CONF="$folder/slurm.conf"

configure() {
  local host index
  host="$(hostname -s)"
  mkdir -p "$folder"/{state,log,gpu,munge,run,spool-n1,spool-n2}
  chmod 755 "$folder" "$folder/run"
  chmod 700 "$folder/munge"
  head -c 128 /dev/urandom >"$folder/munge/key"
  chmod 400 "$folder/munge/key"
  # slurmd takes nothing but a device for a GPU; these are further names of /dev/null
  for index in 0 1; do mknod -m 666 "$folder/gpu/nvidia$index" c 1 3; done
  cat >"$folder/gres.conf" <<X
AutoDetect=off
NodeName=n[1-2] Name=gpu Type=fake File=$folder/gpu/nvidia[0-1]
X
  # cred_expire is what a requeued job waits for
  cat >"$SLURM_CONF" <<X
ClusterName=tests
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$1
AuthType=auth/munge
AuthInfo=socket=$folder/run/munge.sock,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool-%n
SlurmctldPidFile=$folder/run/slurmctld.pid
SlurmdPidFile=$folder/run/slurmd-%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=500
MpiDefault=none
SwitchType=switch/none
GresTypes=gpu
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=5
MinJobAge=600
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=100000,batch_sched_delay=0,requeue_delay=0
MaxArraySize=1001
AccountingStorageType=accounting_storage/none
NodeName=n[1-2] NodeHostname=$host NodeAddr=127.0.0.1 Port=[$(($1 + 1))-$(($1 + 2))] CPUs=8 CoresPerSocket=8 RealMemory=64000 Gres=gpu:fake:2
PartitionName=gpu Nodes=ALL Default=YES MaxTime=1-0 DefaultTime=5 PriorityTier=1 GraceTime=10
PartitionName=spare Nodes=ALL MaxTime=1-0 DefaultTime=5 PriorityTier=1
PartitionName=high Nodes=ALL MaxTime=1-0 DefaultTime=5 PriorityTier=10 PreemptMode=OFF
X
}

# await COMMAND...: until it succeeds, for ten seconds at most.
await() {
  for _ in $(seq 100); do
    if "$@" >/dev/null 2>&1; then return 0; fi
    sleep 0.1
  done
  echo "slurm.sh: $* has not come to pass; see $folder/log" >&2
  return 1
}

both_idle() { [ "$(sinfo --noheader --partition=gpu --Node --format=%t | grep -c '^idle$')" = 2 ]; }
no_jobs() { [ -z "$(squeue --noheader)" ]; }
all_gone() { ! kill -0 "$@" 2>/dev/null; }

case "$1" in
start)
  configure "$3"
  munged --force --key-file="$folder/munge/key" --socket="$folder/run/munge.sock" \
    --pid-file="$folder/run/munged.pid" --log-file="$folder/munge/log" --seed-file="$folder/munge/seed"
  await test -S "$folder/run/munge.sock"
  slurmctld -f "$SLURM_CONF"
  for node in n1 n2; do slurmd -N "$node" -f "$SLURM_CONF"; done
  await both_idle
  ;;
stop)
  scancel --user="$(id -un)" --signal=KILL --full >/dev/null 2>&1 || true
  scancel --user="$(id -un)" >/dev/null 2>&1 || true
  await no_jobs || true
  for daemon in slurmd-n1 slurmd-n2 slurmctld munged; do
    pid="$(cat "$folder/run/$daemon.pid" 2>/dev/null)" || continue
    kill "$pid" && await all_gone "$pid"
  done
  ;;
esac
