"""The PEM files of the ext_proc port's TLS."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files of the server's identity, read again for new connections once a file changes (cert-manager, SPIFFE).

    With `client_ca` a client must show a certificate that one of its authorities signed (mTLS); with `client_sans` that
    certificate must carry one of these names too (DNS names, or URIs such as SPIFFE IDs, each compared as a whole), or
    the client gets PERMISSION_DENIED.
    """

    certificate: str
    key: str
    client_ca: str | None = None
    client_sans: tuple[str, ...] = ()

    def paths(self) -> tuple[str, ...]:
        return (self.certificate, self.key) if self.client_ca is None else (self.certificate, self.key, self.client_ca)

    def stamp(self) -> tuple[tuple[int, int, int] | None, ...]:
        """What `stat` says of the files, symlinks followed; it differs once one of them has changed."""
        return tuple(map(_stamp, self.paths()))

    def read(self) -> list[bytes]:
        """What is in the files now, in the order of `paths`.

        Raises ValueError, with the files' names, when one cannot be read or the key is not the certificate's.
        """
        try:
            check = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            check.load_cert_chain(self.certificate, self.key, password=lambda: b"")
            if self.client_ca is not None:
                check.load_verify_locations(self.client_ca)
            return [Path(path).read_bytes() for path in self.paths()]
        except OSError as error:  # ssl.SSLError is one
            raise ValueError(f"TLS files {', '.join(self.paths())}: {error}") from error


def _stamp(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
