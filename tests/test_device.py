"""A training step on a GPU that only pretends: what is on it has shapes and no numbers, and everything else is computed.

Two things that no test on a CPU shows are seen here: tensors of two devices in one operation, which is an error, and
operations for which a GPU has to be waited for (numbers read back, copies to it that block), of which a step has none.
Backward passes and optimisers need a driver and are left out.
"""
from contextlib import nullcontext
from dataclasses import replace
from unittest import mock
import pytest
import torch
from torch.utils._pytree import tree_leaves
from vitnb.core import packaged, to_device
from vitnb.data.batches import AugmentConfig, Streamed, batch_indices, make_batch, resident, streamed
from vitnb.data.sets import DataConfig, long_tailed
from vitnb.methods.registry import method, methods
from vitnb.models.any_teacher import AdaptedTeacher

fake_tensor = pytest.importorskip('torch._subclasses.fake_tensor', reason='this version of PyTorch pretends in another way')
GPU, CPU_GENERATOR = torch.device('cuda'), torch.Generator
EVERYTHING = dict(rand_augment=True, rand_increasing=False, auto_augment=True, jitter=.4, hue=.1, jitter_share=.5, grey=.5, blur=.5, cutout=8)      # of what a batch can be augmented with
READS_BACK = ('_local_scalar_dense', 'nonzero', 'unique', 'masked_select')
pytestmark = pytest.mark.filterwarnings('ignore:.*CUDA is not available.*')


class PretendedGPU(fake_tensor.FakeTensorMode):
    "Tensors on the CPU are real; those on 'cuda' have a shape and a type"
    def __init__(self):
        super().__init__(allow_non_fake_inputs=True)
        self.waits = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, str(operation)
        pretended = {t.device.type for t in tree_leaves((args, kwargs)) if isinstance(t, fake_tensor.FakeTensor)}
        wanted = None if kwargs.get('device') is None else torch.device(kwargs['device']).type
        if not pretended and wanted != 'cuda': return operation(*args, **kwargs)
        moves = 'copy' in name and wanted is not None and ('cuda' in pretended) != (wanted == 'cuda')
        waits = any(r in name for r in READS_BACK) or moves and not (wanted == 'cuda' and kwargs.get('non_blocking'))
        if 'aten.copy_' in name: waits = args[0].device.type != args[1].device.type and not (len(args) > 2 and args[2] or kwargs.get('non_blocking'))
        if 'aten.index' in name and 'cuda' in pretended:       # by numbers from the CPU, or by a mask, whose length has to be known
            waits |= any(i.device.type == 'cpu' and i.numel() > 0 or i.dtype == torch.bool for i in args[1] if i is not None) if isinstance(args[1], (list, tuple)) else False
        if waits: self.waits.append(f'{name} to {wanted}')
        return super().__torch_dispatch__(operation, types, args, kwargs)


def put(module, device=None, *others, **named):
    "`Module.to`, which cannot change the class of parameters"
    device = named.get('device', device)
    if not isinstance(device, (str, torch.device)): return module
    for m in module.modules():
        for name, p in m._parameters.items(): m._parameters[name] = p if p is None else torch.nn.Parameter(p.detach().to(device), p.requires_grad)
        for name, b in m._buffers.items(): m._buffers[name] = b if b is None else b.to(device)
    return module


@pytest.fixture
def gpu():
    with PretendedGPU() as gpu, mock.patch('torch.cuda.mem_get_info', lambda device: (2**34, 2**34)), mock.patch('torch.nn.Module.to', put), \
         mock.patch('torch.Generator', lambda device='cpu': CPU_GENERATOR()): yield gpu


@pytest.fixture(scope='module')
def data(): return long_tailed(DataConfig())      # the teacher in the package was trained on these


def test_waiting_and_two_devices_are_noticed(gpu):
    x = torch.ones(3).to(GPU)
    assert len(gpu.waits) == 1
    assert to_device(torch.ones(3), GPU).device.type == 'cuda' and len(gpu.waits) == 1
    x.cpu()
    assert len(gpu.waits) == 2
    with pytest.raises(Exception): x.sum().item()
    assert len(gpu.waits) == 3
    x[:2] = torch.ones(2)
    assert len(gpu.waits) == 4
    x[torch.tensor([0, 1])]
    assert len(gpu.waits) == 5
    with pytest.raises(Exception): x[x > 0]
    assert len(gpu.waits) > 5
    with pytest.raises(RuntimeError, match='same device'): x + torch.ones(3)


@pytest.mark.parametrize('name', sorted({*methods()} - {'slimming'}))      # whose steps draw a plan each, on the CPU
@pytest.mark.parametrize('crop', ['pad', 'resized'])
def test_a_step_waits_for_nothing(gpu, data, name, crop): no_waiting(gpu, data, method(name)(), crop)


def test_a_step_with_colours_and_a_grey_teacher_waits_for_nothing(gpu, data):
    colour = replace(data, train=replace(data.train, images=data.train.images.expand(-1, 3, -1, -1).contiguous()), mean=3 * data.mean, std=3 * data.std)
    with mock.patch.object(AdaptedTeacher, 'forward', AdaptedTeacher.answer):      # in inference mode nobody can pretend that there is a driver
        no_waiting(gpu, colour, method('deit-lt')(teacher=str(packaged('teachers', 'fashion-mnist-lt-100.safetensors'))), 'pad')


def no_waiting(gpu, data, config, crop):
    "Two steps of a method, without and with its last epochs' rules"
    learner, there = config.learner(data, GPU, True), resident(data, GPU)
    assert there.train.images.device.type == 'cuda' and next(learner.model.parameters()).device.type == 'cuda'
    gpu.waits.clear()
    for epoch in (0, config.epochs - 1):
        recipe = replace(config.augment, crop=crop, **EVERYTHING)
        needs = {name: recipe if name == 'second' else need for name, need in learner.needs.items()}
        batch = make_batch(there, recipe, 32, learner.mixing(epoch), 0, epoch, 0, GPU, **needs)
        if learner.label is not None: batch = batch._replace(taught=learner.label(batch))
        losses = learner.loss(learner.model.train(), batch, epoch)
        assert {v.device.type for v in (batch.images, batch.targets, *losses.values())} == {'cuda'}
    assert not gpu.waits


def test_images_that_do_not_fit_stay(gpu, data):
    with mock.patch('torch.cuda.mem_get_info', lambda device: (2**20, 2**34)): assert resident(data, GPU) is data
    assert resident(data, torch.device('cpu')) is data and streamed(data, torch.device('cpu')) is data
    batch = make_batch(data, AugmentConfig(), 32, True, 0, 0, 0, GPU)
    assert batch.images.device.type == 'cuda' and not gpu.waits
    assert streamed(there := resident(data, GPU), GPU) is there      # the mistake would be to fetch them again


def test_images_that_do_not_fit_are_read_ahead_into_pinned_memory(gpu, data):
    pinned = []
    def pin(pixels):
        pinned.append(pixels)
        return pixels
    with mock.patch('torch.Tensor.pin_memory', pin), mock.patch('torch.cuda.device', lambda device: nullcontext()):
        there = streamed(data, GPU)
        assert isinstance(there.train.images, Streamed) and there.train.labels is data.train.labels
        for step in range(2):
            batch = make_batch(there, AugmentConfig(rand_augment=True), 32, True, 0, 0, step, GPU)
            assert batch.images.device.type == 'cuda' and not gpu.waits and len(pinned) == step + 1
            there.train.images.expect([batch_indices(len(data.train), 32, 0, 0, step + 1)])
            there.train.images.coming[1].exception()     # wait for the thread
            assert len(pinned) == step + 2
        there.train.images.close()
    assert all(torch.equal(pixels, data.train.images[batch_indices(len(data.train), 32, 0, 0, step)]) for step, pixels in enumerate(pinned))


# Apple GPUs ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('crop', ['pad', 'resized'])
def test_a_batch_for_an_apple_gpu_is_made_on_the_processor(data, crop):
    colour = replace(data, train=replace(data.train, images=data.train.images.expand(-1, 3, -1, -1).contiguous()), mean=3 * data.mean, std=3 * data.std)
    recipe, handed_over = AugmentConfig(crop=crop, rand_augment=True), []
    def to(x, device):
        if torch.device(device).type != 'mps': return to_device(x, device)
        handed_over.append(x)
        return x
    made = lambda device: make_batch(colour, recipe, 32, True, 0, 0, 0, torch.device(device), clean=True, second=recipe)
    with mock.patch('vitnb.data.batches.to_device', to): batch = made('mps')
    assert len(handed_over) == 5 and all(x is y for x, y in zip(handed_over, batch))       # whole, and nothing before
    assert all(torch.equal(x, y) for x, y in zip(batch[:5], made('cpu')))
