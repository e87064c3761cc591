"""A step on disk: listing and completeness, storage metadata, items, rows of tensors; steps in HF form."""
