"""`python -m fmray` is `fmray`."""

from fmray.cli import main

if __name__ == "__main__":
    main()
