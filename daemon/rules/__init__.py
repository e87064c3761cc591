"""Pure decisions: the state of a step, the next job, the time of a retry, the place of an export."""
