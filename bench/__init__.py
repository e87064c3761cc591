"""The benchmark: our conversion against TorchTitan's own and against the floor, and what watching costs."""
