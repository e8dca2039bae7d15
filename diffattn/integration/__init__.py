"""The seam into diffusers: which attention calls are sparse, and with which plan."""
