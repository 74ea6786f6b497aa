"""What Envoy sends to a model's server to be let in: it comes from a file and replaces what the client sent."""

from __future__ import annotations

from cli.gateways import api, parts
from cli.gateways.place import RenderError, Upstream
from decisions.model import Credential

INJECTOR = "envoy.filters.http.credential_injector"
CODEC = "envoy.filters.http.upstream_codec"


def add(cluster: api.cluster.Cluster, server: Upstream, secrets: str | None) -> None:
    """Let `cluster` send the credential of `server`, if it has one. Raises RenderError without a folder of `secrets`.

    It is added in the cluster, so that every request to the server has it, and nothing before the cluster (the router,
    the access log) sees it.
    """
    if server.credential is None:
        return
    filters = [
        api.hcm.HttpFilter(name=INJECTOR, typed_config=parts.pack(injector(server.key, server.credential, secrets))),
        api.hcm.HttpFilter(name=CODEC, typed_config=parts.pack(api.upstream_codec.UpstreamCodec())),
    ]
    http1 = api.http.HttpProtocolOptionsExplicitHttpConfig(http_protocol_options=api.core.Http1ProtocolOptions())
    options = api.http.HttpProtocolOptions(explicit_http_config=http1, http_filters=filters)
    cluster.typed_extension_protocol_options = {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": parts.pack(options)
    }


def injector(key: str, credential: Credential, secrets: str | None) -> api.credential_injector.CredentialInjector:
    """The filter that sends `credential` to the server of model `key`; without it the request is answered with 401.

    Envoy finds it in `SECRET/KEY.yaml` of the folder `secrets`, under the name of its key (SDS in a file, which holds
    one secret), and follows a new file. Raises RenderError when no folder is given.
    """
    file = f"{credential.secret}/{credential.key}.yaml"
    if secrets is None:
        raise RenderError(f"model {key}: say with --secrets in which folder Envoy finds its credential, {file}")
    path = api.core.PathConfigSource(path=f"{secrets.rstrip('/')}/{file}")
    generic = api.generic_credential.Generic(
        credential=api.tls.SdsSecretConfig(
            name=credential.key, sds_config=api.core.ConfigSource(path_config_source=path)
        ),
        header=credential.header,
        header_value_prefix=credential.prefix,
    )
    extension = api.core.TypedExtensionConfig(
        name="envoy.http.injected_credentials.generic", typed_config=parts.pack(generic)
    )
    return api.credential_injector.CredentialInjector(overwrite=True, credential=extension)
