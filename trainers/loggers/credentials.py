"""Whether Weights & Biases knows who runs this; needs neither its library nor torch."""

import netrc
import os
from pathlib import Path
from urllib.parse import urlparse


def has_credentials() -> bool:
    """Tell whether a key is in the environment or in the netrc file; nothing is sent."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    file = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    try:
        return netrc.netrc(file).authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False
