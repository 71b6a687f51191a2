"""`python -m fastconv predict`."""

import sys

import numpy as np
import pytest

from fastconv import _predict, models, nn
from fastconv.__main__ import main

Image = pytest.importorskip("PIL.Image")


@pytest.fixture
def photo(tmp_path, rng):
    path = tmp_path / "photo.png"
    Image.fromarray(rng.integers(0, 256, (90, 131, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "weights.npz"
    nn.save(models.resnet18(10, rng=0), path)
    return path


def test_the_best_classes(photo, weights, tmp_path, capsys):
    labels = tmp_path / "labels.txt"
    labels.write_text("".join(f"thing {i}\n" for i in range(10)))
    command = ["predict", str(photo), "--model", "resnet18", "--weights", str(weights), "--num-classes", "10"]
    assert main([*command, "--top", "3", "--labels", str(labels)]) == 0
    lines = capsys.readouterr().out.splitlines()
    net = models.resnet18(10, rng=0).eval()
    scores = net(_predict.prepare(photo, _predict.Preparation()))[0].astype(np.float64)
    shares = np.exp(scores - scores.max()) / np.sum(np.exp(scores - scores.max()))
    best = np.argsort(-shares)[:3]
    assert lines == [f"{i:5d}  {shares[i]:7.2%}  thing {i}" for i in best]
    assert main(command) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_preparation(photo, tmp_path):
    """As torchvision's: the shorter side to 256, the middle of 224, by mean and deviation of ImageNet."""
    x = _predict.prepare(photo, _predict.Preparation())
    assert x.shape == (1, 3, 224, 224)
    assert x.dtype == np.float32
    image = np.asarray(Image.open(photo).resize((372, 256), Image.Resampling.BILINEAR), np.float32)
    middle = image[16 : 16 + 224, 74 : 74 + 224] / 255
    expected = (middle - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(x[0], expected.transpose(2, 0, 1), atol=1e-5)
    grey = tmp_path / "grey.png"
    Image.fromarray(np.full((300, 200), 255, np.uint8)).save(grey)
    half = _predict.prepare(grey, _predict._PREPARATIONS["googlenet"])
    np.testing.assert_allclose(half, 1.0)
    assert _predict.prepare(grey, _predict._PREPARATIONS["xception"]).shape == (1, 3, 299, 299)


def test_every_network_has_its_preparation():
    others = {"lenet5", "unet", "c3d", "conv_autoencoder"}
    assert set(_predict._PREPARATIONS) == set(models.names()) - others


def test_errors(photo, weights, tmp_path, capsys, monkeypatch):
    def refused(*arguments):
        assert main(["predict", *map(str, arguments)]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("fastconv predict: ")
        return captured.err

    model = ("--model", "resnet18")
    assert "--weights FILE is missing: fastconv ships none" in refused(photo, *model)
    assert "nothing.npz" in refused(photo, *model, "--weights", tmp_path / "nothing.npz")
    assert "nothing.jpg" in refused(tmp_path / "nothing.jpg", *model, "--weights", weights)
    assert "weights.npz" in refused(weights, *model, "--weights", weights)
    assert "fc.weight (shape (10, 512), expected (1000, 512))" in refused(photo, *model, "--weights", weights)
    message = refused(photo, "--model", "resnet50", "--weights", weights)
    assert str(weights) in message
    assert len(message) < 700
    few = tmp_path / "few.txt"
    few.write_text("a\nb\n")
    assert "2 lines" in refused(photo, *model, "--weights", weights, "--labels", few)
    assert "--top (=0)" in refused(photo, *model, "--weights", weights, "--top", 0)
    assert "--num-classes (=0)" in refused(photo, *model, "--weights", weights, "--num-classes", 0)
    with pytest.raises(SystemExit):
        main(["predict", str(photo), "--model", "unet", "--weights", str(weights)])
    assert "invalid choice: 'unet'" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert "pip install Pillow" in refused(photo, *model, "--weights", weights)
