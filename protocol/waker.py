"""A descriptor that other threads make readable, to end a poll."""

import os


class Waker:
    """One eventfd. `ring` may be called from any thread and from signal handlers."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def ring(self) -> None:
        """Make the descriptor readable. Rings before the next `clear` are one."""
        if self.fd >= 0:
            os.eventfd_write(self.fd, 1)

    def clear(self) -> None:
        """Make it unreadable again."""
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            return  # nobody rang

    def close(self) -> None:
        """Give the descriptor back; later rings do nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
