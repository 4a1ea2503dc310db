"""`python -m serve.keys TEAM`: make a key for a team. Prints the key, this once, and the line for the keys file."""

import argparse
import sys

from serve.auth import hashed, new_key


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m serve.keys", description=__doc__)
    parser.add_argument("team", help="a team of the endpoint's `teams` setting")
    team = parser.parse_args(argv).team
    key = new_key()
    print(f"key, shown only now:   {key}", file=sys.stderr)
    print("line for the keys file (the setting `keys`); put `revoked` behind it to take the key back:", file=sys.stderr)
    print(f"{team} {hashed(key)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
