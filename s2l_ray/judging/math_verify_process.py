"""The program that `symbolic` starts: reads `[reference, answer]` as lines of JSON, answers each with true or false.

It is run as a file of its own, so that what a model wrote can hang or exhaust this process and no other.
"""

import json
import logging
import resource
import sys


def main(memory_bytes: int) -> None:
    """Say that it is ready, then judge line by line until standard input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    from math_verify import LatexExtractionConfig, parse, verify

    logging.disable()
    # Its reader of plain expressions evaluates what it reads as Python; its reader of LaTeX does not.
    readers = [LatexExtractionConfig()]

    def read(text: str) -> list[object]:
        found: list[object] = parse(f"${text}$", readers, parsing_timeout=None)
        return found

    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        reference, answer = json.loads(line)
        equal = verify(read(reference), read(answer), timeout_seconds=None)
        print(json.dumps(bool(equal)), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
