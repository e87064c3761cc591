"""Reads a step on disk: listing and completeness, storage metadata, items, rows of tensors, and steps in HF form."""
