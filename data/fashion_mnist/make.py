"""Make fashion_mnist.npz and about.json from the original Fashion-MNIST files.

    python data/fashion_mnist/make.py [FOLDER]

FOLDER holds the four original files (train-images-idx3-ubyte.gz, ...), for example
/usr/share/datasets/fashion-mnist of the Debian package dataset-fashion-mnist.
Without it, torchvision downloads them.
"""
import gzip, hashlib, json, sys
from pathlib import Path
import numpy as np, torch
from vitnb.core import whole_file
from vitnb.data.sets import FASHION_CLASSES, ImageSet, embedded_part, fashion_mnist_full, fingerprint

FILES = ('train-images-idx3-ubyte.gz', 'train-labels-idx1-ubyte.gz', 't10k-images-idx3-ubyte.gz', 't10k-labels-idx1-ubyte.gz')


def read_idx(path: Path) -> np.ndarray:
    "An array from a gzipped file in the IDX format"
    content = gzip.decompress(path.read_bytes())
    dimensions = [int.from_bytes(content[4 + 4 * i:8 + 4 * i], 'big') for i in range(content[3])]
    return np.frombuffer(content, np.uint8, offset=4 + 4 * len(dimensions)).reshape(dimensions)


def easiness(images: np.ndarray, labels: np.ndarray) -> list[float]:
    "For each class, how often an image's nearest neighbour (leaving itself out) has its class"
    x = torch.from_numpy(images).flatten(1).float()
    norms, y, right = (x ** 2).sum(1), torch.from_numpy(labels).long(), []
    for i in range(0, len(x), 1000):
        distance = norms - 2 * x[i:i + 1000] @ x.T
        distance[torch.arange(len(distance)), torch.arange(i, i + len(distance))] = torch.inf
        right.append(y[distance.argmin(1)] == y[i:i + 1000])
    right = torch.cat(right).double()
    return [round(right[y == c].mean().item(), 4) for c in range(10)]


def main():
    folder = Path(__file__).parent
    if len(sys.argv) > 1:
        source = Path(sys.argv[1])
        train_images, train_labels, test_images, test_labels = (read_idx(source/n) for n in FILES)
    else:
        train, test = fashion_mnist_full()
        train_images, train_labels = train.images[:, 0].numpy(), train.labels.numpy()
        test_images, test_labels = test.images[:, 0].numpy(), test.labels.numpy()
    images, labels = embedded_part(train_images, train_labels)
    with whole_file(folder/'fashion_mnist.npz') as path:
        np.savez_compressed(path, train_images=images, train_labels=labels,
                            test_images=test_images, test_labels=test_labels.astype(np.uint8))
    as_set = lambda x, y: ImageSet(torch.from_numpy(x.copy())[:, None], torch.as_tensor(y.astype(np.int64)), FASHION_CLASSES)
    about = dict(name='Fashion-MNIST, 2 000 training images of each class and the whole test set', licence='MIT, see LICENSE',
                 source='https://github.com/zalandoresearch/fashion-mnist', maker='data/fashion_mnist/make.py',
                 sha256=hashlib.sha256((folder/'fashion_mnist.npz').read_bytes()).hexdigest(),
                 fingerprint_train=fingerprint(as_set(images, labels)), fingerprint_test=fingerprint(as_set(test_images, test_labels)),
                 easiness=easiness(images, labels), class_names=FASHION_CLASSES)
    with whole_file(folder/'about.json') as path: path.write_text(json.dumps(about, indent=1) + '\n')
    print(json.dumps(about, indent=1))


if __name__ == '__main__': main()
