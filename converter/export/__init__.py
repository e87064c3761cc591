"""Bytes out: plan, HF shards, exporter, cast, writer, read-back, provisional plan."""
