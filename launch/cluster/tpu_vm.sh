#!/usr/bin/env bash
# Trains on every host of a Cloud TPU VM slice, which is there and has the code.
#
#   TPU=NAME ZONE=us-west4-a launch/cluster/tpu_vm.sh \
#       --config=configs/sparse70.py:llama2_7b --config.init=DIR --workdir=DIR
#
# CODE is the checkout on the hosts, with its environment in CODE/.venv; the working
# directory must lie on storage that all hosts mount (Filestore, or a bucket by gcsfuse).
# JAX finds the hosts by itself. Stopped or preempted, the same command goes on.

set -euo pipefail
: "${TPU:?set TPU to the name of the TPU VM slice}"
: "${ZONE:?set ZONE to its zone}"

printf -v arguments '%q ' "$@"
exec gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
    --command="cd ${CODE:-sparse_jax} && .venv/bin/python -u launch/train.py \
--distributed $arguments"
