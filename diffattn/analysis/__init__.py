"""What a method does to a model: captured attention, recall, density, pictures, videos and their metrics."""
