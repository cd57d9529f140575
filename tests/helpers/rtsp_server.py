"""An RTSP server with a test picture, 20 images a second. Runs with the system's Python, which has GStreamer.

    /usr/bin/python3 tests/helpers/rtsp_server.py PORT

Says "ready" when it listens. The stream is at rtsp://127.0.0.1:PORT/live.
"""

from __future__ import annotations

import sys
from typing import Any


def main(port: str) -> None:
    import gi  # type: ignore[import-not-found]

    gi.require_version("Gst", "1.0")
    gi.require_version("GstRtspServer", "1.0")
    from gi.repository import GLib, Gst, GstRtspServer  # type: ignore[import-not-found]

    Gst.init(None)
    server: Any = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(port)
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(
        "( videotestsrc is-live=true ! video/x-raw,format=I420,width=64,height=48,framerate=20/1 "
        "! jpegenc ! rtpjpegpay name=pay0 pt=26 )"
    )
    server.get_mount_points().add_factory("/live", factory)
    assert server.attach(None), "the port is taken"
    print("ready", flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    main(sys.argv[1])
