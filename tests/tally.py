#!/usr/bin/python3
"""What a run of `meson test` came to, one line a result, for ./do check.

    tally.py NAME MESON-LOGS LOG-DIRECTORY    status TAB name TAB remark, for each result
    tally.py --unit-tests BUILD               the names of the tests built in tests/unit

A program that reports its cases (TAP) counts for as many results as it ran
cases, each by its name; any other counts for one. A program that failed without
naming a failed case (it crashed, it timed out) is one failure more. The output of
a failed program is kept as LOG-DIRECTORY/NAME.TEST.log.
"""

import glob
import json
import os
import re
import subprocess
import sys

CASE = re.compile(r"^(ok|not ok)\b *\d* *-? *([^#\n]*?) *(?:# *(SKIP)\S* *(.*))?$", re.M | re.I)


def cases_of(output):
    """[(status, case, remark)] as the program reported them in TAP."""
    if not re.search(r"^1\.\.\d+", output, re.M):
        return []
    cases = []
    for outcome, name, skip, reason in CASE.findall(output):
        status = "fail" if outcome == "not ok" else "skip" if skip else "pass"
        cases.append((status, name or "case", reason or "no reason given" if skip else ""))
    return cases


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
    # Meson's "PROJECT:SUITE / NAME"; several builds share one list, so the build is part of ours.
    test_name = test["name"].split(" / ")[-1].replace("/", ".")
    name = f"{label}: {test_name}"
    output = test.get("stdout") or ""
    errors = test.get("stderr") or ""
    outcome = test["result"]
    cases = cases_of(output)
    good = outcome in ("OK", "EXPECTEDFAIL")
    kept = os.path.join(log_directory, f"{label}.{test_name}.log")
    if not good and outcome != "SKIP":
        with open(kept, "w", encoding="utf-8") as log:
            log.write(f"{outcome} {' '.join(test.get('command', []))}\n{output}\n{errors}\n")
    for status, case, remark in cases:
        print(f"{status}\t{name}: {case}\t{kept if status == 'fail' else remark}")
    if outcome == "SKIP" and not cases:
        print(f"skip\t{name}\t{last_line(output + errors)}")
    elif good and not cases:
        print(f"pass\t{name}\t")
    elif not good and outcome != "SKIP" and not any(status == "fail" for status, _, _ in cases):
        print(f"fail\t{name}: {outcome.lower()}\t{kept}")


def unit_tests(build):
    listing = subprocess.run(["meson", "introspect", "--tests", build], check=True, capture_output=True, text=True)
    names = {test["name"] for test in json.loads(listing.stdout) if "/tests/unit/" in test["cmd"][0]}
    print(" ".join(sorted(names)))
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "--unit-tests":
        sys.exit(unit_tests(sys.argv[2]))
    sys.exit(tally(*sys.argv[1:4]))
