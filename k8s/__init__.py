"""The only package that knows Kubernetes."""
