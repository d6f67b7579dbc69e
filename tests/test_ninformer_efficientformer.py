"NiNformer and EfficientFormer as students: trained by the ordinary loop, loaded again, looked at"
import dataclasses
import numpy as np
import pytest
import torch
from vitnb.analysis.analyse import AnalyseConfig, analyse
from vitnb.analysis.attention import attention_maps, block_map, head_vectors, rollout
from vitnb.analysis.features import View, collect_tokens, view_of_run
from vitnb.analysis.heads import ablated_logits
from vitnb.core import UserError
from vitnb.data.sets import long_tailed
from vitnb.models.any_teacher import packaged_teachers
from vitnb.methods.deit_lt import DeiTLT
from vitnb.methods.vit import ViT
from vitnb.models.efficientformer import EfficientFormer, EfficientFormerConfig
from vitnb.models.ninformer import NiNformer
from vitnb.models.student import make_student, read_about, student_config
from vitnb.training.load import load_model
from vitnb.training.train import train

VIEW = View((.286,), (.353,))


@pytest.fixture(scope='module')
def data():
    "A part of the embedded long-tailed set with every class in it"
    whole = long_tailed()
    keep = np.union1d(np.argsort(np.random.RandomState(0).rand(len(whole.train)))[:256], [int((whole.train.labels == c).nonzero()[0]) for c in range(10)])
    return dataclasses.replace(whole, train=whole.train.subset(keep), val=whole.val.subset(range(0, len(whole.val), 20)), test=whole.test.subset(range(0, len(whole.test), 100)))


def trained(data, folder, kind, method, preset, **settings):
    return train(kind(student=preset, epochs=2, batch_size=32, precision='fp32', ema_decay=.5, **settings), method, folder/preset, data=data, quiet=True)


def answers(model, run, images):
    with torch.no_grad(): return model(view_of_run(run)(images.images))


@pytest.mark.parametrize('preset, kind', (('ninformer-nano', NiNformer), ('efficientformer-nano', EfficientFormer)))
def test_it_trains_is_loaded_again_and_analysed(data, tmp_path, preset, kind):
    run = trained(data, tmp_path, ViT, 'vit', preset, loss='balanced-softmax')
    assert read_about(run.path/'model.safetensors')['backbone'] == preset.partition('-')[0]
    model = load_model(run)
    assert isinstance(model, kind)
    out = answers(model, run, data.test)
    assert np.abs(out.cls.numpy() - run.predictions['cls']).max() < 1e-4 and np.abs(out.dist.numpy() - run.predictions['dist']).max() < 1e-4
    start = make_student(model.config).state_dict()
    assert all(not torch.equal(v, start[k]) for k, v in model.state_dict().items() if v.is_floating_point())       # everything has moved, the attention's biases too
    states = {d.name: d.state for d in analyse(run, images=data.test, config=AnalyseConfig(flatness_images=10, flatness_steps=4))}
    done = dict(scores='computed', flatness='computed', diversity='not done', teacher='not done')
    own = dict(attention='not done', rank='computed', cloud='computed', similarity='computed') if kind is NiNformer else dict(attention='computed', rank='not done', cloud='not done', similarity='not done')
    assert states == done | own


def test_deit_lt_teaches_the_second_head_of_an_efficientformer(data, tmp_path):
    teacher = str(packaged_teachers()[0])
    run = trained(data, tmp_path, DeiTLT, 'deit-lt', 'efficientformer-nano', teacher=teacher, keep_labels=False)
    out = answers(load_model(run), run, data.test)
    assert np.abs(out.avg.numpy() - (run.predictions['cls'] + run.predictions['dist']) / 2).max() < 1e-4 < (out.cls - out.dist).abs().max()
    with pytest.raises(UserError, match='one head only'): DeiTLT(student='ninformer-nano', teacher=teacher).learner(data, torch.device('cpu'), False)


def shaken(config):
    "A student whose scales and biases are far from their start"
    model, random = make_student(config).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(('gamma', 'attention_biases')): p.copy_(torch.randn(p.shape, generator=random))
    return model


def test_the_attention_of_an_efficientformer_is_what_its_blocks_compute(data):
    config = dataclasses.replace(student_config('efficientformer-nano'), num_vit=2, depths=(1, 1, 1, 3))
    model, images = shaken(config), VIEW(data.test.images[:4])
    found, inputs = attention_maps(model, images), {}
    assert found.maps.shape == (4, 2, 4, 16, 16) and found.grid == (4, 4) and found.tokens == () and found.patch == (7., 7.)
    blocks = [m for m in model.modules() if hasattr(m, 'attention_biases')]
    handles = [b.register_forward_hook(lambda m, i, o: inputs.update({m: (i[0], o)})) for b in blocks]
    with torch.no_grad():
        intact = model(images).avg
        for place, block in enumerate(blocks):
            x, out = inputs[block]
            q, k, v = block.qkv(x).reshape(4, 16, 4, -1).permute(0, 2, 1, 3).split([16, 16, 64], -1)
            dy, dx = ((torch.arange(16)[:, None] // s % 4 - torch.arange(16)[None] // s % 4).abs() for s in (4, 1))
            maps = (q @ k.mT / 4 + block.attention_biases[:, 4 * dy + dx]).softmax(-1)
            assert np.abs(found.maps[:, place] - maps.numpy()).max() < 1e-6
            assert torch.allclose(block.proj((maps @ v).transpose(1, 2).reshape(4, 16, -1)), out, atol=1e-5)
        for handle in handles: handle.remove()
        logits, without = ablated_logits(model, images)
        last = blocks[-1]
        last.proj.weight[:, :64] = 0                    # the first head of the last block
        assert torch.allclose(logits, intact, atol=1e-6) and torch.allclose(without[1, 0], model(images).avg, atol=1e-5)
        assert (without[1, 0] - logits).abs().max() > 1e-3
    assert block_map(found, 5).shape == rollout(found, 5).shape == (4, 4, 4)


def test_what_there_is_not_is_said(data):
    images = VIEW(data.test.images[:4])
    for preset, ask, told in (('ninformer-nano', lambda m: attention_maps(m, images), 'no attention'), ('efficientformer-nano', lambda m: rollout(attention_maps(m, images)), 'cls'),
                              ('efficientformer-nano', lambda m: head_vectors(m, images), 'does not show'), ('efficientformer-nano', lambda m: collect_tokens(m, data.test, VIEW), 'blocks'),
                              ('ninformer-nano', lambda m: collect_tokens(m, data.test, VIEW), 'cls')):
        with pytest.raises(UserError, match=told): ask(make_student(student_config(preset)))


def test_the_tokens_of_a_ninformer_are_followed(data):
    model, few = make_student(student_config('ninformer-nano')).eval(), data.test.subset(range(6))
    found = collect_tokens(model, few, VIEW, ('patches', 'patch mean'), patches=49)
    with torch.no_grad(): tokens = model.forward_features(VIEW(few.images))
    assert found['patches'].shape == (4, 6, 49, 64) and np.abs(found['patch mean'][-1, :, 0] - tokens.mean(1).numpy()).max() < 1e-6
    with torch.no_grad(): assert torch.allclose(model(VIEW(few.images)).cls, model.classifier(torch.from_numpy(found['patch mean'][-1, :, 0])), atol=1e-6)


def test_weights_loaded_in_evaluation_count():
    "timm's attention would go on with the biases it has looked up"
    model, x = shaken(student_config('efficientformer-nano')), torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model(x).avg
        model.load_state_dict({k: torch.zeros_like(v) if 'attention_biases' in k else v for k, v in model.state_dict().items()})
        after = model(x).avg
        fresh = EfficientFormer(model.config).eval()
        fresh.load_state_dict(model.state_dict())
        assert (after - before).abs().max() > 1e-4 and torch.equal(after, fresh(x).avg)


@pytest.mark.parametrize('size', (28, 32, 45, 64))
def test_the_grid_follows_the_image(size):
    config = EfficientFormerConfig.of_preset('efficientformer-nano', size)
    model = EfficientFormer(config).eval()
    with torch.no_grad(): assert model.forward_features(torch.zeros(1, 1, size, size)).shape == (1, config.sides[-1]**2, 128)
    assert model.stages[-1].blocks[-1].token_mixer.attention_biases.shape == (4, config.sides[-1]**2)
