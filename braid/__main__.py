"""`python -m braid` is `braid`."""

from .stream.cli.main import main

if __name__ == "__main__":
    main()
