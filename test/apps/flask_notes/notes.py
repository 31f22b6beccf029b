"""Notes in a file in the app's home: a POST adds one and returns it, a GET returns all as a page."""

from pathlib import Path

from flask import Flask, render_template_string, request

NOTES = Path.home() / "notes"
PAGE = "{% for note in notes %}<p>{{ note }}</p>\n{% endfor %}"
app = Flask(__name__)


@app.get("/")
def index():
    notes = NOTES.read_text().splitlines() if NOTES.exists() else []
    return render_template_string(PAGE, notes=notes)


@app.post("/")
def add():
    note = request.get_data(as_text=True)
    with NOTES.open("a") as file:
        file.write(f"{note}\n")
    return note


@app.get("/healthz")
def healthz():
    return "ok\n"
