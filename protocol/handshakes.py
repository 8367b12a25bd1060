"""How a connection with keys fares, told by libzmq's socket monitor; the deciding half.

CURVE answers a wrong server key with silence and a closed connection, so what went wrong has to be
concluded from the order of events.
"""

from typing import Literal

from protocol.errors import Refused, Unauthorised

Event = Literal["connected", "retried", "disconnected", "succeeded", "unauthorised", "broken"]

# libzmq's names for them; each stands for one of ours.
EVENTS: dict[str, Event] = {
    "CONNECTED": "connected",
    "CONNECT_RETRIED": "retried",
    "DISCONNECTED": "disconnected",
    "HANDSHAKE_SUCCEEDED": "succeeded",
    "HANDSHAKE_FAILED_AUTH": "unauthorised",
    "HANDSHAKE_FAILED_PROTOCOL": "broken",
    "HANDSHAKE_FAILED_NO_DETAIL": "broken",
}


class Handshake:
    """The connecting side of one endpoint."""

    def __init__(self, endpoint: str) -> None:
        self.up = False
        self.trouble = ""  # in words; "" while all is well or nothing is known
        self.final = False  # trying again will not help
        self._unauthorised = False
        self._endpoint = endpoint

    def heard(self, event: Event) -> None:
        """The monitor reports `event`."""
        match event:
            case "succeeded":
                self.up, self.trouble, self.final = True, "", False
            case "unauthorised":
                self._unauthorised = True
                self._fail(f"{self._endpoint} refuses this key: it was never invited, or revoked")
            case "retried" if not self.up and not self.final:
                self.trouble = f"nobody listens at {self._endpoint}"
            case "broken" | "disconnected" if not self.up:
                self._fail(
                    f"{self._endpoint} broke off the handshake: it is not the server this key "
                    "file was made for, or does not speak this protocol"
                )
            case "disconnected":
                self.up = False
            case _:
                pass

    def refusal(self, waited_s: float) -> Refused:
        """Why we are not in, `waited_s` after we knocked or earlier, for a person."""
        if self._unauthorised:
            return Unauthorised(self.trouble)
        return Refused(
            self.trouble
            or f"no answer from {self._endpoint} within {waited_s:g} s: wrong address, a firewall "
            "in between, or the key file belongs to another run"
        )

    def _fail(self, words: str) -> None:
        # The refusal comes first, the disconnection that follows it explains nothing.
        if not self.final:
            self.trouble, self.final = words, True
