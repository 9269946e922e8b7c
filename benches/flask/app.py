"""The benchmarked function, as a service of its own."""

from flask import Flask, jsonify, request

app = Flask(__name__)


def main(name='World', **kwargs):
    return 'Hello, ' + name


@app.post('/')
def call():
    return jsonify(main(**request.get_json()))
