"""What tests share: real checkpoints, labs."""
