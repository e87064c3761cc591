"""What the run recorded: run config, base assets, tokenizer, and which recorded paths may be followed."""
