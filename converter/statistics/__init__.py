"""RMS of weights and of their updates, from values that are sampled while an export is written."""
