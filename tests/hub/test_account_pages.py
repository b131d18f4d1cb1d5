"""Signing in, tokens, the administration, and what every page carries."""

import re

import pytest
from django.contrib import admin
from django.test import Client, RequestFactory
from django.urls import reverse
from django.views.defaults import server_error

from hub.accounts import patience
from hub.accounts.models import Token

TOKENS = "/accounts/tokens/"


def test_signing_in_leads_back_to_where_one_came_from(client, alice):
    form = {"username": "alice", "password": "wonderland", "next": "/jobs/"}

    assert client.post(reverse("accounts:sign-in"), form)["Location"] == "/jobs/"


def test_signing_in_never_leads_to_another_host(client, alice):
    form = {"username": "alice", "password": "wonderland", "next": "https://evil.example/"}

    assert client.post(reverse("accounts:sign-in"), form)["Location"] == "/"


@pytest.mark.django_db
def test_a_wrong_password_is_refused_with_a_sentence(client):
    response = client.post(reverse("accounts:sign-in"), {"username": "alice", "password": "no"})

    assert response.status_code == 422
    assert b"Please enter a correct username and password" in response.content


@pytest.mark.parametrize("page", ["accounts:sign-in", "admin:login"])
def test_passwords_cannot_be_guessed_for_ever(client, grace, page):
    def sign_in(password, **options):
        form = {"username": "grace", "password": password}
        return client.post(reverse(page), form, **options)

    for attempt in range(patience.MOST):
        assert b"Wait 15 minutes" not in sign_in(f"guess {attempt}").content

    assert b"There were 10 wrong passwords. Wait 15 minutes" in sign_in("hopper").content
    assert sign_in("hopper", REMOTE_ADDR="10.0.0.9").status_code == 302


def test_whoever_signs_in_may_mistype_again(client, alice):
    address = reverse("accounts:sign-in")
    for _ in range(3):
        for password in ["no"] * (patience.MOST - 1) + ["wonderland"]:
            response = client.post(address, {"username": "alice", "password": password})
        assert response.status_code == 302
        client.logout()


def test_signing_out_needs_a_post(client, alice):
    client.force_login(alice)

    assert client.get(reverse("accounts:sign-out")).status_code == 405
    client.post(reverse("accounts:sign-out"))
    assert "_auth_user_id" not in client.session


@pytest.mark.parametrize("headers", [{}, {"HX-Request": "true"}])
def test_a_new_token_is_shown_once_on_the_page_that_follows_and_works(client, alice, headers):
    client.force_login(alice)

    answer = client.post(TOKENS, {"name": "laptop", "scope": "write"}, headers=headers)
    content = client.get(TOKENS).content.decode()
    secret = re.search(r"hf_\w{37}", content).group()

    assert (answer.get("Location") or answer["HX-Redirect"]) == TOKENS
    assert Token.objects.for_secret(secret).user == alice
    assert secret not in client.get(TOKENS).content.decode()


def test_only_staff_may_make_a_token_that_administers(client, alice, grace):
    client.force_login(alice)
    assert client.post(TOKENS, {"name": "x", "scope": "admin"}).status_code == 422

    client.force_login(grace)
    assert client.post(TOKENS, {"name": "x", "scope": "admin"}).status_code == 302


@pytest.mark.parametrize("name", ["", "  ", "Test", "x" * 81])
def test_a_token_needs_a_name_that_tells_it_from_ones_others(client, alice, token, name):
    token("write")
    client.force_login(alice)

    assert client.post(TOKENS, {"name": name, "scope": "write"}).status_code == 422
    assert Token.objects.count() == 1


def test_two_people_may_give_their_tokens_one_name(client, bob, token):
    token("write")
    client.force_login(bob)

    assert client.post(TOKENS, {"name": "test", "scope": "write"}).status_code == 302


def test_nobody_can_revoke_somebody_elses_token(client, alice, bob, token):
    token("write")
    address = reverse("accounts:revoke", args=[Token.objects.get().pk])
    for user, left in ((bob, 1), (alice, 0)):
        client.force_login(user)
        client.post(address)
        assert Token.objects.count() == left


def test_a_changed_password_works_and_the_old_one_does_not(client, alice):
    client.force_login(alice)
    form = {
        "old_password": "wonderland",
        "new_password1": "looking-glass-7",
        "new_password2": "looking-glass-7",
    }

    client.post(reverse("accounts:password"), form)

    alice.refresh_from_db()
    assert alice.check_password("looking-glass-7")


@pytest.mark.parametrize("address", ["/", "/jobs/", "/accounts/sign-in/", "/nothing"])
@pytest.mark.django_db
def test_every_page_forbids_scripts_of_others_and_has_none_inline(client, address):
    response = client.get(address)

    assert "default-src 'self'" in response["Content-Security-Policy"]
    assert not re.search(rb"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=", response.content)
    assert not re.search(rb'(src|href)="(https?:)?//', response.content)


@pytest.mark.django_db
def test_a_form_without_its_mark_gets_a_page_that_says_what_to_do(alice):
    response = Client(enforce_csrf_checks=True).post(reverse("accounts:sign-in"), {"username": "alice"})

    assert response.status_code == 403
    assert b"The form has expired" in response.content


def test_a_fault_of_ours_has_a_page_that_needs_nothing():
    """It is rendered without a request, so it must not rely on one."""
    response = server_error(RequestFactory().get("/"))

    assert response.status_code == 500
    assert b"Something went wrong here" in response.content


@pytest.mark.parametrize(
    "model", [model for model in admin.site._registry if model.__module__.startswith("hub.")]
)
def test_each_record_can_be_found_in_the_administration(client, grace, quant, job, token, model):
    token("read")
    client.force_login(grace)
    name = f"admin:{model._meta.app_label}_{model._meta.model_name}"

    assert client.get(reverse(f"{name}_changelist"), {"q": "a"}).status_code == 200
    for row in model.objects.all()[:1]:
        assert client.get(reverse(f"{name}_change", args=[row.pk])).status_code == 200
