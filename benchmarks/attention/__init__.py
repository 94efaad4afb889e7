"""Attention implementations side by side: speed, memory and correctness, on whatever device there is. See `__main__`."""
