"""Pure decisions: what a step is, which job next, when again, where to publish."""
