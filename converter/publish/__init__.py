"""Lock and owners, manifest, hooks before publishing, and the swap of the published directory."""
