"""CLIP's ResNet in torch, from its description (Radford et al. 2021 §2.4), with the names of OpenAI's checkpoints.

transformers does not have this model. At a small size, recorded outputs of OpenAI's own code check both this and ours.
"""

import torch
from torch import nn
from torch.nn.functional import avg_pool2d, relu, scaled_dot_product_attention


class Block(nn.Module):
    """A bottleneck block with antialiased stride (average pooling)."""

    def __init__(self, fan_in: int, width: int, stride: int):
        super().__init__()
        self.stride = stride
        self.conv1, self.bn1 = nn.Conv2d(fan_in, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        if stride > 1 or fan_in != 4 * width:
            self.downsample = nn.Sequential(nn.Conv2d(fan_in, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width))

    def forward(self, x):
        h = relu(self.bn2(self.conv2(relu(self.bn1(self.conv1(x))))))
        h = self.bn3(self.conv3(avg_pool2d(h, self.stride)))
        return relu(h + (self.downsample(avg_pool2d(x, self.stride)) if hasattr(self, "downsample") else x))


class Pool(nn.Module):
    """Attention pooling: the mean of all places attends to the places."""

    def __init__(self, places: int, width: int, heads: int, out: int):
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.zeros(places + 1, width))
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.c_proj = nn.Linear(width, out)

    def forward(self, x):
        x = x.flatten(2).mT  # [B, HW, C]
        x = torch.cat([x.mean(1, keepdim=True), x], 1) + self.positional_embedding
        q, k, v = (
            p(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for p, y in ((self.q_proj, x[:, :1]), (self.k_proj, x), (self.v_proj, x))
        )
        return self.c_proj(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)[:, 0])


class ModifiedResNet(nn.Module):
    """NCHW images -> (embedding, states after the stem and each stage)."""

    def __init__(self, layers, out: int, heads: int, size: int, width: int):
        super().__init__()
        for i, (a, b, stride) in enumerate(
            ((3, width // 2, 2), (width // 2, width // 2, 1), (width // 2, width, 1)), 1
        ):
            setattr(self, f"conv{i}", nn.Conv2d(a, b, 3, stride, padding=1, bias=False))
            setattr(self, f"bn{i}", nn.BatchNorm2d(b))
        fan_in = width
        for i, blocks in enumerate(layers):
            stage = []
            for j in range(blocks):
                stage.append(Block(fan_in, width * 2**i, 2 if i and not j else 1))
                fan_in = 4 * width * 2**i
            setattr(self, f"layer{i + 1}", nn.Sequential(*stage))
        self.attnpool = Pool((size // 32) ** 2, fan_in, heads, out)

    def forward(self, x):
        for i in (1, 2, 3):
            x = relu(getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x)))
        states = [avg_pool2d(x, 2)]
        for i in (1, 2, 3, 4):
            states.append(getattr(self, f"layer{i}")(states[-1]))
        return self.attnpool(states[-1]), states
