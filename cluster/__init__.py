"""The only package that knows Ray: controller, node agents, policies, verdicts, goodput, faults."""
