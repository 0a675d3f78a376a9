# Copyright: Gatepost contributors
# MIT licence (see LICENSE)
"""Judge, sign and place a server's certificate. Runs on the controller; the module of the same name has the options."""

from __future__ import annotations

import datetime
import fcntl
import itertools
import os
import tempfile
from pathlib import Path

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID

LEAF_DAYS = 90
# The verifier fails a certificate that has 14 days left (CRT-03); 30 leave time for a run that did not happen.
RENEW_DAYS = 30
CA_DAYS = 3650
CA_NAME = "Gatepost lab CA"


def now():
    """Return the time in UTC."""
    return datetime.datetime.now(datetime.UTC)


def fail(found, expected, next_step):
    """Stop the task with the three things that a reader needs."""
    raise AnsibleActionFail(f"{found} Expected: {expected} Next: {next_step}")


def public(key):
    """Return a public key in a form that can be compared."""
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def names(certificate):
    """Return the DNS names of the subjectAltName, lower-cased (RFC 9525: the common name does not count)."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return [name.lower() for name in extension.value.get_values_for_type(x509.DNSName)]


def covers(certificate, hostname):
    """Tell whether a name, or a wildcard for its first label, is the hostname (RFC 9525 section 6.3)."""
    return bool({hostname.lower(), "*." + hostname.lower().partition(".")[2]} & set(names(certificate)))


def issued_by(certificate, issuer):
    """Tell whether the issuer signed the certificate."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def pem(certificate):
    """Return the certificate as PEM text."""
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def judge_files(chain_file, chain, key_file, key, hostname):
    """Raise AnsibleActionFail for the first thing about the given pair that would not serve (CRT-01 to CRT-09)."""
    try:
        certificates = x509.load_pem_x509_certificates(chain.encode())
    except ValueError:
        fail(
            f"{chain_file} holds no PEM certificate.",
            "the certificate, then its intermediates.",
            "correct certificate_chain_file.",
        )
    try:
        private = serialization.load_pem_private_key(key.encode(), password=None)
    except TypeError:
        fail(
            f"{key_file} is encrypted.",
            "a key without passphrase, since Postfix starts unattended.",
            "decrypt it with openssl pkey.",
        )
    except ValueError:
        fail(f"{key_file} holds no PEM private key.", "the certificate's private key.", "correct certificate_key_file.")
    leaf = certificates[0]
    if public(leaf.public_key()) != public(private.public_key()):
        fail(
            f"The key in {key_file} is not the key of the first certificate in {chain_file}, "
            f"{leaf.subject.rfc4514_string()}.",
            "the key with which that certificate was requested; the server's certificate stands first.",
            "correct certificate_key_file or certificate_chain_file.",
        )
    if isinstance(private, rsa.RSAPrivateKey):
        strong = private.key_size >= 2048
    else:
        strong = isinstance(private, ec.EllipticCurvePrivateKey) and private.curve.name in ("secp256r1", "secp384r1")
    if not strong:
        fail(
            f"The key in {key_file} is too weak or of a kind that mail clients do not know.",
            "RSA of 2048 bits or more, or ECDSA on P-256 or P-384 (RFC 9325 section 4.5).",
            "request a certificate for such a key.",
        )
    if not covers(leaf, hostname):
        fail(
            f"{chain_file} is for {', '.join(names(leaf)) or 'no DNS name'}, not for {hostname}.",
            f"{hostname} among the subjectAltNames.",
            "take the right certificate, or correct the hostname.",
        )
    for certificate in certificates:
        who = f"{chain_file}: the certificate of {certificate.subject.rfc4514_string()}"
        if certificate.not_valid_after_utc <= now():
            fail(
                f"{who} expired on {certificate.not_valid_after_utc:%d %b %Y %H:%M} UTC.",
                "one that is valid now.",
                "renew it.",
            )
        if certificate.not_valid_before_utc > now():
            fail(
                f"{who} is valid only from {certificate.not_valid_before_utc:%d %b %Y %H:%M} UTC.",
                "one that is valid now.",
                "wait, or look at the controller's clock.",
            )
        self_signed = certificate.issuer == certificate.subject
        if not self_signed and isinstance(certificate.signature_hash_algorithm, (hashes.SHA1, hashes.MD5)):
            fail(
                f"{who} is signed with {certificate.signature_hash_algorithm.name}.",
                "SHA-256 or better (RFC 9155).",
                "get it issued anew.",
            )
    if leaf.issuer == leaf.subject:
        fail(
            f"{chain_file} is self-signed.",
            "a certificate that clients can verify.",
            "use a CA's, or certificate_source: lab_ca.",
        )
    for certificate, issuer in itertools.pairwise(certificates):
        if not issued_by(certificate, issuer):
            fail(
                f"{chain_file}: {certificate.subject.rfc4514_string()} is followed by "
                f"{issuer.subject.rfc4514_string()}, which did not issue it.",
                "the server's certificate, then each one's issuer.",
                "put the file in that order.",
            )
    extensions = leaf.extensions
    try:
        if extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            fail(
                f"{chain_file}: the first certificate is a CA's.",
                "the server's certificate first.",
                "put the file in order.",
            )
    except x509.ExtensionNotFound:
        pass
    try:
        usage = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        usage = ()
    if ExtendedKeyUsageOID.SERVER_AUTH not in usage:
        fail(
            f"{chain_file} is not for servers.",
            "serverAuth among its extended key usages.",
            "get one issued for a server.",
        )
    try:
        extensions.get_extension_for_oid(ExtensionOID.TLS_FEATURE)
        fail(
            f"{chain_file} asks for OCSP stapling (must-staple).",
            "a certificate without it, since Postfix cannot staple.",
            "get it issued without.",
        )
    except x509.ExtensionNotFound:
        pass
    return leaf


class Authority:
    """The lab's CA: a key and a self-signed certificate in a directory of the controller."""

    def __init__(self, directory):
        """Name the CA's directory."""
        self.directory = directory
        self.certificate_path, self.key_path = self.directory / "ca.pem", self.directory / "ca.key"
        self.certificate = self.key = None

    def load(self):
        """Read the CA. Return False when there is none yet."""
        # The certificate is written last, so a key alone is what an interrupted run left, and nobody trusts it yet.
        if not self.certificate_path.exists():
            return False
        if not self.key_path.exists():
            fail(
                f"{self.directory} holds ca.pem without ca.key.",
                "both, or neither.",
                "restore ca.key; or remove ca.pem for a new CA, which clients must then be given.",
            )
        try:
            self.certificate = x509.load_pem_x509_certificate(self.certificate_path.read_bytes())
            self.key = serialization.load_pem_private_key(self.key_path.read_bytes(), password=None)
        except (ValueError, TypeError) as error:
            fail(
                f"The CA in {self.directory} cannot be read: {error}.",
                "PEM, without passphrase.",
                "restore it; or remove both files for a new CA.",
            )
        if public(self.certificate.public_key()) != public(self.key.public_key()):
            fail(
                f"ca.key and ca.pem in {self.directory} do not belong together.",
                "one pair.",
                "restore it; or remove both files for a new CA.",
            )
        if self.certificate.not_valid_after_utc <= now() + datetime.timedelta(days=LEAF_DAYS):
            fail(
                f"The CA in {self.directory} ends on {self.certificate.not_valid_after_utc:%d %b %Y}.",
                "one that outlives what it signs.",
                "remove both files for a new CA, which clients must then be given.",
            )
        return True

    def make(self):
        """Make the CA, unless the same step for another host has just done so."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.directory / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self.load():
                self._make()

    def _make(self):
        self.key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, CA_NAME)])
        identifier = x509.SubjectKeyIdentifier.from_public_key(self.key.public_key())
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now() - datetime.timedelta(hours=1))
            .not_valid_after(now() + datetime.timedelta(days=CA_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage(certificates=True), critical=True)
            .add_extension(identifier, critical=False)
            .sign(self.key, hashes.SHA256())
        )
        key_text = self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        for path, text, mode in (
            (self.key_path, key_text, 0o600),
            (self.certificate_path, pem(self.certificate).encode(), 0o644),
        ):
            handle, temporary = tempfile.mkstemp(dir=self.directory)
            with os.fdopen(handle, "wb") as stream:
                stream.write(text)
            Path(temporary).chmod(mode)
            Path(temporary).rename(path)

    def why_not(self, chain, request, hostname):
        """Return why the chain on the server will not do for the key of the request, or an empty string."""
        try:
            leaf = x509.load_pem_x509_certificate(chain.encode())
        except ValueError:
            return "there is no certificate yet"
        if not issued_by(leaf, self.certificate):
            return "it is not of this CA"
        if names(leaf) != [hostname.lower()]:
            return f"it is for {', '.join(names(leaf)) or 'no name'}"
        if public(leaf.public_key()) != public(request.public_key()):
            return "its key is another"
        if leaf.not_valid_after_utc - now() < datetime.timedelta(days=RENEW_DAYS):
            return f"it ends on {leaf.not_valid_after_utc:%d %b %Y}"
        return ""

    def sign(self, request, hostname):
        """Return a certificate for the request's key and the hostname, as PEM text."""
        issuer = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        # A common name has 64 characters at most, and clients do not read it; the name that counts is the next one.
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hostname[:64])])
        return pem(
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.certificate.subject)
            .public_key(request.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now() - datetime.timedelta(hours=1))
            .not_valid_after(now() + datetime.timedelta(days=LEAF_DAYS))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(hostname.lower())]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(usage(certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(request.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer), critical=False)
            .sign(self.key, hashes.SHA256())
        )


def usage(*, certificates):
    """Return the key usage of a CA or of a server."""
    return x509.KeyUsage(
        digital_signature=not certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certificates,
        crl_sign=certificates,
        encipher_only=False,
        decipher_only=False,
    )


class ActionModule(ActionBase):
    """Keep the certificate in place: one round trip when it is in order, two when it has to be signed."""

    def run(self, tmp=None, task_vars=None):
        """Run the action."""
        result = super().run(tmp, task_vars)
        _, options = self.validate_argument_spec(
            argument_spec={
                "hostname": {"type": "str", "required": True},
                "source": {"type": "str", "required": True, "choices": ["lab_ca", "files"]},
                "directory": {"type": "path", "required": True},
                "chain_file": {"type": "str", "default": ""},
                "key_file": {"type": "str", "default": ""},
                "ca_dir": {"type": "str", "default": ""},
            }
        )
        place = self._from_files if options["source"] == "files" else self._from_authority
        result.update(place(options, task_vars))
        return result

    def _module(self, task_vars, **arguments):
        done = self._execute_module(module_name=self._task.action, module_args=arguments, task_vars=task_vars)
        if done.get("failed") or done.get("unreachable"):
            raise AnsibleActionFail(done.get("msg", "the module failed"), result=done)
        return done

    def _read(self, path, option):
        if not path:
            fail(
                f"{option} is empty.",
                "a PEM file on the controller, since certificate_source is files.",
                f"set {option}.",
            )
        try:
            # Decrypts what ansible-vault has encrypted.
            real = self._loader.get_real_file(str(Path(path).expanduser()))
            return Path(real).read_text(encoding="ascii")
        except (OSError, ValueError) as error:
            fail(f"{option}: {path} cannot be read: {error}.", "a PEM file on the controller.", f"correct {option}.")

    def _from_files(self, options, task_vars):
        chain = self._read(options["chain_file"], "certificate_chain_file")
        key = self._read(options["key_file"], "certificate_key_file")
        judge_files(options["chain_file"], chain, options["key_file"], key, options["hostname"])
        done = self._module(task_vars, directory=options["directory"], chain=chain, key=key)
        return {
            "changed": done["changed"],
            "reason": f"{', '.join(done['replaced'])} differed" if done["changed"] else "",
        }

    def _from_authority(self, options, task_vars):
        if not options["ca_dir"]:
            fail(
                "certificate_ca_dir is empty.",
                "a directory on the controller, since certificate_source is lab_ca.",
                "set certificate_ca_dir.",
            )
        authority = Authority(Path(options["ca_dir"]).expanduser())
        known = authority.load()
        if not known and not self._task.check_mode:
            authority.make()
            known = True
        done = self._module(task_vars, directory=options["directory"], request=True)
        if not done["csr"] or not known:  # in check mode alone
            return {"changed": True, "reason": "there is no certificate yet"}
        request = x509.load_pem_x509_csr(done["csr"].encode())
        reason = authority.why_not(done["present"], request, options["hostname"])
        if reason and not self._task.check_mode:
            self._module(task_vars, directory=options["directory"], chain=authority.sign(request, options["hostname"]))
        return {"changed": done["changed"] or bool(reason), "reason": reason}
