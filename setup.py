"""Packaging of linescan: the top-level folders are the sub-packages of one import namespace, `linescan`.

There is no top-level module `kernels` or `backbones` (Hugging Face transformers probes for a module named `kernels`), and neither
`linescan` nor `linescan.kernels` has an `__init__.py`: both are namespace packages, so that a kernel can be imported with torch alone.
"""

from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
FOLDERS = ("kernels", "backbones", "segmentation", "classification", "engine", "profiling")


def packages() -> dict[str, str]:
    """Import name -> folder, for the six top folders and every package below them."""
    found = {f"linescan.{folder}": folder for folder in FOLDERS}
    for folder in FOLDERS:
        for init in sorted((ROOT / folder).rglob("*/__init__.py")):
            path = init.parent.relative_to(ROOT).as_posix()
            found[f"linescan.{path.replace('/', '.')}"] = path
    return found


# `dense` is everything that MMSegmentation configs and the tools need. The mm* packages sit in this extra alone, because the maintained
# forks (onedl-*) and the official packages own the same import names and must never be installed side by side.
EXTRAS = {
    "dense": [
        "onedl-mmengine>=0.10.12,<0.11",
        "onedl-mmcv>=2.3.6,<2.4",
        "onedl-mmsegmentation>=1.4.2,<1.5",
        "fvcore>=0.1.5.post20221221",
        "tensorboard>=2.14",
        "matplotlib>=3.7",
    ],
    "dev": ["pytest>=8", "pytest-xdist>=3.6", "ruff>=0.14"],
    "mamba": ["mamba-ssm>=2.3"],
    "fla": ["fla-core>=0.6.0"],
}

setup(
    name="linescan",
    version="0.1.0",
    description="Linear-time vision backbones (RWKV, Mamba, hybrids with convolution) for segmentation, with Triton scan kernels",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="the linescan authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=list(packages()),
    package_dir=packages(),
    package_data={"linescan.kernels": ["*/README.md", "*.h", "*/*.h", "*/*.c"]},
    # Ranges only: a user's torch is never replaced. constraints.txt holds the set that is tested.
    install_requires=["torch>=2.6", "timm>=1.0.20", "numpy>=1.26", "pillow>=10.1", "tqdm>=4.60"],
    extras_require=EXTRAS,
    zip_safe=False,
)
