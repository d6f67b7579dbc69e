"The hints are of use to those who type-check their own code"
import importlib.util, subprocess, sys

import pytest

from conftest import ROOT

pytestmark = pytest.mark.skipif(importlib.util.find_spec('mypy') is None, reason='mypy is not installed')


def mypy(path, cache):
    "What mypy says of a file"
    cmd = [sys.executable, '-m', 'mypy', '--strict', '--config-file', ROOT/'pyproject.toml', '--cache-dir', cache, path]
    done = subprocess.run(list(map(str, cmd)), cwd=ROOT, capture_output=True, text=True, timeout=600)
    return [line for line in done.stdout.splitlines() if ': error:' in line]


def test_use_is_typed(tmp_path):
    assert (ROOT/'vitnb/py.typed').exists()
    text = (ROOT/'tests/typed_use.py').read_text('utf-8')
    assert not mypy(ROOT/'tests/typed_use.py', tmp_path/'cache')
    wrong = tmp_path/'wrong_use.py'          # and mistakes are found
    wrong.write_text(text.replace("student='nano'", 'student=3').replace('rho=50.', "rho='50'").replace('experts.logits', 'experts.logitz'))
    assert len(mypy(wrong, tmp_path/'cache')) >= 3


def test_every_signature_can_be_documented():
    "`nbdev_docs` evaluates the hints of everything that is exported"
    show = """
import importlib, pkgutil, warnings; warnings.simplefilter('ignore')
import vitnb
from nbdev.showdoc import show_doc
for module in pkgutil.walk_packages(vitnb.__path__, 'vitnb.'):
    loaded = importlib.import_module(module.name)
    for name in getattr(loaded, '__all__', []):
        if callable(found := getattr(loaded, name)):
            try: str(show_doc(found))
            except Exception as e: print(module.name, name, type(e).__name__, e)
"""
    done = subprocess.run([sys.executable, '-c', show], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and not done.stdout, done.stdout + done.stderr[-2000:]
