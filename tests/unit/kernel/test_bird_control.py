"""What BIRD says on its control socket, read as sessions."""

from __future__ import annotations

from emulator.kernel.bird_control import SessionState, read_sessions

ANSWER = """\
2002-Name       Proto      Table      State  Since         Info
1002-device1    Device     ---        up     14:02:09.271
1006-
1002-kernel4    Kernel     master4    up     14:02:09.271
1006-  Channel ipv4
     State:          UP
     Routes:         3 imported, 2 exported, 3 preferred

1002-Mesh_192_168_50_12 BGP        ---        up     14:02:11.301  Established
1006-  Description:    Connection to BGP peer
   BGP state:          Established
     Neighbor address: 192.168.50.12
     Neighbor AS:      64512
     Last error:       Received: Bad BGP identifier
   Channel ipv4
     Routes:         1 imported, 2 exported, 1 preferred

1002-Mesh_fd00_50__13 BGP        ---        start  14:02:09.271  Passive
1006-  Description:    Connection to BGP peer
   BGP state:          Passive
     Neighbor address: fd00:50::13
   Channel ipv6
     State:          DOWN

0000
"""


def test_sessions_are_told_apart_from_other_protocols_and_from_each_other() -> None:
    assert read_sessions(ANSWER) == [
        SessionState("Mesh_192_168_50_12", "192.168.50.12", "Established", "Received: Bad BGP identifier", 1, 2),
        SessionState("Mesh_fd00_50__13", "fd00:50::13", "Passive"),
    ]


def test_an_empty_answer_holds_no_sessions() -> None:
    assert read_sessions("0000 \n") == []
    assert read_sessions("") == []
