"""Multi-node training of YOLO detectors with PyTorch and Horovod."""

__version__ = "0.1.0"
