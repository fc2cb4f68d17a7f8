"""`reformer token`: a new bearer token and its hash."""

import json

import click

from reformer_server.credentials import new_token, token_hash


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print both as JSON.")
def token(as_json: bool) -> None:
    """Make a random bearer token for a tenant.

    The token is for the client, its hash for the file that `reformer serve --tenants` names. The token is shown this
    once, and kept nowhere.
    """
    secret = new_token()
    if as_json:
        click.echo(json.dumps({"token": secret, "hash": token_hash(secret)}))
        return
    click.echo(f'token    {secret}\ntokens = ["{token_hash(secret)}"]')
    click.echo(
        "\nThe first line is for the client (REFORMER_TOKEN=...), and isn't shown again; the second one is for the "
        "tenant's table in the file that `reformer serve --tenants` names.",
        err=True,
    )
