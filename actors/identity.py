"""One process among all that have lived on this machine. Data only, for those who decide."""

import msgspec


class Identity(msgspec.Struct, frozen=True):
    """Since the machine started: pids are reused, the pair of pid and start time is not."""

    pid: int
    ticks: int  # field 22 of /proc/PID/stat: clock ticks from boot to its start
