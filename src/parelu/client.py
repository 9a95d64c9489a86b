"""The verbs of a client of private inference, and its names: what runs without torch.

    with parelu.Client("host", 7000, Path("certs")) as client:
        labels = client.predict(images)

`parelu.api` has what needs a network.
"""

from parelu.private.offline.mode import Keep, modes
from parelu.private.protocol.delphi import TRUNCATIONS
from parelu.private.protocol.relu import relus
from parelu.private.protocol.reveal import REVEALS
from parelu.private.serving.client import Client, hints_folder
from parelu.private.serving.ledger import Ledger
from parelu.private.transport.tls import issue_client, make_certificates
from parelu.runs.bars import bar, share

__all__ = [
    "REVEALS",
    "TRUNCATIONS",
    "Client",
    "Keep",
    "Ledger",
    "bar",
    "hints_folder",
    "issue_client",
    "make_certificates",
    "modes",
    "relus",
    "share",
]
