"""A dialogue of RTSP by libcurl; what was answered, as JSON, one line a request."""

import io
import json
import sys

import pycurl

BASE = sys.argv[1]
curl = pycurl.Curl()


def ask(name, uri=BASE, transport=None, media_range=None):
    head, pieces = io.BytesIO(), []
    curl.setopt(pycurl.URL, BASE)
    curl.setopt(pycurl.TIMEOUT, 30)
    curl.setopt(pycurl.OPT_RTSP_REQUEST, getattr(pycurl, "RTSPREQ_" + name))
    curl.setopt(pycurl.OPT_RTSP_STREAM_URI, uri)
    if transport:
        curl.setopt(pycurl.OPT_RTSP_TRANSPORT, transport)
    if media_range:
        curl.setopt(pycurl.RANGE, media_range)
    curl.setopt(pycurl.HEADERFUNCTION, head.write)
    curl.setopt(pycurl.WRITEFUNCTION, pieces.append)
    curl.perform()
    lines = head.getvalue().decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines if ": " in line)
    body = b"".join(pieces).decode("latin-1")
    print(json.dumps({"method": name, "status": curl.getinfo(pycurl.RESPONSE_CODE), "headers": headers, "body": body}))


ask("OPTIONS")
ask("DESCRIBE")
ask("SETUP", BASE + "/streamid=0", transport="RTP/AVP/TCP;unicast;interleaved=0-1")
ask("PLAY", media_range="npt=0-")
# Each is one frame with its head, which stands where otherwise a body does.
ask("RECEIVE")
ask("TEARDOWN")
