"""The architectures once more in PyTorch, wired independently of `fastconv.models`: the papers' graphs written out.

Names of modules are those of the published weights, so that a state dict goes from one to the other with strict=True.
"""

import torch
from torch import nn
from torch.nn import functional


class LeNet5(nn.Module):
    def __init__(self):
        super().__init__()
        self.c1, self.c3, self.c5 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5), nn.Conv2d(16, 120, 5)
        self.f6, self.output = nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x):
        x = functional.avg_pool2d(torch.tanh(self.c1(x)), 2)
        x = functional.avg_pool2d(torch.tanh(self.c3(x)), 2)
        x = torch.tanh(self.c5(x)).flatten(1)
        return self.output(torch.tanh(self.f6(x)))


class AlexNet(nn.Module):
    def __init__(self, width, classes=10):
        super().__init__()
        a, b, c, d, h = (round(n * width) for n in (64, 192, 384, 256, 4096))
        convs = {0: (3, a, 11, 4, 2), 3: (a, b, 5, 1, 2), 6: (b, c, 3, 1, 1), 8: (c, d, 3, 1, 1), 10: (d, d, 3, 1, 1)}
        self.features = nn.ModuleDict({str(k): nn.Conv2d(*v) for k, v in convs.items()})
        lines = {1: (d * 36, h), 4: (h, h), 6: (h, classes)}
        self.classifier = nn.ModuleDict({str(k): nn.Linear(*v) for k, v in lines.items()})

    def forward(self, x):
        for name, conv in self.features.items():
            x = torch.relu(conv(x))
            if name in ("0", "3", "10"):
                x = functional.max_pool2d(x, 3, 2)
        x = functional.adaptive_avg_pool2d(x, 6).flatten(1)
        x = torch.relu(self.classifier["1"](x))
        x = torch.relu(self.classifier["4"](x))
        return self.classifier["6"](x)


class VGG(nn.Module):
    def __init__(self, layout, width, classes=10):
        super().__init__()
        self.layout = layout
        self.features, channels, place = nn.ModuleDict(), 3, 0
        for entry in layout:
            if entry == "M":
                place += 1
                continue
            out = round(entry * width)
            self.features[str(place)] = nn.Conv2d(channels, out, 3, padding=1)
            channels, place = out, place + 2
        h = round(4096 * width)
        lines = {0: (channels * 49, h), 3: (h, h), 6: (h, classes)}
        self.classifier = nn.ModuleDict({str(k): nn.Linear(*v) for k, v in lines.items()})

    def forward(self, x):
        convs = iter(self.features.values())
        for entry in self.layout:
            x = functional.max_pool2d(x, 2) if entry == "M" else torch.relu(next(convs)(x))
        x = functional.adaptive_avg_pool2d(x, 7).flatten(1)
        x = torch.relu(self.classifier["0"](x))
        x = torch.relu(self.classifier["3"](x))
        return self.classifier["6"](x)


VGG11 = [64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"]
VGG16 = [64, 64, "M", 128, 128, "M", *[256] * 3, "M", *[512] * 3, "M", *[512] * 3, "M"]
VGG19 = [64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4, "M"]


class BasicBlock(nn.Module):
    def __init__(self, c, k, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c, k, 3, stride, 1, bias=False), nn.BatchNorm2d(k)
        self.conv2, self.bn2 = nn.Conv2d(k, k, 3, 1, 1, bias=False), nn.BatchNorm2d(k)
        self.downsample = None
        if stride > 1 or c != k:
            self.downsample = nn.Sequential(nn.Conv2d(c, k, 1, stride, bias=False), nn.BatchNorm2d(k))

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    def __init__(self, c, k, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c, k, 1, bias=False), nn.BatchNorm2d(k)
        self.conv2, self.bn2 = nn.Conv2d(k, k, 3, stride, 1, bias=False), nn.BatchNorm2d(k)
        self.conv3, self.bn3 = nn.Conv2d(k, 4 * k, 1, bias=False), nn.BatchNorm2d(4 * k)
        self.downsample = None
        if stride > 1 or c != 4 * k:
            self.downsample = nn.Sequential(nn.Conv2d(c, 4 * k, 1, stride, bias=False), nn.BatchNorm2d(4 * k))

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    def __init__(self, block, depths, grow, width, classes=10):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        c = width
        for i, depth in enumerate(depths):
            k, blocks = width * 2**i, []
            for j in range(depth):
                blocks.append(block(c, k, 2 if i > 0 and j == 0 else 1))
                c = k * grow
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(c, classes)

    def forward(self, x):
        x = functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


class BasicConv(nn.Module):
    def __init__(self, c, k, size, stride=1):
        super().__init__()
        self.conv = nn.Conv2d(c, k, size, stride, (size - 1) // 2, bias=False)
        self.bn = nn.BatchNorm2d(k, eps=1e-3)

    def forward(self, x):
        return torch.relu(self.bn(self.conv(x)))


class Inception(nn.Module):
    def __init__(self, c, one, reduce3, three, reduce5, five, pool):
        super().__init__()
        self.branch1 = BasicConv(c, one, 1)
        self.branch2 = nn.Sequential(BasicConv(c, reduce3, 1), BasicConv(reduce3, three, 3))
        self.branch3 = nn.Sequential(BasicConv(c, reduce5, 1), BasicConv(reduce5, five, 3))
        self.branch4 = nn.ModuleList([nn.Identity(), BasicConv(c, pool, 1)])

    def forward(self, x):
        pooled = functional.max_pool2d(x, 3, 1, 1, ceil_mode=True)
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4[1](pooled)], 1)


class GoogLeNet(nn.Module):
    def __init__(self, classes=10):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = BasicConv(3, 64, 7, 2), BasicConv(64, 64, 1), BasicConv(64, 192, 3)
        for name, sizes in {
            "3a": (192, 64, 96, 128, 16, 32, 32),
            "3b": (256, 128, 128, 192, 32, 96, 64),
            "4a": (480, 192, 96, 208, 16, 48, 64),
            "4b": (512, 160, 112, 224, 24, 64, 64),
            "4c": (512, 128, 128, 256, 24, 64, 64),
            "4d": (512, 112, 144, 288, 32, 64, 64),
            "4e": (528, 256, 160, 320, 32, 128, 128),
            "5a": (832, 256, 160, 320, 32, 128, 128),
            "5b": (832, 384, 192, 384, 48, 128, 128),
        }.items():
            setattr(self, f"inception{name}", Inception(*sizes))
        self.fc = nn.Linear(1024, classes)

    def forward(self, x):
        x = functional.max_pool2d(self.conv1(x), 3, 2, ceil_mode=True)
        x = functional.max_pool2d(self.conv3(self.conv2(x)), 3, 2, ceil_mode=True)
        x = functional.max_pool2d(self.inception3b(self.inception3a(x)), 3, 2, ceil_mode=True)
        for letter in "abcde":
            x = getattr(self, f"inception4{letter}")(x)
        x = self.inception5b(self.inception5a(functional.max_pool2d(x, 2, 2, ceil_mode=True)))
        return self.fc(x.mean((2, 3)))


def norm_conv(c, k, size, stride=1, groups=1):
    return nn.Sequential(nn.Conv2d(c, k, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(k))


class InvertedResidual(nn.Module):
    def __init__(self, c, k, stride, t):
        super().__init__()
        self.t, self.add = t, stride == 1 and c == k
        deep = [norm_conv(c * t, c * t, 3, stride, c * t), nn.Conv2d(c * t, k, 1, bias=False), nn.BatchNorm2d(k)]
        self.conv = nn.ModuleList(([norm_conv(c, c * t, 1)] if t > 1 else []) + deep)

    def forward(self, x):
        y = x
        if self.t > 1:
            y = functional.relu6(self.conv[0](y))
        y = functional.relu6(self.conv[-3](y))
        y = self.conv[-1](self.conv[-2](y))
        return x + y if self.add else y


class MobileNetV2(nn.Module):
    def __init__(self, classes=10):
        super().__init__()
        blocks, c = [], 32
        for t, k, n, s in ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2)):
            for i in range(n):
                blocks.append(InvertedResidual(c, k, s if i == 0 else 1, t))
                c = k
        blocks.append(InvertedResidual(160, 320, 1, 6))
        self.features = nn.ModuleList([norm_conv(3, 32, 3, 2), *blocks, norm_conv(320, 1280, 1)])
        self.classifier = nn.ModuleList([nn.Identity(), nn.Linear(1280, classes)])

    def forward(self, x):
        x = functional.relu6(self.features[0](x))
        for block in self.features[1:-1]:
            x = block(x)
        x = functional.relu6(self.features[-1](x))
        return self.classifier[1](x.mean((2, 3)))


class Squeeze(nn.Module):
    def __init__(self, c, inner):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(c, inner, 1), nn.Conv2d(inner, c, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.fc2(functional.silu(self.fc1(x.mean((2, 3), keepdim=True)))))


class MBConv(nn.Module):
    def __init__(self, c, k, size, stride, t):
        super().__init__()
        self.t, self.add = t, stride == 1 and c == k
        deep = [norm_conv(c * t, c * t, size, stride, c * t), Squeeze(c * t, c // 4), norm_conv(c * t, k, 1)]
        self.block = nn.ModuleList(([norm_conv(c, c * t, 1)] if t > 1 else []) + deep)

    def forward(self, x):
        y = x
        if self.t > 1:
            y = functional.silu(self.block[0](y))
        y = functional.silu(self.block[-3](y))
        y = self.block[-1](self.block[-2](y))
        return x + y if self.add else y


class EfficientNetB0(nn.Module):
    def __init__(self, classes=10):
        super().__init__()
        stages = [norm_conv(3, 32, 3, 2)]
        c = 32
        for t, size, s, k, n in (
            (1, 3, 1, 16, 1),
            (6, 3, 2, 24, 2),
            (6, 5, 2, 40, 2),
            (6, 3, 2, 80, 3),
            (6, 5, 1, 112, 3),
            (6, 5, 2, 192, 4),
            (6, 3, 1, 320, 1),
        ):
            stages.append(nn.Sequential(*(MBConv(k if i else c, k, size, 1 if i else s, t) for i in range(n))))
            c = k
        self.features = nn.ModuleList([*stages, norm_conv(320, 1280, 1)])
        self.classifier = nn.ModuleList([nn.Identity(), nn.Linear(1280, classes)])

    def forward(self, x):
        x = functional.silu(self.features[0](x))
        for stage in self.features[1:-1]:
            x = stage(x)
        x = functional.silu(self.features[-1](x))
        return self.classifier[1](x.mean((2, 3)))


class Separable(nn.Module):
    def __init__(self, c, k):
        super().__init__()
        self.conv1 = nn.Conv2d(c, c, 3, padding=1, groups=c, bias=False)
        self.pointwise = nn.Conv2d(c, k, 1, bias=False)

    def forward(self, x):
        return self.pointwise(self.conv1(x))


class XceptionBlock(nn.Module):
    def __init__(self, c, k, repeats, stride, relu_first=True, grow_first=True):
        super().__init__()
        sizes = [c, *[k] * repeats] if grow_first else [*[c] * repeats, k]
        self.relu_first, self.stride = relu_first, stride
        self.rep = nn.ModuleDict()
        for i in range(repeats):
            place = 3 * i + (1 if relu_first else 0)
            self.rep[str(place)] = Separable(sizes[i], sizes[i + 1])
            self.rep[str(place + 1)] = nn.BatchNorm2d(sizes[i + 1])
        if stride > 1 or c != k:
            self.skip, self.skipbn = nn.Conv2d(c, k, 1, stride, bias=False), nn.BatchNorm2d(k)

    def forward(self, x):
        y = x
        for i, module in enumerate(self.rep.values()):
            if i % 2 == 0 and (i or self.relu_first):
                y = torch.relu(y)
            y = module(y)
        if self.stride > 1:
            y = functional.max_pool2d(y, 3, self.stride, 1)
        return y + (self.skipbn(self.skip(x)) if hasattr(self, "skip") else x)


class Xception(nn.Module):
    def __init__(self, classes=10):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 32, 3, 2, bias=False), nn.BatchNorm2d(32)
        self.conv2, self.bn2 = nn.Conv2d(32, 64, 3, bias=False), nn.BatchNorm2d(64)
        self.block1 = XceptionBlock(64, 128, 2, 2, relu_first=False)
        self.block2, self.block3 = XceptionBlock(128, 256, 2, 2), XceptionBlock(256, 728, 2, 2)
        for i in range(4, 12):
            setattr(self, f"block{i}", XceptionBlock(728, 728, 3, 1))
        self.block12 = XceptionBlock(728, 1024, 2, 2, grow_first=False)
        self.conv3, self.bn3 = Separable(1024, 1536), nn.BatchNorm2d(1536)
        self.conv4, self.bn4 = Separable(1536, 2048), nn.BatchNorm2d(2048)
        self.fc = nn.Linear(2048, classes)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        for i in range(1, 13):
            x = getattr(self, f"block{i}")(x)
        x = torch.relu(self.bn3(self.conv3(x)))
        x = torch.relu(self.bn4(self.conv4(x)))
        return self.fc(x.mean((2, 3)))


class DenseLayer(nn.Module):
    def __init__(self, c, k):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(c), nn.Conv2d(c, 4 * k, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(4 * k), nn.Conv2d(4 * k, k, 3, padding=1, bias=False)

    def forward(self, features):
        y = self.conv1(torch.relu(self.norm1(torch.cat(features, 1))))
        return self.conv2(torch.relu(self.norm2(y)))


class DenseNet121(nn.Module):
    def __init__(self, k, classes=10):
        super().__init__()
        c = 2 * k
        self.features = nn.ModuleDict({"conv0": nn.Conv2d(3, c, 7, 2, 3, bias=False), "norm0": nn.BatchNorm2d(c)})
        for i, depth in enumerate((6, 12, 24, 16)):
            block = nn.ModuleDict({f"denselayer{j + 1}": DenseLayer(c + j * k, k) for j in range(depth)})
            self.features[f"denseblock{i + 1}"] = block
            c += depth * k
            if i < 3:
                step = {"norm": nn.BatchNorm2d(c), "conv": nn.Conv2d(c, c // 2, 1, bias=False)}
                self.features[f"transition{i + 1}"] = nn.ModuleDict(step)
                c //= 2
        self.features["norm5"] = nn.BatchNorm2d(c)
        self.classifier = nn.Linear(c, classes)

    def forward(self, x):
        f = self.features
        x = functional.max_pool2d(torch.relu(f["norm0"](f["conv0"](x))), 3, 2, 1)
        for i in range(1, 5):
            parts = [x]
            for layer in f[f"denseblock{i}"].values():
                parts.append(layer(parts))
            x = torch.cat(parts, 1)
            if i < 4:
                step = f[f"transition{i}"]
                x = functional.avg_pool2d(step["conv"](torch.relu(step["norm"](x))), 2)
        return self.classifier(torch.relu(f["norm5"](x)).mean((2, 3)))


class Double(nn.Module):
    def __init__(self, c, k, padding):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(c, k, 3, padding=padding), nn.Conv2d(k, k, 3, padding=padding)

    def forward(self, x):
        return torch.relu(self.conv2(torch.relu(self.conv1(x))))


class UNet(nn.Module):
    def __init__(self, width, padding, classes=2):
        super().__init__()
        w = width
        self.down = nn.ModuleList(Double(*s, padding) for s in ((1, w), (w, 2 * w), (2 * w, 4 * w), (4 * w, 8 * w)))
        self.bottom = Double(8 * w, 16 * w, padding)
        self.up = nn.ModuleList(nn.ConvTranspose2d(k * w, k * w // 2, 2, stride=2) for k in (16, 8, 4, 2))
        self.merge = nn.ModuleList(Double(k * w, k * w // 2, padding) for k in (16, 8, 4, 2))
        self.head = nn.Conv2d(w, classes, 1)

    def forward(self, x):
        kept = []
        for down in self.down:
            x = down(x)
            kept.append(x)
            x = functional.max_pool2d(x, 2)
        x = self.bottom(x)
        for up, merge, skip in zip(self.up, self.merge, kept[::-1], strict=True):
            x = up(x)
            top, left = (skip.shape[2] - x.shape[2]) // 2, (skip.shape[3] - x.shape[3]) // 2
            skip = functional.pad(
                skip,
                (-left, left + x.shape[3] - skip.shape[3], -top, top + x.shape[2] - skip.shape[2]),
            )
            x = merge(torch.cat([skip, x], 1))
        return self.head(x)


class C3D(nn.Module):
    def __init__(self, width, classes=10):
        super().__init__()
        sizes, c = {"1": 64, "2": 128, "3a": 256, "3b": 256, "4a": 512, "4b": 512, "5a": 512, "5b": 512}, 3
        for name, k in sizes.items():
            setattr(self, f"conv{name}", nn.Conv3d(c, round(k * width), 3, padding=1))
            c = round(k * width)
        h = round(4096 * width)
        self.fc6, self.fc7, self.fc8 = nn.Linear(c * 16, h), nn.Linear(h, h), nn.Linear(h, classes)

    def forward(self, x):
        x = functional.max_pool3d(torch.relu(self.conv1(x)), (1, 2, 2))
        x = functional.max_pool3d(torch.relu(self.conv2(x)), 2)
        x = functional.max_pool3d(torch.relu(self.conv3b(torch.relu(self.conv3a(x)))), 2)
        x = functional.max_pool3d(torch.relu(self.conv4b(torch.relu(self.conv4a(x)))), 2)
        x = functional.max_pool3d(torch.relu(self.conv5b(torch.relu(self.conv5a(x)))), 2, 2, (0, 1, 1))
        x = torch.relu(self.fc6(x.flatten(1)))
        return self.fc8(torch.relu(self.fc7(x)))


class Autoencoder(nn.Module):
    def __init__(self, w):
        super().__init__()
        down = {"0": (3, w), "2": (w, 2 * w), "4": (2 * w, 4 * w)}
        up = {"0": (4 * w, 2 * w), "2": (2 * w, w), "4": (w, 3)}
        self.encoder = nn.ModuleDict({n: nn.Conv2d(*s, 3, 2, 1) for n, s in down.items()})
        self.decoder = nn.ModuleDict({n: nn.ConvTranspose2d(*s, 3, 2, 1, 1) for n, s in up.items()})

    def forward(self, x):
        for layer in self.encoder.values():
            x = torch.relu(layer(x))
        for name, layer in self.decoder.items():
            x = layer(x)
            x = torch.sigmoid(x) if name == "4" else torch.relu(x)
        return x
