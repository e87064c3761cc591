"""What others see: report, terminal, page, metrics, health, HTTP."""
