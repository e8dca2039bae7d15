"""A tiny text-to-video model: synthetic scenes, wired VAE, training and evaluation."""
