# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the tests against the real kernel share: the harness, the guest, and one result an array.

Results go, a line each, to the file $RESULTS (as `./do check-kernel` wants
them) and to the standard output.
"""

import os
import re
import sys
import traceback

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "e2e"))
sys.path.insert(0, HERE)

import harness  # noqa: E402  pylint: disable=wrong-import-position
import vm  # noqa: E402  pylint: disable=wrong-import-position

# Shell functions for the guest's scripts. `idle` waits for a resync or check to end.
GUEST = r"""
idle() {
    while [ "$(cat /sys/block/$1/md/sync_action)" != idle ]; do usleep 20000; done
}
fast() {
    echo 4000000 >/sys/block/$1/md/sync_speed_min
    echo 4000000 >/sys/block/$1/md/sync_speed_max
}
check() {
    fast "$1"
    idle "$1"
    echo check >/sys/block/$1/md/sync_action
    idle "$1"
    echo "@$2 mismatch $(cat /sys/block/$1/md/mismatch_cnt)"
}
hash() {
    set -- "$1" "$2" $(sha256sum /dev/$1)
    echo "@$2 sha256 $3"
}
"""


class Report:
    """Counts results; `fact(output, key)` below finds what the guest said."""

    def __init__(self, test):
        self.test = test
        self.failures = 0
        self.passes = 0

    def result(self, status, name, remark=""):
        self.failures += status == "fail"
        self.passes += status == "pass"
        print(f"{status} {name} {remark}", flush=True)
        if "RESULTS" in os.environ:
            remark = remark.replace("\n", " | ").replace("\t", " ")[:300]
            log = os.path.join(os.environ.get("LOGS", "."), self.test + ".log")
            with open(os.environ["RESULTS"], "a", encoding="utf-8") as results:
                results.write(f"{status}\t{self.test}: {name}\t{log + ' ' + remark if status == 'fail' else remark}\n")

    def case(self, name, function, *arguments):
        """Run one case; True if it passed."""
        try:
            function(*arguments)
        except harness.Skip as reason:
            self.result("skip", name, str(reason))
            return False
        except Exception as problem:  # pylint: disable=broad-except
            traceback.print_exc(file=sys.stdout)
            self.result("fail", name, str(problem))
            return False
        self.result("pass", name)
        return True

    def end(self):
        print(f"summary: {self.passes} passed, {self.failures} failed")
        sys.exit(1 if self.failures else 0)


def facts(output, key):
    """Everything the guest said in lines "@KEY WORD TEXT", as {WORD: TEXT}."""
    return {word: text for word, text in re.findall(rf"^@{re.escape(key)} (\S+) ?(.*)$", output, re.M)}


def main(function):
    """Run `function`, or say why there is no guest."""
    try:
        vm.kernel_prepare()
    except vm.Unavailable as reason:
        print(f"no guest: {reason}")
        sys.exit(77)
    if not os.access(harness.STRIPELOG, os.X_OK):
        print(f"no program {harness.STRIPELOG}")
        sys.exit(1)
    function()
