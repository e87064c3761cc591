#!/bin/sh
# on_success: submits an evaluation job for what was published, once, however often it is told.
#   on_success = ["/etc/dcp2hf/hooks/evaluate.sh", "/etc/dcp2hf/evaluate.sbatch"]
# The job script finds the model in $MODEL. The job is named after the key, so that a job which is known (waiting, running,
# or ended within Slurm's MinJobAge) is not submitted again; a job that is asked for twice later must itself be repeatable.
set -eu
name="dcp2hf-$HOOK_KEY"
# Not in a pipe: if Slurm does not answer, this must fail, and be tried again.
known=$(squeue --noheader --states=all --name="$name" --format=%i)
[ -z "$known" ] || { echo "job $known is that of step $HOOK_STEP"; exit 0; }
export MODEL="$HOOK_OUTPUT"
sbatch --parsable --job-name="$name" --comment="$HOOK_RUN step $HOOK_STEP" --export=MODEL "$1"
