"""`python -m clip3dreid.train …`: the same as `clip3dreid train …`."""

from clip3dreid.cli.train import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
