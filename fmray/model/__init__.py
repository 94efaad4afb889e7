"""Models: architectures and their counts, checkpoints, and the face that evaluation and audits use."""
