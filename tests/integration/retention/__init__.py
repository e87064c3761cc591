"""Owns the tests of TorchTitan's retention (`keep_latest_k`) beside exports, and docs/retention.md, which they write."""
