"""What may go wrong: failing calls, faults in content, mutated checkpoints, long runs."""
