"""``horovod-yolo launch``, as a child that ends with its parent: the first argument is that one's number."""

from __future__ import annotations

import sys

from horovod_yolo.assembly.ending import leave
from horovod_yolo.cli.launch import launch_main
from horovod_yolo.launch.supervise import end_with_parent

if __name__ == "__main__":
    end_with_parent(int(sys.argv[1]))
    leave(launch_main(sys.argv[2:]))
