"Images that are read ahead: the same training whatever the timing, errors that surface, and no thread that stays"
import os, signal, threading, time, traceback
from dataclasses import replace
import pytest, torch
import vitnb.training.train as module
from vitnb.core import UserError
from vitnb.data.batches import Streamed
from vitnb.data.sets import DataConfig, long_tailed
from vitnb.methods.deit_lt import DeiTLT
from vitnb.methods.teacher import Teacher
from vitnb.methods.vit import ViT
from vitnb.training.train import train
from conftest import some
from test_bad_input import pictures
from test_resume import assert_same

FEW = DataConfig(n_max=60, rho=10)
SMALL = dict(data=FEW, attention='explicit', epochs=2, batch_size=32, patch_size=14, device='cpu')


class Watched:
    "Pixels that say in which thread they are read, and do something before a reading"
    def __init__(self, images, act=lambda n: None): self.images, self.act, self.device, self.threads = images, act, images.device, []
    def __len__(self): return len(self.images)
    def __getitem__(self, indices):
        self.threads.append(threading.current_thread().name)
        self.act(len(self.threads))
        return self.images[indices]


@pytest.fixture(scope='module')
def data(): return some(long_tailed(FEW), 96)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('VITNB_CACHE', str(tmp_path/'cache'))
    yield tmp_path
    assert not [t.name for t in threading.enumerate() if t.name.startswith(('next batch', 'decoding ahead'))]


@pytest.fixture
def watched(monkeypatch):
    "Trainings read ahead, as with an NVIDIA GPU, and `act` is called before each reading; what was read is in the list"
    seen = []
    def begin(act=lambda n: None):
        def streamed(data, device):
            seen.append(Watched(data.train.images, act))
            return replace(data, train=replace(data.train, images=Streamed(seen[-1], device)))
        monkeypatch.setattr(module, 'streamed', streamed)
        return seen
    return begin


def same(here, data, watched, config):
    "Train in both ways; returns how often and in which threads pixels were read"
    plain = train(config, 'a-method', here/'plain', data, quiet=True)
    seen = watched(lambda n: time.sleep(.02 * (n % 3)))      # now later, now earlier than the step
    assert_same(plain, train(config, 'a-method', here/'ahead', data, quiet=True))
    return seen[0].threads


def test_the_same_weights_with_a_sampler_that_moves(here, data, watched):
    threads, steps = same(here, data, watched, ViT(**SMALL, sampler='progressive')), 2 * (len(data.train) // 32)
    assert len(threads) == 2 + steps and sum(t.startswith('next batch') for t in threads) == steps - 1      # two are tried at the start; then each step once


def test_the_same_weights_where_mixing_ends(here, data, watched):
    teacher = train(Teacher(data=FEW, depth=8, epochs=1, batch_size=32, device='cpu'), 'teacher', here/'teacher', data, quiet=True)
    config = DeiTLT(**SMALL, teacher=str(teacher.path), drw_start=.5, keep_labels=False)
    assert [config.learner(data, torch.device('cpu'), False).mixing(epoch) for epoch in (0, 1)] == [True, False]
    same(here, data, watched, config)


def test_the_same_weights_from_pictures_that_are_decoded(here, watched):
    pictures(here/'pets', dict(cats=30, dogs=20))
    config = ViT(**SMALL | dict(data=DataConfig('imagefolder:pets', image_folder_size=28, pixels='stream'), batch_size=8))
    threads = same(here, long_tailed(config.data), watched, config)
    assert sum(t.startswith('next batch') for t in threads) > 4


def test_an_error_of_the_reading_surfaces(here, data, watched):
    def fail(n):
        if n == 6: raise UserError('the disk is gone')
    watched(fail)
    with pytest.raises(UserError, match='the disk is gone') as e: train(ViT(**SMALL), 'vit', here/'run', data, quiet=True)
    assert {'fail', '_read', 'fit'} <= {frame.name for frame in traceback.extract_tb(e.tb)}


def test_a_stop_while_a_batch_is_read(here, data, watched):
    def stop(n):
        if n == 6: os.kill(os.getpid(), signal.SIGINT)
        if n > 6: time.sleep(.1)
    watched(stop)
    with pytest.raises(KeyboardInterrupt): train(ViT(**SMALL), 'vit', here/'run', data, quiet=True)
    assert len(list((here/'run'/'resume').glob('*'))) > 0
