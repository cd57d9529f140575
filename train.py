#!/usr/bin/env python3
"""Train a detector: ``horovodrun -np 8 -H host1:4,host2:4 python train.py --data d.yaml --cfg yolov5s``."""

from horovod_yolo.assembly.ending import leave
from horovod_yolo.cli import train_main

if __name__ == "__main__":
    leave(train_main())
