"""`hvsock selftest` of the transport vsock, within a guest; prints one line of JSON: what became of the checks."""

from __future__ import annotations

import json

from hvsock import selftest


def main() -> None:
    """Run all checks; what failed says how."""
    with selftest.chosen_ground() as ground:
        outcomes = list(selftest.run(ground, selftest.CHECKS))
    failed = selftest.Result.FAILED
    told = {one.name: one.found if one.result is failed else str(one.result) for one in outcomes}
    print(json.dumps({"checks": told}), flush=True)


if __name__ == "__main__":
    main()
