"""A sandbox for programs that nobody has read: what compiles scraped code, what a model wrote.

    terms.py     what is asked and answered: limits, outcomes, means, levels
    means.py     what this machine offers, found out by trying: available, require
    running.py   run a program to its end
    serving.py   keep one running that answers lines
    box.py       start a jailed program, hear of it, end it
    view.py      which paths it sees
    command.py   the command line of its jail

and, in the process that becomes the program, with nothing but the standard library:

    jail.py  probe.py  kernel.py  filters.py

The parent starts the jail, a small Python program (under bubblewrap, or alone). The jail makes
namespaces and an empty root with only the named paths, forks, gives up every right, takes limits
and a filter of system calls upon itself, and executes the program. Where namespaces are forbidden,
Landlock and the filter alone hold; where those are missing too, only the limits do, and whoever
needs more is refused (`require`). All of it is set up before the program's first instruction; none
of it can be taken back.

Not covered: faults in the kernel; how long things take, as seen by the program; memory of several
processes together, which is only bounded by their number times the limit of each.
"""
