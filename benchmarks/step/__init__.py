"""The training step beside bare loops and Hugging Face's Trainer."""
