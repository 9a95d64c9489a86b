"""`python -m parelu`."""

from parelu.cli import main

if __name__ == "__main__":
    main()
