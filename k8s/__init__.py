"""The only package that knows Kubernetes. Empty until the Kubernetes backend lands (docs/roadmap.md)."""
