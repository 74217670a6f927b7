"""`python -m engine_bridge`."""

from engine_bridge.cli import main

if __name__ == "__main__":
    main(prog_name="python -m engine_bridge")
