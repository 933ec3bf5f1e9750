"""What a node is: one module a provider."""
