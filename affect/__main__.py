"""`python -m affect` is the `affect` command."""

from affect.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
