import socket

import pytest
from hunting_inputs import embeds
from wan import text_to_video


@pytest.fixture
def pipe():
    return text_to_video()


@pytest.fixture
def prompts():
    return [{"prompt_embeds": embeds(i), "negative_prompt_embeds": embeds(9)} for i in range(2)]


@pytest.fixture
def unused_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
