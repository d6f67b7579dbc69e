"""What only an NVIDIA GPU can show. `make test` hides GPUs, because it compares to the last bit; where there is one, run

    .venv/bin/python -m pytest -n 0 -rs tests/test_gpu.py

VITNB_TEST_GPU=cpu before it rehearses the tests on a processor: it shows that they are written rightly, and nothing about a GPU.
"""
import contextlib, math, os
from dataclasses import replace
os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')      # for matrix products that are the same each time; before CUDA begins
import pytest, torch
import vitnb.training.train as module
from vitnb.core import packaged
from vitnb.data.batches import AugmentConfig, Streamed, resident
from vitnb.methods.deit_lt import DeiTLT
from vitnb.methods.registry import resume
from vitnb.models.student import read_weights
from vitnb.training.loop import backward, choose_bf16, update
from vitnb.training.train import prepare, train
from conftest import some
from test_resume import stopped_after

DEVICE = os.environ.get('VITNB_TEST_GPU', 'cuda')
REHEARSAL = DEVICE == 'cpu'
pytestmark = pytest.mark.skipif(not REHEARSAL and not torch.cuda.is_available(), reason='no NVIDIA GPU is here, or it is hidden: see the top of tests/test_gpu.py')

# A GPU draws other random numbers for the noise of erased rectangles and for stochastic depth, so there are none of these.
CONFIG = dict(epochs=2, batch_size=32, patch_size=14, drop_path=0., augment=AugmentConfig(rand_augment=True, erase=0), drw_start=.5, keep_labels=False,
              attention='explicit', precision='fp32', compile='off', device=DEVICE)


@pytest.fixture
def few(data): return some(data, 96)


@pytest.fixture
def config(monkeypatch, tmp_path):
    "DeiT-LT in plain float32, with kernels that give the same each time where there are such"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('VITNB_CACHE', str(tmp_path/'cache'))
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)       # products of 10 bits in convolutions, which is PyTorch's default
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield DeiTLT(**CONFIG, teacher=str(packaged('teachers', 'fashion-mnist-lt-100.safetensors')))
    torch.use_deterministic_algorithms(before)


def losses(run) -> list[float]: return [line[k] for line in run.metrics for k in ('loss', 'cls', 'dist') if k in line]


def same_losses(a, b):
    """To a thousandth: orders of adding that differ in the last of 24 bits are divided by small gradients in AdamW and grow from step to step.

    After these steps the weights of two ways of computing attention, on one processor, are some millionths apart; a label of the teacher that falls on the other side
    moves a mean over 32 images by some thousandths of its value at most, and one wrong sign or factor by far more."""
    assert len(losses(a)) >= 4 and losses(a) == pytest.approx(losses(b), rel=1e-3)


def test_the_same_losses_as_on_the_processor(config, few, tmp_path):
    same_losses(train(replace(config, attention='fused'), 'deit-lt', tmp_path/'there', few, quiet=True), train(replace(config, device='cpu'), 'deit-lt', tmp_path/'here', few, quiet=True))


def test_an_interrupted_run_ends_with_the_same_weights(config, few, tmp_path, monkeypatch):
    whole = train(config, 'deit-lt', tmp_path/'whole', few, quiet=True)
    run = stopped_after(4, monkeypatch, config, tmp_path/'run', few, method='deit-lt')
    resume(run.path, few, quiet=True)
    same_losses(whole, run)
    a, b = (torch.cat([w.flatten() for w in read_weights(r.path/'model.safetensors')[0].values()]) for r in (whole, run))
    assert (a - b).norm() < 5e-3 * a.norm()      # exact where every kernel adds in one order; when AdamW's averages are not put back it is 1 %, and the losses are 2 % off


@pytest.mark.skipif(REHEARSAL, reason='on a processor it takes minutes, and a notebook does it')
def test_compiled_it_has_the_same_losses(config, few, tmp_path):
    same_losses(*(train(replace(config, compile=compiled), 'deit-lt', tmp_path/compiled, few, quiet=True) for compiled in ('on', 'off')))


def test_bfloat16_with_the_faster_attention(config, few, tmp_path):
    assert REHEARSAL or choose_bf16('auto', torch.device(DEVICE)) == torch.cuda.is_bf16_supported(including_emulation=False)
    run = train(replace(config, precision='bf16', attention='auto', epochs=1), 'deit-lt', tmp_path/'run', few, quiet=True)
    assert run.config['machine']['attention'] in ('fused', 'explicit') and run.config['machine']['precision'] == 'bf16'
    assert all(math.isfinite(v) for v in losses(run))


@contextlib.contextmanager
def no_waiting():
    "Whatever waits for the GPU raises an error"
    if not REHEARSAL: torch.cuda.set_sync_debug_mode('error')
    try: yield
    finally:
        if not REHEARSAL: torch.cuda.set_sync_debug_mode('default')


def test_a_step_waits_for_nothing_and_images_lie_on_the_gpu_once(config, few, monkeypatch):
    there = []
    def once(data, device):
        there.append(resident(data, device))
        return there[-1]
    monkeypatch.setattr(module, 'resident', once)
    t, _, _ = prepare(config, few)
    def step(i):
        found = backward(config, t.learner, t.accelerator, t.batches(0, i, True), 0, i, t.bf16)
        update(config, t.learner, t.optimiser, t.accelerator, 0)
        return found['loss'].detach()
    step(0)      # kernels are loaded, and the optimiser begins
    with no_waiting(): loss = step(1)
    assert math.isfinite(float(loss)) and loss.device.type == DEVICE
    assert len(there) == 1 and there[0].train.images.device.type == DEVICE


def test_images_without_room_are_read_ahead(config, few, tmp_path, monkeypatch):
    whole, made = train(config, 'deit-lt', tmp_path/'whole', few, quiet=True), []
    def streamed(data, device):
        made.append(Streamed(few.train.images, device))
        return replace(few, train=replace(few.train, images=made[0]))
    monkeypatch.setattr(module, 'streamed', streamed)
    same_losses(whole, train(config, 'deit-lt', tmp_path/'read', few, quiet=True))
    assert REHEARSAL or made[0]._read(torch.arange(2)).is_pinned()
