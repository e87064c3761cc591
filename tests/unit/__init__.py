"""Each module, alone; mirrors the packages."""
