"""What can be wrong with a job on Kubernetes, by subject. Each function yields findings: reason, numbers, remedy."""
