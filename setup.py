from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

ini = ConfigParser()
ini.read('settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
extras = {key.removesuffix('_requirements'): cfg[key].split() for key in cfg if key.endswith('_requirements')}
pythons = [f'Programming Language :: Python :: 3.{minor}' for minor in range(10, 14)]
data = [f'**/*.{ext}' for ext in 'npz npy json jsonl csv safetensors txt md'.split()] + ['**/LICENSE*']
setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'],
    author=cfg['author'], url=cfg['git_url'],
    license_expression='Apache-2.0 AND MIT', license_files=['LICENSE', 'data/**/LICENSE*'],  # MIT: the embedded Fashion-MNIST
    long_description=Path('README.md').read_text('utf-8'), long_description_content_type='text/markdown',
    packages=find_packages(include=['vitnb', 'vitnb.*']) + ['vitnb._data'],
    package_dir={'vitnb': 'vitnb', 'vitnb._data': 'data'},  # the repository's data/ is vitnb/_data in the wheel
    package_data={'vitnb': ['py.typed'], 'vitnb._data': data}, include_package_data=False,
    install_requires=cfg['requirements'].split(), extras_require=extras,
    classifiers=['Development Status :: 3 - Alpha', 'Intended Audience :: Science/Research', 'Topic :: Scientific/Engineering :: Artificial Intelligence', 'Typing :: Typed', *pythons],
    python_requires=f">={cfg['min_python']}", zip_safe=False,
    entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': ['vitnb=vitnb._modidx:d']})
