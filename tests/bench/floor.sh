#!/bin/bash
# The floor: what a person who has the finished files would type on a fresh Debian. The files come as a tar on stdin.
set -e
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
apt-get -qq -y --no-install-recommends install openssl nftables dovecot-core dovecot-lmtpd postfix postfix-pcre >/dev/null
useradd --system --home-dir /var/vmail --shell /usr/sbin/nologin vmail
install -d -o vmail -g vmail -m 0700 /var/vmail
tar -C / -xf - --no-same-owner
chgrp dovecot /etc/dovecot/users
for table in vmailbox virtual sender_logins own_domains; do postmap hash:/etc/postfix/$table; done
newaliases
systemctl enable --now -q nftables
systemctl restart dovecot
systemctl restart postfix
