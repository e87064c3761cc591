"""The records of a run: run config, base assets, tokenizer, and which recorded paths may be followed."""
