"""`python -m trainers.cli`: the same as `llmgym`, for launchers that start a module."""

from trainers.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
