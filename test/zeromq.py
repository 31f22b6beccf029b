"""Questions to test/apps/zeromq from many clients at once, and the responder that the app gets its answers from."""

from container import ROOT

APP_FOLDER = ROOT / "test/apps/zeromq"
# Each question has to be answered with its own text reversed.
QUESTIONS = """
import concurrent.futures, sys, urllib.request
host, count, timeout = sys.argv[1], *map(int, sys.argv[2:])
def ask(number):
    request = urllib.request.Request(f"http://127.0.0.1/?question-{number}", headers={"Host": host})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return response.read().decode() == f"question-{number}"[::-1]
    except OSError:
        return False
with concurrent.futures.ThreadPoolExecutor(8) as clients:
    print(sum(clients.map(ask, range(count))))
"""


def start_responder(machine):
    """Start the program that the app `zeromq` talks to, with the Python of the app's own environment."""
    machine.put("/tmp/responder.py", (APP_FOLDER / "responder.py").read_text())
    machine.exec(
        "systemctl is-active -q responder || systemd-run --unit=responder --collect"
        " $(ls -d /srv/wsgi/zeromq/environments/*/bin/python | head -1) /tmp/responder.py"
    )


def count_answers(machine, host="127.0.0.1", questions=400, timeout=30):
    """Return how many questions, eight at a time, get their own answer within a timeout in seconds."""
    machine.put("/tmp/questions.py", QUESTIONS)
    return int(machine.exec(["timeout", "240", "python3", "/tmp/questions.py", host, questions, timeout]).stdout)
