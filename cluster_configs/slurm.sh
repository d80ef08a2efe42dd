#!/bin/bash
# One run on the nodes of one Slurm job: Ray starts on all of them, the run goes on the first, and Ray ends with it.
# From the repository's root, with the project installed in an environment that all nodes see:
#   S2L_STORAGE=/shared/s2l sbatch cluster_configs/slurm.sh workflows/quickstart.yaml
#   sbatch --nodes=4 --gpus-per-node=4 cluster_configs/slurm.sh workflows/math_cpu.yaml \
#     --set examples.path=/shared/rows.jsonl --set 'resources.train_proxy={workers: 16, gpus: 1, cpus: 4}'
# Everything after the script's name goes to `s2l run`. A job that was cut short goes on when it is submitted again.
# To edit: the #SBATCH lines below (partition, account, sizes, time), S2L_STORAGE (a folder that all nodes see, or a
# URI), and the line that activates the environment. Tested with stand-ins for srun and ray; run on no Slurm so far.
#SBATCH --job-name=s2l
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --mem=64G
#SBATCH --time=12:00:00
#SBATCH --output=s2l-%j.log
# When the run ends, `ray symmetric-run` stops every Ray of this user on the node: nothing else may run there.
#SBATCH --exclusive
set -euo pipefail

# source /shared/environments/s2l/bin/activate

: "${S2L_STORAGE:?set S2L_STORAGE to a folder that all nodes see, or to a URI such as s3://bucket/s2l}"
if [ "$#" -eq 0 ]; then
  echo "usage: sbatch cluster_configs/slurm.sh WORKFLOW [--set PATH=VALUE ...]" >&2
  exit 2
fi

# A token of this job's own, in a file in the home folder that the nodes share and only you can read.
umask 077
token_file="$HOME/.ray/s2l-token-${SLURM_JOB_ID:?}"
mkdir -p "$HOME/.ray"
trap 'rm -f "$token_file"' EXIT
python -c 'import secrets; print(secrets.token_hex(32))' > "$token_file"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$token_file"
unset RAY_AUTH_TOKEN RAY_ADDRESS

first_node="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)"
# The address and not the name, which on the node itself may mean 127.0.1.1. With several networks the first one counts.
first_ip="$(srun --nodes=1 --ntasks=1 --nodelist="$first_node" hostname -I | awk '{print $1}')"
address="$first_ip:$((20000 + SLURM_JOB_ID % 10000))"
echo "Ray's head is $first_node at $address; $SLURM_JOB_NUM_NODES nodes"

# Starting Ray on a cold shared file system takes longer than the half minute that Ray would wait.
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300

# Since Slurm 22.05 a step does not take the job's --cpus-per-task over, and would share one core.
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --kill-on-bad-exit=0 \
  --cpus-per-task="${SLURM_CPUS_PER_TASK:?}" \
  ray symmetric-run --address "$address" --min-nodes "$SLURM_JOB_NUM_NODES" \
  --num-cpus="${SLURM_CPUS_PER_TASK:?}" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" \
  -- python -m s2l_ray run "$@" --storage "$S2L_STORAGE" --set "resources.address=$address"
