"""Corpora: sources, the prepare stage (corpus to TokenDataset), and the reader that training and evaluation use."""
