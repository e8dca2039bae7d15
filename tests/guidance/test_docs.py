"""The snippets of docs/guidance.md, one after the other, at a small size."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "guidance.md"
SMALL = {'"height": 128': '"height": 32', '"width": 128': '"width": 32', '"num_frames": 33': '"num_frames": 5'}


def test_the_snippets_of_the_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    code = "\n".join(snippets).replace('"num_inference_steps": 20', '"num_inference_steps": 2')
    for large, small in SMALL.items():
        assert large in code
        code = code.replace(large, small)
    found = {}
    exec(code, found)
    assert len(found["videos"]) == 2 and not found["pipe"].transformer._forward_hooks
    assert (tmp_path / "heads.json").stat().st_size < 2000
