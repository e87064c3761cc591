"""What a newcomer can run, and the makers of base assets that the tests use as well. Imports nothing of tests."""
