"""traffic WHAT URL COUNT MTU: what a guest does to its network; prints a figure.

It runs in the VM, on one side of a row as on the other.
"""
import fcntl, os, socket, ssl, statistics, struct, sys, time, urllib.parse

BUFFER = 256 << 10


def set_mtu(mtu):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        fcntl.ioctl(s, 0x8922, struct.pack("16si20x", b"eth0", mtu))  # SIOCSIFMTU


def connect():
    s = socket.create_connection(address)
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if url.scheme == "https":
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        s = context.wrap_socket(s, server_hostname=url.hostname)
    return s


def send_head(s, method, path, length=None):
    head = f"{method} {path} HTTP/1.1\r\nHost: {url.netloc}\r\n"
    if length is not None:
        head += f"Content-Length: {length}\r\n"
    s.sendall((head + "\r\n").encode())


def read_response(s):
    """Returns the bytes of the body."""
    buffer = memoryview(bytearray(BUFFER))
    got, end = 0, -1
    while end < 0:
        n = s.recv_into(buffer[got:])
        if n == 0:
            raise EOFError("the connection ended in a head")
        got += n
        end = bytes(buffer[:got]).find(b"\r\n\r\n")
    head = bytes(buffer[:end]).decode().lower()
    if not head.startswith("http/1.1 200"):
        raise ValueError(head + bytes(buffer[end:got]).decode())
    length = int(head.split("content-length:")[1].split("\r\n")[0])
    left = length - (got - end - 4)
    while left > 0:
        n = s.recv_into(buffer)
        if n == 0:
            raise EOFError("the connection ended in a body")
        left -= n
    return length


def download():  # MB/s
    with connect() as s:
        began = time.monotonic()
        send_head(s, "GET", f"/bytes/{count}")
        got = read_response(s)
        return got / 1e6 / (time.monotonic() - began)


def upload():  # MB/s
    data = bytes(BUFFER)
    with connect() as s:
        began = time.monotonic()
        send_head(s, "POST", "/sink", count)
        for _ in range(count // BUFFER):
            s.sendall(data)
        read_response(s)
        return count / 1e6 / (time.monotonic() - began)


def connections():  # a second, one after the other
    began = time.monotonic()
    for _ in range(count):
        socket.create_connection(address).close()
    return count / (time.monotonic() - began)


def requests():  # median of milliseconds, on one connection
    took = []
    with connect() as s:
        for _ in range(count):
            began = time.monotonic()
            send_head(s, "GET", "/bytes/100")
            read_response(s)
            took.append(1000 * (time.monotonic() - began))
    return statistics.median(took)


def names():  # a second, each a new one, 16 under way
    run = f"n{os.getpid()}-{time.time_ns()}"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.connect(("192.168.127.1", 53))
        s.settimeout(10)
        began = time.monotonic()
        for i in range(count + 16):
            if i < count:
                name = b"".join(bytes([len(l)]) + l.encode() for l in f"{run}-{i}.{url.hostname}".split("."))
                s.send(struct.pack(">6H", i, 0x0100, 1, 0, 0, 0) + name + b"\0\0\1\0\1")
            if i >= 16 and struct.unpack(">H", s.recv(512)[6:8])[0] != 1:
                raise ValueError("a name was not answered")
        return count / (time.monotonic() - began)


what, url, count, mtu = sys.argv[1], urllib.parse.urlsplit(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
set_mtu(mtu)
if what != "names":
    address = (socket.gethostbyname(url.hostname), url.port)
print(globals()[what]())
