#!/bin/sh
# on_success: uploads what was published to a repository of the Hugging Face hub, one revision (branch) a step.
#   on_success = ["/etc/dcp2hf/hooks/upload.sh", "our-team/model"]
# `hf` takes its token from HF_TOKEN or HF_TOKEN_PATH. What is there already is not sent again, so a second try goes on
# where the first ended; manifest and signature come last: a revision that has them is whole.
set -eu
repository=$1 revision="step-$HOOK_STEP"
hf upload "$repository" "$HOOK_OUTPUT" . --revision "$revision" --exclude conversion.json --exclude model.sig \
    --commit-message "step $HOOK_STEP of $HOOK_RUN"
for last in conversion.json model.sig; do
    [ ! -e "$HOOK_OUTPUT/$last" ] || hf upload "$repository" "$HOOK_OUTPUT/$last" "$last" --revision "$revision" \
        --commit-message "step $HOOK_STEP of $HOOK_RUN: $last, save $HOOK_SAVE_ID"
done
