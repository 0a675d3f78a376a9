"""The only room with sockets: speaks SMTP and TLS with a server and returns frozen observations, never a judgement.

`session` is one SMTP connection, `probe` says what a probe is and holds the declarative dialogues, `tls` looks at
handshakes without the local OpenSSL's policy in between.
"""
