"""`python -m search`."""

from search.cli import exit_quickly, main

if __name__ == "__main__":
    exit_quickly(main())
