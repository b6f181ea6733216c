#!/usr/bin/python3
"""What a run of `meson test` came to, one line a result, for ./do check.

    tally.py NAME MESON-LOGS LOG-DIRECTORY    status TAB name TAB remark, for each result
    tally.py --unit-tests BUILD               the names of the tests built in tests/unit

A program that reports its cases (cmocka does) counts for as many results as it
ran cases; any other counts for one. A program that failed without naming a
failed case (it crashed, it timed out) is one failure more. The output of a
failed program is kept as LOG-DIRECTORY/NAME.TEST.log.
"""

import glob
import json
import os
import re
import subprocess
import sys

# How cmocka sums up one group of cases.
CASES_RUN = re.compile(r"^\[==========\] (?:.*: )?(\d+) test\(s\) run", re.M)
CASES_PASSED = re.compile(r"^\[  PASSED  \] (?:.*: )?(\d+) test\(s\)", re.M)
CASES_SKIPPED = re.compile(r"^\[  SKIPPED \] (?:.*: )?(\d+) test\(s\)", re.M)
CASES_FAILED = re.compile(r"^\[  FAILED  \] (?:.*: )?(\d+) test\(s\)", re.M)


def cases_of(output):
    """(passed, failed, skipped) as the program itself counted, or None."""
    if not CASES_RUN.search(output):
        return None

    def total(pattern):
        return sum(int(n) for n in pattern.findall(output))

    return total(CASES_PASSED), total(CASES_FAILED), total(CASES_SKIPPED)


def last_line(text):
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"


def tally(label, meson_logs, log_directory):
    found = sorted(glob.glob(os.path.join(meson_logs, "testlog*.json")))
    found = [path for path in found if os.path.getsize(path) > 0]
    if not found:
        return 1
    for path in found:
        with open(path, encoding="utf-8") as log:
            for line in log:
                report(label, json.loads(line), log_directory)
    return 0


def report(label, test, log_directory):
    name = f"{label}: {test['name'].replace('/', '.')}"
    output = test.get("stdout") or ""
    errors = test.get("stderr") or ""
    outcome = test["result"]
    cases = cases_of(output) or cases_of(errors) or (0, 0, 0)
    passed, failed, skipped = cases
    if outcome == "SKIP":
        print(f"skip\t{name}\t{last_line(output + errors)}")
        return
    if outcome in ("OK", "EXPECTEDFAIL"):
        for _ in range(passed or 1):
            print(f"pass\t{name}\t")
    else:
        kept = os.path.join(log_directory, f"{label}.{test['name'].replace('/', '.')}.log")
        with open(kept, "w", encoding="utf-8") as log:
            log.write(f"{outcome} {' '.join(test.get('command', []))}\n{output}\n{errors}\n")
        for _ in range(passed):
            print(f"pass\t{name}\t")
        for _ in range(failed or 1):
            print(f"fail\t{name}\t{kept}")
    for _ in range(skipped):
        print(f"skip\t{name}\ta case of it, see {os.path.join(log_directory, label + '.log')}")


def unit_tests(build):
    listing = subprocess.run(["meson", "introspect", "--tests", build], check=True, capture_output=True, text=True)
    names = {test["name"] for test in json.loads(listing.stdout) if "/tests/unit/" in test["cmd"][0]}
    print(" ".join(sorted(names)))
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "--unit-tests":
        sys.exit(unit_tests(sys.argv[2]))
    sys.exit(tally(*sys.argv[1:4]))
