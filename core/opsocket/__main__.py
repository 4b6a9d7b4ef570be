"""`python -m opsocket`."""

from opsocket.cli.main import main

if __name__ == "__main__":
    main()
