"""What of the repository is installed: the travelling files and the module that registers them, found by their names.

Everything else about the package stands in `pyproject.toml`, in which a list of modules cannot be computed.
"""

from pathlib import Path

from setuptools import setup

setup(py_modules=["mmfusion", *sorted(path.stem for path in Path(__file__).parent.glob("*_mmfusion.py"))])
