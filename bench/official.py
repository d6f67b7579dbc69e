"""A plain imitation of the official DeiT-LT training loop, for comparison only: what people run today.

Written from a description of the published code, not from the code. As there: pictures one at a time through PIL with timm's
recipe, Mixup on the batch, the teacher as it was trained (batch normalisation unfolded, float32, NCHW), four losses read
back every step, the norm of the gradients, and timm's first ModelEma. Its mixed precision and its attention kernel (xformers)
exist on NVIDIA GPUs only. There it gets float16 autocast with a gradient scaler around student, teacher and losses, and
PyTorch's fused attention, which is the same kernel's successor. On a CPU it is float32, and the explicit product is the
faster way at these sizes, so that is what it gets.
"""
from __future__ import annotations
import math
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import Mixup, create_transform
from timm.models.deit import VisionTransformerDistilled
from timm.optim import create_optimizer_v2
from timm.utils import ModelEma
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import RandomCrop
from vitnb.data.longtail import effective_number_weights
from vitnb.data.sets import ImageSet, LongTailed
from vitnb.models.student import StudentConfig

RECIPE = dict(is_training=True, color_jitter=.3, auto_augment='rand-m9-mstd0.5-inc1', interpolation='bicubic', re_prob=.25, re_mode='pixel', re_count=1)


class Pictures(Dataset):
    "Pictures that are opened, varied and turned into tensors one at a time"
    def __init__(self, images: ImageSet, mean, std, size: int, pad: int = 4):
        array = images.images.permute(0, 2, 3, 1).numpy()
        self.pictures, self.labels = array[..., 0] if array.shape[-1] == 1 else array, images.labels.tolist()
        self.transform = create_transform(size, mean=mean, std=std, **RECIPE)
        if size <= 32: self.transform.transforms[0] = RandomCrop(size, padding=pad)      # as DeiT does

    def __len__(self): return len(self.labels)
    def __getitem__(self, i: int): return self.transform(Image.fromarray(self.pictures[i])), self.labels[i]


def loader(data: LongTailed, batch_size: int, workers: int = 0) -> DataLoader:
    "Shuffled batches, made in this process or by so many others"
    return DataLoader(Pictures(data.train, data.mean, data.std, data.img_size), batch_size, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0)


def mixup(classes: int) -> Mixup: return Mixup(.8, 1., label_smoothing=.1, num_classes=classes)


class OfficialStudent(VisionTransformerDistilled):
    "The two answers of each image, and the cosine between its two tokens"
    def forward(self, images: Tensor):
        tokens = self.forward_features(images)
        cls, dist = tokens[:, 0], tokens[:, 1]
        if not self.training: return self.head(cls), self.head_dist(dist)
        return self.head(cls), self.head_dist(dist), F.cosine_similarity(cls, dist, dim=1, eps=1e-6), 0


def set_attention(model: nn.Module, fused: bool):
    "timm's blocks can compute attention in both ways"
    for module in model.modules():
        if hasattr(module, 'fused_attn'): module.fused_attn = fused


class OfficialLoop:
    "Model, teacher, optimiser and everything that happens in one step"
    def __init__(self, shape: StudentConfig, teacher: nn.Module, data: LongTailed, lr: float = 5e-4, drw: float = math.inf, beta: float = .9999, device: str | torch.device = 'cpu'):
        self.device = torch.device(device)
        self.mixed = self.device.type == 'cuda'
        self.model, self.teacher = OfficialStudent(**shape.for_timm()).train().to(self.device), teacher.eval().to(self.device)
        set_attention(self.model, fused=self.mixed)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.mixed)
        self.optimiser = create_optimizer_v2(self.model, 'adamw', lr=lr, weight_decay=.05)
        self.ema, self.mixup, self.drw = ModelEma(self.model, .99996), mixup(shape.num_classes), drw
        self.weights = torch.tensor(effective_number_weights(data.train.counts, beta), dtype=torch.float32, device=self.device)
        self.read = {}

    def step(self, images: Tensor, labels: Tensor, epoch: int = 0) -> float:
        "Train on one batch and return its loss"
        late = epoch >= self.drw
        images, targets = images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
        if not late: images, targets = self.mixup(images, targets)
        with torch.autocast(self.device.type, torch.float16, enabled=self.mixed):
            cls, dist, cosine, _ = self.model(images)
            base = F.cross_entropy(cls, targets) if late else torch.sum(-targets * F.log_softmax(cls, -1), -1).mean()
            with torch.no_grad(): taught = self.teacher(images).argmax(1)
            distilled = F.cross_entropy(dist, taught, self.weights if late else None)
            loss = .5 * base + .5 * distilled
        self.read = dict(loss=loss.item(), cls=base.item(), dist=distilled.item(), cosine=cosine.mean().item())
        if not math.isfinite(self.read['loss']): raise SystemExit(f'the loss is {self.read["loss"]}')
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimiser)
        self.read['norm'] = torch.norm(torch.stack([torch.norm(p.grad.detach(), 2) for p in self.model.parameters() if p.grad is not None]), 2)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad()
        self.ema.update(self.model)
        return self.read['loss']

    @torch.no_grad()
    def accuracy(self, images: Tensor, labels: Tensor, batch_size: int = 500) -> float:
        "Share of normalised images that the average of the two answers gets right"
        self.model.eval()
        right = sum(int(((a + b).argmax(1) == y).sum()) for x, y in zip(images.split(batch_size), labels.split(batch_size)) for a, b in [self.model(x)])
        self.model.train()
        return right / len(labels)


def endless(batches: DataLoader):
    "Batches, epoch after epoch"
    while True: yield from batches
