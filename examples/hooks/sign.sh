#!/bin/sh
# sign: signs the directory with OpenSSF model-signing (pip install model-signing pyOpenSSL) and a private key.
#   sign = ["/etc/dcp2hf/hooks/sign.sh", "/etc/dcp2hf/model-key.pem"]
# Under systemd: LoadCredential=model-key:/etc/dcp2hf/model-key.pem, and "$CREDENTIALS_DIRECTORY/model-key" here.
# Whoever has the public key: model_signing verify key --signature model.sig --public_key KEY.pub DIRECTORY
set -eu
exec model_signing sign key --private_key "$1" --signature "$HOOK_SIGNATURE" "$HOOK_STAGING"
