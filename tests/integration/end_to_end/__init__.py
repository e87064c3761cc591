"""The whole way with nothing stood in for: TorchTitan saves, `dcp2hfd` sees it, the real converter converts it."""
