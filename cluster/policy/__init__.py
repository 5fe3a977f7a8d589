"""Pure decisions: values and an injected clock in, a decision out."""
