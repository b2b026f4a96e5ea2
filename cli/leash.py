"""Becomes the command it is given, tied to the process that started it: when that is killed, the command is ended.

`python cli/leash.py PARENT COMMAND …`. Without it, a command that is killed with -9 would leave a training behind
which nobody watches. The command gets SIGTERM, at which a training saves a checkpoint. Linux only: elsewhere the
command runs untied, and whoever needs its place waits for its end.
"""

import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it was killed before this process was tied to it
            sys.exit(128 + signal.SIGTERM)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
