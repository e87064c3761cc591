"""The status page in a real browser, over a real daemon."""
