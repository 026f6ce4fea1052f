"""Entry of `python install.py demo` and `python install.py test`; without arguments it installs nothing.

ComfyUI-Manager runs this file once without arguments, other hosts at every start: it must stay instant and
touch nothing. The set-up behind the two commands is tests/bootstrap.py, which the published package leaves out.
"""
import os
import sys

USAGE = "usage: python install.py [demo [--out DIR] | test [pytest arguments]]"


def main(argv):
    """Exit code: 0 done, 1 failed, 2 usage; `test` passes pytest's own code on."""
    if not argv:
        print("vqpack: nothing to install, everything it needs comes with the host")
        return 0
    if argv[0] not in ("demo", "test"):
        print(USAGE, file=sys.stderr)
        return 0 if argv[0] in ("-h", "--help") else 2
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "tests", "bootstrap.py")
    if not os.path.isfile(script):
        print("vqpack: '%s' needs the tests folder, which the published package leaves out: "
              "run it in a clone of the repository" % argv[0], file=sys.stderr)
        return 1
    return _hand_over(script, argv)


def _hand_over(script, argv):
    import runpy

    return runpy.run_path(script)["main"](argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
