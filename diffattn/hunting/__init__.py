"""Search for attention heads to guide with."""
