"""What is shipped for Prometheus and Grafana fits what the daemon serves, and the real programs take it."""
