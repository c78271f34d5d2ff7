"""`python -m reasongenrm` is the command `reasongenrm`."""

from reasongenrm.cli import main

if __name__ == "__main__":
    main()
