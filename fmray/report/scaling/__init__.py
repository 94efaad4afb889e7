"""Scaling laws: what a set of finished runs says of larger ones. `law` is the formula, `fit` finds it, `runs` reads what it is fitted to."""
