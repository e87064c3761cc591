"""What only one architecture knows, a folder each."""
