"""``python -m trioline`` is ``trioline``."""

from trioline.cli.main import main

if __name__ == "__main__":
    main()
