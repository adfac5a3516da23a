"""What the server refuses: other hosts, other methods, files elsewhere; and what it says with every answer."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from tc_adapters_lens.serve.app import make_app
from tc_adapters_lens.serve.guard import allowed_hosts
from tests.serve.client import request


def test_every_answer_is_guarded(app):
    targets = (
        "/",
        "/static/app.js",
        "/lib/lit-html.js",
        "/api/info",
        "/run/graphs/add.json",
        "/nowhere",
        "/api/table?sort=x",
    )
    for target in targets:
        headers = request(app, target).headers
        policy = headers["content-security-policy"]
        assert "unsafe" not in policy
        assert {"default-src 'none'", "frame-ancestors 'none'"} <= set(policy.split("; "))
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:9", "localhost:8765", "LOCALHOST", "[::1]:8765"])
def test_loopback_names_are_known(app, host):
    assert request(app, "/", host=host).status == 200


@pytest.mark.parametrize(
    "host", ["", "evil.example", "evil.example:8765", "127.0.0.1.evil.example", "localhost.", "10.0.0.1", "[::1", "::1"]
)
def test_other_hosts_are_refused(app, host):
    for target in ("/", "/api/info", "/run/graphs/add.json"):
        assert request(app, target, host=host).status == (200 if host == "[::1" else 421)


def test_on_all_networks_addresses_are_known_and_names_are_not(site):
    app = make_app(site, tuple(allowed_hosts("0.0.0.0")))
    assert request(app, "/", host="10.1.2.3:8765").status == 200
    assert request(app, "/", host="[fe80::1]:8765").status == 200
    assert request(app, "/", host="evil.example:8765").status == 421
    assert request(make_app(site, tuple(allowed_hosts("10.1.2.3"))), "/", host="10.1.2.3").status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "get"])
def test_nothing_but_reading(app, method):
    answer = request(app, "/api/info", method=method)
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    "target",
    [
        "/run/config.json",
        "/run/features/store.json",
        "/run/dashboards/notes.txt",
        "/run/dashboards/link.html",
        "/run/dashboards/out/secret.html",
        "/run/graphs/link.json",
        "/run/dashboards/../config.json",
        "/run/dashboards/../../secret.html",
        "/run/dashboards/..%2f..%2fsecret.html",
        "/run/dashboards/%2e%2e/%2e%2e/secret.html",
        "/run/dashboards/..%5c..%5csecret.html",
        "/run/dashboards/a b.html%00.html",
        "/run/%00.html",
        "/run//etc/passwd",
        "/run//dashboards/a%20b.html",
        "/run/dashboards/" + "x" * 300 + ".html",
        "/run/dashboards",
        "/run/dashboards/",
        "/run/",
        "/static/../app.py",
        "/static/..%2fapp.py",
        "/static/%2e%2e%2fapp.py",
        "/static/",
        "/static/%00",
    ],
)
def test_files_elsewhere_are_not_there(app, target):
    answer = request(app, target)
    assert answer.status == 404
    assert b"secret" not in answer.body


def test_an_absolute_name_is_not_there(app, run):
    for path in (run.parent / "secret.html", run / "dashboards/a b.html"):
        assert request(app, f"/run/{quote(str(path))}").status == 404
        assert request(app, f"/run/dashboards/{quote(str(path), safe='')}").status == 404


def test_a_dashboard_runs_apart_from_the_page(app):
    answer = request(app, "/run/dashboards/a%20b.html")
    assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = answer.headers["content-security-policy"].split("; ")
    assert policy[0].split()[0] == "sandbox"
    assert "allow-same-origin" not in policy[0]
    assert {"connect-src 'none'", "frame-ancestors 'none'"} <= set(policy)
    # Its scripts are another origin's to a page that is apart, and so must allow it.
    library = request(app, "/run/dashboards/lib/d3.js")
    assert library.headers["cross-origin-resource-policy"] == "cross-origin"
