"""Trains one rank: model, ZeRO, data, checkpoint, metrics, loop. Knows neither Ray nor Kubernetes."""
