"""What the benchmarks train on: random pictures of the sizes that people train small Vision Transformers with."""
from __future__ import annotations
import torch
from vitnb.core import generator
from vitnb.data.longtail import size_groups
from vitnb.data.sets import ImageSet, LongTailed, channel_statistics
from vitnb.models.student import StudentConfig

SHAPES = {'tiny': StudentConfig(32, 4, 3, 10, 192, 12, 3, .1),        # DeiT-Ti's width and depth, 66 tokens
          'nano': StudentConfig(32, 4, 3, 10, 96, 6, 3, .05),         # 66 tokens
          'nano28': StudentConfig(28, 7, 1, 10, 96, 6, 3, .05)}       # 18 tokens, grey, as in the demo
WORDS = {'tiny': '192×12, 32 px, patch 4', 'nano': '96×6, 32 px, patch 4', 'nano28': '96×6, 28 px, patch 7'}


def random_data(shape: StudentConfig, images: int = 1024, seed: int = 0) -> LongTailed:
    "Smooth random pictures (noise would compress the colour operations' work into nothing) with random labels"
    random = generator(seed, 'pictures')
    coarse = torch.rand(images, shape.in_chans, 7, 7, generator=random)
    pixels = torch.nn.functional.interpolate(coarse, (shape.img_size,) * 2, mode='bicubic').mul(255).clamp(0, 255).to(torch.uint8)
    labels = torch.arange(images) % shape.num_classes
    part = ImageSet(pixels, labels, tuple(map(str, range(shape.num_classes))))
    return LongTailed(part, None, part, size_groups(part.counts), *channel_statistics(pixels), shape.img_size)
