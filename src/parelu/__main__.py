"""`python -m parelu`."""

from parelu.cli.main import main

if __name__ == "__main__":
    main()
