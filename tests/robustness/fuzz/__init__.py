"""Owns mutated checkpoints: thousands, each refused, or published as what it honestly says; docs/fuzzing.md is made here."""
