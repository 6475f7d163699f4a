"""A Flask application. Each answer names the process."""

import os

from flask import Flask

app = Flask(__name__)


@app.route("/")
def index():
    return f"pid={os.getpid()}\n"
