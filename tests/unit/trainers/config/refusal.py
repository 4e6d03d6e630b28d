"""What reading refuses, in its words."""

import pytest

from trainers.config.files import read
from trainers.errors import ConfigError


def refused(*args, **kwargs):
    with pytest.raises(ConfigError) as caught:
        read(*args, **kwargs)
    return str(caught.value)
