# Read by federate.sbatch: Ray on every node of the allocation, `start_ray` and `stop_ray`.
#
# RAY_ADDRESS leads `federation.ray.address: auto` to it, so that a run that goes on elsewhere finds
# the Ray of its new nodes.
ray_steps=()

start_ray() {
  local ip="${AFFECT_HEAD_IP:-$(hostname --ip-address | cut -d' ' -f1)}"
  local port=$((20000 + SLURM_JOB_ID % 20000)) # a port of its own, as jobs may share a node
  local gpus="${SLURM_GPUS_ON_NODE:-0}"
  export RAY_ADDRESS="$ip:$port" RAY_USAGE_STATS_ENABLED=0
  local start=(ray start --block --num-cpus="$SRUN_CPUS_PER_TASK" --num-gpus="$gpus"
    --min-worker-port=0 --max-worker-port=0 --disable-usage-stats)
  # Ray's sockets allow 107 characters, hence not the scratch folder
  srun --nodes=1 --ntasks=1 --overlap --nodelist="$SLURMD_NODENAME" "${start[@]}" --head \
    --node-ip-address="$ip" --port="$port" --ray-client-server-port=$((port + 1)) \
    --include-dashboard=false --temp-dir="/tmp/ray-$SLURM_JOB_ID" </dev/null >&2 &
  ray_steps+=($!)
  await_port "$ip" "$port" || fail_ray "its head does not answer at $RAY_ADDRESS"
  if [ "$SLURM_NNODES" -gt 1 ]; then
    srun --nodes=$((SLURM_NNODES - 1)) --ntasks=$((SLURM_NNODES - 1)) --ntasks-per-node=1 --overlap \
      --exclude="$SLURMD_NODENAME" "${start[@]}" ${AFFECT_HEAD_IP:+--node-ip-address="$ip"} \
      --address="$RAY_ADDRESS" </dev/null >&2 &
    ray_steps+=($!)
  fi
  python "$home/slurm/await_ray.py" "$SLURM_NNODES" || fail_ray "not all nodes have joined"
}

# await_port IP PORT: until somebody answers there, for a minute at most.
await_port() {
  for _ in $(seq 300); do
    if (: <>"/dev/tcp/$1/$2") 2>/dev/null; then return 0; fi
    sleep 0.2
  done
  return 1
}

fail_ray() {
  tell "failed: Ray: $1"
  echo "Ray: $1; what it says stands above" >&2
  stop_ray
  exit 1
}

stop_ray() {
  kill "${ray_steps[@]}" 2>/dev/null || true
  wait "${ray_steps[@]}" 2>/dev/null || true
  rm -rf "/tmp/ray-$SLURM_JOB_ID"
}
