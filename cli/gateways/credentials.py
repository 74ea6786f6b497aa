"""What Envoy sends to a model's server to be let in: a file or a variable has it, and what the client sent goes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from cli.called import CalledWrongly
from cli.gateways import api, parts
from cli.gateways.place import Place, Upstream
from decisions.model import Credential

INJECTOR = "envoy.filters.http.credential_injector"
CODEC = "envoy.filters.http.upstream_codec"
REMOVER: Final = "envoy.filters.http.header_mutation"
CLIENTS: Final = ("authorization", "x-api-key", "api-key", "x-goog-api-key")
"""Headers in which clients of these APIs send a key of their own: OpenAI's, Anthropic's, Azure's, Google's."""
QUERY: Final = "key"
"""The parameter of a path that Google's API takes a key from."""


def add(cluster: api.cluster.Cluster, server: Upstream, place: Place) -> None:
    """Let `cluster` send the credential of `server`, if it has one, and none of the client's. Raises CalledWrongly
    where `place` does not say where it is found.

    It is added in the cluster, so that every request to the server has it, and nothing before the cluster (the router,
    the access log) sees it.
    """
    if server.credential is None:
        return
    credential = injector(server.key, server.credential, place)
    filters = [
        api.hcm.HttpFilter(name=REMOVER, typed_config=parts.pack(_remover())),
        api.hcm.HttpFilter(name=INJECTOR, typed_config=parts.pack(credential)),
        api.hcm.HttpFilter(name=CODEC, typed_config=parts.pack(api.upstream_codec.UpstreamCodec())),
    ]
    http1 = api.http.HttpProtocolOptionsExplicitHttpConfig(http_protocol_options=api.core.Http1ProtocolOptions())
    options = api.http.HttpProtocolOptions(explicit_http_config=http1, http_filters=filters)
    cluster.typed_extension_protocol_options = {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": parts.pack(options)
    }


def _remover() -> api.header_mutation.HeaderMutation:
    mutations = api.header_mutation.Mutations(
        request_mutations=[api.mutation_rules.HeaderMutation(remove=name) for name in CLIENTS],
        query_parameter_mutations=[api.core.KeyValueMutation(remove=QUERY)],
    )
    return api.header_mutation.HeaderMutation(mutations=mutations)


def injector(key: str, credential: Credential, place: Place) -> api.credential_injector.CredentialInjector:
    """The filter that sends `credential` to the server of model `key`; without it the request is answered with 401.

    Envoy finds it in `SECRET/KEY.yaml` of the folder `place.secrets`, under the name of its key (SDS in a file, which
    holds one secret), and follows a new file; or else in an environment variable. Raises CalledWrongly when neither is
    said.
    """
    generic = api.generic_credential.Generic(
        credential=_source(key, credential, place),
        header=credential.header,
        header_value_prefix=credential.prefix,
    )
    extension = api.core.TypedExtensionConfig(
        name="envoy.http.injected_credentials.generic", typed_config=parts.pack(generic)
    )
    return api.credential_injector.CredentialInjector(overwrite=True, credential=extension)


def _source(key: str, credential: Credential, place: Place) -> api.tls.SdsSecretConfig:
    name, file = credential.env, f"{place.variables}/{credential.env}.yaml"
    if place.secrets is not None and credential.secret:
        name, file = credential.key, f"{place.secrets.rstrip('/')}/{credential.secret}/{credential.key}.yaml"
    elif not credential.env:
        file = f"{credential.secret}/{credential.key}.yaml"
        raise CalledWrongly(
            f"model {key}: say with --secrets in which folder Envoy finds its credential, {file}, or in the policy "
            "with `env: VARIABLE` in which environment variable"
        )
    elif place.variables is None:
        return api.tls.SdsSecretConfig(name=name)  # one of the bootstrap's
    path = api.core.PathConfigSource(path=file)
    return api.tls.SdsSecretConfig(name=name, sds_config=api.core.ConfigSource(path_config_source=path))


def variables(servers: Iterable[Upstream], place: Place) -> list[str]:
    """The environment variables from which Envoy takes credentials."""
    given = (server.credential for server in servers if server.credential is not None)
    return list(dict.fromkeys(one.env for one in given if one.env and not (place.secrets and one.secret)))


def from_environment(servers: Iterable[Upstream], place: Place) -> Iterator[api.tls.Secret]:
    """The secrets of Envoy's bootstrap: what is in environment variables of its own."""
    for name in variables(servers, place) if place.variables is None else ():
        yield secret(name)


def secret(variable: str) -> api.tls.Secret:
    """What is in an environment variable of Envoy's, as a secret of its name."""
    return api.tls.Secret(
        name=variable, generic_secret=api.tls.GenericSecret(secret=api.core.DataSource(environment_variable=variable))
    )
