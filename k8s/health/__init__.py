"""Is a cluster ready for runs: what `doctor --backend kuberay` looks at, by subject. Nothing here changes anything."""
